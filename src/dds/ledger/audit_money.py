"""Checking a whole state: is every unit of money where it should be, does every counter agree with what it counts?

Decides nothing: it looks at all entries and lists what is wrong. Tests, the state machine of Hypothesis and `dds ledger verify`
use it; no rule does, for it reads everything.
Source: docs/spec/ledger.md, "Conservation".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from dds.ledger.money import held, owed_to_all
from dds.ledger.params import Params
from dds.ledger.records import (
    ACCOUNTS,
    CHAIN,
    CONTRACTS,
    DEPOSITS,
    ENDOWMENTS,
    LANES,
    NODES,
    NUMBERS,
    OPERATORS,
    PAID,
    PARAMS,
    RESERVATIONS,
    SEGMENTS,
    Assignment,
    Chain,
    Contract,
    Endowment,
    Holding,
    Node,
    Segment,
    SponsorEntry,
    Table,
    number_key,
)
from dds.primitives.money import AMOUNT_MAX

Problems = Iterator[str]

COUNTERS: Final[tuple[tuple[Table[Any], tuple[str, ...]], ...]] = (
    (ACCOUNTS, ("balance", "nonce")),
    (OPERATORS, ("bond",)),
    (NODES, ("capacity_bytes", "promised_bytes", "ask_price", "pool_free", "pool_locked", "assignments")),
    (CONTRACTS, ("escrow", "reservations", "segments", "rent_bytes", "reserved", "endowed")),
    (ENDOWMENTS, ("pool", "given", "spent")),
    (DEPOSITS, ("amount", "leaving")),
    (PAID, ("amount",)),
    (CHAIN, ("minted", "burned", "burned_for_subsidy", "treasury", "repair_reserve", "emission_budget", "subsidy_due")),
)  # what may never be negative, nor beyond what an amount can be


@dataclass
class _Recount:
    """What the segments say of their nodes and contracts."""

    collateral: Counter[int] = field(default_factory=Counter)  # by node
    assigned_bytes: Counter[int] = field(default_factory=Counter)
    assignments: Counter[int] = field(default_factory=Counter)
    sponsored: Counter[bytes] = field(default_factory=Counter)  # segments, by contract
    rent_bytes: Counter[bytes] = field(default_factory=Counter)
    subsidy_due: int = 0


def check_state(entries: Iterable[tuple[bytes, Any]]) -> list[str]:
    """Everything that is wrong with a state, given as all its (key, record); empty when it is sound."""
    tables: dict[bytes, dict[bytes, Any]] = defaultdict(dict)
    for key, record in entries:
        tables[key[:1]][key[1:]] = record
    chain, params = tables[CHAIN.prefix].get(b""), tables[PARAMS.prefix].get(b"")
    if chain is None or params is None:
        return ["there is no chain entry or no parameters: genesis was not applied"]
    checks = (_supply(tables, chain, params), _ranges(tables), _numbering(tables, chain), _segments(tables, chain, params))
    return [problem for check in (*checks, _endowments(tables)) for problem in check]


def _supply(tables: dict[bytes, dict[bytes, Any]], chain: Chain, params: Params) -> Problems:
    sums = held((prefix + key, record) for prefix, table in tables.items() for key, record in table.items())
    total, owed = sum(sums.values()), owed_to_all(chain)
    if total != owed:
        parts = ", ".join(f"{name} {amount}" for name, amount in sums.items())
        yield f"conservation: purses hold {total}, genesis + minted - burned is {owed}, {total - owed:+d} ({parts})"
    if chain.genesis_supply + chain.minted + chain.emission_budget > params.supply_cap:
        yield f"supply: {chain.genesis_supply} + {chain.minted} minted + {chain.emission_budget} to mint > {params.supply_cap}"
    if chain.minted > chain.burned_for_subsidy:
        yield f"supply: {chain.minted} were minted for {chain.burned_for_subsidy} burned"
    if chain.burned_for_subsidy > chain.burned:
        yield f"supply: {chain.burned_for_subsidy} burned for subsidies is more than the {chain.burned} burned"


def _ranges(tables: dict[bytes, dict[bytes, Any]]) -> Problems:
    for table, names in COUNTERS:
        for key, record in tables[table.prefix].items():
            for name in names:
                if not 0 <= getattr(record, name) <= AMOUNT_MAX:
                    yield f"range: {table.kind.__name__} {key.hex()[:16]}: {name} is {getattr(record, name)}"
    for role, lane in zip(LANES, tables[CHAIN.prefix][b""].lanes, strict=True):
        for name in lane.__struct_fields__:
            if not 0 <= getattr(lane, name) <= AMOUNT_MAX:
                yield f"range: the {role} nodes' lane: {name} is {getattr(lane, name)}"
    for key, operator in tables[OPERATORS.prefix].items():
        if any(part.amount < 0 for part in operator.unbonding):
            yield f"range: operator {key.hex()[:16]} has a negative amount unbonding"
    for key, segment in tables[SEGMENTS.prefix].items():
        amounts = [amount for sponsor in segment.sponsors for amount in (sponsor.prepaid, sponsor.reserve, sponsor.subsidy)]
        if min(amounts + [assignment.collateral for assignment in segment.assignments], default=0) < 0:
            yield f"range: segment {key.hex()[:16]} holds a negative amount"


def _numbering(tables: dict[bytes, dict[bytes, Any]], chain: Chain) -> Problems:
    """Nodes are numbered without gaps, and their ids, their operators and they themselves agree."""
    nodes: dict[bytes, Node] = tables[NODES.prefix]
    if sorted(nodes) != [number_key(number) for number in range(chain.nodes)]:
        yield f"nodes: {len(nodes)} entries, but {chain.nodes} were registered"
    for key, node in nodes.items():
        named = tables[NUMBERS.prefix].get(node.node_id)
        if number_key(node.number) != key or named is None or named.number != node.number:
            yield f"nodes: node {node.number} is not found by its number and id"
        operator = tables[OPERATORS.prefix].get(node.operator)
        if operator is None or node.number not in operator.nodes:
            yield f"nodes: node {node.number} is not among its operator's"


def _segments(tables: dict[bytes, dict[bytes, Any]], chain: Chain, params: Params) -> Problems:
    """Segments themselves, then whether nodes and contracts count them rightly."""
    recount = _Recount()
    for key, segment in tables[SEGMENTS.prefix].items():
        _count(segment, recount)
        for problem in _sponsors(segment, tables[CONTRACTS.prefix], params):
            yield f"segment {key.hex()[:16]}: {problem}"
    yield from _node_sums(tables[NODES.prefix].values(), recount)
    yield from _contract_sums(tables, recount)
    if chain.subsidy_due != recount.subsidy_due:
        yield f"supply: {chain.subsidy_due} of subsidies are due an epoch, the sponsors' rates sum to {recount.subsidy_due}"


def _contract_sums(tables: dict[bytes, dict[bytes, Any]], recount: _Recount) -> Problems:
    earmarked: Counter[bytes] = Counter()
    for reservation in tables[RESERVATIONS.prefix].values():
        earmarked[reservation.contract] += reservation.earmarked
    contracts: dict[bytes, Contract] = tables[CONTRACTS.prefix]
    for key, contract in contracts.items():
        name = f"contract {key.hex()[:16]}"
        if contract.segments != recount.sponsored[key]:
            yield f"{name}: counts {contract.segments} segments, sponsors {recount.sponsored[key]}"
        if contract.rent_bytes != recount.rent_bytes[key]:
            yield f"{name}: counts {contract.rent_bytes} bytes, sponsors {recount.rent_bytes[key]}"
        if contract.reserved != earmarked[key]:
            yield f"{name}: {contract.reserved} reserved, its reservations earmark {earmarked[key]}"
        if contract.cancelled_epoch < 0 and contract.reserved > contract.escrow:  # a cancelled one's reservations hold nothing
            yield f"{name}: {contract.reserved} reserved of an escrow of {contract.escrow}"
        if contract.endowed > contract.escrow:
            yield f"{name}: {contract.endowed} of an escrow of {contract.escrow} from its endowment"


def _count(segment: Segment, recount: _Recount) -> None:
    for assignment in segment.assignments:
        if is_held(assignment):
            recount.collateral[assignment.node] += assignment.collateral
            recount.assigned_bytes[assignment.node] += assignment.bytes
            recount.assignments[assignment.node] += 1
    for sponsor in segment.sponsors:
        recount.sponsored[sponsor.contract] += 1
        recount.subsidy_due += sponsor.subsidy_rate
        recount.rent_bytes[sponsor.contract] += _stored_bytes(segment, sponsor.stripes)


def _stored_bytes(segment: Segment, stripes: int) -> int:
    """Of these stripes (a bitmap), all fragments."""
    sizes = [(run.k + run.m) * run.slot_bytes for run in segment.stripes for _ in range(run.count)]
    return sum(size for number, size in enumerate(sizes) if stripes >> number & 1)


def is_held(assignment: Assignment) -> bool:
    return assignment.state != Holding.FREED


def _sponsors(segment: Segment, contracts: dict[bytes, Contract], params: Params) -> Problems:
    names = [sponsor.contract for sponsor in segment.sponsors]
    if len(names) != len(set(names)) or len(names) > params.sponsors_max:
        yield f"{len(names)} sponsors, {len(set(names))} different ones, at most {params.sponsors_max} allowed"
    for sponsor in segment.sponsors:
        yield from _sponsor(sponsor, segment, contracts)
    holders = [assignment.node for assignment in segment.assignments if is_held(assignment)]
    if len(holders) != len(set(holders)):
        yield f"a node holds two indices: {holders}"


def _sponsor(sponsor: SponsorEntry, segment: Segment, contracts: dict[bytes, Contract]) -> Problems:
    name = sponsor.contract.hex()[:16]
    if sponsor.contract not in contracts:
        yield f"its sponsor {name} is no contract"
    there = (1 << sum(run.count for run in segment.stripes)) - 1
    if not 0 < sponsor.stripes <= there or sponsor.stripes & segment.released:
        yield f"its sponsor {name} pays for stripes {sponsor.stripes:b} of {there:b}, released {segment.released:b}"


def _node_sums(nodes: Iterable[Node], recount: _Recount) -> Problems:
    known = set()
    for node in nodes:
        number = node.number
        known.add(number)
        if node.pool_locked != recount.collateral[number]:
            yield f"node {number}: {node.pool_locked} locked, its assignments' collateral is {recount.collateral[number]}"
        if node.assignments != recount.assignments[number]:
            yield f"node {number}: counts {node.assignments} assignments, holds {recount.assignments[number]}"
        if node.promised_bytes < recount.assigned_bytes[number]:
            yield f"node {number}: {node.promised_bytes} bytes promised, {recount.assigned_bytes[number]} assigned"
    for number in sorted(set(recount.assignments) - known):
        yield f"node {number}: holds assignments and is not registered"


def _endowments(tables: dict[bytes, dict[bytes, Any]]) -> Problems:
    pools: dict[bytes, Endowment] = tables[ENDOWMENTS.prefix]
    for key, endowment in pools.items():
        if endowment.given != endowment.pool + endowment.spent:
            yield f"endowment {key.hex()[:16]}: given {endowment.given}, spent {endowment.spent}, left {endowment.pool}"
        if key not in tables[CONTRACTS.prefix]:
            yield f"endowment {key.hex()[:16]}: there is no such contract"

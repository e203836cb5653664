"""The market: what nodes ask, what was bought, and from both the next epoch's one price in each lane.

Decides the clearing price and the reference price at each epoch's end, in one lane for storage nodes and one for archive
nodes: each has its asks, its demand and its prices, and a node of both roles sells in both. A buy happens at once, at the price
that stands, among the asks at or below it (`weights.screen`); what an epoch bought only moves the price of the next. The
creator's own limit is checked where it buys: no rule here can make anybody pay more than that.
Source: docs/spec/ledger.md, "Market".
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Protocol

from dds.erasure.geometry import ARCHIVE, STANDARD
from dds.ledger.params import RATE_DIVISOR, Params
from dds.ledger.records import (
    CHAIN,
    LANES,
    NODES,
    OPERATORS,
    PARAMS,
    STANDINGS,
    Chain,
    Lane,
    Node,
    NodeStatus,
    Operator,
    Standing,
    Table,
    number_key,
)
from dds.ledger.rules.standing import is_suspended
from dds.ledger.state import State
from dds.placement.roles import ASN, SSN, STORAGE_ROLES
from dds.primitives.money import AMOUNT_MAX, MILLION, mul_div_ceil, share_ppm
from dds.primitives.units import MIB

WIDTHS: Final = {SSN: STANDARD.n, ASN: ARCHIVE.n}  # nodes that must be had at the price: those of one segment
LANE_NAMES: Final = {SSN: "standard", ASN: "archive"}  # for people
OFFER_BYTES_MIN: Final = MIB  # who has room or collateral for less offers nothing
PRICE_MIN: Final = 1  # a price of 0 could never rise by a share of itself


class Reader(Protocol):
    def find(self, table: Table[Any], identifier: bytes = b"") -> Any: ...


@dataclass(frozen=True, slots=True, order=True)
class Ask:
    """What a node offers now; in the market's order, the cheapest first."""

    price: int  # per MiB-epoch
    number: int
    operator: bytes
    bond: int  # its operator's
    free_bytes: int  # room that its collateral pool can back as well
    term_epochs_max: int
    roles: tuple[str, ...]  # the storing ones, ascending: in which lanes it stands


# -- asks -------------------------------------------------------------------------------------------------------------------


def asks(reader: Reader) -> list[Ask]:
    """The standing asks, the cheapest first."""
    chain: Chain = reader.find(CHAIN)
    return asks_at(reader, chain.epoch)


def asks_at(reader: Reader, epoch: int) -> list[Ask]:
    """The asks that stand in `epoch` if nobody does anything until then."""
    chain, params = reader.find(CHAIN), reader.find(PARAMS)
    found = []
    for number in range(chain.nodes):
        key = number_key(number)
        node: Node = reader.find(NODES, key)
        ask = ask_of(node, reader.find(OPERATORS, node.operator), params, epoch)
        if ask and not is_suspended(reader.find(STANDINGS, key) or Standing(), params, epoch):
            found.append(ask)
    return sorted(found)


def ask_of(node: Node, operator: Operator | None, params: Params, epoch: int) -> Ask | None:
    """What this node offers; None where it could not be drawn in `epoch`, whatever the price. Suspension is not looked at."""
    if node.status != NodeStatus.ACTIVE or STORAGE_ROLES.isdisjoint(node.roles):
        return None
    if operator is None or operator.bond == 0 or operator.jailed_until > epoch:
        return None
    price = max(node.ask_price, PRICE_MIN)
    backed = node.pool_free * RATE_DIVISOR // max(1, price * params.collateral_epochs)
    free = min(node.capacity_bytes - node.promised_bytes, backed)
    if free < OFFER_BYTES_MIN:
        return None
    roles = tuple(role for role in node.roles if role in STORAGE_ROLES)
    return Ask(price, node.number, node.operator, operator.bond, free, node.term_epochs_max, roles)


# -- the epoch's end --------------------------------------------------------------------------------------------------------


def clear(state: State, ending: int, beginning: int) -> None:
    """The prices of the epoch that begins, from what the one that ends has bought; any epochs between bought nothing."""
    lanes = dict(zip(LANES, state.chain.lanes, strict=True))
    demands = {role: Demand(lane.demand_bytes, lane.demand_price_max) for role, lane in lanes.items()}
    for first, end in _spans(state, ending + 1, beginning + 1):
        standing = asks_at(state, first)
        for role in LANES:
            offers = [ask for ask in standing if role in ask.roles]
            lanes[role] = _cleared(state.params, lanes[role], offers, demands[role], WIDTHS[role], end - first)
        demands = dict.fromkeys(LANES, NO_DEMAND)
    for role, before in zip(LANES, state.chain.lanes, strict=True):
        after = lanes[role]
        if (after.price, after.reference) != (before.price, before.reference):
            moved = f"{after.price} per MiB-epoch from epoch {beginning} on, before {before.price}; reference {after.reference}"
            state.emit("price", detail=f"{LANE_NAMES[role]}: {moved}")
    state.set_chain(lanes=tuple(lanes.values()))


def _cleared(params: Params, lane: Lane, offers: Sequence[Ask], demand: Demand, width: int, epochs: int) -> Lane:
    """So many epochs in which these asks stand, the first of them with `demand`."""
    price, reference = lane.price, lane.reference
    target = percentile_price(offers, params.reference_percentile_ppm)
    least = percentile_price(offers, MILLION - params.reference_percentile_ppm) or PRICE_MIN
    for _ in range(epochs):
        before = price, reference
        reference = next_reference(reference, target, params.reference_step_ppm)
        price = next_price(offers, demand, price, least, ceiling(reference, params), width)
        demand = NO_DEMAND
        if (price, reference) == before:
            break  # nothing moves any more before the asks do
    return Lane(price=price, reference=reference)


def _spans(state: State, first: int, end: int) -> Iterator[tuple[int, int]]:
    """[first, end) cut into ranges of epochs in which the same asks stand.

    In a pause an operator may leave jail, and with each downtime window an old one is forgotten, until all are.
    """
    window = state.params.downtime_window_epochs
    turns = range((first // window + 1) * window, end, window)
    cuts = {first, end, *turns[: state.params.downtime_windows + 2]}
    for node in state.nodes() if end - first > 1 else ():
        operator = state.find(OPERATORS, node.operator)
        if operator and first < operator.jailed_until < end:
            cuts.add(operator.jailed_until)
    return pairwise(sorted(cuts))


@dataclass(frozen=True, slots=True)
class Demand:
    """What was reserved in an epoch, and the highest limit among those who did."""

    bytes: int
    price_max: int


NO_DEMAND: Final = Demand(0, 0)


def ceiling(reference: int, params: Params) -> int:
    """No clearing price is above."""
    return min(AMOUNT_MAX, max(PRICE_MIN, reference * params.price_ceiling_multiple))


def percentile_price(offers: Sequence[Ask], share: int) -> int | None:
    """The least price at which `share` (ppm) of the bonds behind all asks ask no more. None where nobody asks.

    An operator's bond is split evenly over its asks: many nodes behind one bond weigh as much as one.
    """
    behind = Counter(ask.operator for ask in offers)
    weights = [ask.bond // behind[ask.operator] for ask in offers]
    needed, reached = mul_div_ceil(sum(weights), share, MILLION), 0
    for ask, weight in zip(offers, weights, strict=True):
        reached += weight
        if reached >= needed:
            return ask.price
    return None


def next_reference(reference: int, target: int | None, step_ppm: int) -> int:
    """Towards the target by at most a share of itself; one unit always, or a small one could never move."""
    if target is None:
        return reference
    step = max(1, share_ppm(reference, step_ppm))
    return max(PRICE_MIN, reference - step, min(target, reference + step))


def next_price(offers: Sequence[Ask], demand: Demand, price: int, least: int, most: int, width: int) -> int:
    """The uniform price: the highest ask among the cheapest that cover the demand. Without demand it stays where it is.

    Never above `most`. Never below `least`, nor below what it takes to have `width` nodes to draw from (or as many as `most`
    can buy): a price below the asks sells nothing, so no demand would ever show that it is too low. Where nobody asks at all
    there is nothing to rise to.
    """
    wanted = _covering_price(offers, demand.bytes, min(demand.price_max, most)) if demand.bytes else price
    affordable = bisect_right([ask.price for ask in offers], most)
    draws = offers[min(width, affordable) - 1].price if affordable else most if offers else PRICE_MIN
    return min(most, max(PRICE_MIN, wanted, least, draws))


def _covering_price(offers: Sequence[Ask], needed: int, most: int) -> int:
    """The highest ask that is accepted when the cheapest are, until there are enough bytes; `most` where they are too few."""
    for ask in offers:
        needed -= ask.free_bytes
        if needed <= 0:
            return min(most, ask.price)
    return most

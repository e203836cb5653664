"""The whole state's audit: sound states pass, and each kind of damage is named."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from dds.ledger.audit_money import check_state
from dds.ledger.records import (
    ACCOUNTS,
    CHAIN,
    CONTRACTS,
    DEPOSITS,
    ENDOWMENTS,
    NODES,
    NUMBERS,
    OPERATORS,
    RESERVATIONS,
    SEGMENTS,
    Account,
    Assignment,
    Holding,
    Lane,
    Reservation,
    Segment,
    SponsorEntry,
    Table,
    Unbonding,
    contract_id,
    number_key,
)
from dds.primitives.money import AMOUNT_MAX, TOKEN
from dds.wire.ledger import Deposit, Endow, StripeRun
from tests.money_ledger import ANNA, BERT, MoneyLedger, genesis_node, key_of

CONTRACT = contract_id(ANNA.public, "standard")
SEGMENT = b"s" * 32
Entries = dict[bytes, Any]


@pytest.fixture
def entries() -> Entries:
    """Two nodes of Bert's hold a segment of two fragments for Anna, who has a deposit and an endowment besides."""
    ledger = MoneyLedger(genesis_node("one", BERT), genesis_node("two", BERT))
    ledger.contract(ANNA)
    assert ledger.do(ANNA, Deposit(100)).ok and ledger.do(ANNA, Endow(CONTRACT, 50)).ok
    found: Entries = dict(ledger.entries())
    held = [Assignment(number, Holding.ACTIVE, 10, 1, collateral=7) for number in (0, 1)]
    sponsor = SponsorEntry(CONTRACT, 1, price=1, start_epoch=0, end_epoch=9, prepaid=30, reserve=3, subsidy=4, subsidy_rate=2)
    stripes = (StripeRun(1, 1, 1, 10),)
    found[SEGMENTS.key(SEGMENT)] = Segment(bytes(32), bytes(32), bytes(32), 1, 1, stripes, 0, tuple(held), (sponsor,), 0)
    found[RESERVATIONS.key(bytes(32))] = Reservation(CONTRACT, 1, 9, 10, (0, 1), (), earmarked=5)
    _change(found, CONTRACTS, CONTRACT, escrow=40, segments=1, rent_bytes=20, reserved=5)
    _change(found, CHAIN, b"", subsidy_due=2)
    _change(found, ACCOUNTS, ANNA.public, balance=1_000 * TOKEN - 100 - 50 - 73)
    for number in (0, 1):
        node = found[NODES.key(number_key(number))]
        _change(
            found,
            NODES,
            number_key(number),
            pool_free=node.pool_free - 7,
            pool_locked=7,
            assignments=1,
            promised_bytes=15,
        )
    return found


def _change(entries: Entries, table: Table[Any], identifier: bytes, **changes: Any) -> None:
    key = table.key(identifier)
    entries[key] = replace(entries[key], **changes)


def test_a_sound_state_has_no_problems(entries: Entries) -> None:
    assert check_state(entries.items()) == []


@pytest.mark.parametrize(
    ("table", "identifier", "changes", "problem"),
    [
        (ACCOUNTS, BERT.public, {"balance": 1_000 * TOKEN + 1}, "conservation"),
        (DEPOSITS, ANNA.public, {"leaving": 1}, "conservation"),
        (CHAIN, b"", {"treasury": 1}, "conservation"),
        (CHAIN, b"", {"burned": 1}, "conservation"),
        (NODES, number_key(0), {"pool_free": 0}, "conservation"),
        (ACCOUNTS, BERT.public, {"balance": -1}, "range: Account"),
        (CHAIN, b"", {"treasury": -1}, "range: Chain"),
        (CHAIN, b"", {"lanes": (Lane(), Lane(price=-1))}, "the asn nodes' lane: price is -1"),
        (CHAIN, b"", {"lanes": (Lane(demand_bytes=AMOUNT_MAX + 1), Lane())}, "the ssn nodes' lane: demand_bytes"),
        (OPERATORS, BERT.public, {"unbonding": (Unbonding(-1, 0),)}, "negative amount unbonding"),
        (CHAIN, b"", {"emission_budget": 9_000_000 * TOKEN}, "to mint >"),
        (CHAIN, b"", {"minted": 1}, "minted for 0 burned"),
        (CHAIN, b"", {"minted": 2, "burned": 2, "burned_for_subsidy": 1}, "2 were minted for 1 burned"),
        (CHAIN, b"", {"burned_for_subsidy": 1}, "burned for subsidies is more"),
        (CHAIN, b"", {"subsidy_due": 3}, "of subsidies are due"),
        (CHAIN, b"", {"nodes": 3}, "2 entries, but 3 were registered"),
        (NUMBERS, key_of("one").public, {"number": 1}, "node 0 is not found by its number and id"),
        (OPERATORS, BERT.public, {"nodes": (0,)}, "node 1 is not among its operator's"),
        (NODES, number_key(0), {"pool_locked": 8}, "node 0: 8 locked"),
        (NODES, number_key(1), {"assignments": 2}, "node 1: counts 2 assignments, holds 1"),
        (NODES, number_key(1), {"promised_bytes": 9}, "node 1: 9 bytes promised, 10 assigned"),
        (CONTRACTS, CONTRACT, {"segments": 0}, "counts 0 segments, sponsors 1"),
        (CONTRACTS, CONTRACT, {"rent_bytes": 21}, "counts 21 bytes, sponsors 20"),
        (CONTRACTS, CONTRACT, {"reserved": 6}, "6 reserved, its reservations earmark 5"),
        (CONTRACTS, CONTRACT, {"escrow": 4}, "5 reserved of an escrow of 4"),
        (SEGMENTS, SEGMENT, {"sponsors": ()}, "counts 1 segments, sponsors 0"),
        (SEGMENTS, SEGMENT, {"released": 1}, "pays for stripes 1 of 1, released 1"),
        (SEGMENTS, SEGMENT, {"assignments": (Assignment(0, Holding.ACTIVE, 10, 1),) * 2}, "a node holds two indices"),
        (SEGMENTS, SEGMENT, {"assignments": (Assignment(5, Holding.PENDING, 10, 1),)}, "node 5: holds assignments"),
        (ENDOWMENTS, CONTRACT, {"given": 51}, "given 51, spent 0, left 50"),
    ],
)
def test_each_kind_of_damage_is_named(
    entries: Entries, table: Table[Any], identifier: bytes, changes: dict[str, Any], problem: str
) -> None:
    _change(entries, table, identifier, **changes)
    assert any(problem in found for found in check_state(entries.items())), check_state(entries.items())


def test_freed_assignments_are_counted_for_nobody(entries: Entries) -> None:
    held = entries[SEGMENTS.key(SEGMENT)].assignments
    _change(entries, SEGMENTS, SEGMENT, assignments=(replace(held[0], state=Holding.FREED), held[1]))
    found = check_state(entries.items())
    assert len(found) == 2 and all(problem.startswith("node 0: ") for problem in found)


def test_sponsors_are_different_contracts_that_exist(entries: Entries) -> None:
    sponsor = entries[SEGMENTS.key(SEGMENT)].sponsors[0]
    _change(entries, SEGMENTS, SEGMENT, sponsors=(sponsor, replace(sponsor, contract=bytes(32)), sponsor))
    found = " ".join(check_state(entries.items()))
    assert "3 sponsors, 2 different ones" in found and f"its sponsor {'0' * 16} is no contract" in found


def test_a_node_may_not_appear_from_nowhere(entries: Entries) -> None:
    entries[NODES.key(number_key(2))] = replace(entries[NODES.key(number_key(1))], number=2, assignments=0, pool_locked=0)
    assert any("3 entries, but 2 were registered" in problem for problem in check_state(entries.items()))


def test_a_state_without_genesis_is_told_as_such() -> None:
    assert check_state([(ACCOUNTS.key(bytes(32)), Account(1))]) != []
    assert check_state([]) == ["there is no chain entry or no parameters: genesis was not applied"]

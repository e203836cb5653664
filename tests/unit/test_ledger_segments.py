"""Reservations, receipts, and an assignment's life."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from dds.ledger import rent
from dds.ledger.records import RESERVATIONS, SEGMENTS, Holding, NodeStatus, receipt_contract
from dds.ledger.rules import inventory
from dds.ledger.rules.slashing import fault_node
from dds.placement.roles import SSN
from dds.primitives.hashing import sha256
from dds.primitives.units import MIB
from dds.wire.ledger import (
    AddReceipts,
    CancelReservations,
    DrainPool,
    FundPool,
    Loss,
    LossFound,
    Redraw,
    RegisterSegments,
    ReportLoss,
    Reserve,
    Settle,
    StripeRun,
    stripes_hash,
)
from tests.ledger_committee import small_params
from tests.ledger_storage import PRICE, SLOT, STRIPES, TERM, Storage, key_of

ONE = sha256(b"one")


@pytest.fixture
def ledger() -> Storage:
    fresh = Storage()
    fresh.open()
    return fresh


def states(ledger: Storage) -> list[int]:
    return [each.state for each in ledger.segment().assignments]


# -- reservations -----------------------------------------------------------------------------------------------------------


def test_a_draw_names_each_node_once_and_says_which_rules_bend(ledger: Storage) -> None:
    (identifier,) = ledger.reserve()
    found = ledger.reservation(identifier)
    assert len({*found.chosen, *found.spares}) == 6 and len(found.chosen) == 3
    assert any("too few regions" in bend for bend in found.bends)  # all test nodes share one
    assert found.price == ledger.state.chain.lane(SSN).price


def test_a_draw_says_how_many_are_not_vetted(ledger: Storage) -> None:
    ledger.reserve()
    (event,) = ledger.named("reserved")
    assert "vetted" not in event.detail  # all began with the network
    for number in ledger.storing[:4]:
        ledger.state.put_node(replace(ledger.node(number), genesis=False))
    ledger.state.keep()
    (identifier,) = ledger.reserve(width=6)
    assert len(ledger.reservation(identifier).chosen) == 6
    assert "4 of 6 nodes are not vetted yet" in ledger.named("reserved")[-1].detail


def test_the_draw_follows_from_beacon_and_reservation(ledger: Storage) -> None:
    same = Storage()
    same.open()
    assert ledger.reservation(ledger.reserve()[0]).chosen == same.reservation(same.reserve()[0]).chosen
    drawn = {ledger.reservation(each).chosen for each in ledger.reserve(count=16)}
    assert len(drawn) > 8


def test_a_reservation_holds_room_on_the_nodes_chosen_and_on_no_spare(ledger: Storage) -> None:
    (identifier,) = ledger.reserve(size=MIB)
    found = ledger.reservation(identifier)
    assert [ledger.node(number).promised_bytes for number in found.chosen] == [MIB] * 3
    assert [ledger.node(number).promised_bytes for number in found.spares] == [0] * 3


def test_one_reservation_draws_no_node_beyond_its_room(ledger: Storage) -> None:
    for number in ledger.storing:
        ledger.state.put_node(replace(ledger.node(number), capacity_bytes=3 * MIB))
    ledger.state.keep()
    result = ledger.send(ledger.anna, Reserve(ledger.contract_id(), 7, 3, 1, MIB))
    assert result.code == "not-enough-nodes"
    ledger.reserve(count=5, size=MIB)  # 15 of 18 places
    assert all(ledger.node(number).promised_bytes <= 3 * MIB for number in ledger.storing)


def test_one_reservation_draws_no_node_beyond_its_collateral(ledger: Storage) -> None:
    for number in ledger.storing:  # one MiB's collateral is 1440 epochs of its rent
        ledger.ok(ledger.operators[number], DrainPool(number, ledger.node(number).pool_free - 3 * PRICE * 1440))
    assert ledger.send(ledger.anna, Reserve(ledger.contract_id(), 7, 3, 1, MIB)).code == "not-enough-nodes"
    ledger.reserve(count=5, size=MIB)  # 15 of 18 places
    assert all(ledger.node(number).promised_bytes <= 3 * MIB for number in ledger.storing)


def test_no_reservation_holds_more_room_than_a_segment_can_use(ledger: Storage) -> None:
    most = 64 * MIB
    assert ledger.send(ledger.anna, Reserve(ledger.contract_id(), 1, 3, 1, most + 1)).code == "bad-geometry"
    ledger.reserve(size=most)


def test_more_nodes_than_there_are_cannot_be_drawn(ledger: Storage) -> None:
    assert ledger.send(ledger.anna, Reserve(ledger.contract_id(), 1, 7, 1, MIB)).code == "not-enough-nodes"


def test_what_is_reserved_is_the_epochs_demand() -> None:
    ledger = Storage()
    ledger.open()
    before = ledger.state.chain.lane(SSN).demand_bytes
    ledger.reserve(count=2, size=MIB)
    assert ledger.state.chain.lane(SSN).demand_bytes == before + 2 * 3 * MIB
    assert ledger.state.chain.lane(SSN).demand_price_max == ledger.contract().price_max


def test_the_next_reservation_closes_those_that_expired_and_no_other(ledger: Storage) -> None:
    old = ledger.reserve(count=2)
    ledger.to_epoch(1)
    (young,) = ledger.reserve()
    expired = ledger.reservation(old[0])
    ledger.to_epoch(expired.expires_epoch)
    (new,) = ledger.reserve()
    assert [ledger.state.find(RESERVATIONS, each) is None for each in (*old, young, new)] == [True, True, False, False]
    assert ledger.contract().reserved == ledger.reservation(young).earmarked + ledger.reservation(new).earmarked
    assert sum(ledger.node(number).promised_bytes for number in ledger.storing) == 2 * 3 * 2 * SLOT
    assert [event.amount for event in ledger.named("unreserved")] == [expired.earmarked] * 2
    ledger.assert_sound()


def test_only_its_publisher_cancels_a_reservation_before_it_expires(ledger: Storage) -> None:
    (identifier,) = ledger.reserve()
    expires = ledger.reservation(identifier).expires_epoch
    ledger.to_epoch(expires - 1)
    assert ledger.send(ledger.bert, CancelReservations([identifier])).code == "reservation-open"
    ledger.to_epoch(expires)
    ledger.ok(ledger.bert, CancelReservations([identifier]))
    assert ledger.state.find(RESERVATIONS, identifier) is None
    assert ledger.contract().reserved == 0
    assert all(ledger.node(number).promised_bytes == 0 for number in ledger.storing)


@pytest.mark.parametrize(("before", "code"), [(1, ""), (0, "reservation-expired")])
def test_a_reservation_registers_to_its_last_epoch(ledger: Storage, before: int, code: str) -> None:
    (identifier,) = ledger.reserve()
    ledger.to_epoch(ledger.reservation(identifier).expires_epoch - before)
    assert ledger.send(ledger.anna, RegisterSegments([ledger.entry(identifier, [])])).code == code


# -- registering ------------------------------------------------------------------------------------------------------------


def test_what_is_charged_is_what_was_quoted(ledger: Storage) -> None:
    before = ledger.contract().escrow
    quote = rent.quote(ledger.params, [2 * SLOT] * 3, ledger.state.chain.lane(SSN).price, TERM)
    ledger.store()
    contract, (sponsor,) = ledger.contract(), ledger.segment().sponsors
    assert before - contract.escrow == quote.total
    assert (sponsor.prepaid, sponsor.reserve) == (quote.rent, quote.reserve)
    assert (contract.reserved, contract.segments, contract.rent_bytes) == (0, 1, 6 * SLOT)
    ledger.assert_sound()


def test_half_of_the_fee_is_burned_and_half_is_the_treasurys(ledger: Storage) -> None:
    ledger.store()
    chain = ledger.state.chain
    rent_paid = 3 * PRICE * TERM // 2  # 1.5 MiB in all
    fee = -(-rent_paid * 2 // 100)
    assert (chain.burned, chain.burned_for_subsidy, chain.treasury) == (fee // 2, fee // 2, fee - fee // 2)
    (sponsor,) = ledger.segment().sponsors
    assert sponsor.subsidy == fee // 2 * 9 // 10


def test_a_receipt_locks_the_collateral_of_its_share(ledger: Storage) -> None:
    _, chosen = ledger.store()
    need = PRICE * 1440 // 2  # half a MiB, 1440 epochs
    for index, number in enumerate(chosen):
        node, assignment = ledger.node(number), ledger.segment().assignments[index]
        assert (assignment.state, assignment.node, assignment.collateral) == (Holding.ACTIVE, number, need)
        assert (node.pool_locked, node.assignments, node.promised_bytes) == (need, 1, 2 * SLOT)
        assert (assignment.first_epoch, assignment.settled_epoch) == (1, 1)


def test_a_node_one_unit_short_of_collateral_cannot_be_receipted(ledger: Storage) -> None:
    (identifier,) = ledger.reserve()
    number, need = ledger.reservation(identifier).chosen[0], PRICE * 1440 // 2
    ledger.ok(ledger.operators[number], DrainPool(number, ledger.node(number).pool_free - need + 1))
    register = RegisterSegments([ledger.entry(identifier, [ledger.receipt(0, number, identifier)])])
    assert ledger.send(ledger.anna, register).code == "no-collateral"
    ledger.ok(ledger.operators[number], FundPool(number, 1))
    ledger.ok(ledger.anna, register)


def test_a_spare_stands_in_for_any_index(ledger: Storage) -> None:
    (identifier,) = ledger.reserve()
    found = ledger.reservation(identifier)
    receipts = [
        ledger.receipt(0, found.spares[0], identifier),
        ledger.receipt(1, found.chosen[1], identifier),
        ledger.receipt(2, found.spares[2], identifier),
    ]
    ledger.ok(ledger.anna, RegisterSegments([ledger.entry(identifier, receipts)]))
    assert [each.node for each in ledger.segment().assignments] == [found.spares[0], found.chosen[1], found.spares[2]]
    assert ledger.node(found.chosen[0]).promised_bytes == 0
    ledger.assert_sound()


def test_an_index_whose_node_stands_in_elsewhere_waits_for_a_redraw(ledger: Storage) -> None:
    (identifier,) = ledger.reserve()
    chosen = ledger.reservation(identifier).chosen
    ledger.ok(ledger.anna, RegisterSegments([ledger.entry(identifier, [ledger.receipt(0, chosen[2], identifier)])]))
    assert states(ledger) == [Holding.ACTIVE, Holding.PENDING, Holding.FREED]
    ledger.assert_sound()


def test_a_reservation_serves_one_segment(ledger: Storage) -> None:
    reservation, _ = ledger.store()
    assert ledger.send(ledger.anna, RegisterSegments([ledger.entry(reservation, [], b"two")])).code == "no-such-reservation"


def test_a_segment_is_registered_once(ledger: Storage) -> None:
    ledger.store()
    (again,) = ledger.reserve()
    result = ledger.send(ledger.anna, RegisterSegments([ledger.entry(again, [])]))
    assert result.code == "segment-exists" and "sponsor it instead" in result.message


def test_a_stranger_cannot_use_anothers_reservation(ledger: Storage) -> None:
    (identifier,) = ledger.reserve()
    assert ledger.send(ledger.bert, RegisterSegments([ledger.entry(identifier, [])])).code == "not-the-publisher"


@pytest.mark.parametrize(
    ("stripes", "code"),
    [
        ((StripeRun(1, 2, 2, SLOT),), "bad-geometry"),  # four nodes, three were drawn
        ((StripeRun(1, 3, 0, SLOT),), "bad-geometry"),  # survives nothing
        ((StripeRun(2, 2, 1, SLOT + 1),), "fragment-too-large"),
        ((StripeRun(64, 2, 1, 1), StripeRun(1, 2, 1, 1)), "bad-geometry"),  # 65 stripes
    ],
)
def test_stripes_that_do_not_fit_the_reservation_are_refused(ledger: Storage, stripes: Any, code: str) -> None:
    (identifier,) = ledger.reserve()
    entry = ledger.entry(identifier, [], stripes=list(stripes))
    assert ledger.send(ledger.anna, RegisterSegments([entry])).code == code


@pytest.mark.parametrize(
    "wrong",
    [
        {"contract": b""},
        {"contract": sha256(b"another reservation")},
        {"segment_id": sha256(b"two")},
        {"segment_root": sha256(b"another root")},
        {"fragment_bytes": 2 * SLOT - 1},
        {"leaf_count": rent.leaf_count(STRIPES, 0) + 1},
    ],
)
def test_a_receipt_that_says_anything_else_is_refused(ledger: Storage, wrong: dict[str, Any]) -> None:
    (identifier,) = ledger.reserve()
    chosen = ledger.reservation(identifier).chosen
    entry = ledger.entry(identifier, [ledger.receipt(0, chosen[0], identifier, **wrong)])
    assert ledger.send(ledger.anna, RegisterSegments([entry])).code == "bad-receipt"
    assert ledger.state.find(SEGMENTS, ONE) is None and ledger.contract().segments == 0


def test_receipts_hold_for_the_stripes_in_their_order_only(ledger: Storage) -> None:
    (reservation,) = ledger.reserve()
    said = (StripeRun(1, 2, 1, SLOT), StripeRun(1, 2, 1, SLOT))  # as many bytes and leaves, in another spelling
    receipts = [
        ledger.receipt(at, each, reservation, contract=reservation + stripes_hash(said))
        for at, each in enumerate(ledger.reservation(reservation).chosen)
    ]
    assert ledger.send(ledger.anna, RegisterSegments([ledger.entry(reservation, receipts)])).code == "bad-receipt"


def test_a_receipt_for_an_index_that_there_is_not_is_refused(ledger: Storage) -> None:
    (identifier,) = ledger.reserve()
    beyond = ledger.receipt(3, ledger.reservation(identifier).chosen[0], identifier)
    assert ledger.send(ledger.anna, RegisterSegments([ledger.entry(identifier, [beyond])])).code == "bad-receipt"


def test_a_receipt_with_a_flipped_bit_is_refused(ledger: Storage) -> None:
    (identifier,) = ledger.reserve()
    raw = bytearray(ledger.receipt(0, ledger.reservation(identifier).chosen[0], identifier))
    raw[-1] ^= 1
    entry = ledger.entry(identifier, [bytes(raw)])
    assert ledger.send(ledger.anna, RegisterSegments([entry])).code == "bad-receipt"


def test_a_node_that_was_not_drawn_holds_nothing(ledger: Storage) -> None:
    (identifier,) = ledger.reserve()
    witness = ledger.receipt(0, 0, identifier)
    assert ledger.send(ledger.anna, RegisterSegments([ledger.entry(identifier, [witness])])).code == "foreign-node"


def test_a_node_holds_one_index_of_a_segment(ledger: Storage) -> None:
    (identifier,) = ledger.reserve()
    number = ledger.reservation(identifier).chosen[0]
    receipts = [ledger.receipt(0, number, identifier), ledger.receipt(1, number, identifier)]
    assert ledger.send(ledger.anna, RegisterSegments([ledger.entry(identifier, receipts)])).code == "node-twice"


def test_receipts_stand_by_ascending_index(ledger: Storage) -> None:
    (identifier,) = ledger.reserve()
    chosen = ledger.reservation(identifier).chosen
    receipts = [ledger.receipt(1, chosen[1], identifier), ledger.receipt(0, chosen[0], identifier)]
    assert ledger.send(ledger.anna, RegisterSegments([ledger.entry(identifier, receipts)])).code == "not-ascending"


def test_a_batch_registers_whole_or_not_at_all(ledger: Storage) -> None:
    first, second = ledger.reserve(count=2)
    bad = ledger.receipt(0, 0, second, b"two")
    batch = [ledger.entry(first, []), ledger.entry(second, [bad], b"two")]
    assert not ledger.send(ledger.anna, RegisterSegments(batch)).ok
    assert ledger.state.find(SEGMENTS, ONE) is None and ledger.contract().reserved > 0


# -- pending, freed, drawn again --------------------------------------------------------------------------------------------


def test_anyone_hands_in_a_late_receipt(ledger: Storage) -> None:
    ledger.store(without=[1])
    assert states(ledger) == [Holding.ACTIVE, Holding.PENDING, Holding.ACTIVE]
    ledger.to_epoch(3)
    ledger.ok(ledger.bert, AddReceipts(ONE, [ledger.late_receipt(1)]))
    late = ledger.segment().assignments[1]
    assert (late.state, late.first_epoch) == (Holding.ACTIVE, 4)
    assert ledger.send(ledger.bert, AddReceipts(ONE, [ledger.late_receipt(1)])).code == "not-pending"
    ledger.assert_sound()


def test_a_late_receipt_must_be_of_the_node_that_is_awaited(ledger: Storage) -> None:
    reservation, chosen = ledger.store(without=[1])
    stranger = next(number for number in ledger.storing if number not in chosen)
    receipt = ledger.receipt(1, stranger, reservation)
    assert ledger.send(ledger.bert, AddReceipts(ONE, [receipt])).code == "foreign-node"


def test_a_pending_index_expires_and_is_drawn_again_among_others() -> None:
    ledger = Storage(params=small_params(reservation_epochs=3))
    ledger.open()
    _, chosen = ledger.store(without=[1])
    receipt = ledger.late_receipt(1)
    ledger.pass_until(2)
    assert ledger.send(ledger.bert, Redraw(ONE, [1])).code == "index-held"
    ledger.pass_until(3)
    assert ledger.send(ledger.bert, AddReceipts(ONE, [receipt])).code == "not-pending"
    assert ledger.send(ledger.bert, Redraw(ONE, [0, 1])).code == "index-held"
    ledger.ok(ledger.bert, Redraw(ONE, [1]))
    drawn = ledger.segment().assignments[1]
    assert (drawn.state, drawn.draw, drawn.expires_epoch) == (Holding.PENDING, 1, 6)
    assert drawn.node not in (chosen[0], chosen[2])
    ledger.ok(ledger.bert, AddReceipts(ONE, [ledger.late_receipt(1)]))
    assert states(ledger) == [Holding.ACTIVE] * 3
    ledger.assert_sound()


def test_an_old_receipt_does_not_serve_a_node_drawn_again(ledger: Storage) -> None:
    for number in list(ledger.storing)[3:]:  # only three nodes are left to draw
        ledger.state.put_node(replace(ledger.node(number), status=int(NodeStatus.RETIRING)))
    ledger.state.keep()
    reservation, chosen = ledger.store()
    ledger.ok(ledger.nodes[chosen[1]], ReportLoss([Loss(ONE, 1)]))
    ledger.ok(ledger.bert, Redraw(ONE, [1]))
    assert ledger.segment().assignments[1].node == chosen[1]
    replayed = ledger.receipt(1, chosen[1], reservation)
    assert ledger.send(ledger.bert, AddReceipts(ONE, [replayed])).code == "bad-receipt"
    fresh = ledger.receipt(1, chosen[1], receipt_contract(reservation, 1))
    ledger.ok(ledger.bert, AddReceipts(ONE, [fresh]))


def test_a_reported_loss_costs_a_quarter_of_the_collateral_and_frees_the_index(ledger: Storage) -> None:
    _, chosen = ledger.store()
    before = ledger.node(chosen[2])
    ledger.ok(ledger.nodes[chosen[2]], ReportLoss([Loss(ONE, 2)]))
    need, after = PRICE * 1440 // 2, ledger.node(chosen[2])
    assert after.pool_free == before.pool_free + need - need // 4
    assert (after.pool_locked, after.assignments, after.promised_bytes) == (0, 0, 0)
    assert states(ledger)[2] == Holding.FREED
    ledger.to_epoch(1)
    assert inventory.total_leaves(ledger.state, chosen[2]) == 0
    ledger.assert_sound()


@pytest.mark.parametrize("index", [0, 3, 127])
def test_a_node_reports_only_what_it_holds(ledger: Storage, index: int) -> None:
    _, chosen = ledger.store()
    assert ledger.send(ledger.nodes[chosen[2]], ReportLoss([Loss(ONE, index)])).code == "not-held"
    assert ledger.send(key_of("anna"), ReportLoss([Loss(ONE, 2)])).code == "not-a-node"


def test_a_caught_nodes_assignments_are_freed_when_somebody_comes(ledger: Storage) -> None:
    _, chosen = ledger.store()
    before = ledger.node(chosen[0])
    fault_node(ledger.state, chosen[0], 500_000, "loss found")
    ledger.state.keep()
    ledger.ok(ledger.bert, Settle([ONE]))
    after, need = ledger.node(chosen[0]), PRICE * 1440 // 2
    assert states(ledger) == [Holding.FREED, Holding.ACTIVE, Holding.ACTIVE]
    assert (after.pool_free, after.pool_locked) == (before.pool_free + need - need // 2, 0)
    ledger.assert_sound()


def test_a_caught_node_receipts_nothing(ledger: Storage) -> None:
    (identifier,) = ledger.reserve()
    chosen = ledger.reservation(identifier).chosen
    fault_node(ledger.state, chosen[0], 500_000, "loss found")
    ledger.state.keep()
    entry = ledger.entry(identifier, [ledger.receipt(0, chosen[0], identifier)])
    assert ledger.send(ledger.anna, RegisterSegments([entry])).code == "node-not-active"


@pytest.mark.parametrize(("epoch", "state"), [(5, Holding.ACTIVE), (6, Holding.FREED)])
def test_a_node_drawn_again_for_what_it_lost_answers_for_no_epoch_before(epoch: int, state: Holding) -> None:
    ledger = Storage(3)  # three hold the segment: whoever lost an index is drawn for it again
    ledger.open()
    _, chosen = ledger.store()
    ledger.pass_until(5)
    ledger.ok(ledger.nodes[chosen[0]], ReportLoss([Loss(ONE, 0)]))
    ledger.ok(ledger.anna, Redraw(ONE, [0]))
    ledger.ok(ledger.anna, AddReceipts(ONE, [ledger.late_receipt(0)]))
    slashed = len(ledger.named("slash"))
    ledger.to_epoch(6)
    for witness in ledger.seated(epoch):
        assert ledger.report(witness, epoch, [], losses=[LossFound(chosen[0], ONE, 0)]).ok
    assert ledger.segment().assignments[0].state == state
    assert len(ledger.named("slash")) == slashed + (state == Holding.FREED)
    ledger.assert_sound()

"""A stored segment gets another encoding: who is let go, who is paid, what comes back, and what the epoch still asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from dds.ledger import rent
from dds.ledger.explain import explain_contract
from dds.ledger.facts import LedgerFacts, asked_of
from dds.ledger.machine import TxResult, apply_tx
from dds.ledger.params import Params
from dds.ledger.records import ACCOUNTS, CONTRACTS, RESERVATIONS, SEGMENTS, Contract, Holding, contract_id, reservation_id
from dds.ledger.rules import inventory
from dds.primitives.hashing import sha256
from dds.primitives.keys import SigningKey
from dds.wire.ledger import (
    AddReceipts,
    CancelContract,
    Endow,
    ExtendSegments,
    Loss,
    LossFound,
    OpenContract,
    Reencode,
    RegisterSegments,
    ReportLoss,
    Reserve,
    SegmentEntry,
    Settle,
    Sponsor,
    StripeRun,
    Tx,
    Unsponsor,
    stripes_hash,
)
from tests.ledger_storage import ALL, DEPOSIT, PRICE, PRICE_MAX, SLOT, STRIPES, TERM, Storage

ONE = sha256(b"one")
WIDE = (StripeRun(1, 3, 1, SLOT),)  # the archive's: one stripe of four fragments
ANEW_ROOT, ANEW_RECORD = sha256(b"another root"), sha256(b"another record")
ARCHIVE_TERM = 50
OLD_INDEX = 2 * SLOT
ONE_EPOCH = OLD_INDEX * PRICE >> 20  # what an old index earns


class Archive(Storage):
    """Anna has a contract of class archive beside her standard one; every node stores for both."""

    def __init__(self, storers: int = 12) -> None:
        super().__init__(storers, storing_roles=("asn", "ssn"))
        self.open()
        self.archive = contract_id(self.anna.public, "archive")
        self.ok(self.anna, OpenContract("archive", 3, 1, ARCHIVE_TERM, PRICE_MAX, DEPOSIT))

    def archive_contract(self) -> Contract:
        found = self.state.find(CONTRACTS, self.archive)
        assert found is not None
        return found

    def drawn(self, contract: bytes, key: SigningKey | None = None) -> bytes:
        """A reservation for WIDE under `contract`."""
        found = self.state.find(CONTRACTS, contract)
        assert found is not None
        self.ok(key or self.anna, Reserve(contract, 1, 4, 1, SLOT))
        return reservation_id(contract, found.reservations)

    def drawn_among(self, nodes: Sequence[int]) -> bytes:
        """A reservation for the archive that drew one of `nodes`, as a spare at least."""
        while True:
            reservation = self.drawn(self.archive)
            if self.drawn_of(reservation, nodes) >= 0:
                return reservation

    def drawn_of(self, reservation: bytes, nodes: Sequence[int]) -> int:
        found = self.reservation(reservation)
        return next((number for number in (*found.chosen, *found.spares) if number in nodes), -1)

    def newcomers(self, reservation: bytes, name: bytes = b"one") -> list[int]:
        """By index, those drawn; spares stand in for holders."""
        found, held = self.reservation(reservation), {each.node for each in self.segment(name).assignments}
        fit = [number for number in (*found.chosen, *found.spares) if number not in held]
        return fit[: len(found.chosen)]

    def anew(self, reservation: bytes, nodes: Sequence[int], name: bytes = b"one", **changes: Any) -> Reencode:
        receipts = [self.wide_receipt(index, number, reservation, name) for index, number in enumerate(nodes)]
        fields: dict[str, Any] = {"segment_root": ANEW_ROOT, "encoding_hash": ANEW_RECORD, "stripes": list(WIDE)} | changes
        return Reencode(SegmentEntry(reservation=reservation, segment_id=sha256(name), receipts=receipts, **fields))

    def wide_receipt(self, index: int, number: int, reservation: bytes, name: bytes) -> bytes:
        return self.receipt(
            index,
            number,
            reservation,
            name,
            contract=reservation + stripes_hash(WIDE),
            segment_root=ANEW_ROOT,
            fragment_bytes=SLOT,
            leaf_count=rent.leaf_count(WIDE, index),
        )

    def reencode(self, key: SigningKey | None = None, **changes: Any) -> TxResult:
        reservation = self.drawn(self.archive)
        return self.send(key or self.anna, self.anew(reservation, self.newcomers(reservation), **changes))

    def stored_at(self, epoch: int) -> tuple[int, ...]:
        """A segment of the standard class; the nodes that hold it, all of which passed until `epoch`."""
        _, chosen = self.store()
        self.pass_until(epoch)
        return chosen


@pytest.fixture
def ledger() -> Archive:
    return Archive()


def done(result: TxResult) -> None:
    assert result.ok, (result.code, result.message)


# -- what it becomes --------------------------------------------------------------------------------------------------------


def test_a_segment_gets_other_stripes_nodes_and_contract_under_the_same_id(ledger: Archive) -> None:
    old_nodes = ledger.stored_at(5)
    old = ledger.segment()
    done(ledger.reencode())
    new = ledger.segment()
    assert (new.segment_root, new.encoding_hash, new.stripes) == (ANEW_ROOT, ANEW_RECORD, WIDE)
    assert [each.state for each in new.assignments] == [Holding.ACTIVE] * 4
    assert not {each.node for each in new.assignments} & set(old_nodes)
    (sponsor,) = new.sponsors
    assert (sponsor.contract, sponsor.start_epoch, sponsor.end_epoch) == (ledger.archive, 6, 6 + ARCHIVE_TERM)
    assert new.former is not None
    assert (new.former.segment_root, new.former.stripes, new.former.registered_epoch) == (old.segment_root, STRIPES, 0)
    assert new.registered_epoch == 5
    ledger.assert_sound()


def test_the_new_holders_lock_collateral_as_if_the_segment_were_registered(ledger: Archive) -> None:
    old_nodes = ledger.stored_at(5)
    done(ledger.reencode())
    need = rent.collateral(ledger.params, SLOT, ledger.segment().price)
    for each in ledger.segment().assignments:
        assert (each.collateral, each.first_epoch, each.bytes) == (need, 6, SLOT)
        assert ledger.node(each.node).pool_locked == need
    for number in old_nodes:
        node = ledger.node(number)
        assert (node.pool_locked, node.assignments, node.promised_bytes) == (0, 0, 0)
    assert not ledger.named("slash")


def test_the_reservation_is_used_up(ledger: Archive) -> None:
    ledger.stored_at(5)
    reservation = ledger.drawn(ledger.archive)
    body = ledger.anew(reservation, ledger.newcomers(reservation))
    ledger.ok(ledger.anna, body)
    assert ledger.state.find(RESERVATIONS, reservation) is None
    assert ledger.archive_contract().reserved == 0
    assert ledger.send(ledger.anna, body).code == "no-such-reservation"


def test_both_contracts_histories_tell_of_both(ledger: Archive) -> None:
    ledger.stored_at(5)
    done(ledger.reencode())
    standard = ledger.contract_id()
    for contract in (standard, ledger.archive):
        (line,) = [each for each in explain_contract(ledger.events, contract).lines if each.name == "segment-reencoded"]
        for named in (f"standard (contract {standard.hex()[:16]})", f"archive (contract {ledger.archive.hex()[:16]})"):
            assert named in line.reason


def test_a_segment_comes_back_from_the_archive_to_its_first_contract() -> None:
    ledger = Archive(storers=16)
    ledger.stored_at(3)
    done(ledger.reencode())
    ledger.pass_until(5)
    (reservation,) = ledger.reserve()
    nodes = ledger.newcomers(reservation)
    receipts = [ledger.receipt(index, number, reservation) for index, number in enumerate(nodes)]
    ledger.ok(ledger.anna, Reencode(ledger.entry(reservation, receipts)))
    assert ledger.segment().stripes == STRIPES and ledger.segment().former is not None
    assert (ledger.contract().segments, ledger.archive_contract().segments) == (1, 0)
    ledger.assert_sound()


# -- who is paid, what comes back -------------------------------------------------------------------------------------------


def test_old_holders_are_paid_for_closed_epochs_by_verdict_and_for_the_open_ones_in_full(ledger: Archive) -> None:
    _, chosen = ledger.store()
    ledger.pass_until(7, missing={3: [chosen[0]], 6: [chosen[1]]})
    done(ledger.reencode())  # closed are 1 to 5; of 6 and 7 nothing is known yet
    earned = ledger.earned()
    assert [earned[number] for number in chosen] == [6 * ONE_EPOCH + 3, 7 * ONE_EPOCH + 3, 7 * ONE_EPOCH + 3]
    details = [event.detail for event in ledger.named("pay") if event.node == chosen[1]]
    assert details == ["5 of 5 epochs passed", "2 epochs that were not judged yet, in full"]


def test_no_subsidy_is_minted_for_epochs_without_a_verdict(ledger: Archive) -> None:
    chosen = ledger.stored_at(7)
    rate = ledger.segment().sponsors[0].subsidy_rate
    done(ledger.reencode())
    minted = sum(event.delta for event in ledger.named("subsidy") if event.node in chosen)
    assert 0 < minted <= 5 * rate
    assert ledger.state.chain.subsidy_due == ledger.segment().sponsors[0].subsidy_rate


def test_unearned_rent_and_the_whole_reserve_return_to_the_old_contract(ledger: Archive) -> None:
    ledger.stored_at(4)
    before = ledger.contract().escrow
    cost = rent.quote(ledger.params, [OLD_INDEX] * 3, PRICE, TERM)
    done(ledger.reencode())
    paid = sum(ledger.earned().values())
    assert ledger.contract().escrow == before + cost.rent + cost.reserve - paid
    assert 0 <= 3 * 4 * OLD_INDEX * PRICE - (paid << 20) < 3 << 20  # epochs 1 to 4
    assert (ledger.contract().segments, ledger.contract().rent_bytes) == (0, 0)


def test_the_target_contract_is_charged_as_for_a_new_segment(ledger: Archive) -> None:
    ledger.stored_at(4)
    before = ledger.archive_contract().escrow
    done(ledger.reencode())
    cost = rent.quote(ledger.params, [SLOT] * 4, ledger.segment().price, ARCHIVE_TERM)
    after = ledger.archive_contract()
    assert (before - after.escrow, after.segments, after.rent_bytes) == (cost.total, 1, 4 * SLOT)


def test_a_holder_of_this_very_epoch_has_earned_nothing_yet(ledger: Archive) -> None:
    """A pending index that is receipted in the epoch in which the segment is re-encoded was to be paid from the next one on."""
    _, chosen = ledger.store(without=[1])
    ledger.pass_until(2)
    assert ledger.segment().assignments[1].state == Holding.PENDING
    done(ledger.reencode())
    assert chosen[1] not in ledger.earned() and ledger.node(chosen[1]).promised_bytes == 0
    assert Counter(event.node for event in ledger.named("freed")) == Counter(chosen)
    ledger.assert_sound()


def test_pay_that_is_settled_before_is_not_paid_again(ledger: Archive) -> None:
    ledger.store()
    ledger.pass_until(6)
    ledger.ok(ledger.bert, Settle([ONE]))
    done(ledger.reencode())
    assert sum(ledger.earned().values()) <= 3 * 6 * OLD_INDEX * PRICE >> 20
    ledger.ok(ledger.bert, Settle([ONE]))
    ledger.assert_sound()


def test_a_term_that_is_over_is_extended_before_another_encoding_takes_its_place(ledger: Archive) -> None:
    """Its last epoch is not closed yet: the holders have it in this one too, and would not be paid."""
    _, chosen = ledger.store()
    ledger.pass_until(TERM)
    reservation = ledger.drawn(ledger.archive)
    ledger.pass_until(TERM + 1)
    assert refused(ledger, ledger.anew(reservation, ledger.newcomers(reservation))) == "not-paid"
    ledger.ok(ledger.anna, ExtendSegments(ledger.contract_id(), [ONE], 1))
    done(ledger.send(ledger.anna, ledger.anew(reservation, ledger.newcomers(reservation))))
    assert ledger.earned() == dict.fromkeys(chosen, (TERM + 1) * OLD_INDEX * PRICE >> 20)
    ledger.assert_sound()


def test_who_leaves_at_once_and_re_encodes_pays_for_the_epoch_between(ledger: Archive) -> None:
    _, chosen = ledger.store()
    ledger.ok(ledger.anna, Unsponsor(ledger.contract_id(), [ONE]))
    ledger.pass_until(1)
    done(ledger.reencode())
    assert ledger.earned() == dict.fromkeys(chosen, ONE_EPOCH)
    ledger.assert_sound()


def test_what_a_cancelled_old_contract_has_left_goes_to_its_publisher(ledger: Archive) -> None:
    ledger.stored_at(4)
    ledger.ok(ledger.anna, CancelContract(ledger.contract_id()))
    done(ledger.reencode())
    assert [event for event in ledger.named("refund") if event.segment == ONE and event.delta > 0]
    assert ledger.contract().segments == 0
    ledger.assert_sound()


def test_an_endowment_spends_what_its_contracts_old_bytes_allowed_before_they_change(ledger: Archive) -> None:
    ledger.store()
    ledger.ok(ledger.bert, Endow(ledger.contract_id(), DEPOSIT))
    ledger.pass_until(6)
    done(ledger.reencode())
    assert [event.amount for event in ledger.named("endowment") if event.contract == ledger.contract_id()][-1] > 0
    ledger.assert_sound()


def test_its_new_holders_are_paid_from_the_next_epoch_on(ledger: Archive) -> None:
    ledger.stored_at(4)
    done(ledger.reencode())
    new = [each.node for each in ledger.segment().assignments]
    ledger.pass_until(8)
    ledger.ok(ledger.bert, Settle([ONE]))  # closed are 5 and 6
    assert {number: ledger.earned()[number] for number in new} == dict.fromkeys(new, 2 * SLOT * ledger.segment().price >> 20)


# -- refused ----------------------------------------------------------------------------------------------------------------


def refused(ledger: Archive, body: Reencode, key: SigningKey | None = None) -> str:
    """The code; nothing of the segment has changed."""
    before = ledger.segment()
    code = ledger.send(key or ledger.anna, body).code
    assert ledger.segment() == before
    return code


@pytest.mark.parametrize("left_out", [0, 3])
def test_every_index_needs_its_receipt(ledger: Archive, left_out: int) -> None:
    ledger.stored_at(3)
    reservation = ledger.drawn(ledger.archive)
    body = ledger.anew(reservation, ledger.newcomers(reservation))
    receipts = [raw for index, raw in enumerate(body.segment.receipts) if index != left_out]
    assert refused(ledger, Reencode(replace(body.segment, receipts=receipts))) == "not-all-receipts"


def test_a_receipt_twice_is_not_all_of_them(ledger: Archive) -> None:
    ledger.stored_at(3)
    reservation = ledger.drawn(ledger.archive)
    body = ledger.anew(reservation, ledger.newcomers(reservation))
    receipts = [*body.segment.receipts[:3], body.segment.receipts[2]]
    assert refused(ledger, Reencode(replace(body.segment, receipts=receipts))) == "not-ascending"


def test_another_publishers_segment_stays_as_it_is(ledger: Archive) -> None:
    ledger.stored_at(3)
    ledger.open(ledger.bert)
    ledger.sponsor(ledger.bert, stripes=0b01)
    reservation = ledger.drawn(ledger.archive)
    assert refused(ledger, ledger.anew(reservation, ledger.newcomers(reservation))) == "foreign-sponsor"


def test_a_reservation_of_another_serves_nobody_else(ledger: Archive) -> None:
    ledger.stored_at(3)
    reservation = ledger.drawn(ledger.archive)
    body = ledger.anew(reservation, ledger.newcomers(reservation))
    assert refused(ledger, body, ledger.bert) == "not-the-publisher"


def test_nobody_reencodes_what_only_others_pay_for(ledger: Archive) -> None:
    ledger.stored_at(3)
    theirs = contract_id(ledger.bert.public, "archive")
    ledger.ok(ledger.bert, OpenContract("archive", 3, 1, ARCHIVE_TERM, PRICE_MAX, DEPOSIT))
    reservation = ledger.drawn(theirs, ledger.bert)
    assert refused(ledger, ledger.anew(reservation, ledger.newcomers(reservation)), ledger.bert) == "foreign-sponsor"


def test_the_contract_that_pays_already_is_no_target(ledger: Archive) -> None:
    ledger.stored_at(3)
    reservation = ledger.drawn(ledger.contract_id())
    assert refused(ledger, ledger.anew(reservation, ledger.newcomers(reservation))) == "same-contract"


def test_a_released_stripe_cannot_come_back_by_another_encoding(ledger: Archive) -> None:
    ledger.stored_at(3)
    segment = ledger.segment()
    sponsor = replace(segment.sponsors[0], stripes=0b01)
    ledger.state.put(SEGMENTS, ONE, replace(segment, released=0b10, sponsors=(sponsor,)))
    ledger.state.keep()
    reservation = ledger.drawn(ledger.archive)
    assert refused(ledger, ledger.anew(reservation, ledger.newcomers(reservation))) == "stripe-released"


def test_a_node_that_holds_an_old_index_takes_no_new_one(ledger: Archive) -> None:
    chosen = ledger.stored_at(3)
    reservation = ledger.drawn_among(chosen)
    nodes = [ledger.drawn_of(reservation, chosen), *ledger.newcomers(reservation)][:4]
    assert refused(ledger, ledger.anew(reservation, nodes)) == "node-twice"


def test_a_node_that_waits_for_an_old_receipt_takes_no_new_index(ledger: Archive) -> None:
    _, chosen = ledger.store(without=[0, 1, 2])
    ledger.pass_until(3)
    reservation = ledger.drawn_among(chosen)
    nodes = [ledger.drawn_of(reservation, chosen), *ledger.newcomers(reservation)][:4]
    assert refused(ledger, ledger.anew(reservation, nodes)) == "node-twice"


def test_an_index_that_was_freed_before_binds_its_former_node_to_nothing(ledger: Archive) -> None:
    """Also when that was in the same epoch and the node is drawn for the same index: its inventory counts the new leaves."""
    chosen = ledger.stored_at(3)
    ledger.ok(ledger.nodes[chosen[0]], ReportLoss([Loss(ONE, 0)]))
    reservation = ledger.drawn_among(chosen[:1])
    others = [number for number in ledger.newcomers(reservation) if number != chosen[0]]
    ledger.ok(ledger.anna, ledger.anew(reservation, [chosen[0], *others][:4]))
    ledger.to_epoch(4)
    held = inventory.find_held(ledger.state, chosen[0], ONE, 0)
    assert held is not None and held.leaves == rent.leaf_count(WIDE, 0)
    assert inventory.total_leaves(ledger.state, chosen[0]) == held.leaves
    ledger.assert_sound()


@pytest.mark.parametrize(("epochs", "code"), [(0, "too-early"), (1, "")])
def test_a_segment_is_reencoded_in_an_epoch_after_it_became_what_it_is(epochs: int, code: str) -> None:
    ledger = Archive(storers=16)
    ledger.stored_at(epochs)
    result = ledger.reencode()
    assert result.code == code
    if result.ok:
        (reservation,) = ledger.reserve()
        nodes = ledger.newcomers(reservation)
        receipts = [ledger.receipt(index, number, reservation) for index, number in enumerate(nodes)]
        assert ledger.send(ledger.anna, Reencode(ledger.entry(reservation, receipts))).code == "too-early"


def test_a_segment_that_is_not_there_or_has_ended_is_not_reencoded(ledger: Archive) -> None:
    ledger.stored_at(TERM + 3)
    reservation = ledger.drawn(ledger.archive)
    assert refused(ledger, ledger.anew(reservation, ledger.newcomers(reservation))) == "segment-ended"
    nodes = ledger.newcomers(reservation)
    assert ledger.send(ledger.anna, ledger.anew(reservation, nodes, b"none")).code == "no-such-segment"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"stripes": [StripeRun(1, 2, 1, SLOT)]}, "bad-geometry"),
        ({"stripes": [StripeRun(1, 4, 0, SLOT)]}, "bad-geometry"),
        ({"stripes": [StripeRun(2, 3, 1, SLOT)]}, "fragment-too-large"),
        ({"segment_root": sha256(b"no root")}, "bad-receipt"),
    ],
)
def test_receipts_and_stripes_are_checked_as_when_it_was_registered(
    ledger: Archive, changes: dict[str, Any], code: str
) -> None:
    ledger.stored_at(3)
    reservation = ledger.drawn(ledger.archive)
    assert refused(ledger, ledger.anew(reservation, ledger.newcomers(reservation), **changes)) == code


def test_an_expired_reservation_reencodes_nothing(ledger: Archive) -> None:
    ledger.stored_at(2)
    reservation = ledger.drawn(ledger.archive)
    body = ledger.anew(reservation, ledger.newcomers(reservation))
    ledger.pass_until(6)
    found = ledger.reservation(reservation)
    ledger.state.put(RESERVATIONS, reservation, replace(found, expires_epoch=6))
    ledger.state.keep()
    assert refused(ledger, body) == "reservation-expired"


def test_a_contract_that_cannot_pay_leaves_the_old_encoding_whole(ledger: Archive) -> None:
    ledger.stored_at(3)
    reservation = ledger.drawn(ledger.archive)
    contract = ledger.archive_contract()
    short = replace(contract, escrow=contract.reserved - 1)
    ledger.state.put(CONTRACTS, ledger.archive, short)
    body = ledger.anew(reservation, ledger.newcomers(reservation))
    ledger.state.keep()
    nonce = ledger.state.get(ACCOUNTS, ledger.anna.public, "", "").nonce
    before = ledger.segment()
    assert apply_tx(ledger.state, Tx(bytes(32), ledger.anna.public, nonce, body)).code == "insufficient-escrow"
    assert ledger.segment() == before


# -- the present epoch's audits ---------------------------------------------------------------------------------------------


def test_challenges_of_the_epoch_are_about_the_encoding_that_they_were_frozen_with(ledger: Archive) -> None:
    old_nodes = ledger.stored_at(5)
    before = {number: asked_of(ledger.state, number, 5) for number in old_nodes}
    assert all(asked is not None and asked.targets for asked in before.values())
    done(ledger.reencode())
    assert {number: asked_of(ledger.state, number, 5) for number in old_nodes} == before
    new_nodes = [each.node for each in ledger.segment().assignments]
    assert [asked_of(ledger.state, number, 5) for number in new_nodes] == [None] * 4


def test_from_the_next_epoch_on_only_the_new_holders_are_asked_for_the_new_encoding(ledger: Archive) -> None:
    old_nodes = ledger.stored_at(5)
    done(ledger.reencode())
    ledger.to_epoch(6)
    assert [asked_of(ledger.state, number, 6) for number in old_nodes] == [None] * 3
    for each in ledger.segment().assignments:
        asked = asked_of(ledger.state, each.node, 6)
        assert asked is not None and asked.segments[ONE].segment_root == ANEW_ROOT
        assert inventory.new_assignments(ledger.state, each.node)


@pytest.mark.parametrize("absent", [False, True])
def test_an_old_holder_is_judged_by_what_it_was_asked_and_for_no_later_epoch(ledger: Archive, absent: bool) -> None:
    old_nodes = ledger.stored_at(5)
    done(ledger.reencode())
    judged = ledger.standing(old_nodes[0]).judged
    ledger.pass_until(9, missing={5: old_nodes} if absent else {})
    after = ledger.standing(old_nodes[0])
    assert after.judged == judged + 2  # epochs 4 and 5
    assert after.missed_in_row == (1 if absent else 0)
    assert not ledger.named("slash") and not ledger.named("slash-bond")


def test_a_loss_of_an_old_index_frees_no_new_holder(ledger: Archive) -> None:
    old_nodes = ledger.stored_at(5)
    done(ledger.reencode())
    for witness in ledger.seated(5):
        assert ledger.report(witness, 5, [], losses=[LossFound(old_nodes[0], ONE, 0)]).ok
    assert [each.state for each in ledger.segment().assignments] == [Holding.ACTIVE] * 4
    assert not ledger.named("slash")


def test_no_answer_of_the_epoch_or_before_convicts_by_the_new_root(ledger: Archive) -> None:
    ledger.stored_at(5)
    done(ledger.reencode())
    facts = LedgerFacts(ledger.state).segment(ONE)
    assert facts is not None and facts.since_epoch == 5  # evidence holds for later epochs only


def test_no_network_lets_a_freed_share_go_while_it_can_be_reported(ledger: Archive) -> None:
    """The epoch that it was freed in asks for it, the next one reports that."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(msgspec.to_builtins(replace(Params(), release_epochs=1)), Params)
    old_nodes = ledger.stored_at(5)
    done(ledger.reencode())
    seats, asked, reported = ledger.seated(5), [], []
    for epoch, witness in zip(range(5, 9), seats, strict=True):
        ledger.to_epoch(epoch)
        asked += [epoch] if asked_of(ledger.state, old_nodes[0], epoch) else []
        reported += [epoch] if ledger.report(witness, 5, old_nodes).ok else []
    assert (asked, reported) == ([5], [5, 6])
    assert max(reported) < 5 + ledger.params.release_epochs


def test_no_old_receipt_serves_the_new_encoding(ledger: Archive) -> None:
    reservation, chosen = ledger.store(without=[2])
    ledger.pass_until(2)
    late = ledger.receipt(2, chosen[2], reservation)
    done(ledger.reencode())
    assert ledger.send(ledger.bert, AddReceipts(ONE, [late])).code == "not-pending"
    entry = ledger.entry(reservation, [late])
    assert ledger.send(ledger.anna, RegisterSegments([entry])).code == "no-such-reservation"


def test_a_segment_of_two_of_ones_own_contracts_is_reencoded_for_both(ledger: Archive) -> None:
    ledger.stored_at(3)
    ledger.ok(ledger.anna, OpenContract("warm", 2, 1, TERM, PRICE_MAX, DEPOSIT))
    warm = contract_id(ledger.anna.public, "warm")
    ledger.ok(ledger.anna, Sponsor(warm, ONE, ALL.to_bytes(8, "little")))
    ledger.pass_until(4)
    done(ledger.reencode())
    found = ledger.state.find(CONTRACTS, warm)
    assert found is not None and (found.segments, found.rent_bytes) == (0, 0)
    assert len(ledger.named("segment-reencoded")) == 3
    ledger.assert_sound()

"""Witnesses: who sits in a committee, which votes count, what closes an epoch, where beacons come from."""

from __future__ import annotations

import msgspec
import pytest

from dds.ledger.faults import Refused
from dds.ledger.money import balance
from dds.ledger.records import EPOCHS, OPERATORS, SEGMENTS, Holding, NodeStatus, number_key
from dds.ledger.rules.slashing import jail
from dds.ledger.rules.standing import passes_in
from dds.ledger.rules.witnesses import beacon_commitment, beacon_of, quorum
from dds.primitives.hashing import sha256
from dds.primitives.money import TOKEN
from dds.wire.ledger import LossFound, WitnessReport
from tests.ledger_committee import Ledger, key_of, small_params

STORER = 4  # the first node that stores, behind four witnesses


@pytest.fixture
def ledger() -> Ledger:
    fresh = Ledger()
    fresh.give_leaves(STORER)
    fresh.to_epoch(1)
    return fresh


def bonds(ledger: Ledger) -> list[int]:
    return [ledger.operator(number).bond for number in range(ledger.witnesses)]


# -- the committee ----------------------------------------------------------------------------------------------------------


def test_everybody_fit_sits_in_a_committee_that_has_room(ledger: Ledger) -> None:
    assert sorted(ledger.seated(1)) == [0, 1, 2, 3]


def test_a_jailed_operator_is_in_no_committee_until_it_is_free(ledger: Ledger) -> None:
    jail(ledger.state, ledger.operators[2].public)
    ledger.state.keep()
    ledger.to_epoch(2)
    assert sorted(ledger.seated(2)) == [0, 1, 3]
    free = ledger.operator(2).jailed_until
    ledger.to_epoch(free)
    assert 2 not in ledger.seated(free - 1) and 2 in ledger.seated(free)


def test_an_operator_has_one_seat_however_many_witnesses_it_runs(ledger: Ledger) -> None:
    ledger.state.put_node(msgspec.structs.replace(ledger.state.node(1), operator=ledger.operators[0].public))
    ledger.state.keep()
    ledger.to_epoch(2)
    assert sorted(ledger.seated(2)) == [0, 2, 3]


def test_a_full_committee_changes_with_the_beacon() -> None:
    ledger = Ledger(witnesses=9, storers=0, params=small_params(committee_max=3))
    ledger.to_epoch(12)
    seats = [tuple(sorted(ledger.seated(epoch))) for epoch in (11, 12)]
    assert all(len(each) == 3 for each in seats) and seats[0] != seats[1]


def test_bond_weighs_in_the_draw_of_a_committee() -> None:
    ledger = Ledger(witnesses=6, storers=0, params=small_params(committee_max=1))
    rich = ledger.operators[5].public
    operator = ledger.state.find(OPERATORS, rich)
    assert operator is not None
    ledger.state.put(OPERATORS, rich, msgspec.structs.replace(operator, bond=operator.bond * 1000))
    ledger.state.set_chain(genesis_supply=ledger.state.chain.genesis_supply + operator.bond * 999)
    ledger.state.keep()
    drawn = []
    for epoch in range(1, 31):
        ledger.to_epoch(epoch)
        drawn += ledger.seated(epoch)
    assert drawn.count(5) >= 28  # expected: all but about one in 200


@pytest.mark.parametrize(("members", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (6, 4), (48, 32)])
def test_two_thirds_are_a_quorum(members: int, needed: int) -> None:
    assert quorum(small_params(), members) == needed


# -- reports ----------------------------------------------------------------------------------------------------------------


def test_a_second_report_on_an_epoch_is_refused(ledger: Ledger) -> None:
    assert ledger.report(0, 1, [STORER]).ok
    assert ledger.report(0, 1, [STORER]).code == "already-reported"
    ledger.to_epoch(2)
    assert ledger.report(0, 1).code == "already-reported"


def test_an_epoch_can_be_reported_in_itself_and_in_the_next_and_never_else(ledger: Ledger) -> None:
    assert ledger.report(0, 2).code == "report-too-early"
    assert ledger.report(0, 1, [STORER]).ok
    ledger.to_epoch(2)
    assert ledger.report(1, 1, [STORER]).ok
    ledger.to_epoch(3)
    assert ledger.report(2, 1, [STORER]).code == "report-too-late"


def test_only_the_committee_reports(ledger: Ledger) -> None:
    assert ledger.report(STORER, 1, [STORER]).code == "not-a-witness"
    assert ledger.send(ledger.anna, WitnessReport(1, b"", [], b"", b"")).code == "not-a-witness"


def test_a_pass_of_a_node_that_does_not_exist_is_refused(ledger: Ledger) -> None:
    assert ledger.report(0, 1, [6]).code == "no-such-node"
    assert ledger.report(0, 1, [5]).ok


def test_losses_out_of_order_are_refused(ledger: Ledger) -> None:
    two = [LossFound(STORER, sha256(b"x"), 1), LossFound(STORER, sha256(b"x"), 0)]
    assert ledger.report(0, 1, losses=two).code == "not-ascending"
    assert ledger.report(0, 1, losses=[two[0], two[0]]).code == "not-ascending"


# -- closing an epoch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("votes", "passed"), [(4, 1), (3, 1), (2, 0)])
def test_a_pass_needs_a_quorum_of_the_committee(ledger: Ledger, votes: int, passed: int) -> None:
    for at, witness in enumerate(ledger.seated(1)):
        assert ledger.report(witness, 1, [STORER] if at < votes else []).ok
    ledger.to_epoch(2)
    assert ledger.standing(STORER).judged == 0  # reports may still come
    ledger.to_epoch(3)
    assert ledger.standing(STORER).judged == 1
    assert passes_in(ledger.standing(STORER), 0, 10) == (passed, passed * 1_000_000)


def test_an_epoch_with_one_report_too_few_is_unknown_and_nobody_is_judged(ledger: Ledger) -> None:
    ledger.report_all(1, [], without=ledger.seated(1)[:2])
    events = ledger.to_epoch(3)
    assert "epoch-unknown" in [event.name for event in events]
    assert ledger.standing(STORER).judged == 0


def test_a_node_with_nothing_to_prove_is_not_judged(ledger: Ledger) -> None:
    ledger.report_all(1, [STORER, STORER + 1])
    ledger.to_epoch(3)
    assert ledger.standing(STORER).passed == 1
    assert ledger.standing(STORER + 1).judged == 0


def test_what_a_node_had_to_prove_is_what_it_had_when_the_epoch_began(ledger: Ledger) -> None:
    ledger.give_leaves(STORER + 1)  # during epoch 1: counts from epoch 2 on
    ledger.report_all(1, [])
    ledger.to_epoch(2)
    ledger.report_all(2, [])
    ledger.to_epoch(3)
    assert ledger.standing(STORER + 1).judged == 0
    ledger.to_epoch(4)
    assert ledger.standing(STORER + 1).judged == 1


def test_an_epoch_nobody_reported_leaves_no_record(ledger: Ledger) -> None:
    ledger.to_epoch(30)
    assert [epoch for epoch in range(31) if ledger.state.find(EPOCHS, number_key(epoch))] == [29, 30]


def test_a_reported_epoch_is_kept_while_evidence_about_it_is_taken(ledger: Ledger) -> None:
    ledger.report_all(1, [STORER])
    ledger.to_epoch(1 + ledger.params.evidence_epochs)
    assert ledger.state.find(EPOCHS, number_key(1))
    ledger.to_epoch(1 + ledger.params.evidence_epochs + 3)
    assert ledger.state.find(EPOCHS, number_key(1)) is None


@pytest.mark.parametrize("pause", [2, 3, 4, 7, 60])
def test_a_pause_is_the_same_as_stepping_through_its_empty_epochs(pause: int) -> None:
    stepped, leapt = Ledger(), Ledger()
    for ledger in (stepped, leapt):
        ledger.give_leaves(STORER, STORER + 1)
        ledger.to_epoch(1)
        ledger.report_all(1, [STORER])
        ledger.to_epoch(2)
        for witness in ledger.seated(1):
            assert ledger.report(witness, 2, [STORER], commit=beacon_commitment(ledger.nodes[witness].public, bytes(32))).ok
        ledger.to_epoch(2 + pause, stepping=ledger is stepped)
    assert stepped.base == leapt.base
    assert (stepped.standing(STORER).passed, stepped.standing(STORER + 1).missed_in_row) == (2, 2)


@pytest.mark.parametrize("stops", [(30,), (2, 30), (3, 4, 30), (15, 16, 30), (28, 30)])
def test_a_pause_ends_the_same_wherever_empty_blocks_came_in_between(stops: tuple[int, ...]) -> None:
    bases = []
    for wakes in ((30,), stops):
        ledger = Ledger()
        ledger.give_leaves(STORER)
        ledger.to_epoch(1)
        ledger.report_all(1, [STORER])
        for epoch in wakes:
            ledger.to_epoch(epoch, stepping=False)
        bases.append(ledger.base)
    assert bases[0] == bases[1]


def test_after_a_pause_the_last_epoch_of_it_can_be_reported(ledger: Ledger) -> None:
    ledger.to_epoch(40, stepping=False)
    ledger.report_all(39, [STORER])
    ledger.to_epoch(41)
    assert ledger.standing(STORER).passed == 1


# -- misses -----------------------------------------------------------------------------------------------------------------


def miss(ledger: Ledger, times: int) -> None:
    for _ in range(times):
        ledger.report_all(ledger.epoch, [])
        ledger.to_epoch(ledger.epoch + 1)
    ledger.to_epoch(ledger.epoch + 1)


@pytest.mark.parametrize(("missed", "charged"), [(2, 0), (3, 1), (5, 3)])
def test_from_the_third_missed_epoch_in_a_row_each_costs_a_hundredth_once(missed: int, charged: int) -> None:
    ledger = Ledger()
    ledger.give_assignment(STORER, 10 * TOKEN)
    ledger.to_epoch(1)
    before = ledger.state.node(STORER)
    miss(ledger, missed)
    after = ledger.state.node(STORER)
    assert before.pool_free - after.pool_free == charged * TOKEN // 10
    assert after.pool_locked == before.pool_locked


def test_a_pass_in_between_starts_the_count_of_misses_anew() -> None:
    ledger = Ledger()
    ledger.give_assignment(STORER, 10 * TOKEN)
    ledger.to_epoch(1)
    before = ledger.state.node(STORER)
    for passed in ([], [], [STORER], [], []):
        ledger.report_all(ledger.epoch, passed)
        ledger.to_epoch(ledger.epoch + 1)
    ledger.to_epoch(ledger.epoch + 1)
    assert ledger.state.node(STORER) == before
    assert ledger.standing(STORER).missed_in_row == 2


@pytest.mark.parametrize(("missed", "status"), [(23, NodeStatus.ACTIVE), (24, NodeStatus.FAULTED)])
def test_a_node_is_given_up_at_exactly_the_24th_missed_epoch(missed: int, status: NodeStatus) -> None:
    ledger = Ledger()
    ledger.give_assignment(STORER, 10 * TOKEN)
    ledger.to_epoch(1)
    miss(ledger, missed)
    node = ledger.state.node(STORER)
    assert node.status == status
    assert node.fault_ppm == (250_000 if status == NodeStatus.FAULTED else 0)


def test_a_node_that_was_given_up_is_not_judged_any_more() -> None:
    ledger = Ledger()
    ledger.give_assignment(STORER, 10 * TOKEN)
    ledger.to_epoch(1)
    miss(ledger, 24)
    judged = ledger.standing(STORER).judged
    miss(ledger, 2)
    assert ledger.standing(STORER).judged == judged == 24


# -- losses -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def holding() -> tuple[Ledger, bytes]:
    ledger = Ledger()
    segment_id = ledger.give_assignment(STORER, 10 * TOKEN)
    ledger.to_epoch(1)
    return ledger, segment_id


def state_of(ledger: Ledger, segment_id: bytes) -> int:
    segment = ledger.state.find(SEGMENTS, segment_id)
    assert segment is not None
    return segment.assignments[0].state


def test_a_loss_is_found_by_a_quorum_and_not_by_one_vote_less(holding: tuple[Ledger, bytes]) -> None:
    ledger, segment_id = holding
    lost = [LossFound(STORER, segment_id, 0)]
    first, second, third, last = ledger.seated(1)
    assert ledger.report(first, 1, losses=lost).ok and ledger.report(second, 1, losses=lost).ok
    assert state_of(ledger, segment_id) == Holding.ACTIVE
    assert ledger.report(third, 1, losses=lost).ok
    assert state_of(ledger, segment_id) == Holding.FREED
    assert ledger.state.node(STORER).pool_locked == 0
    taken = 5 * TOKEN  # half of the collateral; a fifth of that for the three who found it
    for witness in (first, second, third):
        assert balance(ledger.state, key_of(f"payout {witness}").public) == taken // 5 // 3
    assert ledger.state.chain.repair_reserve == taken * 3 // 10
    assert ledger.state.chain.burned == taken - taken * 3 // 10 - taken // 5 // 3 * 3
    assert ledger.report(last, 1, losses=lost).ok  # too late to matter, not wrong
    ledger.to_epoch(3)
    assert ledger.standing(STORER).missed_in_row == 1


def test_a_found_loss_outweighs_passes_of_the_same_node(holding: tuple[Ledger, bytes]) -> None:
    ledger, segment_id = holding
    for witness in ledger.seated(1):
        assert ledger.report(witness, 1, [STORER], losses=[LossFound(STORER, segment_id, 0)]).ok
    ledger.to_epoch(3)
    assert (ledger.standing(STORER).passed, ledger.standing(STORER).judged) == (0, 1)


def test_a_loss_of_what_the_node_does_not_hold_is_passed_over(holding: tuple[Ledger, bytes]) -> None:
    ledger, segment_id = holding
    wrong = [LossFound(STORER, segment_id, 1), LossFound(STORER, sha256(b"none"), 0), LossFound(STORER + 1, segment_id, 0)]
    for witness in ledger.seated(1):
        for_all = sorted(wrong, key=lambda loss: (loss.node, loss.segment_id, loss.index))
        assert ledger.report(witness, 1, [STORER], losses=for_all).ok
    assert state_of(ledger, segment_id) == Holding.ACTIVE
    ledger.to_epoch(3)
    assert ledger.standing(STORER).passed == 1


# -- the beacon -------------------------------------------------------------------------------------------------------------

SECRET = {witness: sha256(bytes([witness])) for witness in range(4)}


def commit(ledger: Ledger, *witnesses: int) -> None:
    """Reports on epoch 1, sent in epoch 2, with commitments of round 1; then it is the epoch of its reveals."""
    ledger.to_epoch(2)
    for witness in witnesses:
        assert ledger.report(witness, 1, commit=beacon_commitment(ledger.nodes[witness].public, SECRET[witness])).ok
    ledger.to_epoch(3)


def test_a_reveal_changes_the_beacons_from_the_next_epoch_on(ledger: Ledger) -> None:
    quiet = Ledger()
    quiet.give_leaves(STORER)
    quiet.to_epoch(1)
    for each in (ledger, quiet):
        commit(each, 0)
    before = beacon_of(ledger.state, 3)
    assert ledger.report(0, 2, reveal=SECRET[0]).ok
    assert beacon_of(ledger.state, 3) == before == beacon_of(quiet.state, 3)
    ledger.to_epoch(4)
    quiet.to_epoch(4)
    assert beacon_of(ledger.state, 4) != beacon_of(quiet.state, 4)
    assert beacon_of(ledger.state, 3) == before


def test_another_secret_makes_another_beacon() -> None:
    beacons = set()
    for secret in (SECRET[1], SECRET[2]):
        ledger = Ledger()
        ledger.to_epoch(2)
        assert ledger.report(0, 1, commit=beacon_commitment(ledger.nodes[0].public, secret)).ok
        ledger.to_epoch(3)
        assert ledger.report(0, 2, reveal=secret).ok
        ledger.to_epoch(4)
        beacons.add(beacon_of(ledger.state, 4))
    assert len(beacons) == 2


def test_the_order_of_reveals_does_not_matter() -> None:
    beacons = []
    for order in ([0, 1, 2], [2, 0, 1]):
        ledger = Ledger()
        ledger.to_epoch(1)
        commit(ledger, 0, 1, 2)
        for witness in order:
            assert ledger.report(witness, 2, reveal=SECRET[witness]).ok
        ledger.to_epoch(4)
        beacons.append(beacon_of(ledger.state, 4))
    assert beacons[0] == beacons[1]


def test_without_reveals_the_mix_stays(ledger: Ledger) -> None:
    mix = ledger.state.chain.beacon_mix
    commit(ledger, 0, 1)
    ledger.to_epoch(9)
    assert ledger.state.chain.beacon_mix == mix
    assert beacon_of(ledger.state, 9) != beacon_of(ledger.state, 8)


@pytest.mark.parametrize(("at", "code"), [(2, "nothing-to-reveal"), (3, ""), (4, "nothing-to-reveal")])
def test_a_secret_is_told_in_its_epoch_and_neither_before_nor_after(ledger: Ledger, at: int, code: str) -> None:
    ledger.to_epoch(2)
    assert ledger.report(0, 1, commit=beacon_commitment(ledger.nodes[0].public, SECRET[0])).ok
    ledger.to_epoch(at)
    assert ledger.report(0, at, reveal=SECRET[0]).code == code


def test_another_secret_than_the_one_committed_to_is_refused_and_so_is_a_second_time(ledger: Ledger) -> None:
    commit(ledger, 0)
    assert ledger.report(0, 3, reveal=SECRET[1]).code == "wrong-reveal"
    assert ledger.report(0, 3, reveal=SECRET[0]).ok
    assert ledger.report(0, 3, reveal=SECRET[0]).code == "already-revealed"


def test_a_commitment_cannot_be_copied_and_opened_by_another(ledger: Ledger) -> None:
    ledger.to_epoch(2)
    stolen = beacon_commitment(ledger.nodes[0].public, SECRET[0])
    assert ledger.report(0, 1, commit=stolen).ok and ledger.report(1, 1, commit=stolen).ok
    ledger.to_epoch(3)
    assert ledger.report(0, 3, reveal=SECRET[0]).ok
    assert ledger.report(1, 3, reveal=SECRET[0]).code == "wrong-reveal"


def test_a_reveal_alone_is_no_vote_and_needs_no_seat(ledger: Ledger) -> None:
    ledger.to_epoch(2)
    assert ledger.report(0, 1, commit=beacon_commitment(ledger.nodes[0].public, SECRET[0])).ok
    jail(ledger.state, ledger.operators[0].public)
    ledger.state.keep()
    ledger.to_epoch(3)
    assert 0 not in ledger.seated(3)
    assert ledger.report(0, 3, [STORER], reveal=SECRET[0]).code == "not-a-witness"
    assert ledger.report(0, 3, reveal=SECRET[0]).ok
    record = ledger.state.find(EPOCHS, number_key(3))
    assert record is not None and record.reported == 0


def test_a_witness_that_revealed_first_can_still_vote(ledger: Ledger) -> None:
    commit(ledger, 0)
    assert ledger.report(0, 3, reveal=SECRET[0]).ok
    assert ledger.report(0, 3, [STORER]).ok


def test_who_kept_its_secret_is_fined_where_at_least_half_told_theirs(ledger: Ledger) -> None:
    commit(ledger, 0, 1)
    full = bonds(ledger)
    assert ledger.report(0, 3, reveal=SECRET[0]).ok
    ledger.to_epoch(4)
    assert [before - after for before, after in zip(full, bonds(ledger), strict=True)] == [0, full[1] // 1000, 0, 0]


def test_nobody_is_fined_where_fewer_than_half_told_their_secret(ledger: Ledger) -> None:
    commit(ledger, 0, 1, 2)
    full = bonds(ledger)
    assert ledger.report(0, 3, reveal=SECRET[0]).ok
    ledger.to_epoch(4)
    assert bonds(ledger) == full


def test_the_beacon_of_an_epoch_that_left_no_record_is_not_made_up(ledger: Ledger) -> None:
    ledger.to_epoch(9)
    with pytest.raises(Refused, match="not kept"):
        beacon_of(ledger.state, 3)

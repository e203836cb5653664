"""Storage pay, sponsors that come and go, and the subsidy: exact numbers."""

from __future__ import annotations

from typing import Any

import pytest

from dds.ledger.faults import Refused
from dds.ledger.money import balance
from dds.ledger.records import (
    ENDOWMENTS,
    SEGMENTS,
    STANDINGS,
    Holding,
    Run,
    SponsorEntry,
    Standing,
    contract_id,
    number_key,
)
from dds.ledger.rules import emission, inventory
from dds.ledger.rules.holding import release, touch
from dds.placement.roles import SSN
from dds.primitives.hashing import sha256
from dds.primitives.money import MILLION, TOKEN
from dds.wire.ledger import (
    AddReceipts,
    CancelContract,
    Endow,
    ExtendSegments,
    Loss,
    OpenContract,
    RegisterSegments,
    ReportLoss,
    SetContract,
    Settle,
    SpendEndowment,
    Sponsor,
    Unsponsor,
    WithdrawEscrow,
)
from tests.ledger_committee import small_params
from tests.ledger_storage import ALL, PRICE, PRICE_MAX, SLOT, TERM, Storage

ONE = sha256(b"one")


@pytest.fixture
def ledger() -> Storage:
    fresh = Storage()
    fresh.open()
    fresh.open(fresh.bert)
    return fresh


def settle(ledger: Storage) -> None:
    ledger.ok(ledger.bert, Settle([ONE]))


def paid(epochs: int) -> int:
    """To one node by one sponsor, settled at once."""
    return PRICE * epochs // 2


def entry_of(ledger: Storage, key: Any = None) -> SponsorEntry:
    return next(entry for entry in ledger.segment().sponsors if entry.contract == ledger.contract_id(key))


# -- pay ----------------------------------------------------------------------------------------------------------------------


def test_a_passed_epoch_is_paid_when_it_is_closed_and_not_before(ledger: Storage) -> None:
    _, chosen = ledger.store()  # in epoch 0: paid from epoch 1 on
    ledger.pass_until(2)
    settle(ledger)
    assert ledger.earned() == {}  # epochs 1 and 2 are not closed
    ledger.pass_until(3)
    settle(ledger)
    assert ledger.earned() == dict.fromkeys(chosen, paid(1))


def test_settling_twice_pays_once(ledger: Storage) -> None:
    _, chosen = ledger.store()
    ledger.pass_until(6)
    settle(ledger)
    once, root = ledger.earned(), dict(ledger.base)
    settle(ledger)
    assert once == ledger.earned() == dict.fromkeys(chosen, paid(4))
    changed = {key for key in ledger.base if ledger.base[key] != root.get(key)}
    assert {key[:1] for key in changed} == {b"a"}  # the sender's nonce


def test_settling_often_pays_no_more_than_settling_once(ledger: Storage) -> None:
    often, once = Storage(), Storage()
    for each in (often, once):
        each.open()
        each.store()
    for epoch in range(1, 8):
        often.pass_until(epoch)
        settle(often)
    once.pass_until(7)
    settle(once)
    for number, amount in once.earned().items():
        assert amount - 5 < often.earned()[number] <= amount  # floored five times


def test_a_missed_epoch_is_withheld_and_comes_back_at_the_end(ledger: Storage) -> None:
    _, chosen = ledger.store()
    before = ledger.contract().escrow
    sponsor = entry_of(ledger)
    ledger.pass_until(TERM + 3, missing={3: [chosen[0]], 4: [chosen[0]]})
    settle(ledger)
    assert ledger.earned() == {chosen[0]: paid(TERM - 2), chosen[1]: paid(TERM), chosen[2]: paid(TERM)}
    (withheld,) = [event for event in ledger.named("withheld") if event.amount]
    assert (withheld.node, withheld.amount, withheld.detail) == (
        chosen[0],
        paid(TERM) - paid(TERM - 2),
        "8 of 10 epochs passed",
    )
    returned = sponsor.prepaid - sum(ledger.earned().values()) + sponsor.reserve
    assert ledger.contract().escrow == before + returned
    assert returned == paid(2) + sponsor.reserve


def test_epochs_that_no_quorum_reported_are_not_paid(ledger: Storage) -> None:
    ledger.store()
    ledger.to_epoch(5)
    settle(ledger)
    assert ledger.earned() == {}
    assert all(each.settled_epoch == 4 for each in ledger.segment().assignments)


def test_a_late_assignment_is_paid_from_the_epoch_after_its_receipt(ledger: Storage) -> None:
    _, chosen = ledger.store(without=[1])
    ledger.pass_until(3)
    ledger.ok(ledger.bert, AddReceipts(ONE, [ledger.late_receipt(1)]))
    ledger.pass_until(8)
    settle(ledger)
    assert ledger.earned() == {chosen[0]: paid(6), chosen[1]: paid(3), chosen[2]: paid(6)}  # two halves make a whole


def test_settling_every_epoch_pays_what_settling_once_does(ledger: Storage) -> None:
    _, chosen = ledger.store()
    for epoch in range(2, 9):
        ledger.pass_until(epoch)
        settle(ledger)
    assert ledger.earned() == dict.fromkeys(chosen, paid(6))
    assert paid(6) > 6 * paid(1), "the test would not see it"


def test_what_was_carried_goes_with_its_holder(ledger: Storage) -> None:
    _, chosen = ledger.store()
    ledger.pass_until(3)
    settle(ledger)
    assert all(entry_of(ledger).carries), "an odd number of epochs leaves half a unit"
    ledger.ok(ledger.nodes[chosen[1]], ReportLoss([Loss(ONE, 1)]))
    assert [bool(carried) for carried in entry_of(ledger).carries] == [True, False, True]


def test_an_extension_pays_for_what_was_carried_too(ledger: Storage) -> None:
    ledger.store()
    ledger.pass_until(3)
    settle(ledger)  # epoch 1; three halves of a unit are carried
    ledger.ok(ledger.anna, ExtendSegments(ledger.contract_id(), [ONE], TERM))
    left = entry_of(ledger).end_epoch - 2
    assert entry_of(ledger).prepaid == -(-3 * PRICE * left // 2) + 2


def test_who_is_let_go_is_paid_for_what_is_closed(ledger: Storage) -> None:
    _, chosen = ledger.store()
    ledger.pass_until(6)
    ledger.ok(ledger.nodes[chosen[1]], ReportLoss([Loss(ONE, 1)]))
    assert ledger.earned() == {chosen[1]: paid(4)}
    ledger.pass_until(9)
    settle(ledger)
    assert ledger.earned()[chosen[1]] == paid(4)


def test_releasing_what_is_freed_changes_nothing(ledger: Storage) -> None:
    ledger.store()
    release(ledger.state, ONE, 1, reason="test")
    ledger.state.keep()
    once = ledger.segment()
    release(ledger.state, ONE, 1, reason="test", slash_ppm=MILLION)
    assert ledger.segment() == once


def test_pay_goes_to_the_payout_account_and_sums_to_its_balance(ledger: Storage) -> None:
    _, chosen = ledger.store()
    ledger.pass_until(7)
    settle(ledger)
    total = {number: ledger.earned()[number] + ledger.earned("subsidy").get(number, 0) for number in chosen}
    assert total == {number: balance(ledger.state, ledger.node(number).payout) for number in chosen}


# -- the end ------------------------------------------------------------------------------------------------------------------


def test_a_segment_ends_when_its_last_epoch_is_closed_and_frees_everybody(ledger: Storage) -> None:
    _, chosen = ledger.store()
    pool = ledger.node(chosen[0]).pool_free + ledger.node(chosen[0]).pool_locked
    ledger.pass_until(TERM + 1)
    settle(ledger)
    assert len(ledger.segment().sponsors) == 1
    ledger.pass_until(TERM + 2)  # the last epoch that it pays for is TERM
    settle(ledger)
    assert ledger.segment().sponsors == ()
    assert all(each.state == Holding.FREED for each in ledger.segment().assignments)
    node = ledger.node(chosen[0])
    assert (node.pool_free, node.pool_locked, node.promised_bytes, node.assignments) == (pool, 0, 0, 0)
    assert (ledger.contract().segments, ledger.contract().rent_bytes) == (0, 0)
    ledger.assert_sound()


def test_an_ended_segment_can_be_proven_to_the_end_of_the_epoch_and_is_gone_then(ledger: Storage) -> None:
    _, chosen = ledger.store()
    ledger.ok(ledger.anna, Unsponsor(ledger.contract_id(), [ONE]))
    ledger.pass_until(3)
    settle(ledger)
    assert inventory.total_leaves(ledger.state, chosen[0]) > 0
    (again,) = ledger.reserve()
    result = ledger.send(ledger.anna, RegisterSegments([ledger.entry(again, [])]))
    assert result.code == "segment-exists" and "register it in the next" in result.message
    assert ledger.send(ledger.anna, ExtendSegments(ledger.contract_id(), [ONE], 1)).code == "segment-ended"
    ledger.pass_until(4)
    assert ledger.state.find(SEGMENTS, ONE) is None
    assert inventory.total_leaves(ledger.state, chosen[0]) == 0
    settle(ledger)  # what has gone is passed over
    ledger.ok(ledger.anna, RegisterSegments([ledger.entry(again, [])]))


def test_a_cancelled_contract_pays_the_epoch_that_it_is_cancelled_in_and_no_other(ledger: Storage) -> None:
    _, chosen = ledger.store()
    ledger.pass_until(4)
    before = balance(ledger.state, ledger.anna.public)
    ledger.ok(ledger.anna, CancelContract(ledger.contract_id()))
    escrow = balance(ledger.state, ledger.anna.public) - before
    sponsor = entry_of(ledger)
    ledger.pass_until(9)
    settle(ledger)
    assert ledger.earned() == dict.fromkeys(chosen, paid(4))
    left = sponsor.prepaid - 3 * paid(4) + sponsor.reserve
    assert balance(ledger.state, ledger.anna.public) == before + escrow + left
    assert ledger.contract().escrow == 0


def test_a_node_that_reports_a_loss_is_not_paid_beyond_the_epoch_of_the_cancellation(ledger: Storage) -> None:
    _, chosen = ledger.store()
    ledger.pass_until(4)
    ledger.ok(ledger.anna, CancelContract(ledger.contract_id()))
    ledger.pass_until(9)
    ledger.ok(ledger.nodes[chosen[0]], ReportLoss([Loss(ONE, 0)]))
    assert ledger.earned() == {chosen[0]: paid(4)}
    settle(ledger)
    assert ledger.earned() == dict.fromkeys(chosen, paid(4))
    ledger.assert_sound()


# -- sponsors -----------------------------------------------------------------------------------------------------------------


def test_two_sponsors_pay_half_each_from_the_joining_on(ledger: Storage) -> None:
    ledger.store()
    whole = entry_of(ledger).prepaid
    ledger.pass_until(3)
    ledger.sponsor(ledger.bert)  # from epoch 4 on
    half = entry_of(ledger, ledger.bert).prepaid
    assert half == whole  # as if it were alone
    ledger.pass_until(9)
    settle(ledger)  # through epoch 7: three epochs alone, four shared
    alone, shared = 3 * (paid(1) + PRICE * 2 // 2 + PRICE * 4 // 4), 3 * (PRICE * 4 // 4)
    assert whole - entry_of(ledger).prepaid == alone
    assert half - entry_of(ledger, ledger.bert).prepaid == shared
    assert sum(ledger.earned().values()) == alone + shared
    ledger.assert_sound()


def test_what_others_carried_comes_back(ledger: Storage) -> None:
    ledger.store()
    before = ledger.contract().escrow
    sponsor = entry_of(ledger)
    ledger.sponsor(ledger.bert)
    ledger.pass_until(TERM + 3)
    settle(ledger)
    assert ledger.contract().escrow == before + sponsor.prepaid - 3 * (PRICE * TERM // 4) + sponsor.reserve


def test_a_sponsor_pays_only_for_its_stripes(ledger: Storage) -> None:
    ledger.store()
    ledger.sponsor(ledger.bert, 0b10)
    assert entry_of(ledger, ledger.bert).prepaid == -(-3 * PRICE * TERM // 4)
    ledger.pass_until(6)
    settle(ledger)  # epochs 1 to 4: the first stripe by Anna alone, the second by both
    first, second = PRICE * 4 // 4, PRICE * 4 // 8
    assert entry_of(ledger).prepaid == -(-3 * PRICE * TERM // 2) - 3 * (first + second)
    assert entry_of(ledger, ledger.bert).prepaid == -(-3 * PRICE * TERM // 4) - 3 * second


def test_stripes_that_nobody_sponsors_any_more_are_released(ledger: Storage) -> None:
    _, chosen = ledger.store()
    ledger.sponsor(ledger.bert, 0b10)
    ledger.ok(ledger.anna, Unsponsor(ledger.contract_id(), [ONE]))
    ledger.pass_until(3)
    collateral = ledger.segment().assignments[0].collateral
    settle(ledger)
    segment = ledger.segment()
    assert (segment.released, [entry.contract for entry in segment.sponsors]) == (0b01, [ledger.contract_id(ledger.bert)])
    assert [(each.bytes, each.leaf_count) for each in segment.assignments] == [(SLOT, 67)] * 3
    assert segment.assignments[0].collateral == collateral  # stays until it is freed
    assert ledger.node(chosen[0]).promised_bytes == SLOT
    assert inventory.total_leaves(ledger.state, chosen[0]) == 134  # this epoch's inventory is frozen
    ledger.pass_until(4)
    assert inventory.total_leaves(ledger.state, chosen[0]) == 67
    held = inventory.find_held(ledger.state, chosen[0], ONE, 0)
    assert held is not None and held.released == 0b01
    result = ledger.send(ledger.anna, Sponsor(ledger.contract_id(), ONE, (1).to_bytes(8, "little")))
    assert result.code == "stripe-released"
    ledger.assert_sound()


def test_unsponsored_epochs_come_back_at_once_when_they_are_closed(ledger: Storage) -> None:
    ledger.store()
    before, sponsor = ledger.contract().escrow, entry_of(ledger)
    ledger.pass_until(3)
    ledger.ok(ledger.anna, Unsponsor(ledger.contract_id(), [ONE]))  # epoch 3 is the last
    ledger.pass_until(5)
    settle(ledger)
    assert ledger.contract().escrow == before + sponsor.prepaid + sponsor.reserve - 3 * (paid(1) + paid(2))


@pytest.mark.parametrize("leave", ["unsponsor", "cancel"])
def test_who_joins_and_leaves_at_once_pays_for_one_epoch(ledger: Storage, leave: str) -> None:
    _, chosen = ledger.store()
    name = ledger.contract_id()
    ledger.ok(ledger.anna, Unsponsor(name, [ONE]) if leave == "unsponsor" else CancelContract(name))
    ledger.pass_until(9)
    settle(ledger)
    assert ledger.earned() == dict.fromkeys(chosen, paid(1))
    ledger.assert_sound()


def test_two_contracts_that_take_turns_pay_for_every_epoch(ledger: Storage) -> None:
    """Each joins for as little as it can and leaves at once, so that the segment always has a sponsor."""
    hot = contract_id(ledger.anna.public, "hot")
    ledger.ok(ledger.anna, OpenContract("hot", 2, 1, TERM, PRICE_MAX, TOKEN))
    _, chosen = ledger.store()
    ledger.ok(ledger.anna, Unsponsor(ledger.contract_id(), [ONE]))
    for epoch in range(1, 10):
        ledger.pass_until(epoch)
        turn = hot if epoch % 2 else ledger.contract_id()
        ledger.ok(ledger.anna, Sponsor(turn, ONE, ALL.to_bytes(8, "little")))
        ledger.ok(ledger.anna, Unsponsor(turn, [ONE]))
    ledger.pass_until(11)
    settle(ledger)  # through epoch 9
    assert ledger.earned() == dict.fromkeys(chosen, 9 * paid(1))  # each turn is floored
    ledger.assert_sound()


@pytest.mark.parametrize(("stripes", "begins"), [(0b01, 4), (0b10, 3), (ALL, 3)])
def test_who_joins_after_a_stripes_last_sponsor_pays_for_the_epoch_between(ledger: Storage, stripes: int, begins: int) -> None:
    ledger.store()
    ledger.sponsor(ledger.bert, 0b01)
    ledger.pass_until(2)
    ledger.ok(ledger.anna, Unsponsor(ledger.contract_id(), [ONE]))  # epoch 2 is the last of the second stripe
    ledger.ok(ledger.anna, OpenContract("hot", 2, 1, TERM, PRICE_MAX, TOKEN))
    ledger.pass_until(3)
    hot = contract_id(ledger.anna.public, "hot")
    ledger.ok(ledger.anna, Sponsor(hot, ONE, stripes.to_bytes(8, "little")))
    joined = ledger.segment().sponsors[-1]
    assert (joined.contract, joined.start_epoch, joined.end_epoch) == (hot, begins, begins + TERM)
    ledger.pass_until(begins + TERM + 2)
    settle(ledger)
    ledger.assert_sound()


@pytest.mark.parametrize(("stripes", "code"), [(0, "no-stripes"), (0b100, "no-such-stripe")])
def test_impossible_stripes_are_not_sponsored(ledger: Storage, stripes: int, code: str) -> None:
    ledger.store()
    body = Sponsor(ledger.contract_id(ledger.bert), ONE, stripes.to_bytes(8, "little"))
    assert ledger.send(ledger.bert, body).code == code


def test_sponsoring_above_the_limit_is_refused(ledger: Storage) -> None:
    ledger.store()
    ledger.ok(ledger.bert, SetContract(ledger.contract_id(ledger.bert), TERM, PRICE - 1))
    body = Sponsor(ledger.contract_id(ledger.bert), ONE, ALL.to_bytes(8, "little"))
    assert ledger.send(ledger.bert, body).code == "price-above-limit"


def test_a_segment_has_no_more_sponsors_than_the_parameters_allow() -> None:
    ledger = Storage(params=small_params(sponsors_max=2))
    for key in (ledger.anna, ledger.operators[0], ledger.operators[1]):
        ledger.open(key)
    ledger.store()
    ledger.sponsor(ledger.operators[0])
    body = Sponsor(ledger.contract_id(ledger.operators[1]), ONE, ALL.to_bytes(8, "little"))
    assert ledger.send(ledger.operators[1], body).code == "too-many-sponsors"
    ledger.sponsor(ledger.operators[0])  # who is one already is no new one


def test_extending_charges_the_new_epochs_at_the_present_price_less_what_is_left(ledger: Storage) -> None:
    ledger.store()
    ledger.pass_until(6)
    before, chain = ledger.contract().escrow, ledger.state.chain
    ledger.ok(ledger.anna, ExtendSegments(ledger.contract_id(), [ONE], 5))
    price = max(PRICE, chain.lane(SSN).price)
    sponsor = entry_of(ledger)
    left = -(-3 * PRICE * TERM // 2) - 3 * paid(4)
    cost = -(-3 * price * (16 - 5) // 2) - left  # epochs 5, the first that is not closed, to 15
    assert (sponsor.price, sponsor.end_epoch, sponsor.prepaid) == (price, TERM + 6, left + cost)
    assert before - ledger.contract().escrow == cost + -(-cost * 2 // 100) + -(-cost // 10)
    ledger.pass_until(TERM + 8)
    settle(ledger)
    ledger.assert_sound()
    assert ledger.contract().segments == 0


def test_extending_is_the_publishers_unless_an_endowment_stands_behind_it(ledger: Storage) -> None:
    ledger.store()
    body = ExtendSegments(ledger.contract_id(), [ONE], 1)
    assert ledger.send(ledger.bert, body).code == "not-the-publisher"
    ledger.ok(ledger.bert, Endow(ledger.contract_id(), 500 * TOKEN))
    ledger.to_epoch(3)
    ledger.ok(ledger.bert, body)
    ledger.assert_sound()


def test_a_strangers_extension_spends_the_endowments_money_and_none_of_the_publishers(ledger: Storage) -> None:
    ledger.store()
    ledger.ok(ledger.bert, Endow(ledger.contract_id(), 1))
    ledger.to_epoch(3)
    before = ledger.contract().escrow
    assert ledger.send(ledger.bert, ExtendSegments(ledger.contract_id(), [ONE], 50)).code == "not-endowed"
    assert ledger.contract().escrow == before


def test_what_an_endowment_gave_pays_rent_and_cannot_be_withdrawn(ledger: Storage) -> None:
    ledger.store()
    name = ledger.contract_id()
    ledger.ok(ledger.bert, Endow(name, 500 * TOKEN))
    ledger.to_epoch(3)
    ledger.ok(ledger.bert, SpendEndowment(name))
    contract = ledger.contract()
    own = contract.escrow - contract.endowed
    assert contract.endowed > 0
    assert ledger.send(ledger.anna, WithdrawEscrow(name, own + 1)).code == "endowed"
    ledger.ok(ledger.anna, WithdrawEscrow(name, own))
    ledger.ok(ledger.anna, CancelContract(name))
    assert not [event for event in ledger.named("refund") if event.detail == "contract cancelled"]
    pool = ledger.state.find(ENDOWMENTS, name)
    assert pool is not None and (pool.pool, pool.spent) == (500 * TOKEN, 0)
    ledger.assert_sound()


def test_a_contract_extends_only_what_it_sponsors(ledger: Storage) -> None:
    ledger.store()
    assert ledger.send(ledger.bert, ExtendSegments(ledger.contract_id(ledger.bert), [ONE], 1)).code == "not-sponsored"


# -- subsidy and emission -----------------------------------------------------------------------------------------------------


def test_the_subsidy_is_ninety_percent_of_the_burned_fee_for_epochs_that_passed(ledger: Storage) -> None:
    _, chosen = ledger.store()
    sponsor = entry_of(ledger)
    assert ledger.state.chain.subsidy_due == sponsor.subsidy_rate == sponsor.subsidy // TERM
    ledger.pass_until(TERM + 3, missing={5: [chosen[1]]})
    settle(ledger)
    share = sponsor.subsidy_rate * TERM // 3
    assert ledger.earned("subsidy") == {
        chosen[0]: share,
        chosen[1]: sponsor.subsidy_rate * (TERM - 1) // 3,
        chosen[2]: share,
    }
    chain = ledger.state.chain
    assert chain.minted == sum(ledger.earned("subsidy").values()) <= chain.burned_for_subsidy * 9 // 10
    assert chain.subsidy_due == 0


def test_what_was_minted_is_no_more_in_the_budget(ledger: Storage) -> None:
    ledger.store()
    ledger.pass_until(5)
    settle(ledger)
    ledger.to_epoch(6)
    chain = ledger.state.chain
    assert chain.minted > 0
    assert chain.emission_budget + chain.minted == emission.released(ledger.params, chain.genesis_supply, 6)


def test_no_emission_means_no_subsidy() -> None:
    ledger = Storage(params=small_params(emission_rate=0))
    ledger.open()
    ledger.store()
    ledger.pass_until(5)
    settle(ledger)
    assert ledger.earned("subsidy") == {} and sum(ledger.earned().values()) == 3 * paid(3)


def test_what_was_not_earned_is_not_earned_by_extending(ledger: Storage) -> None:
    ledger.store()
    first = entry_of(ledger)
    ledger.to_epoch(8)  # nobody reported: nothing is earned of the first seven epochs
    ledger.ok(ledger.anna, ExtendSegments(ledger.contract_id(), [ONE], 1))
    assert ledger.contract().segments == 1
    longer = entry_of(ledger)
    fresh = ledger.state.chain.burned_for_subsidy
    assert longer.subsidy <= first.subsidy_rate * (TERM + 1 - 7) + fresh
    assert longer.subsidy < first.subsidy


def test_emission_is_a_function_of_the_epoch_and_stays_below_the_cap() -> None:
    params = small_params()
    supply = params.supply_cap // 3
    amounts = [emission.released(params, supply, epoch) for epoch in [*range(200), 10**4, 10**6, 10**9, 1 << 40]]
    assert amounts[0] == 0
    assert amounts == sorted(amounts)
    assert amounts[1] == pytest.approx((params.supply_cap - supply) * 13_179_000 / 10**12, rel=1e-9)
    assert amounts[-1] <= params.supply_cap - supply
    half = emission.released(params, supply, 6 * 8766)  # the half-life: six years of hours
    assert half * 1000 // (params.supply_cap - supply) == 500


def test_a_pause_leaves_the_same_budget_as_stepping(ledger: Storage) -> None:
    leapt = Storage()
    for each in (ledger, leapt):
        each.state.set_chain(subsidy_due=10**18)
        each.state.keep()
    ledger.to_epoch(50)
    leapt.to_epoch(50, stepping=False)
    one, two = ledger.state.chain, leapt.state.chain
    assert (one.emission_budget, one.subsidy_scale_ppm) == (two.emission_budget, two.subsidy_scale_ppm)
    assert one.subsidy_scale_ppm == one.emission_budget * MILLION // 10**18 < MILLION


def test_a_segment_that_never_was_cannot_be_touched(ledger: Storage) -> None:
    with pytest.raises(Refused, match="no segment"):
        touch(ledger.state, ONE)


def test_an_epochs_scale_holds_for_what_is_earned_in_it() -> None:
    ledger = Storage()
    ledger.open()
    ledger.store()
    rate = entry_of(ledger).subsidy_rate
    ledger.pass_until(1)
    for number in ledger.storing:
        ledger.state.put(STANDINGS, number_key(number), Standing(runs=(Run(1, 1, 250_000), Run(2, 1, MILLION))))
    ledger.state.set_chain(epoch=4)
    touch(ledger.state, ONE)
    minted = sum(event.delta for event in ledger.state.keep() if event.name == "subsidy")
    assert minted == 3 * (rate * 1_250_000 // 3 // MILLION)

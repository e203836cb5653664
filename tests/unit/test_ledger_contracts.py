"""Standing contracts and what their escrow is good for."""

from __future__ import annotations

import pytest

from dds.ledger import rent
from dds.ledger.money import balance
from dds.ledger.params import Params
from dds.ledger.records import contract_id
from dds.placement.roles import SSN
from dds.primitives.hashing import sha256
from dds.primitives.units import MIB
from dds.wire.ledger import (
    CancelContract,
    CancelReservations,
    OpenContract,
    RegisterSegments,
    Reserve,
    SetContract,
    Settle,
    StripeRun,
    TopUp,
    WithdrawEscrow,
)
from tests.ledger_storage import DEPOSIT, PRICE_MAX, SLOT, TERM, Storage


@pytest.fixture
def ledger() -> Storage:
    fresh = Storage()
    fresh.open()
    return fresh


def test_a_quote_is_rent_fee_and_reserve_each_rounded_up() -> None:
    quote = rent.quote(Params(), [MIB, MIB, 1], 1_325, 720)
    assert quote.rent == 2 * 1_325 * 720 + 1  # one byte more costs the next unit
    assert (quote.fee, quote.reserve) == (38_161, 190_801)
    assert quote.total == quote.rent + quote.fee + quote.reserve


def test_an_index_holds_what_the_stripes_that_have_it_imply() -> None:
    stripes = (StripeRun(2, 2, 1, SLOT), StripeRun(1, 1, 0, 4096))
    assert [rent.stripes_bytes(stripes, index) for index in range(4)] == [2 * SLOT + 4096, 2 * SLOT, 2 * SLOT, 0]
    assert rent.leaf_count(stripes, 0) == 2 * 67 + 2
    assert rent.stripes_bytes(stripes, 0, released=0b101) == SLOT
    assert rent.sponsored_bytes(stripes, 0b101) == 3 * SLOT + 4096


def test_leaves_are_numbered_stripe_by_stripe_without_the_released() -> None:
    stripes = (StripeRun(2, 2, 1, SLOT), StripeRun(1, 1, 0, 4096))
    assert rent.leaf_place(stripes, 0, 66) == (0, 66)
    assert rent.leaf_place(stripes, 0, 67) == (1, 0)
    assert rent.leaf_place(stripes, 0, 67, released=0b10) == (2, 0)
    assert rent.leaf_place(stripes, 1, 2 * 67) is None


def test_opening_moves_the_deposit_into_escrow(ledger: Storage) -> None:
    contract = ledger.contract()
    assert (contract.escrow, contract.publisher, contract.term_epochs) == (DEPOSIT, ledger.anna.public, TERM)
    assert ledger.contract_id() == contract_id(ledger.anna.public, "standard")


def test_a_class_has_one_contract_a_publisher(ledger: Storage) -> None:
    assert ledger.send(ledger.anna, OpenContract("standard", 2, 1, TERM, PRICE_MAX, 1)).code == "contract-exists"
    ledger.ok(ledger.anna, OpenContract("archive", 2, 1, TERM, PRICE_MAX, 1))
    ledger.ok(ledger.bert, OpenContract("standard", 2, 1, TERM, PRICE_MAX, 1))


def test_a_deposit_beyond_the_balance_opens_nothing(ledger: Storage) -> None:
    too_much = balance(ledger.state, ledger.bert.public) + 1
    assert ledger.send(ledger.bert, OpenContract("x", 2, 1, TERM, 1, too_much)).code == "insufficient-balance"


def test_anyone_may_top_up_and_only_the_publisher_withdraws(ledger: Storage) -> None:
    ledger.ok(ledger.bert, TopUp(ledger.contract_id(), 7))
    assert ledger.contract().escrow == DEPOSIT + 7
    assert ledger.send(ledger.bert, WithdrawEscrow(ledger.contract_id(), 7)).code == "not-the-publisher"
    assert ledger.send(ledger.anna, WithdrawEscrow(ledger.contract_id(), DEPOSIT + 8)).code == "insufficient-escrow"
    ledger.ok(ledger.anna, WithdrawEscrow(ledger.contract_id(), DEPOSIT + 7))
    assert ledger.contract().escrow == 0


def test_only_the_publisher_changes_term_and_limit(ledger: Storage) -> None:
    assert ledger.send(ledger.bert, SetContract(ledger.contract_id(), 5, 6)).code == "not-the-publisher"
    ledger.ok(ledger.anna, SetContract(ledger.contract_id(), 5, 6))
    assert (ledger.contract().term_epochs, ledger.contract().price_max) == (5, 6)


def test_a_price_above_the_limit_reserves_nothing(ledger: Storage) -> None:
    ledger.ok(ledger.anna, SetContract(ledger.contract_id(), TERM, 1_324))
    result = ledger.send(ledger.anna, Reserve(ledger.contract_id(), 1, 3, 1, MIB))
    assert result.code == "price-above-limit"
    assert "1325" in result.message and "1324" in result.message


def test_an_escrow_one_unit_short_reserves_nothing(ledger: Storage) -> None:
    need = rent.quote(ledger.params, [MIB] * 3, ledger.state.chain.lane(SSN).price, TERM).total
    ledger.ok(ledger.anna, WithdrawEscrow(ledger.contract_id(), DEPOSIT - need + 1))
    result = ledger.send(ledger.anna, Reserve(ledger.contract_id(), 1, 3, 1, MIB))
    assert result.code == "insufficient-escrow" and "0.000000000001 ECHO are missing" in result.message
    ledger.ok(ledger.bert, TopUp(ledger.contract_id(), 1))
    ledger.reserve(size=MIB)


def test_what_is_earmarked_can_neither_be_withdrawn_nor_reserved_twice(ledger: Storage) -> None:
    need = rent.quote(ledger.params, [MIB] * 3, ledger.state.chain.lane(SSN).price, TERM).total
    ledger.ok(ledger.anna, WithdrawEscrow(ledger.contract_id(), DEPOSIT - need))
    (reservation,) = ledger.reserve(size=MIB)
    assert ledger.send(ledger.anna, Reserve(ledger.contract_id(), 1, 3, 1, MIB)).code == "insufficient-escrow"
    assert ledger.send(ledger.anna, WithdrawEscrow(ledger.contract_id(), 1)).code == "insufficient-escrow"
    ledger.ok(ledger.anna, CancelReservations([reservation]))
    ledger.ok(ledger.anna, WithdrawEscrow(ledger.contract_id(), need))


def test_a_put_that_fails_half_way_gets_every_unit_back(ledger: Storage) -> None:
    before = balance(ledger.state, ledger.anna.public) + DEPOSIT
    reservations = ledger.reserve(count=4)
    ledger.ok(ledger.anna, CancelReservations(sorted(reservations)))
    ledger.ok(ledger.anna, CancelContract(ledger.contract_id()))
    assert balance(ledger.state, ledger.anna.public) == before
    assert [ledger.node(number).promised_bytes for number in ledger.storing] == [0] * 6
    ledger.assert_sound()


def test_a_cancelled_contract_returns_its_escrow_at_once_and_takes_part_in_nothing(ledger: Storage) -> None:
    before = balance(ledger.state, ledger.anna.public)
    ledger.ok(ledger.anna, CancelContract(ledger.contract_id()))
    assert balance(ledger.state, ledger.anna.public) == before + DEPOSIT
    for body in (
        TopUp(ledger.contract_id(), 1),
        Reserve(ledger.contract_id(), 1, 3, 1, MIB),
        CancelContract(ledger.contract_id()),
    ):
        assert ledger.send(ledger.anna, body).code == "contract-cancelled"


def test_a_cancelled_contract_opens_anew_when_nothing_of_it_is_left(ledger: Storage) -> None:
    ledger.store()
    (reservation,) = ledger.reserve()
    ledger.ok(ledger.anna, CancelContract(ledger.contract_id()))
    reopen = OpenContract("standard", 2, 1, TERM, PRICE_MAX, 5)
    assert ledger.send(ledger.anna, reopen).code == "contract-in-use"
    ledger.ok(ledger.bert, CancelReservations([reservation]))  # nobody waits for it: anyone may
    ledger.to_epoch(3)
    ledger.ok(ledger.bert, Settle([sha256(b"one")]))
    ledger.ok(ledger.anna, reopen)
    assert ledger.contract().reservations == 2  # its ids go on: an old receipt fits no new reservation


def test_a_reservation_of_a_cancelled_contract_registers_nothing(ledger: Storage) -> None:
    (reservation,) = ledger.reserve()
    ledger.ok(ledger.anna, CancelContract(ledger.contract_id()))
    assert ledger.send(ledger.anna, RegisterSegments([ledger.entry(reservation, [])])).code == "contract-cancelled"


def test_events_of_an_account_sum_to_its_balance(ledger: Storage) -> None:
    anna = ledger.anna.public
    start = balance(ledger.state, anna) - sum(event.delta for event in ledger.events if event.account == anna)
    ledger.store()
    ledger.ok(ledger.anna, CancelContract(ledger.contract_id()))
    ledger.pass_until(5)
    ledger.ok(ledger.bert, Settle([sha256(b"one")]))
    assert balance(ledger.state, anna) == start + sum(event.delta for event in ledger.events if event.account == anna)


def test_a_cancelled_contract_with_an_open_reservation_is_sound(ledger: Storage) -> None:
    (reservation,) = ledger.reserve()
    ledger.ok(ledger.anna, CancelContract(ledger.contract_id()))
    assert ledger.contract().escrow == 0 < ledger.contract().reserved
    ledger.assert_sound()
    ledger.ok(ledger.bert, CancelReservations([reservation]))
    assert ledger.contract().reserved == 0
    ledger.assert_sound()

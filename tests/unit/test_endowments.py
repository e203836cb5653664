"""Endowments: the pool is spent no faster than its rule allows, whoever asks and however long nobody did."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from dds.ledger.params import Params
from dds.ledger.records import CONTRACTS, ENDOWMENTS, Contract, Endowment
from dds.ledger.rules.endowments import coverage_ppm, endowment_quote, epoch_cost, spend_due, spendable
from dds.primitives.errors import InputError
from dds.primitives.money import AMOUNT_MAX, TOKEN
from dds.primitives.units import MIB
from dds.wire.ledger import Endow, SpendEndowment
from tests.money_ledger import ANNA, BERT, TIB, MoneyLedger


def pool_of(ledger: MoneyLedger, contract: bytes) -> Endowment:
    found = ledger.state.find(ENDOWMENTS, contract)
    assert found is not None
    return found


def contract_of(ledger: MoneyLedger, name: bytes) -> Contract:
    found = ledger.state.find(CONTRACTS, name)
    assert found is not None
    return found


def test_a_tib_at_the_first_price_costs_a_pool_of_two_thousand_years_of_decline() -> None:
    assert endowment_quote(TIB, 1_325, 5_000) == TIB // MIB * 1_325 * 8_766 * 200
    assert endowment_quote(1, 1, 5_000) == 2  # 8766 / (0.005 * 2^20) = 1.67, never rounded in the buyer's favour


def test_coverage_is_the_share_of_the_quote_that_is_there() -> None:
    quote = endowment_quote(TIB, 1_325, 5_000)
    assert [coverage_ppm(pool, TIB, 1_325, 5_000) for pool in (0, quote // 2, quote, 2 * quote)] == [
        0,
        500_000,
        10**6,
        2 * 10**6,
    ]
    assert coverage_ppm(quote - 1, TIB, 1_325, 5_000) == 999_999
    assert coverage_ppm(0, 0, 1_325, 5_000) == 10**6


def test_no_pool_lasts_for_ever_when_prices_never_fall() -> None:
    with pytest.raises(InputError):
        endowment_quote(TIB, 1_325, 0)


def test_the_cost_of_an_epoch_is_what_extending_by_one_is_charged() -> None:
    contract = Contract(ANNA.public, "standard", 10, 6, 720, 2_000, rent_bytes=100 * MIB)
    assert epoch_cost(Params(), contract, 1_325) == 148_400  # 132,500 rent, 2 % fee, 10 % reserve
    assert epoch_cost(Params(), contract, 9_999) == 224_000  # never above the creator's limit


def test_an_epoch_spends_the_cost_where_the_pool_allows_it() -> None:
    ledger = MoneyLedger()
    name = ledger.contract(ANNA, mib=100)
    assert ledger.do(BERT, Endow(name, 500 * TOKEN)).ok  # allows 855,578,371 an epoch
    ledger.go_to(10)
    assert ledger.do(BERT, SpendEndowment(name)).ok
    assert contract_of(ledger, name).escrow == 10 * 148_400
    assert pool_of(ledger, name) == Endowment(500 * TOKEN - 1_484_000, 10, 500 * TOKEN, 1_484_000)
    assert ledger.balance(BERT) == 500 * TOKEN


def test_an_epoch_spends_at_most_three_times_the_decline() -> None:
    ledger = MoneyLedger()
    name = ledger.contract(ANNA, mib=100)  # costs 148,400 an epoch
    ledger.do(BERT, Endow(name, TOKEN // 20))
    ledger.go_to(1)
    ledger.do(BERT, SpendEndowment(name))
    share = TOKEN // 20 * 15_000 // (8_766 * 10**6)
    assert share - 2 <= contract_of(ledger, name).escrow <= share == 85_557


def test_spending_twice_in_an_epoch_is_refused() -> None:
    ledger = MoneyLedger()
    name = ledger.contract(ANNA, mib=100)
    ledger.do(BERT, Endow(name, 500 * TOKEN))
    assert ledger.do(BERT, SpendEndowment(name)).code == "too-early"
    ledger.go_to(1)
    assert [ledger.do(BERT, SpendEndowment(name)).code for _ in range(2)] == ["", "too-early"]


def test_new_money_pays_for_no_epoch_that_is_over() -> None:
    ledger = MoneyLedger()
    name = ledger.contract(ANNA, mib=100)
    ledger.do(BERT, Endow(name, 1))
    ledger.go_to(1_000)
    ledger.do(BERT, Endow(name, 500 * TOKEN))
    assert pool_of(ledger, name).spent_through == 1_000
    assert ledger.do(BERT, SpendEndowment(name)).code == "too-early"
    assert contract_of(ledger, name).escrow == 0


def test_epochs_that_cost_nothing_are_not_caught_up() -> None:
    ledger = MoneyLedger()
    name = ledger.contract(ANNA)
    ledger.do(BERT, Endow(name, 500 * TOKEN))
    ledger.go_to(1_000)
    assert ledger.do(BERT, SpendEndowment(name)).ok
    ledger.contract(ANNA, mib=100)
    ledger.go_to(1_001)
    ledger.do(BERT, SpendEndowment(name))
    assert contract_of(ledger, name).escrow == 148_400


def test_a_cancelled_contract_gets_nothing_from_its_endowment() -> None:
    ledger = MoneyLedger()
    name = ledger.contract(ANNA, mib=100)
    ledger.do(BERT, Endow(name, 500 * TOKEN))
    ledger.state.put(CONTRACTS, name, replace(contract_of(ledger, name), cancelled_epoch=1))
    ledger.state.keep()
    ledger.go_to(9)
    assert [ledger.do(BERT, body).code for body in (SpendEndowment(name), Endow(name, 1))] == ["contract-cancelled"] * 2
    spend_due(ledger.state, name)
    assert pool_of(ledger, name).pool == 500 * TOKEN and contract_of(ledger, name).escrow == 0


def test_an_endowment_needs_a_contract_and_money() -> None:
    ledger = MoneyLedger()
    name = ledger.contract(ANNA)
    assert ledger.do(BERT, Endow(bytes(32), 5)).code == "no-such-contract"
    assert ledger.do(BERT, Endow(name, 0)).code == "nothing-to-move"
    assert ledger.do(BERT, Endow(name, 1_000 * TOKEN + 1)).code == "insufficient-balance"
    assert ledger.do(BERT, SpendEndowment(name)).code == "no-endowment"


@pytest.mark.parametrize(
    ("pool", "cost", "share", "spent"),
    [
        (AMOUNT_MAX, AMOUNT_MAX, 10**18, AMOUNT_MAX),
        (10, 3, 10**18, 9),
        (10, 0, 15_000, 0),
        (0, 5, 15_000, 0),
        (10**18, 5, 0, 0),
        (AMOUNT_MAX, 1, 15_000, 1 << 40),
    ],
)
def test_the_longest_pause_spends_no_more_than_there_is(pool: int, cost: int, share: int, spent: int) -> None:
    assert spendable(pool, cost, 1 << 40, share) == spent

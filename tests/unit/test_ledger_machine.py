"""A transaction's life: parsed, checked, judged, kept or taken back."""

from __future__ import annotations

import pytest

from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount, apply_genesis
from dds.ledger.machine import RULES, Context, TxResult, apply_block
from dds.ledger.money import balance
from dds.ledger.params import Params
from dds.ledger.state import State
from dds.primitives.keys import SigningKey
from dds.wire.ledger import Transfer, Tx, sign_tx

ANNA, BERT = SigningKey(b"a" * 32), SigningKey(b"b" * 32)
NETWORK = "test"


@pytest.fixture
def state() -> State:
    base: dict[bytes, bytes] = {}
    fresh = State(base)
    apply_genesis(fresh, Genesis(GENESIS_VERSION, NETWORK, Params(), (GenesisAccount(ANNA.public, 1000),)))
    base.update({key: value for key, value in fresh.changes().items() if value is not None})
    fresh.committed()
    return fresh


def apply(state: State, *raws: bytes) -> list[TxResult]:
    return list(apply_block(state, NETWORK, raws, Context(1, 0)).results)


def test_a_transfer_moves_what_it_says(state: State) -> None:
    (result,) = apply(state, sign_tx(ANNA, NETWORK, 0, Transfer(BERT.public, 300)))
    assert result.ok and (balance(state, ANNA.public), balance(state, BERT.public)) == (700, 300)


def test_a_refused_transaction_changes_no_balance_and_uses_its_nonce_up(state: State) -> None:
    too_much = sign_tx(ANNA, NETWORK, 0, Transfer(BERT.public, 1001))
    refused, replayed = apply(state, too_much, too_much)
    assert (refused.code, replayed.code) == ("insufficient-balance", "bad-nonce")
    assert (balance(state, ANNA.public), balance(state, BERT.public)) == (1000, 0)


@pytest.mark.parametrize(
    "mistake", [AssertionError, IndexError, KeyError, OverflowError, TypeError, ValueError, ZeroDivisionError]
)
def test_a_mistake_in_a_rule_is_an_outcome_that_changes_nothing_but_the_nonce(
    state: State, monkeypatch: pytest.MonkeyPatch, mistake: type[Exception]
) -> None:
    sound = RULES[Transfer]

    def mistaken(state: State, tx: Tx, body: Transfer) -> None:
        sound(state, tx, body)
        if body.amount == 13:
            raise mistake

    monkeypatch.setitem(RULES, Transfer, mistaken)
    results = apply(
        state, *(sign_tx(ANNA, NETWORK, nonce, Transfer(BERT.public, amount)) for nonce, amount in enumerate((1, 13, 2)))
    )
    assert [result.code for result in results] == ["", "internal", ""]
    assert balance(state, BERT.public) == 3


def test_a_replayed_transaction_moves_nothing(state: State) -> None:
    once = sign_tx(ANNA, NETWORK, 0, Transfer(BERT.public, 300))
    assert [result.code for result in apply(state, once, once)] == ["", "bad-nonce"]
    assert balance(state, BERT.public) == 300


def test_events_of_an_account_sum_to_its_balance_change(state: State) -> None:
    (result,) = apply(state, sign_tx(ANNA, NETWORK, 0, Transfer(ANNA.public, 300)))
    assert sum(event.delta for event in result.events if event.account == ANNA.public) == 0


def test_a_transaction_of_another_network_is_refused(state: State) -> None:
    (result,) = apply(state, sign_tx(ANNA, "other", 0, Transfer(BERT.public, 1)))
    assert result.code == "integrity"


def test_a_stranger_has_no_nonce_to_use(state: State) -> None:
    (result,) = apply(state, sign_tx(BERT, NETWORK, 0, Transfer(ANNA.public, 1)))
    assert result.code == "no-such-account"

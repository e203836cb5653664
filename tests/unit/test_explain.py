"""Explanations: every event has words, and what is told adds up to what happened."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dds.ledger
from dds.ledger.events import Event
from dds.ledger.explain import (
    NAMES,
    earned_by_node,
    explain_account,
    explain_contract,
    explain_node,
    explain_tx,
    line_of,
)
from dds.primitives.money import TOKEN
from dds.wire.ledger import Deposit, Endow, RedeemVouchers, RequestWithdrawal, SpendEndowment, Transfer, Withdraw
from dds.wire.vouchers import Voucher, sign_voucher
from tests.money_ledger import ANNA, BERT, CARL, NETWORK, MoneyLedger, genesis_node, key_of

EMITTERS = {"emit", "credit", "debit", "burn", "mint"}
RULES = sorted((Path(dds.ledger.__file__).parent / "rules").glob("*.py"))


def emitted(source: str) -> Iterator[tuple[str, str]]:
    """(function, name or "") of every call that makes an event; "" where the name is not written there."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef):
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and _called(call) in EMITTERS:
                    texts = [each.value for arg in call.args for each in ast.walk(arg) if isinstance(each, ast.Constant)]
                    names = [text for text in texts if isinstance(text, str)]
                    yield from ((function.name, name) for name in names or [""])


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_every_event_that_a_rule_makes_has_words(path: Path) -> None:
    for function, name in emitted(path.read_text()):
        if name or function not in EMITTERS:  # who passes a name on is called like one who makes events, and found there
            assert name in NAMES, f"{path.name}: {function} makes {name or 'an event with a computed name'}"


def test_the_search_for_events_finds_what_it_is_for() -> None:
    found = dict.fromkeys(name for path in RULES for _, name in emitted(path.read_text()))
    assert {"sent", "retrieval", "deposit-spent", "endowment", "price", "slash", "withheld"} <= found.keys()
    planted = "def rule(state):\n    state.emit('new-name')\n    credit(state, who, 3, name)\n"
    assert list(emitted(planted)) == [("rule", "new-name"), ("rule", "")]


def busy_ledger() -> MoneyLedger:
    """Some of everything that moves money here."""
    ledger = MoneyLedger(genesis_node("node", BERT))
    contract = ledger.contract(ANNA, mib=100)
    voucher = sign_voucher(ANNA, Voucher(1, NETWORK, ANNA.public, key_of("node").public, 30 * TOKEN, 0))
    assert ledger.do(ANNA, Transfer(CARL.public, 5)).ok
    assert ledger.do(ANNA, Transfer(ANNA.public, 7)).ok
    assert ledger.do(ANNA, Deposit(100 * TOKEN)).ok
    assert ledger.do(BERT, RedeemVouchers([voucher], [])).ok
    assert not ledger.do(BERT, RedeemVouchers([voucher], [])).ok
    assert ledger.do(ANNA, RequestWithdrawal(60 * TOKEN)).ok
    assert ledger.do(ANNA, Endow(contract, 9)).ok
    ledger.go_to(24)
    assert ledger.do(ANNA, Withdraw()).ok
    assert ledger.do(CARL, SpendEndowment(contract)).ok
    return ledger


@pytest.mark.parametrize("key", [ANNA, BERT, CARL], ids=["anna", "bert", "carl"])
def test_the_lines_of_an_account_add_up_to_its_balance_change(key: object) -> None:
    assert isinstance(key, type(ANNA))
    ledger = busy_ledger()
    told = explain_account(ledger.events, key.public)
    assert told.unexplained(1_000 * TOKEN, ledger.balance(key)) == 0
    assert sum(total.delta for total in told.totals) == told.balance_change


def test_a_missing_event_shows_as_a_difference() -> None:
    ledger = busy_ledger()
    most = [event for event in ledger.events if event.name != "withdrawn"]
    assert explain_account(most, ANNA.public).unexplained(1_000 * TOKEN, ledger.balance(ANNA)) == 60 * TOKEN


def test_a_node_is_told_what_it_earned_and_from_whom() -> None:
    ledger = busy_ledger()
    told = explain_node(ledger.events, 0)
    assert [line.name for line in told.lines] == ["deposit-spent", "retrieval"]
    assert earned_by_node(ledger.events, 0, BERT.public) == 30 * TOKEN == told.balance_change
    assert told.lines[1].evidence and f"payer {ANNA.public.hex()[:16]}" in told.lines[1].text()


def test_totals_are_by_name() -> None:
    told = explain_account(busy_ledger().events, ANNA.public)
    assert [(total.name, total.count, total.delta, total.amount) for total in told.totals] == [
        ("deposit", 1, -100 * TOKEN, 0),
        ("deposit-spent", 1, 0, 30 * TOKEN),
        ("endowed", 1, -9, 0),
        ("received", 1, 7, 0),
        ("sent", 2, -12, 0),
        ("withdrawal-asked", 1, 0, 60 * TOKEN),
        ("withdrawn", 1, 60 * TOKEN, 0),
    ]


def test_a_contract_is_told_what_was_given_to_it() -> None:
    ledger = busy_ledger()
    told = explain_contract(ledger.events, next(event.contract for event in ledger.events if event.contract))
    assert [line.name for line in told.lines] == ["endowed"]  # nine base units allow less than one an epoch


def test_a_line_reads_as_one_sentence_with_money_reason_place_and_evidence() -> None:
    event = Event("pay", 7, bytes(32), TOKEN * 3 // 2, 0, 3, bytes(32), b"\xab" * 32, 2, "5 of 6 epochs passed", b"\xcd" * 32)
    assert line_of(event).text() == (
        "epoch 7  +1.5 ECHO  rent earned by proven storage: 5 of 6 epochs passed "
        "[node 3, contract 0000000000000000, segment abababababababab, index 2] (evidence cdcdcdcdcdcdcdcd)"
    )
    assert line_of(Event("sent", 0, bytes(32), -1)).text() == "epoch 0  -0.000000000001 ECHO  sent to another account"
    assert line_of(Event("slash", 0, amount=TOKEN)).text() == "epoch 0  1 ECHO  collateral taken"


def test_an_event_of_a_newer_ledger_is_shown_under_its_own_name() -> None:
    told = explain_tx([Event("unheard-of", 1, detail="why not")])
    assert told.lines[0].text() == "epoch 1  -  unheard-of: why not"

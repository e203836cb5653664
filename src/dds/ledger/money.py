"""How money moves: out of one purse into another, never made but by emission, never gone but by burning.

An account's balance changes only through `credit` and `debit`, which say so in an event. Every other purse is a field of a
record, changed by the rule that owns it next to the call here. `PURSES` names them all: `held` adds them up, and the sum must
be genesis + minted - burned (docs/spec/ledger.md, "Conservation").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from msgspec.structs import replace

from dds.ledger.faults import require
from dds.ledger.records import (
    ACCOUNTS,
    CHAIN,
    CONTRACTS,
    DEPOSITS,
    ENDOWMENTS,
    NODES,
    OPERATORS,
    SEGMENTS,
    Account,
    Chain,
    Contract,
    DepositEntry,
    Endowment,
    Node,
    Operator,
    Segment,
)
from dds.ledger.state import State
from dds.primitives.money import format_tokens


def balance(state: State, account: bytes) -> int:
    found = state.find(ACCOUNTS, account)
    return found.balance if found else 0


def credit(state: State, account: bytes, amount: int, name: str, **fields: Any) -> None:
    """Money arrives in an account; the account comes to be with it. `fields` are the event's."""
    assert amount >= 0
    if amount:
        found = state.find(ACCOUNTS, account) or Account()
        state.put(ACCOUNTS, account, replace(found, balance=found.balance + amount))
        state.emit(name, account=account, delta=amount, **fields)


def debit(state: State, account: bytes, amount: int, name: str, **fields: Any) -> None:
    """Money leaves an account.

    Raises:
        Refused: it has less than that.
    """
    assert amount >= 0
    if amount:
        has = balance(state, account)
        require(
            has >= amount, "insufficient-balance", f"the account has {format_tokens(has)}, {format_tokens(amount)} are needed"
        )
        found = state.find(ACCOUNTS, account) or Account()
        state.put(ACCOUNTS, account, replace(found, balance=has - amount))
        state.emit(name, account=account, delta=-amount, **fields)


def burn(state: State, amount: int, name: str, **fields: Any) -> None:
    """Money that the caller took from a purse ceases to be."""
    if amount:
        state.set_chain(burned=state.chain.burned + amount)
        state.emit(name, amount=amount, **fields)


def mint(state: State, account: bytes, amount: int, name: str, **fields: Any) -> None:
    """New money, within the emission's budget: the caller has bounded `amount` by it."""
    chain = state.chain
    assert 0 <= amount <= chain.emission_budget
    if amount:
        state.set_chain(minted=chain.minted + amount, emission_budget=chain.emission_budget - amount)
        credit(state, account, amount, name, **fields)


def _operator(operator: Operator) -> int:
    return operator.bond + sum(part.amount for part in operator.unbonding)


def _segment(segment: Segment) -> int:
    return sum(sponsor.prepaid + sponsor.reserve for sponsor in segment.sponsors)


def _account(account: Account) -> int:
    return account.balance


def _node(node: Node) -> int:
    return node.pool_free + node.pool_locked


def _contract(contract: Contract) -> int:
    return contract.escrow


def _endowment(endowment: Endowment) -> int:
    return endowment.pool


def _deposit(deposit: DepositEntry) -> int:
    return deposit.amount + deposit.leaving


def _chain(chain: Chain) -> int:
    return chain.treasury + chain.repair_reserve


PURSES: Final[dict[bytes, tuple[str, Callable[[Any], int]]]] = {
    ACCOUNTS.prefix: ("accounts", _account),
    OPERATORS.prefix: ("bonds", _operator),
    NODES.prefix: ("collateral pools", _node),
    CONTRACTS.prefix: ("escrow", _contract),
    SEGMENTS.prefix: ("prepaid rent", _segment),
    ENDOWMENTS.prefix: ("endowments", _endowment),
    DEPOSITS.prefix: ("retrieval deposits", _deposit),
    CHAIN.prefix: ("treasury and repair reserve", _chain),
}


def held(entries: Iterable[tuple[bytes, Any]]) -> dict[str, int]:
    """Money by kind of purse, over all (key, record) of a state."""
    sums = {name: 0 for name, _ in PURSES.values()}
    for key, record in entries:
        purse = PURSES.get(key[:1])
        if purse is not None:
            sums[purse[0]] += purse[1](record)
    return sums


def owed_to_all(chain: Chain) -> int:
    """What all purses together must hold."""
    return chain.genesis_supply + chain.minted - chain.burned

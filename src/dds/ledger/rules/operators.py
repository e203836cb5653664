"""Operators: who has put money at stake, how it comes in and how it leaves.

Decides bonds and the collateral pools of an operator's nodes. How much of either is taken as a punishment: `slashing.py`.
Source: docs/spec/ledger.md, "Operators, bonds, nodes".
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from msgspec.structs import replace

from dds.ledger.faults import Refused, require
from dds.ledger.money import credit, debit
from dds.ledger.records import OPERATORS, Node, Operator, Unbonding
from dds.ledger.state import State
from dds.primitives.money import format_tokens
from dds.wire.ledger import Bond, DrainPool, FundPool, ReleaseBond, Tx, Unbond

UNBONDING_MAX: Final = 16  # parts of one operator's bond that leave at a time


def bond(state: State, tx: Tx, body: Bond) -> None:
    """Whoever has no bond needs the whole minimum; after that any amount, none too, and regions declared anew."""
    require_ascending(body.regions, "regions")
    found = state.find(OPERATORS, tx.sender)
    least = state.params.bond_min
    if found is None or found.bond == 0:
        require(
            body.amount >= max(1, least),
            "bond-too-small",
            f"an operator's bond is at least {format_tokens(least)}, not {format_tokens(body.amount)}",
        )
    debit(state, tx.sender, body.amount, "bonded", detail="bond")
    operator = found or Operator(joined_epoch=state.epoch)
    state.put(OPERATORS, tx.sender, replace(operator, bond=operator.bond + body.amount, regions=tuple(body.regions)))


def unbond(state: State, tx: Tx, body: Unbond) -> None:
    """All of it only when nothing depends on it; part of it as long as the minimum stays."""
    operator = _operator(state, tx.sender)
    require(body.amount > 0, "nothing-to-move", "at least one base unit leaves a bond")
    require(
        body.amount <= operator.bond,
        "insufficient-bond",
        f"the bond is {format_tokens(operator.bond)}, {format_tokens(body.amount)} are asked back",
    )
    stays, least = operator.bond - body.amount, state.params.bond_min
    require(
        stays == 0 or stays >= least,
        "bond-too-small",
        f"{format_tokens(stays)} would stay: leave at least {format_tokens(least)}, or nothing",
    )
    if stays == 0:
        _require_idle(state, operator)
    require(
        len(operator.unbonding) < UNBONDING_MAX,
        "too-many-unbondings",
        f"{UNBONDING_MAX} parts of the bond are leaving already; release what can be, or wait",
    )
    part = Unbonding(body.amount, state.epoch + state.params.unbonding_epochs)
    state.put(OPERATORS, tx.sender, replace(operator, bond=stays, unbonding=(*operator.unbonding, part)))
    state.emit("unbonding", amount=body.amount, detail=f"slashable until epoch {part.release_epoch}")


def release_bond(state: State, tx: Tx, body: ReleaseBond) -> None:
    operator = _operator(state, tx.sender)
    ripe = sum(part.amount for part in operator.unbonding if part.release_epoch <= state.epoch)
    waiting = tuple(part for part in operator.unbonding if part.release_epoch > state.epoch)
    first = min((part.release_epoch for part in waiting), default=None)
    when = "no bond is leaving" if first is None else f"it is epoch {state.epoch}, the first part is free from {first} on"
    require(ripe > 0, "nothing-to-release", when)
    state.put(OPERATORS, tx.sender, replace(operator, unbonding=waiting))
    credit(state, tx.sender, ripe, "bond-released", detail="unbonded")


def fund_pool(state: State, tx: Tx, body: FundPool) -> None:
    require(body.amount > 0, "nothing-to-move", "a pool is funded with at least one base unit")
    node = own_node(state, tx.sender, body.node)
    debit(state, tx.sender, body.amount, "pool-funded", node=node.number, detail="collateral pool")
    state.put_node(replace(node, pool_free=node.pool_free + body.amount))


def drain_pool(state: State, tx: Tx, body: DrainPool) -> None:
    """What assignments have locked stays."""
    require(body.amount > 0, "nothing-to-move", "at least one base unit leaves a pool")
    node = own_node(state, tx.sender, body.node)
    require(
        body.amount <= node.pool_free,
        "insufficient-pool",
        f"{format_tokens(node.pool_free)} of the pool are free, {format_tokens(body.amount)} are asked back",
    )
    state.put_node(replace(node, pool_free=node.pool_free - body.amount))
    credit(state, tx.sender, body.amount, "pool-drained", node=node.number, detail="collateral pool")


# -- what other rules ask ---------------------------------------------------------------------------------------------------


def own_node(state: State, sender: bytes, number: int) -> Node:
    """
    Raises:
        Refused: there is no such node, or the sender is not its operator.
    """
    node = state.node(number)
    if node.operator != sender:
        raise Refused("not-the-operator", f"node {number} belongs to operator {node.operator.hex()[:16]}")
    return node


def working_operator(state: State, account: bytes) -> Operator:
    """
    Raises:
        Refused: it is none, its bond is below the minimum, or it is jailed.
    """
    operator = _operator(state, account)
    least = state.params.bond_min
    require(
        operator.bond >= max(1, least),
        "bond-too-small",
        f"the bond is {format_tokens(operator.bond)}, {format_tokens(least)} are needed",
    )
    require_free(state, operator)
    return operator


def require_free(state: State, operator: Operator) -> None:
    require(
        operator.jailed_until <= state.epoch,
        "operator-jailed",
        f"it is epoch {state.epoch}, the operator is jailed until {operator.jailed_until}",
    )


def require_ascending(labels: list[str], what: str) -> None:
    require(
        all(one < two for one, two in pairwise(labels)),
        "not-ascending",
        f"{what} are to be strictly ascending",
    )


def _operator(state: State, account: bytes) -> Operator:
    return state.get(OPERATORS, account, "no-such-operator", "operator")


def _require_idle(state: State, operator: Operator) -> None:
    for number in operator.nodes:
        node = state.node(number)
        pool = node.pool_free + node.pool_locked
        require(
            not (node.assignments or node.promised_bytes or pool),
            "operator-in-use",
            f"node {number} has {node.assignments} assignments and a pool of {format_tokens(pool)}",
        )

"""Punishing: how much is taken, from which purse, and who gets what of it.

Decides the split of what was taken (reporters, repair reserve, burned), who may not be paid as a reporter, and in which order
the purses of an operator are emptied. Whether somebody deserves it is decided elsewhere: by a quorum of witnesses
(`witnesses.py`), by evidence (`evidence.py`) or by a node's own word (`segments.py`).
Source: docs/spec/ledger.md, "Slashing and evidence".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from dds.ledger.money import burn, credit
from dds.ledger.records import NOBODY, OPERATORS, Node, NodeStatus, Operator, Unbonding
from dds.ledger.state import State
from dds.primitives.money import MILLION, mul_div_ceil, share_ppm


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something is taken: what every event of it says."""

    reason: str
    evidence: bytes = b""
    node: int = NOBODY
    segment: bytes = b""
    index: int = -1

    def emit(self, state: State, name: str, amount: int) -> None:
        state.emit(
            name,
            amount=amount,
            node=self.node,
            segment=self.segment,
            index=self.index,
            detail=self.reason,
            evidence=self.evidence,
        )


def take_collateral(
    state: State,
    number: int,
    amount: int,
    reporters: Sequence[bytes],
    *,
    reason: str,
    evidence: bytes,
    segment: bytes = b"",
    index: int = -1,
) -> None:
    """Take `amount` of what a node's assignments have locked. `reporters` are accounts that share the reporters' part.

    The caller lowers the assignment's own collateral by as much.
    """
    node = state.node(number)
    assert 0 <= amount <= node.pool_locked
    state.put_node(replace(node, pool_locked=node.pool_locked - amount))
    _share_collateral(state, node.operator, amount, reporters, Cause(reason, evidence, number, segment, index))


def take_bond(
    state: State,
    operator: bytes,
    ppm: int,
    reporters: Sequence[bytes],
    *,
    reason: str,
    evidence: bytes,
    node: int = NOBODY,
) -> None:
    """Take `ppm` of an operator's bond and of what it is unbonding, ceiled. `node`: whose doing it was."""
    found = state.find(OPERATORS, operator)
    if found is not None:
        stake = found.bond + sum(part.amount for part in found.unbonding)
        amount = mul_div_ceil(stake, ppm, MILLION)
        _take_stake(state, operator, found, amount, reporters, Cause(reason, evidence, node))


def take_for_miss(state: State, number: int, *, reason: str) -> None:
    """One more missed epoch: a share of what the node's assignments have locked, but out of what no assignment holds.

    The free pool pays first, then the operator's bond, so that each assignment's collateral stays what it was. Nobody is a
    reporter: silence must not pay those who could have caused it.
    """
    node = state.node(number)
    due = mul_div_ceil(node.pool_locked, state.params.missed_slash_ppm, MILLION)
    free = min(due, node.pool_free)
    if free:
        state.put_node(replace(node, pool_free=node.pool_free - free))
        _share_collateral(state, node.operator, free, (), Cause(reason, node=number))
    found = state.find(OPERATORS, node.operator)
    if found is not None:
        stake = found.bond + sum(part.amount for part in found.unbonding)
        _take_stake(state, node.operator, found, min(due - free, stake), (), Cause(reason, node=number))


def fault_node(state: State, number: int, ppm: int, reason: str, evidence: bytes = b"", *, since: int | None = None) -> None:
    """A node is caught: it takes nothing new, is no longer audited, and each of its assignments loses `ppm` when it is freed.

    Of two faults the heavier counts. `since`: the epoch that it is known in, the present one where nothing is said.
    """
    node = state.node(number)
    if node.status == NodeStatus.FAULTED and node.fault_ppm >= ppm:
        return
    known = state.epoch if since is None else since
    first = node.fault_epoch if node.status == NodeStatus.FAULTED else known
    state.put_node(replace(node, status=int(NodeStatus.FAULTED), fault_epoch=first, fault_ppm=ppm, fault_reason=reason))
    state.emit("node-faulted", node=number, detail=reason, evidence=evidence)


def jail(state: State, operator: bytes) -> None:
    """Into no draw and no committee for a while; a longer sentence stays."""
    found = state.find(OPERATORS, operator)
    if found is not None:
        until = max(found.jailed_until, state.epoch + state.params.jail_epochs)
        state.put(OPERATORS, operator, replace(found, jailed_until=until))
        state.emit("jailed", detail=f"operator {operator.hex()[:16]} until epoch {until}")


# -- who gets it ------------------------------------------------------------------------------------------------------------


def _share_collateral(state: State, operator: bytes, amount: int, reporters: Sequence[bytes], cause: Cause) -> None:
    """Reporters, repair reserve, and the rest burned."""
    if not amount:
        return
    params = state.params
    cause.emit(state, "slash", amount)
    paid = _pay_reporters(state, operator, share_ppm(amount, params.slash_reporter_ppm), reporters, cause)
    repair = share_ppm(amount, params.slash_repair_ppm)
    if repair:
        state.set_chain(repair_reserve=state.chain.repair_reserve + repair)
        cause.emit(state, "slash-to-repair", repair)
    _burn(state, amount - paid - repair, cause)


def _take_stake(state: State, operator: bytes, found: Operator, amount: int, reporters: Sequence[bytes], cause: Cause) -> None:
    """Of the bond first, then of what leaves last; reporters get their part, the rest is burned."""
    if not amount:
        return
    bond = max(0, found.bond - amount)
    unbonding = _shortened(found.unbonding, amount - (found.bond - bond))
    state.put(OPERATORS, operator, replace(found, bond=bond, unbonding=unbonding))
    cause.emit(state, "slash-bond", amount)
    paid = _pay_reporters(state, operator, share_ppm(amount, state.params.bond_slash_reporter_ppm), reporters, cause)
    _burn(state, amount - paid, cause)


def _shortened(parts: tuple[Unbonding, ...], amount: int) -> tuple[Unbonding, ...]:
    """`parts` (in the order they leave) without `amount`, the last first; what is empty goes."""
    left: list[Unbonding] = []
    for part in reversed(parts):
        taken = min(amount, part.amount)
        amount -= taken
        if part.amount > taken:
            left.append(replace(part, amount=part.amount - taken))
    assert amount == 0
    return tuple(reversed(left))


def _pay_reporters(state: State, operator: bytes, share: int, reporters: Sequence[bytes], cause: Cause) -> int:
    """Split `share` evenly; what was paid. The part of one who belongs to the punished operator is not paid to anybody."""
    each_once = list(dict.fromkeys(reporters))
    if not each_once:
        return 0
    each = share // len(each_once)
    own = _accounts_of(state, operator)
    paid = 0
    for account in each_once:
        if account not in own:
            credit(
                state,
                account,
                each,
                "slash-share",
                node=cause.node,
                segment=cause.segment,
                index=cause.index,
                detail=cause.reason,
                evidence=cause.evidence,
            )
            paid += each
    return paid


def _accounts_of(state: State, operator: bytes) -> set[bytes]:
    """The operator, its nodes and where their pay goes. Another account of the same person is not known for one."""
    found = state.find(OPERATORS, operator)
    nodes: list[Node] = [state.node(number) for number in found.nodes] if found else []
    return {operator} | {node.node_id for node in nodes} | {node.payout for node in nodes}


def _burn(state: State, amount: int, cause: Cause) -> None:
    burn(
        state,
        amount,
        "slash-burned",
        node=cause.node,
        segment=cause.segment,
        index=cause.index,
        detail=cause.reason,
        evidence=cause.evidence,
    )

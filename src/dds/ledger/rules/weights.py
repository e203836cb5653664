"""Who may be drawn for an assignment, how likely, and of everybody else why not.

Decides candidates and weights; the draw itself, with its spread rules, is `placement/draw.py`. A loop over all nodes, made
once a reservation. Whoever explains a draw runs this very code: the reason that it gives is the one that it went by.
Source: docs/spec/ledger.md, "Reputation, weights, the draw".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from dds.ledger import rent
from dds.ledger.params import Params
from dds.ledger.records import OPERATORS, Node, NodeStatus, Operator, Standing
from dds.ledger.rules.standing import is_suspended, is_vetted, score_ppm, standing_of
from dds.ledger.state import State
from dds.placement.draw import WEIGHT_MAX, Candidate
from dds.placement.explain import LeftOut, Reason
from dds.placement.roles import STORAGE_ROLES
from dds.primitives.ids import NodeID
from dds.primitives.money import MILLION, mul_div_ceil

TIB: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a draw asks of a node."""

    role: str
    fragment_bytes: int
    price: int  # per MiB-epoch
    term_epochs: int


@dataclass(frozen=True, slots=True)
class Screened:
    """Every node: those that may be drawn in the order of their numbers, those that may not with the reason."""

    candidates: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...]
    unvetted: frozenset[NodeID]  # of the candidates


def screen(state: State, wanted: Wanted, exclude: Collection[int] = ()) -> Screened:
    """Who can take a fragment as wanted; `exclude` are node numbers that hold one already.

    Unvetted nodes together weigh at most `unvetted_share_ppm` of all; where vetted ones cannot fill a draw, it takes unvetted
    ones however little they weigh, for nobody else is left to be drawn.
    """
    collateral = rent.collateral(state.params, wanted.fragment_bytes, wanted.price)
    offered = _offered(state)
    drawable: list[tuple[Node, int, bool]] = []
    left_out: list[LeftOut] = []
    for node in state.nodes():
        operator, standing = state.find(OPERATORS, node.operator), standing_of(state, node.number)
        reason = _reason(state, node, operator, standing, wanted, collateral, exclude)
        if reason is not None or operator is None:
            left_out.append(LeftOut(NodeID(node.node_id), reason or Reason.NO_BOND))
            continue
        need = mul_div_ceil(offered[node.operator], state.params.bond_need_per_tib, TIB)
        weight = _weight(node, operator.bond, need, score_ppm(standing, state.params), state.params)
        drawable.append((node, weight, is_vetted(node, standing, state.params, state.epoch)))
    unvetted = frozenset(NodeID(node.node_id) for node, _, vetted in drawable if not vetted)
    return Screened(tuple(_scaled(drawable, state.params.unvetted_share_ppm)), tuple(left_out), unvetted)


def _reason(
    state: State,
    node: Node,
    operator: Operator | None,
    standing: Standing,
    wanted: Wanted,
    collateral: int,
    exclude: Collection[int],
) -> Reason | None:
    """Why this node is no candidate; None: it is one."""
    free_bytes = node.capacity_bytes - node.promised_bytes
    checks = (
        (node.status != NodeStatus.ACTIVE, Reason.NOT_ACTIVE),
        (wanted.role not in node.roles, Reason.WRONG_ROLE),
        (operator is None or operator.bond <= 0, Reason.NO_BOND),
        (operator is not None and operator.jailed_until > state.epoch, Reason.JAILED),
        (node.number in exclude, Reason.HOLDS),
        (free_bytes < max(1, wanted.fragment_bytes), Reason.NO_ROOM),
        (node.ask_price > wanted.price, Reason.ASK),
        (node.term_epochs_max < wanted.term_epochs, Reason.TERM),
        (node.pool_free < collateral, Reason.NO_COLLATERAL),
        (is_suspended(standing, state.params, state.epoch), Reason.SUSPENDED),
    )
    return next((reason for holds, reason in checks if holds), None)


def _offered(state: State) -> Counter[bytes]:
    """By operator what its active storage nodes declare together, of whatever role: one bond stands for all of it."""
    offered: Counter[bytes] = Counter()
    for node in state.nodes():
        if node.status == NodeStatus.ACTIVE and not STORAGE_ROLES.isdisjoint(node.roles):
            offered[node.operator] += node.capacity_bytes
    return offered


def _weight(node: Node, bond: int, need: int, score: int, params: Params) -> int:
    """Not scaled yet: comparable among the candidates of one draw."""
    room = min(node.capacity_bytes - node.promised_bytes, params.weight_cap_bytes)
    return room * score * score * min(bond, need) // need if need else room * score * score


def _scaled(drawable: list[tuple[Node, int, bool]], unvetted_ppm: int) -> list[Candidate]:
    """The unvetted ones' weights cut to their share, then all of them to what a draw takes."""
    vetted = sum(weight for _, weight, is_one in drawable if is_one)
    unvetted = sum(weight for _, weight, is_one in drawable if not is_one)
    up, down = unvetted_ppm * vetted, (MILLION - unvetted_ppm) * unvetted
    cut = [weight * up // down if not is_one and vetted and up < down else weight for _, weight, is_one in drawable]
    surplus = max(0, max(cut, default=0).bit_length() - (WEIGHT_MAX.bit_length() - 1))
    return [
        Candidate(NodeID(node.node_id), node.region, node.operator.hex(), node.subnet, max(1, weight >> surplus))
        for (node, _, _), weight in zip(drawable, cut, strict=True)
    ]

"""Who may be drawn for an assignment, and how likely.

Decides candidates and weights; the draw itself, with its spread rules, is `placement/draw.py`. A loop over all nodes, made
once a reservation.
Source: docs/spec/ledger.md, "Reputation, weights, the draw".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final

from dds.ledger import rent
from dds.ledger.params import Params
from dds.ledger.records import OPERATORS, Node, NodeStatus, Operator
from dds.ledger.rules.standing import is_suspended, is_vetted, score_ppm, standing_of
from dds.ledger.state import State
from dds.placement.draw import WEIGHT_MAX, Candidate
from dds.primitives.ids import NodeID
from dds.primitives.money import MILLION, mul_div_ceil

STORAGE_ROLES: Final = frozenset({"asn", "ssn"})
TIB: Final = 1 << 40


def candidates(
    state: State, *, fragment_bytes: int, price: int, term_epochs: int, exclude: Collection[int] = ()
) -> list[Candidate]:
    """Nodes that can take `fragment_bytes` at `price` (per MiB-epoch) for `term_epochs`, in the order of their numbers.

    `exclude` are node numbers. Unvetted nodes together weigh at most `unvetted_share_ppm` of all; where vetted ones cannot
    fill a draw, it takes unvetted ones however little they weigh, for nobody else is left to be drawn.
    """
    collateral = rent.collateral(state.params, fragment_bytes, price)
    drawable: list[tuple[Node, int, bool]] = []
    for node, operator, need in _bonded(state):
        fits = (
            node.number not in exclude
            and node.capacity_bytes - node.promised_bytes >= max(1, fragment_bytes)
            and node.ask_price <= price
            and node.term_epochs_max >= term_epochs
            and node.pool_free >= collateral
        )
        if fits and not is_suspended(standing := standing_of(state, node.number), state.params, state.epoch):
            weight = _weight(node, operator.bond, need, score_ppm(standing, state.params), state.params)
            drawable.append((node, weight, is_vetted(node, standing, state.params, state.epoch)))
    return _scaled(drawable, state.params.unvetted_share_ppm)


def _bonded(state: State) -> list[tuple[Node, Operator, int]]:
    """Active storage nodes of bonded operators who are free, each with the bond that all its operator's nodes need."""
    active = [node for node in state.nodes() if node.status == NodeStatus.ACTIVE and not STORAGE_ROLES.isdisjoint(node.roles)]
    offered: Counter[bytes] = Counter()
    for node in active:
        offered[node.operator] += node.capacity_bytes
    bonded = []
    for node in active:
        operator = state.find(OPERATORS, node.operator)
        if operator is not None and operator.bond > 0 and operator.jailed_until <= state.epoch:
            need = mul_div_ceil(offered[node.operator], state.params.bond_need_per_tib, TIB)
            bonded.append((node, operator, need))
    return bonded


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

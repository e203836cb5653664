"""Why these nodes and not others: a draw made again, and for every node a reason. Pure.

Decides what is told of a draw, never who is drawn: that is `draw.py`, and why somebody was no candidate is said by whoever
screened the candidates (`ledger/rules/weights.py` on a ledger). A `Drawing` has all that a draw went by, so that anybody can
draw again: `redo` does.
Source: docs/spec/placement.md, "Explaining a draw".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from dds.placement.draw import RULES, WEIGHT_MAX, Bend, Candidate, Draw, Rules, draw
from dds.primitives.ids import NodeID
from dds.primitives.money import MILLION


class Reason(StrEnum):
    """Why a node was no candidate; the first that holds, in this order."""

    NOT_ACTIVE = "not-active"
    WRONG_ROLE = "wrong-role"
    NO_BOND = "no-bond"
    JAILED = "jailed"
    HOLDS = "holds"
    NO_ROOM = "no-room"
    ASK = "ask-above-price"
    TERM = "term-too-short"
    NO_COLLATERAL = "no-collateral"
    SUSPENDED = "suspended"
    USED_UP = "used-up"


TEXTS: Final = {
    Reason.NOT_ACTIVE: "takes nothing new: it retires, or was caught",
    Reason.WRONG_ROLE: "has another role than this class is kept by",
    Reason.NO_BOND: "its operator has no bond",
    Reason.JAILED: "its operator is jailed",
    Reason.HOLDS: "holds a fragment of this segment already",
    Reason.NO_ROOM: "has no room for a fragment of this size",
    Reason.ASK: "asks more than the price",
    Reason.TERM: "takes no content for so long",
    Reason.NO_COLLATERAL: "has not enough collateral that is free",
    Reason.SUSPENDED: "is suspended: it was down too often",
    Reason.USED_UP: "had room or collateral for no more after earlier draws of the same transaction",
}


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A node that was no candidate."""

    node_id: NodeID
    reason: Reason


@dataclass(frozen=True, slots=True)
class Drawing:
    """All that a draw went by, and what came of it."""

    pool: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...]
    n: int
    loss_tolerance: int
    seed: bytes
    found: Draw
    role: str = ""
    held: tuple[Candidate, ...] = ()  # have fragments of the segment already
    unvetted: frozenset[NodeID] = field(default_factory=frozenset)  # of the pool: newcomers, whose weight is cut


@dataclass(frozen=True, slots=True)
class Place:
    """A node in a draw. `full` names its labels that could take no more when the last one was drawn."""

    node_id: NodeID
    region: str
    operator: str
    subnet: str
    weight_ppm: int  # of the weight of all candidates
    is_vetted: bool
    full: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Risk:
    """A rule that bent, and what it puts at risk."""

    rule: str
    limit: int
    worst: int
    survives: int  # more losses, when the worst label is lost; below 0: that loss alone loses data
    text: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a draw went by and why it came out so."""

    role: str
    seed: bytes
    rules: Rules
    loss_tolerance: int
    candidates: int
    chosen: tuple[Place, ...]  # by the order of what was drawn for
    spares: tuple[Place, ...]
    not_drawn: tuple[Place, ...]
    left_out: tuple[LeftOut, ...]
    risks: tuple[Risk, ...]
    region_aim: int
    region_worst: int


def redo(drawing: Drawing) -> Draw:
    """Draw again from what is there.

    Raises:
        NotEnoughNodes: it cannot have been drawn from these.
    """
    rules = Rules.for_loss_tolerance(drawing.loss_tolerance)
    return draw(drawing.pool, drawing.n, rules, drawing.seed, held=drawing.held)


def explain(drawing: Drawing) -> Explanation:
    """Every node of the drawing with its reason."""
    rules, found = Rules.for_loss_tolerance(drawing.loss_tolerance), drawing.found
    by_id = {each.node_id: each for each in drawing.pool}
    total = sum(_weight(each) for each in by_id.values())
    chosen = [by_id[node] for node in found.chosen]
    full = _full_labels([*drawing.held, *chosen], rules, found)

    def place(each: Candidate) -> Place:
        labels = tuple(rule for rule in RULES if getattr(each, rule) in full[rule])
        share = _weight(each) * MILLION // total
        return Place(each.node_id, each.region, each.operator, each.subnet, share, each.node_id not in drawing.unvetted, labels)

    asked = {*found.chosen, *found.spares}
    return Explanation(
        role=drawing.role,
        seed=drawing.seed,
        rules=rules,
        loss_tolerance=drawing.loss_tolerance,
        candidates=len(by_id),
        chosen=tuple(place(each) for each in chosen),
        spares=tuple(place(by_id[node]) for node in found.spares),
        not_drawn=tuple(place(each) for node, each in sorted(by_id.items()) if node not in asked),
        left_out=drawing.left_out,
        risks=tuple(risk_of(bend, drawing.loss_tolerance) for bend in found.bends),
        region_aim=found.region_aim,
        region_worst=max(Counter(each.region for each in (*drawing.held, *chosen)).values(), default=0),
    )


def risk_of(bend: Bend, m: int) -> Risk:
    return Risk(bend.rule, bend.limit, bend.worst, m - bend.worst, bend.describe(m))


def _weight(each: Candidate) -> int:
    return min(max(each.weight, 1), WEIGHT_MAX)


def _full_labels(holders: Sequence[Candidate], rules: Rules, found: Draw) -> dict[str, set[str]]:
    """By rule the labels that hold as many as they might when the draw ended: of a rule that bent as many as the worst has."""
    limits = {"subnet": rules.per_subnet, "operator": rules.per_operator} | {bend.rule: bend.worst for bend in found.bends}
    limits["region"] = found.region_limit or rules.per_region
    counts = {rule: Counter(getattr(each, rule) for each in holders) for rule in RULES}
    return {rule: {label for label, count in counts[rule].items() if count >= limits[rule]} for rule in RULES}

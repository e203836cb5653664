"""One segment's upload, sans I/O: which fragment goes to which node, when to replace a node, when it is done.

Every fragment index has one *lane*: the node that currently takes all of that index's fragments. A lane sends stripe after
stripe, then commits; the upload is finished when all n lanes have committed (durable receipts). A lane whose node refuses,
vanishes or straggles is given to the next spare, which starts again from the first stripe; a node that was merely slow goes to
the end of the spares and gets another chance, so a busy machine does not use up a small network. A node never holds two
indices of a segment.

The machine does not know bytes, sockets or clocks: the host performs `Send`, `Commit` and `Abandon`, reports back, and calls
`tick` with its clock. It decides nothing about receipts' validity: an invalid one is reported as a failure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from statistics import median
from typing import Final

from dds.primitives.ids import NodeID

SENDS_PER_LANE_MAX: Final = 2
STRAGGLER_FACTOR: Final = 6.0  # times the median of recent requests
STRAGGLER_S_MIN: Final = 1.5
STRAGGLER_S_MAX: Final = 10.0
SECOND_CHANCES_MAX: Final = 2  # how often a slow node may come back
RECENT_MAX: Final = 64


class Failure(Enum):
    """Why a request to a node failed."""

    REFUSED = "refused"  # it said no (full, not allowed): not asked again for this segment
    UNREACHABLE = "unreachable"
    SLOW = "slow"
    BROKEN = "broke the protocol"


@dataclass(frozen=True, slots=True)
class Send:
    """Stage the fragment `index` of `stripe` at `node`."""

    index: int
    node: NodeID
    stripe: int


@dataclass(frozen=True, slots=True)
class Commit:
    index: int
    node: NodeID


@dataclass(frozen=True, slots=True)
class Abandon:
    """Cancel what is in flight to `node` for `index`; it may be told to forget what it staged."""

    index: int
    node: NodeID
    why: Failure


@dataclass(frozen=True, slots=True)
class Settled:
    """Every lane has this stripe: its fragments need not be kept in memory (a later spare has them encoded again)."""

    stripe: int


@dataclass(frozen=True, slots=True)
class Finished:
    holders: tuple[NodeID, ...]  # by fragment index


@dataclass(frozen=True, slots=True)
class Failed:
    """No node is left for these indices."""

    missing: tuple[int, ...]
    reasons: dict[NodeID, Failure]


Effect = Send | Commit | Abandon | Settled | Finished | Failed


@dataclass(slots=True)
class _Lane:
    index: int
    node: NodeID
    waiting: deque[int] = field(default_factory=deque)
    flying: dict[int, float] = field(default_factory=dict)  # stripe -> when sent
    done: set[int] = field(default_factory=set)
    committing_since: float | None = None
    committed: bool = False

    def oldest(self) -> float | None:
        starts = list(self.flying.values())
        if self.committing_since is not None and not self.committed:
            starts.append(self.committing_since)
        return min(starts, default=None)


class SegmentUpload:
    """The lanes of one segment. Methods are events; each returns the effects to perform, in order."""

    def __init__(self, chosen: Sequence[NodeID], spares: Sequence[NodeID]) -> None:
        assert len({*chosen, *spares}) == len(chosen) + len(spares), "a node may stand in the list once"
        self._lanes = [_Lane(index, node) for index, node in enumerate(chosen)]
        self._spares = deque(spares)
        self._chances: dict[NodeID, int] = {}
        self._reasons: dict[NodeID, Failure] = {}
        self._widths: dict[int, int] = {}  # stripe -> number of fragments to stage
        self._settled: set[int] = set()
        self._complete = False
        self._over = False
        self._recent: deque[float] = deque(maxlen=RECENT_MAX)
        self.replaced: list[tuple[int, NodeID, Failure]] = []

    @property
    def over(self) -> bool:
        return self._over

    @property
    def holders(self) -> tuple[NodeID, ...]:
        return tuple(lane.node for lane in self._lanes)

    def committed(self) -> int:
        return sum(lane.committed for lane in self._lanes)

    # -- events ---------------------------------------------------------------------------------------------------------

    def stripe_ready(self, stripe: int, width: int, now: float) -> list[Effect]:
        """Fragments 0..width-1 of a new stripe can be sent."""
        self._widths[stripe] = width
        effects: list[Effect] = []
        for lane in self._lanes[:width]:
            lane.waiting.append(stripe)
            effects += self._advance(lane, now)
        return effects

    def all_ready(self, now: float) -> list[Effect]:
        """No more stripes will come and the encoding record exists: lanes that have everything may commit."""
        self._complete = True
        return [effect for lane in self._lanes for effect in self._advance(lane, now)]

    def staged(self, index: int, node: NodeID, stripe: int, now: float) -> list[Effect]:
        lane = self._lane(index, node)
        if lane is None or stripe not in lane.flying:
            return []
        self._recent.append(now - lane.flying.pop(stripe))
        lane.done.add(stripe)
        return [*self._settle(stripe), *self._advance(lane, now)]

    def committed_by(self, index: int, node: NodeID, now: float) -> list[Effect]:
        """A valid receipt arrived."""
        lane = self._lane(index, node)
        if lane is None or lane.committing_since is None or lane.committed:
            return []
        self._recent.append(now - lane.committing_since)
        lane.committed = True
        if all(each.committed for each in self._lanes):
            self._over = True
            return [Finished(self.holders)]
        return []

    def failed(self, index: int, node: NodeID, why: Failure, now: float) -> list[Effect]:
        """A send or commit of this lane failed."""
        lane = self._lane(index, node)
        if lane is None or lane.committed or self._over:
            return []
        return self._replace(lane, why, now)

    def tick(self, now: float) -> list[Effect]:
        """Replace stragglers while there is anyone to replace them with."""
        if self._over:
            return []
        limit = self.straggler_s()
        effects: list[Effect] = []
        for lane in self._lanes:
            oldest = lane.oldest()
            if oldest is not None and now - oldest > limit and self._spares:
                effects += self._replace(lane, Failure.SLOW, now)
        return effects

    def straggler_s(self) -> float:
        """How long a request may take before its node counts as a straggler, in seconds."""
        if len(self._recent) < len(self._lanes) // 2:
            return STRAGGLER_S_MAX / 2
        return min(max(STRAGGLER_FACTOR * median(self._recent), STRAGGLER_S_MIN), STRAGGLER_S_MAX)

    # -- decisions ------------------------------------------------------------------------------------------------------

    def _lane(self, index: int, node: NodeID) -> _Lane | None:
        """The lane if that node still has it; late news of a replaced node is ignored."""
        lane = self._lanes[index]
        return lane if lane.node == node and not self._over else None

    def _advance(self, lane: _Lane, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while lane.waiting and len(lane.flying) < SENDS_PER_LANE_MAX:
            stripe = lane.waiting.popleft()
            lane.flying[stripe] = now
            effects.append(Send(lane.index, lane.node, stripe))
        idle = not lane.waiting and not lane.flying
        if self._complete and idle and lane.committing_since is None:
            lane.committing_since = now
            effects.append(Commit(lane.index, lane.node))
        return effects

    def _settle(self, stripe: int) -> list[Effect]:
        lanes = self._lanes[: self._widths[stripe]]
        if stripe in self._settled or not all(stripe in lane.done for lane in lanes):
            return []
        self._settled.add(stripe)
        return [Settled(stripe)]

    def _replace(self, lane: _Lane, why: Failure, now: float) -> list[Effect]:
        old = lane.node
        self._reasons[old] = why
        effects: list[Effect] = [Abandon(lane.index, old, why)]
        if why is Failure.SLOW and self._chances.get(old, 0) < SECOND_CHANCES_MAX:
            self._chances[old] = self._chances.get(old, 0) + 1
            self._spares.append(old)
        if not self._spares:
            self._over = True
            missing = tuple(
                each.index for each in self._lanes if not each.committed and (each is lane or each.oldest() is None)
            )
            return [*effects, Failed(missing, dict(self._reasons))]
        self.replaced.append((lane.index, old, why))
        fresh = _Lane(lane.index, self._spares.popleft())
        fresh.waiting.extend(stripe for stripe, width in sorted(self._widths.items()) if lane.index < width)
        self._lanes[lane.index] = fresh
        return [*effects, *self._advance(fresh, now)]

"""One segment's upload, sans I/O: which fragment goes to which node, when to replace a node, when it is done.

Every fragment index has one *lane*: the node that currently takes all of that index's fragments. A lane sends stripe after
stripe, then commits; the upload is finished when all n lanes have committed (durable receipts). A lane whose node refuses,
vanishes or straggles is given to the next spare, which takes the unsettled stripes first (they hold up the others, and are
still encoded in memory), then those that it missed. No node stands for two indices of a segment; one that was replaced while
it committed may hold that index unknown to us, so it comes back for another index only when nobody else is left.

Nobody is given up for being slow: a straggler waits in reserve behind the fresh spares, so a busy machine does not use up a
small network. A node that could not be reached or did not answer in time gets one more chance, after everybody else. When
nobody is left but nodes that had theirs too, each gets a last one, after a pause: they may all have been slow to accept a
connection for one and the same passing reason. One that refused or broke the protocol gets none.

The machine does not know bytes, sockets or clocks: the host performs `Send`, `Commit` and `Abandon` at once, reports back, and
calls `tick` with its clock about every 50 ms. After `Abandon` it reports nothing more of that lane's requests; after `Failed`
it drops whatever is in flight. Every request must end at the host's own hard timeout, reported as a failure: that is what
moves a lane whose node hangs while no spare is left. The machine decides nothing about receipts' validity: an invalid one is
reported as a failure.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from statistics import median
from typing import Final

from dds.primitives.ids import NodeID

SENDS_PER_LANE_MAX: Final = 2
PIPELINED_S_MAX: Final = 2.0  # where requests take longer, a second one in the same lane only makes both later
STRAGGLER_FACTOR: Final = 6.0  # times the median of recent requests
STRAGGLER_FACTOR_MIN: Final = 3.0  # holds beyond STRAGGLER_S_MAX, on a link so slow that every request takes longer
STRAGGLER_S_MIN: Final = 1.5
STRAGGLER_S_MAX: Final = 10.0
DRAG_FACTOR: Final = 2.0  # a lane this many times slower than the median may not keep most of the others waiting
SECOND_CHANCES_MAX: Final = 2  # how often a straggler may be put in another straggler's place
FAILURES_MAX: Final = 3  # requests of one node that fail before it is asked no more
LAST_CHANCE_FAILURES: Final = 2  # who failed so often is asked once more, after LAST_CHANCE_PAUSE_S, when nobody else is left
LAST_CHANCE_PAUSE_S: Final = 3.0
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
    """Every lane that must have this stripe has it: its fragments need not be kept in memory (who comes late has them
    encoded again)."""

    stripe: int


@dataclass(frozen=True, slots=True)
class Enough:
    """As many lanes as `--ack fast` waits for have committed; the others go on. Comes once, before `Finished`."""

    holders: tuple[NodeID, ...]  # that have committed, by index


@dataclass(frozen=True, slots=True)
class Finished:
    holders: tuple[NodeID, ...]  # by fragment index


@dataclass(frozen=True, slots=True)
class Failed:
    """No node is left for these indices."""

    missing: tuple[int, ...]
    reasons: dict[NodeID, Failure]


Effect = Send | Commit | Abandon | Settled | Enough | Finished | Failed


def enough_receipts(width: int, m: int) -> int:
    """Receipts after which a segment of `width` = k + m lanes survives ceil(2m/3) losses: k + ceil(2m/3), 14 of 10+6."""
    return width - m // 3


@dataclass(slots=True)
class _Lane:
    index: int
    node: NodeID
    waiting: deque[int] = field(default_factory=deque)
    missed: deque[int] = field(default_factory=deque)  # settled before this node took the lane: they hold up nobody
    flying: dict[int, float] = field(default_factory=dict)  # stripe -> when sent
    done: set[int] = field(default_factory=set)
    committing_since: float | None = None
    committed: bool = False
    answers: int = 0
    answers_s: float = 0.0  # sum of their durations
    answered_sent: float | None = None  # when the latest answered request was sent
    held_s: float = 0.0  # for how long most others had nothing to do while this lane had
    given_up: bool = False  # no node is left for it, and the others go on without it
    rests_until: float = -inf  # its node failed repeatedly: nothing is sent before this instant

    def oldest(self) -> float | None:
        starts = list(self.flying.values())
        if self.committing_since is not None and not self.committed:
            starts.append(self.committing_since)
        return min(starts, default=None)

    def idle(self) -> bool:
        return not (self.waiting or self.missed or self.flying) and (self.committed or self.committing_since is None)

    def answered(self, sent: float, now: float) -> None:
        self.answers += 1
        self.answers_s += now - sent
        self.answered_sent = max(sent, self.answered_sent or sent)

    def give_up(self) -> None:
        self.given_up = True
        self.waiting.clear()
        self.missed.clear()
        self.flying.clear()
        self.committing_since = None

    def vouches(self, since: float) -> bool:
        """Whether our own link was fit after `since`: it answered what was sent then, or has nothing left to answer."""
        if self.given_up:
            return False
        return self.answered_sent is not None and (self.answered_sent >= since or self.idle())


class SegmentUpload:
    """The lanes of one segment. Methods are events; each returns the effects to perform, in order.

    With `enough`, `Enough` is told at that many commits, and as many lanes as may then still be missing hold up nothing: their
    stripes settle without them, and while no node is left for them the others finish before the upload fails.
    """

    def __init__(self, chosen: Sequence[NodeID], spares: Sequence[NodeID], enough: int | None = None) -> None:
        assert len({*chosen, *spares}) == len(chosen) + len(spares), "a node may stand in the list once"
        self._lanes = [_Lane(index, node) for index, node in enumerate(chosen)]
        self._reserve = list(spares)  # in the order they are to be asked
        self._cuts: Counter[NodeID] = Counter()  # replaced as a straggler
        self._failures: Counter[NodeID] = Counter()
        self._bound: dict[NodeID, int] = {}  # asked to commit this index, so it may hold it whatever became of the answer
        self._reasons: dict[NodeID, Failure] = {}
        self._widths: dict[int, int] = {}  # stripe -> number of fragments to stage
        self._settled: set[int] = set()
        self._enough = enough
        self._lacking_max = 0 if enough is None else len(chosen) - enough
        self._complete = False
        self._over = False
        self._recent: deque[float] = deque(maxlen=RECENT_MAX)
        self._ticked: float | None = None
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
        assert stripe not in self._widths, "a stripe is announced once"
        self._widths[stripe] = width
        effects: list[Effect] = []
        for lane in [lane for lane in self._lanes[:width] if not lane.given_up]:
            lane.waiting.append(stripe)
            effects += self._advance(lane, now)
        return effects

    def all_ready(self, now: float) -> list[Effect]:
        """No more stripes will come and the encoding record exists: lanes that have everything may commit."""
        self._complete = True
        return [effect for lane in self._lanes for effect in self._advance(lane, now)]

    def preparing(self, index: int, node: NodeID, stripe: int) -> None:
        """The fragment has to be made again before it can be sent: until `departed`, the wait is ours and not the node's."""
        lane = self._lane(index, node)
        if lane is not None and stripe in lane.flying:
            lane.flying[stripe] = inf

    def departed(self, index: int, node: NodeID, stripe: int, now: float) -> None:
        """The fragment that was being prepared is sent now."""
        lane = self._lane(index, node)
        if lane is not None and stripe in lane.flying:
            lane.flying[stripe] = now

    def staged(self, index: int, node: NodeID, stripe: int, now: float) -> list[Effect]:
        lane = self._lane(index, node)
        if lane is None or stripe not in lane.flying:
            return []
        self._answered(lane, lane.flying.pop(stripe), now)
        lane.done.add(stripe)
        return [*self._settle(stripe), *self._advance(lane, now)]

    def committed_by(self, index: int, node: NodeID, now: float) -> list[Effect]:
        """A valid receipt arrived."""
        lane = self._lane(index, node)
        if lane is None or lane.committing_since is None or lane.committed:
            return []
        self._answered(lane, lane.committing_since, now)
        lane.committed = True
        effects: list[Effect] = []
        if self.committed() == self._enough:  # a commit is never taken back, so the count passes here once
            effects.append(Enough(tuple(each.node for each in self._lanes if each.committed)))
        return effects + self._ended()

    def failed(self, index: int, node: NodeID, why: Failure, now: float) -> list[Effect]:
        """A send or commit of this lane failed."""
        lane = self._lane(index, node)
        if lane is None or lane.committed:
            return []
        self._failures[node] += 1
        self._reasons[node] = why
        if why in (Failure.UNREACHABLE, Failure.SLOW) and self._failures[node] < FAILURES_MAX:
            self._reserve.append(node)
        spare = self._spare_for(lane, self._reserve)
        if spare is not None:
            return self._replace(lane, spare, why, now)
        lane.give_up()
        return [Abandon(index, node, why), *self._ended()]

    def tick(self, now: float) -> list[Effect]:
        """Replace stragglers while there is anyone better to replace them with."""
        if self._over:
            return []
        self._count_holdups(now)
        effects: list[Effect] = []
        for lane in [lane for lane in self._lanes if -inf < lane.rests_until <= now]:
            lane.rests_until = -inf
            effects += self._advance(lane, now)
        for lane in [lane for lane in self._lanes if self._straggles(lane, now)]:
            spare = self._spare_for(lane, [node for node in self._reserve if self._may_relieve(node, lane)])
            if spare is None:
                continue
            self._cuts[lane.node] += 1
            self._reasons[lane.node] = Failure.SLOW
            self._reserve.append(lane.node)
            effects += self._replace(lane, spare, Failure.SLOW, now)
        return effects

    def straggler_s(self) -> float:
        """How long a request may take before its node counts as a straggler, in seconds."""
        if not self._recent:
            return STRAGGLER_S_MAX / 2
        usual = median(self._recent)
        return min(max(STRAGGLER_FACTOR * usual, STRAGGLER_S_MIN), max(STRAGGLER_FACTOR_MIN * usual, STRAGGLER_S_MAX))

    # -- decisions ------------------------------------------------------------------------------------------------------

    def _lane(self, index: int, node: NodeID) -> _Lane | None:
        """The lane if that node still has it; late news of a replaced node is ignored."""
        lane = self._lanes[index]
        return lane if lane.node == node and not self._over and not lane.given_up else None

    def _ended(self) -> list[Effect]:
        """The end, if this is it: every lane has committed, or no node is left for more lanes than may be missing."""
        missing = tuple(lane.index for lane in self._lanes if lane.given_up)
        going_on = len(missing) <= self._lacking_max and not all(lane.committed or lane.given_up for lane in self._lanes)
        if going_on:
            return []
        self._over = True
        return [Failed(missing, dict(self._reasons))] if missing else [Finished(self.holders)]

    def _advance(self, lane: _Lane, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._over or lane.given_up or now < lane.rests_until:
            return effects
        depth = SENDS_PER_LANE_MAX if self._recent and median(self._recent) < PIPELINED_S_MAX else 1
        while (lane.waiting or lane.missed) and len(lane.flying) < depth:
            stripe = (lane.waiting or lane.missed).popleft()
            lane.flying[stripe] = now
            effects.append(Send(lane.index, lane.node, stripe))
        if self._complete and lane.idle() and not lane.committed:
            lane.committing_since = now
            self._bound[lane.node] = lane.index
            effects.append(Commit(lane.index, lane.node))
        return effects

    def _answered(self, lane: _Lane, sent: float, now: float) -> None:
        self._recent.append(now - sent)
        lane.answered(sent, now)

    def _settle(self, stripe: int) -> list[Effect]:
        lanes = self._lanes[: self._widths[stripe]]
        if stripe in self._settled or sum(stripe not in lane.done for lane in lanes) > self._lacking_max:
            return []
        self._settled.add(stripe)
        return [Settled(stripe)]

    def _count_holdups(self, now: float) -> None:
        passed = now - self._ticked if self._ticked is not None else 0.0
        self._ticked = now
        busy = [lane for lane in self._lanes if not lane.idle()]
        if len(busy) <= max(1, len(self._lanes) // 4):
            for lane in busy:
                lane.held_s += passed

    def _straggles(self, lane: _Lane, now: float) -> bool:
        """Whether the lane's node, and not our own link, is slower than the others.

        Either one request is far overdue, or the node answers steadily but so slowly that most lanes have waited for it for
        as long as one overdue request may take.
        """
        oldest, limit = lane.oldest(), self.straggler_s()
        if oldest is None:
            return False
        slow = lane.answers > 0 and lane.answers_s / lane.answers > DRAG_FACTOR * median(self._recent)
        if now - oldest <= limit and not (slow and lane.held_s > limit):
            return False
        return sum(each.vouches(oldest) for each in self._lanes if each is not lane) >= len(self._lanes) // 3

    def _spare_for(self, lane: _Lane, nodes: Sequence[NodeID]) -> NodeID | None:
        """The best of `nodes` for the lane: not committed to another index, the least failed, the least slow, the first."""
        return min(nodes, key=lambda n: (self._is_bound(n, lane), self._failures[n], self._cuts[n]), default=None)

    def _may_relieve(self, node: NodeID, lane: _Lane) -> bool:
        """Whether the node may take a straggler's lane, which still has somebody."""
        return not self._failures[node] and self._cuts[node] <= SECOND_CHANCES_MAX and not self._is_bound(node, lane)

    def _is_bound(self, node: NodeID, lane: _Lane) -> bool:
        return self._bound.get(node, lane.index) != lane.index

    def _replace(self, lane: _Lane, spare: NodeID, why: Failure, now: float) -> list[Effect]:
        self.replaced.append((lane.index, lane.node, why))
        self._reserve.remove(spare)
        fresh = _Lane(lane.index, spare)
        if self._failures[spare] >= LAST_CHANCE_FAILURES:
            fresh.rests_until = now + LAST_CHANCE_PAUSE_S
        for stripe, width in sorted(self._widths.items()):
            if lane.index < width:
                (fresh.missed if stripe in self._settled else fresh.waiting).append(stripe)
        self._lanes[lane.index] = fresh
        return [Abandon(lane.index, lane.node, why), *self._advance(fresh, now)]

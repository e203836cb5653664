"""Hosting `SegmentUpload` in the simulator, as the client's asyncio host does, with checks at every effect.

A source encodes stripe after stripe and holds at most `window` unsettled ones. Sends, commits and cancellations act on the
simulated nodes; every request ends at the hard timeout; the machine ticks every 50 ms. A broken promise raises `Violation`.

What is checked while it runs: a lane is never sent a fragment twice, nor a stripe that does not exist; no node stands in two
lanes; a commit comes after every fragment was acknowledged; `Settled` is true; nothing follows the end. At the end: the n
holders are distinct, each really holds and committed all of its index, and nobody committed another one but a node that was
replaced while it did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final, assert_never

from dds.primitives.ids import NodeID
from dds.protocol.upload import Abandon, Commit, Effect, Enough, Failed, Failure, Finished, SegmentUpload, Send, Settled
from dds.sim.clock import Clock, Timer
from dds.sim.link import SharedLink, Transfer
from dds.sim.nodes import Outcome, SimNode

TICK_S: Final = 0.05
COMMIT_BYTES: Final = 4096
RUN_S_MAX: Final = 7200.0

_FAILURES: Final = {
    Outcome.REFUSED: Failure.REFUSED,
    Outcome.BROKEN: Failure.UNREACHABLE,
    Outcome.WRONG: Failure.BROKEN,
}


class Violation(AssertionError):
    """A machine broke a promise."""


def require(holds: bool, claim: str) -> None:
    if not holds:
        raise Violation(claim)


@dataclass(frozen=True, slots=True)
class UploadPlan:
    """What is uploaded and how the host behaves."""

    stripes: int = 4
    fragment_bytes: int = 1 << 20
    window: int = 4  # stripes that may be unsettled at once
    encode_s: float = 0.005  # per stripe
    timeout_s: float = 30.0  # of one request
    uplink_bytes_per_s: float | None = None
    outage_s: tuple[float, float] | None = None  # of the client's own link
    enough: int | None = None  # commits that --ack fast waits for


@dataclass(frozen=True, slots=True)
class UploadReport:
    outcome: Finished | Failed
    seconds: float
    sends: int
    replaced: tuple[tuple[int, NodeID, Failure], ...]
    enough_s: float | None = None  # when --ack fast would have returned


@dataclass(eq=False, slots=True)
class _Request:
    """One request in flight: on the link, then at the node, and its hard timeout."""

    index: int
    node: SimNode
    stripe: int | None  # None: a commit
    timers: list[Timer]
    transfer: Transfer | None = None


class UploadRun:
    """One upload of one segment; `run` plays it to its end."""

    def __init__(
        self, nodes: Mapping[NodeID, SimNode], chosen: Sequence[NodeID], spares: Sequence[NodeID], plan: UploadPlan, rng: Random
    ) -> None:
        self._clock, self._nodes, self._plan, self._rng = Clock(), nodes, plan, rng
        self._machine = SegmentUpload(chosen, spares, plan.enough)
        self._lanes = list(chosen)
        self._width = len(chosen)
        self._link = SharedLink(self._clock, plan.uplink_bytes_per_s) if plan.uplink_bytes_per_s else None
        if self._link and plan.outage_s:
            self._link.outage(*plan.outage_s)
        self._requests: list[_Request] = []
        self._sent: set[tuple[int, int]] = set()  # (index, stripe) in the lane's present stint
        self._acked: set[tuple[int, int]] = set()
        self._cancelled: set[tuple[int, NodeID]] = set()  # commits that may have happened unknown to us
        self._ready = 0
        self._encoding = False
        self._settled: set[int] = set()
        self._sends = 0
        self._enough_s: float | None = None
        self._outcome: Finished | Failed | None = None

    def run(self) -> UploadReport:
        self._clock.at(0.0, self._tick)
        self._encode()
        ended = self._clock.run(lambda: self._outcome is not None, RUN_S_MAX)
        require(ended and self._outcome is not None, "every upload ends")
        assert self._outcome is not None
        return UploadReport(self._outcome, self._clock.now, self._sends, tuple(self._machine.replaced), self._enough_s)

    # -- the host -------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._perform(self._machine.tick(self._clock.now))
        if self._outcome is None:
            self._clock.after(TICK_S, self._tick)

    def _encode(self) -> None:
        if not self._encoding and self._ready < self._plan.stripes and self._ready - len(self._settled) < self._plan.window:
            self._encoding = True
            self._clock.after(self._plan.encode_s, self._encoded)

    def _encoded(self) -> None:
        self._encoding = False
        stripe, self._ready = self._ready, self._ready + 1
        self._perform(self._machine.stripe_ready(stripe, self._width, self._clock.now))
        if self._ready == self._plan.stripes:
            self._perform(self._machine.all_ready(self._clock.now))
        self._encode()

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            require(self._outcome is None, "nothing follows the end")
            match effect:
                case Send():
                    self._send(effect)
                case Commit():
                    self._commit(effect)
                case Abandon():
                    self._abandon(effect)
                case Settled(stripe):
                    self._settle(stripe)
                case Enough(holders):
                    self._count_enough(holders)
                case Finished() | Failed():
                    self._end(effect)
                case _:
                    assert_never(effect)

    def _send(self, effect: Send) -> None:
        self._take_lane(effect.index, effect.node)
        require(effect.stripe < self._ready, "only stripes that exist are sent")
        require((effect.index, effect.stripe) not in self._sent, "a lane is sent a fragment once")
        self._sent.add((effect.index, effect.stripe))
        self._sends += 1
        self._request(_Request(effect.index, self._nodes[effect.node], effect.stripe, []), self._plan.fragment_bytes)

    def _commit(self, effect: Commit) -> None:
        self._take_lane(effect.index, effect.node)
        missing = [s for s in range(self._plan.stripes) if (effect.index, s) not in self._acked]
        require(not missing, "a lane commits after every fragment was acknowledged")
        self._request(_Request(effect.index, self._nodes[effect.node], None, []), COMMIT_BYTES)

    def _take_lane(self, index: int, node: NodeID) -> None:
        """The lane's first effect after an `Abandon` names its new node."""
        if self._lanes[index] != node:
            require(not any(sent[0] == index for sent in self._sent), "a lane changes its node only after Abandon")
            self._lanes[index] = node
        require(self._lanes.count(node) == 1, "no node stands in two lanes")

    def _abandon(self, effect: Abandon) -> None:
        require(self._lanes[effect.index] == effect.node, "only a lane's own node is abandoned")
        for request in [r for r in self._requests if r.index == effect.index]:
            self._drop(request)
            if request.stripe is None:
                self._cancelled.add((effect.index, effect.node))
            reached_it = request.stripe is None and request.transfer is None and self._rng.random() < 0.5
            if reached_it:  # cancelled here, done there
                request.node.commit(effect.index, self._plan.stripes)
        self._sent = {sent for sent in self._sent if sent[0] != effect.index}
        self._acked = {acked for acked in self._acked if acked[0] != effect.index}
        self._lanes[effect.index] = NodeID(b"")

    def _settle(self, stripe: int) -> None:
        have = sum((index, stripe) in self._acked for index in range(self._width))
        needed = self._plan.enough or self._width
        require(have >= needed and stripe not in self._settled, "a stripe settles once, when every lane that must has it")
        self._settled.add(stripe)
        self._encode()

    def _count_enough(self, holders: Sequence[NodeID]) -> None:
        require(self._enough_s is None, "enough is told once")
        require(len(set(holders)) == self._plan.enough, "as many distinct nodes as were asked for")
        for holder in holders:
            node = self._nodes[holder]
            held = any(all((index, stripe) in node.staged for stripe in range(self._plan.stripes)) for index in node.committed)
            require(held, "each of them holds and committed an index")
        self._enough_s = self._clock.now

    # -- requests -------------------------------------------------------------------------------------------------------

    def _request(self, request: _Request, size_bytes: int) -> None:
        self._requests.append(request)
        request.timers.append(self._clock.after(self._plan.timeout_s, partial(self._fail, request, Failure.SLOW)))
        at_node = partial(self._reach, request, size_bytes)
        if self._link:
            request.transfer = self._link.start(size_bytes, at_node)
        else:
            at_node()

    def _reach(self, request: _Request, size_bytes: int) -> None:
        request.transfer = None
        answer = request.node.answer(self._clock.now, size_bytes)
        acknowledged = request.stripe is not None and answer.outcome is Outcome.WRONG  # a liar is found out at its receipt
        ok = answer.outcome is Outcome.OK or acknowledged
        action: Callable[[], None] = (
            partial(self._succeed, request) if ok else partial(self._fail, request, _FAILURES[answer.outcome])
        )
        request.timers.append(self._clock.at(answer.at, action))

    def _drop(self, request: _Request) -> None:
        self._requests.remove(request)
        for timer in request.timers:
            timer.cancel()
        if request.transfer and self._link:
            self._link.cancel(request.transfer)

    def _succeed(self, request: _Request) -> None:
        self._drop(request)
        node, now = request.node, self._clock.now
        if request.stripe is not None:
            node.stage(request.index, request.stripe)
            self._acked.add((request.index, request.stripe))
            self._perform(self._machine.staged(request.index, node.node_id, request.stripe, now))
        elif node.commit(request.index, self._plan.stripes):
            self._perform(self._machine.committed_by(request.index, node.node_id, now))
        else:
            self._perform(self._machine.failed(request.index, node.node_id, Failure.BROKEN, now))

    def _fail(self, request: _Request, why: Failure) -> None:
        self._drop(request)
        self._perform(self._machine.failed(request.index, request.node.node_id, why, self._clock.now))

    def _end(self, outcome: Finished | Failed) -> None:
        self._outcome = outcome
        require(self._machine.over, "the machine knows that it is over")
        if isinstance(outcome, Failed):
            require(bool(outcome.missing), "a failure names the indices without a node")
            return
        require(len(set(outcome.holders)) == self._width, "n distinct holders")
        require(self._plan.enough is None or self._enough_s is not None, "all is enough")
        for index, holder in enumerate(outcome.holders):
            node = self._nodes[holder]
            held = all((index, stripe) in node.staged for stripe in range(self._plan.stripes))
            require(held and index in node.committed, "every holder holds and committed its index")
        for node in self._nodes.values():
            known = [index for index in node.committed if (index, node.node_id) not in self._cancelled]
            require(len(known) <= 1, "no node commits two indices")

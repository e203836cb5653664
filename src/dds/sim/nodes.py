"""Simulated storage nodes: how long they take, what is wrong with them, and what they really hold.

A node answers a request with an instant and an outcome, both decided when the request reaches it. The outcome is the truth;
what the host under test makes of it is the host's business. A node that never answers gives an infinite instant: only the
host's hard timeout ends that request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from math import inf
from random import Random
from typing import Final

from dds.primitives.ids import ID_BYTES, NodeID

CONNECT_S: Final = 0.002  # how long a refused connection takes
CONNECT_TIMEOUT_S: Final = 5.0  # how long one takes that nobody accepts
DRIP_BYTES_PER_S: Final = 1.0


class Fault(Enum):
    """What is wrong with a node."""

    NONE = "healthy"
    DEAD = "dead"  # from `from_s`: connections are refused, those open break
    REFUSES = "refuses"
    FULL = "full"  # refuses once it holds `room` fragments
    HANGS = "hangs"  # stopped at `from_s` and never resumed
    BUSY = "busy"  # before `until_s` no connection is accepted, and a try takes CONNECT_TIMEOUT_S
    PAUSES = "pauses"  # stopped between `from_s` and `until_s`, in mid-transfer too
    DRIPS = "drips"  # 1 byte a second
    SLOW = "slow"  # `factor` times slower
    LIES = "lies"  # acknowledges what it drops, signs nonsense, serves wrong bytes
    FLAKY = "flaky"  # each request breaks with probability `chance`


class Outcome(Enum):
    OK = "ok"
    REFUSED = "refused"
    BROKEN = "connection broken"
    WRONG = "wrong bytes"


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds a request takes besides its bytes: log-normal around `usual_s`, and now and then `tail_s` more."""

    usual_s: float = 0.02
    spread: float = 0.3
    tail_chance: float = 0.0
    tail_s: float = 0.0

    def sample(self, rng: Random) -> float:
        tail = self.tail_s * rng.random() if rng.random() < self.tail_chance else 0.0
        return self.usual_s * rng.lognormvariate(0.0, self.spread) + tail


@dataclass(frozen=True, slots=True)
class Answer:
    at: float
    outcome: Outcome


@dataclass(slots=True)
class SimNode:
    """One node; `rng` is its own, so that what one node draws does not depend on the others."""

    node_id: NodeID
    rng: Random
    latency: Latency = Latency()
    bytes_per_s: float = 100e6
    fault: Fault = Fault.NONE
    from_s: float = 0.0
    until_s: float = 0.0
    factor: float = 1.0
    room: int = 0
    chance: float = 0.0
    staged: set[tuple[int, int]] = field(default_factory=set)  # (fragment index, stripe)
    committed: set[int] = field(default_factory=set)

    def answer(self, now: float, size_bytes: int) -> Answer:
        """When and how a request that carries `size_bytes` either way ends."""
        latency = self.latency.sample(self.rng)
        work = latency + size_bytes / self.bytes_per_s
        match self.fault:
            case Fault.DEAD if now >= self.from_s:
                return Answer(now + CONNECT_S, Outcome.BROKEN)
            case Fault.DEAD if now + work > self.from_s:
                return Answer(self.from_s, Outcome.BROKEN)
            case Fault.BUSY if now < self.until_s:
                waited_s = min(self.until_s - now, CONNECT_TIMEOUT_S)
                is_late = waited_s == CONNECT_TIMEOUT_S
                return Answer(now + waited_s + (0.0 if is_late else work), Outcome.BROKEN if is_late else Outcome.OK)
            case Fault.REFUSES:
                return Answer(now + latency, Outcome.REFUSED)
            case Fault.FULL if len(self.staged) >= self.room:
                return Answer(now + latency, Outcome.REFUSED)
            case Fault.HANGS if now + work > self.from_s:
                return Answer(inf, Outcome.OK)
            case Fault.PAUSES if now < self.until_s and now + work > self.from_s:
                return Answer(self.until_s + work - max(0.0, self.from_s - now), Outcome.OK)
            case Fault.DRIPS:
                return Answer(now + latency + size_bytes / DRIP_BYTES_PER_S, Outcome.OK)
            case Fault.SLOW:
                return Answer(now + work * self.factor, Outcome.OK)
            case Fault.LIES:
                return Answer(now + work, Outcome.WRONG)
            case Fault.FLAKY if self.rng.random() < self.chance:
                return Answer(now + work * self.rng.random(), Outcome.BROKEN)
        return Answer(now + work, Outcome.OK)

    def stage(self, index: int, stripe: int) -> None:
        if self.fault is not Fault.LIES:
            self.staged.add((index, stripe))

    def commit(self, index: int, stripes: int) -> bool:
        """Whether it holds every stripe of the index; then it is committed."""
        if any((index, stripe) not in self.staged for stripe in range(stripes)):
            return False
        self.committed.add(index)
        return True


def node_id(number: int) -> NodeID:
    return NodeID(number.to_bytes(ID_BYTES, "big"))


def network(rng: Random, count: int, latency: Latency | None = None, bytes_per_s: float = 100e6) -> list[SimNode]:
    """`count` healthy nodes."""
    return [
        SimNode(node_id(number), Random(rng.getrandbits(64)), latency or Latency(), bytes_per_s)  # noqa: S311 - replayable
        for number in range(count)
    ]


def break_nodes(rng: Random, nodes: list[SimNode], fault: Fault, within_s: float = 1.0) -> None:
    """Give every one of `nodes` the fault, with its details drawn; it begins within the first `within_s`."""
    for node in nodes:
        node.fault = fault
        node.from_s = rng.choice((0.0, rng.random() * within_s))
        node.until_s = node.from_s + rng.choice((0.5, 3.0, 20.0)) * (0.5 + rng.random())
        node.factor = rng.choice((3.0, 10.0, 100.0))
        node.room = rng.randrange(4)
        node.chance = rng.choice((0.05, 0.3))

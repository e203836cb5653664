"""Which edge a reader asks, and how long it waits for it: what a reader remembers of edges.

Decides the order of the known edges for a content, how patient a read is before the ordinary path begins, and whom it leaves
alone. An edge that mostly misses is waited for less and asked after others: it is still told what is wanted, for that is how it
comes to have it. One that fails is left alone for a while, one that sent wrong bytes for good.

Edges of the own region come first. Among several the content decides (highest random weight), so that all readers of a region
ask the same one and what it fetched for one is there for the next. Source: docs/spec/retrieval.md, "Reading through an edge";
Thaler, Ravishankar, "Using name-based mappings to increase hit rates" (ToN 6(1), 1998).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from dds.primitives.cid import CID
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import NodeID

EDGES_MAX: Final = 256  # remembered
PATIENCE_S_UNKNOWN: Final = 0.5  # before it has answered once
PATIENCE_S_MIN: Final = 0.15
PATIENCE_S_MAX: Final = 1.0
PATIENCE_FACTOR: Final = 4.0  # times the smoothed time of its answers
HIT_SHARE_MIN: Final = 0.2  # with less it is not waited for, and asked after the others
COOL_DOWN_S_MIN: Final = 5.0
COOL_DOWN_S_MAX: Final = 120.0
_SMOOTHING: Final = 0.2


@dataclass(slots=True)
class _Memory:
    latency_s: float = 0.0
    hit_share: float = 1.0  # of the blocks asked for, the latest requests counting most
    pause_s: float = 0.0
    avoid_until: float = 0.0
    lied: bool = False


class EdgeChoice:
    """Bounded memory of edges; the clock (seconds, monotonic) is passed in."""

    def __init__(self) -> None:
        self._edges: dict[NodeID, _Memory] = {}

    def order(self, edges: Iterable[tuple[NodeID, bool]], content: CID, now: float) -> list[NodeID]:
        """Edges worth asking for a content, the best first; each comes with whether it is of the own region."""
        known = [(node, is_near, self._edges.get(node) or _Memory()) for node, is_near in edges]
        usable = [
            (not is_near, memory.hit_share < HIT_SHARE_MIN, tagged_hash(b"dds/edge-order/v1", content, node), node)
            for node, is_near, memory in known
            if not memory.lied and memory.avoid_until <= now
        ]
        return [node for *_, node in sorted(usable)]

    def patience_s(self, node: NodeID) -> float:
        """How long nothing may come from it before the ordinary path begins as well, in seconds."""
        memory = self._edges.get(node)
        if memory is None or (not memory.latency_s and memory.hit_share >= HIT_SHARE_MIN):
            return PATIENCE_S_UNKNOWN
        if memory.hit_share < HIT_SHARE_MIN:
            return 0.0
        return min(max(PATIENCE_FACTOR * memory.latency_s, PATIENCE_S_MIN), PATIENCE_S_MAX)

    def answered(self, node: NodeID, seconds: float, *, asked: int, hits: int) -> None:
        """It gave `hits` of `asked` blocks, at least one, after so many seconds."""
        memory = self._memory(node)
        memory.latency_s += (_SMOOTHING if memory.latency_s else 1.0) * (seconds - memory.latency_s)
        memory.hit_share += _SMOOTHING * (hits / asked - memory.hit_share)
        memory.pause_s, memory.avoid_until = 0.0, 0.0

    def failed(self, node: NodeID, now: float) -> None:
        """No answer, or a refusal: left alone for a while, twice as long each time in a row."""
        memory = self._memory(node)
        if memory.avoid_until <= now:
            memory.pause_s = min(max(2 * memory.pause_s, COOL_DOWN_S_MIN), COOL_DOWN_S_MAX)
        memory.avoid_until = now + memory.pause_s

    def lied(self, node: NodeID) -> None:
        """It sent wrong bytes."""
        self._memory(node).lied = True

    def is_usable(self, node: NodeID, now: float) -> bool:
        memory = self._edges.get(node)
        return memory is None or (not memory.lied and memory.avoid_until <= now)

    def _memory(self, node: NodeID) -> _Memory:
        memory = self._edges.get(node)
        if memory is None:
            if len(self._edges) >= EDGES_MAX:
                self._edges.pop(next((n for n, m in self._edges.items() if not m.lied), next(iter(self._edges))))
            memory = self._edges[node] = _Memory()
        return memory

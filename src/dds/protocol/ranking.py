"""What a reader remembers of each node's speed and manners: whom to ask first, when to hedge, whom to leave alone for a while.

Hung nodes are worse than dead ones: the first request that outlives the hedge delay puts its node on a cool-down, so the next
stripes are read around it from the start. Everything here is a hint for choosing; nothing is believed because of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dds.primitives.ids import NodeID

HEDGE_S_MIN: Final = 0.15
HEDGE_S_MAX: Final = 4.0
HEDGE_S_UNKNOWN: Final = 1.0  # before anything was measured
HEDGE_FACTOR: Final = 2.5  # times the recent 95th percentile
HEDGE_FACTOR_MIN: Final = 3.0  # times the recent median holds beyond HEDGE_S_MAX: our own link is slow, not the nodes
RECENT_MAX: Final = 128
COOL_DOWN_S_MIN: Final = 5.0
COOL_DOWN_S_MAX: Final = 120.0
NODES_MAX: Final = 4096
FAR_S: Final = 0.05  # what a request to a node of another region is taken to cost until one was made
SUCCESS_MIN: Final = 0.05  # a node that never answers counts as one that answers one request in twenty
_SMOOTHING: Final = 0.2


@dataclass(slots=True)
class _Memory:
    latency_s: float = 0.0
    success: float = 1.0  # share of requests that were answered in time, the latest counting most
    pause_s: float = 0.0  # the latest cool-down of failures in a row
    avoid_until: float = 0.0
    lied: bool = False


class NodeRanking:
    """Bounded memory of nodes; the clock (seconds, monotonic) is passed in.

    `is_near` says which nodes are of the reader's own region; without it none is taken to be far.
    """

    def __init__(self, is_near: Callable[[NodeID], bool] = lambda node: True) -> None:
        self._is_near = is_near
        self._nodes: dict[NodeID, _Memory] = {}
        self._recent: deque[float] = deque(maxlen=RECENT_MAX)
        self._hedge_s = HEDGE_S_UNKNOWN

    def succeeded(self, node: NodeID, seconds: float) -> None:
        memory = self._memory(node)
        memory.latency_s += (_SMOOTHING if memory.latency_s else 1.0) * (seconds - memory.latency_s)
        memory.success += _SMOOTHING * (1.0 - memory.success)
        memory.pause_s, memory.avoid_until = 0.0, 0.0
        self._recent.append(seconds)
        if len(self._recent) >= 8:
            in_order = sorted(self._recent)
            median, p95 = in_order[len(in_order) // 2], in_order[len(in_order) * 95 // 100]
            self._hedge_s = min(max(HEDGE_FACTOR * p95, HEDGE_S_MIN), max(HEDGE_FACTOR_MIN * median, HEDGE_S_MAX))

    def struck(self, node: NodeID, now: float) -> None:
        """A failure or a hedged request: left alone for a while, twice as long each time in a row.

        What was in flight when the cool-down began belongs to the same fault, so it does not double it again.
        """
        memory = self._memory(node)
        memory.success -= _SMOOTHING * memory.success
        if memory.avoid_until <= now:
            memory.pause_s = min(max(2 * memory.pause_s, COOL_DOWN_S_MIN), COOL_DOWN_S_MAX)
        memory.avoid_until = now + memory.pause_s

    def lied(self, node: NodeID) -> None:
        """It sent wrong bytes: asked only when nobody else is left."""
        self._memory(node).lied = True

    def avoided(self, node: NodeID, now: float) -> bool:
        memory = self._nodes.get(node)
        return memory is not None and (memory.lied or memory.avoid_until > now)

    def is_liar(self, node: NodeID) -> bool:
        memory = self._nodes.get(node)
        return memory is not None and memory.lied

    def expected_s(self, node: NodeID) -> float:
        """What to choose by: seconds until a request is answered, as far as is known, more for a node that often fails. A
        node never asked costs nothing in the own region, so that newcomers get their turn, and FAR_S elsewhere."""
        memory = self._nodes.get(node)
        if memory is None:
            return 0.0 if self._is_near(node) else FAR_S
        return (memory.latency_s or HEDGE_S_MIN) / max(memory.success, SUCCESS_MIN)

    def hedge_s(self) -> float:
        """How long to wait for a holder before asking others too, in seconds."""
        return self._hedge_s

    def _memory(self, node: NodeID) -> _Memory:
        memory = self._nodes.get(node)
        if memory is None:
            if len(self._nodes) >= NODES_MAX:
                self._nodes.pop(next((n for n, m in self._nodes.items() if not m.lied), next(iter(self._nodes))))
            memory = self._nodes[node] = _Memory()
        return memory

"""The store's own time, by which staged and released fragments age.

It starts as wall-clock milliseconds and only ever goes forward, by what the wall clock went forward since the last look, but by
at most an hour a look. So a clock that jumps back ages nothing, and one that jumps thirty years ahead ages things by an hour.
A long stop of the node counts as an hour too: an upload is still there when the node is back. What errs, errs to keeping.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

STEP_MS_MAX = 3600 * 1000


class StoreTime:
    def __init__(self, clock: Callable[[], int], reached_ms: int, wall_ms: int) -> None:
        """`reached_ms`: how far this time had come; `wall_ms`: what the clock said then (0: not known)."""
        self._clock, self._lock = clock, threading.Lock()
        self.wall_ms = wall_ms or clock()
        self._now_ms = reached_ms or self.wall_ms

    def now_ms(self) -> int:
        with self._lock:
            wall_ms = self._clock()
            self._now_ms += max(0, min(wall_ms - self.wall_ms, STEP_MS_MAX))
            self.wall_ms = wall_ms
            return self._now_ms

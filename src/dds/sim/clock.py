"""A virtual clock: actions at instants, run in order of time and then of arrival, so that a run depends on its seed alone.

Nothing here waits. An hour of virtual time costs what its events cost.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count


@dataclass(order=True, slots=True)
class Timer:
    """A planned action; `cancel` makes it never happen."""

    at: float
    order: int
    action: Callable[[], None] | None = field(compare=False)

    def cancel(self) -> None:
        self.action = None


class Clock:
    """Seconds since the run began."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[Timer] = []
        self._orders = count()

    def at(self, when: float, action: Callable[[], None]) -> Timer:
        """Plan `action`; an instant that is already past means now."""
        timer = Timer(max(when, self.now), next(self._orders), action)
        heapq.heappush(self._heap, timer)
        return timer

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        return self.at(self.now + seconds, action)

    def run(self, done: Callable[[], bool], limit_s: float) -> bool:
        """Run until `done()`; False when nothing is left to do or the clock passes `limit_s`."""
        while not done():
            if not self._heap or self._heap[0].at > limit_s:
                return False
            timer = heapq.heappop(self._heap)
            self.now = timer.at
            if timer.action:
                timer.action()
        return True

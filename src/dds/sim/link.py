"""A client's own link, shared equally by the transfers on it: what makes every node look slow at once.

Fluid model: n active transfers each progress at rate / n; whenever one starts, ends or is cancelled the next end is planned
again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dds.sim.clock import Clock, Timer


@dataclass(eq=False, slots=True)
class Transfer:
    left_bytes: float
    done: Callable[[], None]


class SharedLink:
    """At most `bytes_per_s`, nothing while it is down."""

    def __init__(self, clock: Clock, bytes_per_s: float) -> None:
        self._clock, self._rate = clock, bytes_per_s
        self._active: list[Transfer] = []
        self._since = 0.0
        self._down = False
        self._next: Timer | None = None

    def start(self, size_bytes: float, done: Callable[[], None]) -> Transfer:
        self._settle()
        transfer = Transfer(size_bytes, done)
        self._active.append(transfer)
        self._plan()
        return transfer

    def cancel(self, transfer: Transfer) -> None:
        """Drop a transfer; one that has ended is ignored."""
        self._settle()
        if transfer in self._active:
            self._active.remove(transfer)
        self._plan()

    def outage(self, from_s: float, until_s: float) -> None:
        """Nothing moves between the two instants."""
        self._clock.at(from_s, lambda: self._set_down(True))
        self._clock.at(until_s, lambda: self._set_down(False))

    def _set_down(self, down: bool) -> None:
        self._settle()
        self._down = down
        self._plan()

    def _settle(self) -> None:
        if self._active and not self._down:
            moved = (self._clock.now - self._since) * self._rate / len(self._active)
            for transfer in self._active:
                transfer.left_bytes -= moved
        self._since = self._clock.now

    def _plan(self) -> None:
        if self._next:
            self._next.cancel()
            self._next = None
        if self._active and not self._down:
            least = max(0.0, min(transfer.left_bytes for transfer in self._active))
            self._next = self._clock.after(least * len(self._active) / self._rate, self._end_one)

    def _end_one(self) -> None:
        self._settle()
        first = min(self._active, key=lambda transfer: transfer.left_bytes)
        self._active.remove(first)
        self._plan()
        first.done()

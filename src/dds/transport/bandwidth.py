"""Caps on bytes per second: a token bucket without a clock, and its asyncio host.

Decides: when the next bytes may pass. Does not decide what they are; callers take tokens for the bodies they move. A cap of
zero means uncapped and costs one comparison.

Source: the token bucket of RFC 2697, with debt instead of a queue: whoever takes n bytes waits until the bucket would be out of
debt again, so takers are served in order and the long-run rate is exact.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

from dds.primitives.units import KIB

PIECE_BYTES: Final = 64 * KIB  # a capped body passes in pieces of this size
BURST_S: Final = 0.25  # a bucket holds what the rate gives in this time


@dataclass(slots=True)
class TokenBucket:
    """`rate` bytes per second (positive) with a burst of `burst` bytes; time is an argument, in seconds, never decreasing."""

    rate: int
    burst: int
    _level: float = field(init=False)
    _at_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        assert self.rate > 0
        assert self.burst > 0
        self._level = self.burst

    def take(self, count: int, now_s: float) -> float:
        """Take `count` bytes and return for how many seconds the taker has to wait before it moves them."""
        self._level = min(self.burst, self._level + (now_s - self._at_s) * self.rate)
        self._at_s = now_s
        self._level -= count
        return max(0.0, -self._level / self.rate)


class Gate:
    """One direction of a node's traffic, shared by everything that moves bytes that way."""

    def __init__(self, bytes_per_s: int = 0) -> None:
        self._bucket = TokenBucket(bytes_per_s, max(PIECE_BYTES, int(bytes_per_s * BURST_S))) if bytes_per_s else None

    @property
    def is_open(self) -> bool:
        """Whether there is no cap at all."""
        return self._bucket is None

    async def take(self, count: int) -> None:
        """Return when `count` bytes may pass. A cancelled taker's tokens stay spent."""
        if self._bucket is not None:
            wait_s = self._bucket.take(count, asyncio.get_running_loop().time())
            if wait_s > 0:
                await asyncio.sleep(wait_s)


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """The two gates of a node. Give the same object to its client and its server, and the caps hold for both together."""

    up: Gate = field(default_factory=Gate)
    down: Gate = field(default_factory=Gate)

    @classmethod
    def capped(cls, *, up_bytes_per_s: int = 0, down_bytes_per_s: int = 0) -> Bandwidth:
        """Caps in bytes per second; zero is uncapped."""
        return cls(Gate(up_bytes_per_s), Gate(down_bytes_per_s))

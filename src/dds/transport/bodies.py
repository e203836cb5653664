"""Bodies in memory: room for them, counted in bytes, first come, first served; and reading one whose size is known.

Decides: whether a request may have its body read and answered now, a little later, or not at all. Does not know what is in the
bodies, nor cut slow ones (connections.py does, when `is_pressed` says that others wait).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from aiohttp import StreamReader

from dds.primitives.errors import LimitError
from dds.primitives.units import KIB

JOIN_BYTES_MAX: Final = 128 * KIB  # up to here, copying a body behind its head is cheaper than a second write through TLS


class BodyRoom:
    """`capacity` bytes of room with at most `waiting_max` requests waiting for it."""

    def __init__(self, capacity: int, waiting_max: int, waiting_timeout_s: float) -> None:
        self.used = 0
        self._capacity = capacity
        self._waiting_max = waiting_max
        self._waiting_timeout_s = waiting_timeout_s
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def is_pressed(self) -> bool:
        """Whether requests are waiting."""
        return bool(self._waiting)

    def try_take(self, size: int) -> bool:
        """Take `size` bytes of room now, unless others came first or there is none. Pair with `give_back`."""
        if self._waiting or self.used + size > self._capacity:
            return False
        self.used += size
        return True

    async def take(self, size: int) -> None:
        """Take `size` bytes of room, waiting for it if need be. Pair with `give_back`.

        Raises:
            LimitError: too many are waiting, or it took too long.
        """
        assert size <= self._capacity
        if self.try_take(size):
            return
        if len(self._waiting) >= self._waiting_max:
            raise LimitError("too many requests at once")
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, granted))
        try:
            async with asyncio.timeout(self._waiting_timeout_s):
                await granted
        except BaseException as error:
            self._withdraw(size, granted)
            if isinstance(error, TimeoutError):
                raise LimitError("too many requests at once") from None
            raise

    def give_back(self, size: int) -> None:
        self.used -= size
        self._admit_waiting()

    def adjust(self, taken: int, needed: int) -> None:
        """Correct what was taken once the true size is known; more than planned is not refused, the bytes exist already."""
        self.give_back(taken - needed)

    def _withdraw(self, size: int, granted: asyncio.Future[None]) -> None:
        if granted.done() and not granted.cancelled():  # granted in the same turn of the loop in which the taker gave up
            self.give_back(size)
        else:
            granted.cancel()
            self._waiting = deque(entry for entry in self._waiting if entry[1] is not granted)
            self._admit_waiting()

    def _admit_waiting(self) -> None:
        while self._waiting and self.used + self._waiting[0][0] <= self._capacity:
            size, future = self._waiting.popleft()
            if not future.done():
                self.used += size
                future.set_result(None)


async def read_sized(content: StreamReader, size: int) -> bytes:
    """A body whose size is declared, allowed and paid for: let all of it arrive and wake up once or twice, not once a piece."""
    content.set_read_chunk_size(size)  # no more flow control; the first read also ends a pause
    first = await content.readany()
    if len(first) == size:
        return first
    error = content.exception()  # `wait_eof` would wait for ever after a connection that broke since
    if error is not None:
        raise error
    await content.wait_eof()
    return first + await content.readany()

"""Writes events to a tree or stream in a thread of their own, so that a busy disk does not hold up the network.

Events are handed over in order and in groups; at most two groups (one being written, one waiting) are held, so the memory is
bounded and a slow disk slows the reading down in the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Protocol, Self

from dds.content.events import Data, Event
from dds.primitives.units import MIB

GROUP_BYTES: Final = 4 * MIB
GROUP_EVENTS: Final = 512


class Writer(Protocol):
    def write(self, event: Event) -> None: ...


class WriteBehind:
    """`async with WriteBehind(writer) as out: await out.write(event)`. Leaving it writes what was handed over, also
    after an error inside the block (which goes on), so that all that was taken is written; only a cancellation, or a write
    that failed, drops it."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._group: list[Event] = []
        self._group_bytes = 0
        self._under_way: asyncio.Future[None] | None = None
        self._failed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None or isinstance(error, Exception):
                await self._hand_over()
            await self._settle()
        except Exception:
            # The disk's word counts before a failed read's: another manifest would be tried then, and go on behind a gap.
            if error is None or isinstance(error, Exception):
                raise
        finally:
            self._thread.shutdown(wait=True)

    async def write(self, event: Event) -> None:
        """Take the next event. Raises what writing an earlier one raised."""
        self._group.append(event)
        self._group_bytes += len(event.data) if isinstance(event, Data) else 0
        if self._group_bytes >= GROUP_BYTES or len(self._group) >= GROUP_EVENTS:
            await self._hand_over()

    async def _hand_over(self) -> None:
        await self._settle()
        group, self._group, self._group_bytes = self._group, [], 0
        self._under_way = asyncio.get_running_loop().run_in_executor(self._thread, self._write_all, group)

    async def _settle(self) -> None:
        """Wait for the group under way, even when we are cancelled meanwhile: its writer must be idle when it is closed."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            try:
                await asyncio.shield(under_way)
            except asyncio.CancelledError:
                await asyncio.wait((under_way,))
                raise

    def _write_all(self, group: Sequence[Event]) -> None:
        """In the thread. Behind a write that failed nothing more is written: it would leave a gap."""
        if self._failed:
            return
        self._failed = True
        for event in group:
            self._writer.write(event)
        self._failed = False

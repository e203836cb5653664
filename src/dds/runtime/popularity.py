"""A node counts the reads that it serves: by fragment as they go out, by segment a little later, on disk now and then.

Decides when counts are added up and saved, and what a read is: as many bytes as the node's share of the segment has. So a
reading of all of a segment counts about once at each node that served it, and a glance at one block hardly. Does not decide how
counts fade (protocol/popularity.py). What was served since the last save is lost by a crash: popularity is no account.

Serving only adds to a number in memory; which segment a fragment belongs to is looked up later, in a thread.
Source: docs/spec/tiering.md, "Popularity".
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from dds.primitives.errors import ConfigError, FormatError
from dds.primitives.ids import FragmentRoot, SegmentID
from dds.protocol.popularity import READ, Popularity
from dds.runtime.logs import event
from dds.storage.fragment_store import FragmentStore
from dds.storage.home import write_atomic
from dds.wire.retrieval import PopularityReply, PopularityRequest

FOLD_EVERY_S: Final = 60.0
SAVE_EVERY_S: Final = 900.0
FRAGMENTS_PENDING_MAX: Final = 1 << 14  # served and not added up yet; what comes beyond them is not counted

_log: Final = logging.getLogger("dds.popularity")


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class PopularityFile:
    """Keeps the counts over restarts: popularity.state in the node's directory."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "popularity.state"

    def load(self) -> Popularity:
        """Empty where there is no file, or one that does not hold: counts are not worth a node that does not start."""
        try:
            return Popularity.from_state(self._path.read_bytes())
        except FileNotFoundError:
            return Popularity()
        except (OSError, FormatError) as error:
            event(_log, logging.WARNING, "popularity begins anew", error=error)
            return Popularity()

    def save(self, state: bytes) -> None:
        write_atomic(self._path, state)


class PopularityCounter:
    """`served` and `reads` in the event loop; `run` for ever, `stop` at the end."""

    def __init__(self, store: FragmentStore, directory: Path, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._store, self._file, self._clock_ms = store, PopularityFile(directory), clock_ms
        self._counts = self._file.load()
        self._pending: dict[FragmentRoot, int] = {}
        self._turn = asyncio.Lock()
        self._dirty = False

    def served(self, root: FragmentRoot, byte_count: int) -> None:
        """So many bytes of a fragment went out."""
        if byte_count > 0 and (root in self._pending or len(self._pending) < FRAGMENTS_PENDING_MAX):
            self._pending[root] = self._pending.get(root, 0) + byte_count

    async def answer(self, request: PopularityRequest) -> PopularityReply:
        await self.fold()
        now_ms = self._clock_ms()
        return PopularityReply([self._counts.reads(SegmentID(segment), now_ms) for segment in request.segments])

    async def fold(self) -> None:
        """Add up by segment what was served since the last time."""
        async with self._turn:
            served, self._pending = self._pending, {}
            if served:
                shares = await asyncio.to_thread(self._shares, list(served))
                self._add(served, shares)

    def _shares(self, roots: Sequence[FragmentRoot]) -> list[tuple[SegmentID, int] | None]:
        return [self._store.share_of(root) for root in roots]

    def _add(self, served: dict[FragmentRoot, int], shares: Sequence[tuple[SegmentID, int] | None]) -> None:
        now_ms, whole = self._clock_ms(), dict[SegmentID, int]()
        served_of: dict[SegmentID, int] = {}
        for byte_count, share in zip(served.values(), shares, strict=True):
            if share is not None and share[1] > 0:
                whole[share[0]] = share[1]
                served_of[share[0]] = served_of.get(share[0], 0) + byte_count
        for segment, byte_count in served_of.items():
            self._counts.add(segment, byte_count * READ // whole[segment], now_ms)
            self._dirty = True

    async def run(self) -> None:
        saved_s = time.monotonic()
        while True:
            await asyncio.sleep(FOLD_EVERY_S)
            await self.fold()
            if time.monotonic() - saved_s >= SAVE_EVERY_S:
                saved_s = time.monotonic()
                await self._save()

    async def stop(self) -> None:
        await self.fold()
        await self._save()

    async def _save(self) -> None:
        if self._dirty:
            self._dirty = False
            try:
                await asyncio.to_thread(self._file.save, self._counts.to_state())
            except ConfigError as error:
                event(_log, logging.WARNING, "popularity could not be saved", error=error)

"""A node counts the reads that it serves: by fragment as they go out, by segment a little later, on disk now and then. An edge
counts them by content.

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

from dds.primitives.cid import CID
from dds.primitives.errors import ConfigError, FormatError
from dds.primitives.ids import FragmentRoot, SegmentID
from dds.protocol.popularity import CONTENTS_MAX, READ, SEGMENTS_MAX, Popularity
from dds.runtime.logs import event
from dds.storage.fragment_store import FragmentStore
from dds.storage.home import write_atomic

FOLD_EVERY_S: Final = 60.0
SAVE_EVERY_S: Final = 900.0
FRAGMENTS_PENDING_MAX: Final = 1 << 14  # served and not added up yet; what comes beyond them is not counted

_log: Final = logging.getLogger("dds.popularity")


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class KeptCounts:
    """Counts that outlive a restart: popularity.state in a directory."""

    def __init__(self, directory: Path, keys_max: int) -> None:
        self._path = directory / "popularity.state"
        self._counts = self._load(keys_max)
        self._dirty = False

    def _load(self, keys_max: int) -> Popularity:
        """Empty where there is no file, or one that does not hold: counts are not worth a node that does not start."""
        try:
            return Popularity.from_state(self._path.read_bytes(), keys_max)
        except FileNotFoundError:
            return Popularity(keys_max)
        except (OSError, FormatError) as error:
            event(_log, logging.WARNING, "popularity begins anew", error=error)
            return Popularity(keys_max)

    def add(self, key: bytes, amount: int, now_ms: int) -> None:
        self._counts.add(key, amount, now_ms)
        self._dirty = True

    def reads(self, key: bytes, now_ms: int) -> int:
        return self._counts.reads(key, now_ms)

    async def save(self) -> None:
        """Where anything has changed. A disk that does not take it costs the counts and nothing else."""
        if self._dirty:
            self._dirty = False
            try:
                await asyncio.to_thread(write_atomic, self._path, self._counts.to_state())
            except ConfigError as error:
                event(_log, logging.WARNING, "popularity could not be saved", error=error)


class PopularityCounter:
    """`served` and `reads` in the event loop; `run` for ever, `stop` at the end."""

    def __init__(self, store: FragmentStore, directory: Path, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._store, self._clock_ms = store, clock_ms
        self._counts = KeptCounts(directory, SEGMENTS_MAX)
        self._pending: dict[FragmentRoot, int] = {}
        self._turn = asyncio.Lock()

    def served(self, root: FragmentRoot, byte_count: int) -> None:
        """So many bytes of a fragment went out."""
        if byte_count > 0 and (root in self._pending or len(self._pending) < FRAGMENTS_PENDING_MAX):
            self._pending[root] = self._pending.get(root, 0) + byte_count

    async def reads(self, segments: Sequence[bytes]) -> list[int]:
        """Thousandths of reads of each."""
        await self.fold()
        now_ms = self._clock_ms()
        return [self._counts.reads(segment, now_ms) for segment in segments]

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

    async def run(self) -> None:
        saved_s = time.monotonic()
        while True:
            await asyncio.sleep(FOLD_EVERY_S)
            await self.fold()
            if time.monotonic() - saved_s >= SAVE_EVERY_S:
                saved_s = time.monotonic()
                await self._counts.save()

    async def stop(self) -> None:
        await self.fold()
        await self._counts.save()


class ContentCounter:
    """What an edge served, in bytes by content: of which content a block was read is the reader's word.

    `served` and `served_bytes` in the event loop; `run` for ever, `save` at the end.
    """

    def __init__(self, directory: Path, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._clock_ms = clock_ms
        self._counts = KeptCounts(directory, CONTENTS_MAX)

    def served(self, content: CID, byte_count: int) -> None:
        if byte_count > 0:
            self._counts.add(content, byte_count, self._clock_ms())

    def served_bytes(self, contents: Sequence[bytes]) -> list[int]:
        now_ms = self._clock_ms()
        return [self._counts.reads(content, now_ms) for content in contents]

    async def run(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            await self.save()

    async def save(self) -> None:
        await self._counts.save()

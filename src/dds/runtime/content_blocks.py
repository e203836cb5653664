"""Blocks of one content, by reference: which segment and entry holds a block, then its bytes.

A manifest lists runs of entries by their position in the DAG's post-order walk, so the run that should hold a block is found
by bisection and only that segment's index is loaded. A block that repeats is stored once, at its first position; one that is
not where its position says is looked for in the other segments, loaded ones first.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeVar

from dds.content.block import Ref
from dds.primitives.cid import CID, cid_text, matches
from dds.primitives.errors import FormatError, IntegrityError, NotEnoughFragments, NotFoundError
from dds.primitives.ids import SegmentID, id_text
from dds.runtime.fetcher import Fetcher
from dds.runtime.resolver import Found, Resolver
from dds.runtime.segments import Segment
from dds.runtime.tasks import gather_all
from dds.wire.manifest import Body, Run, SegmentRow, decode_section
from dds.wire.segment import Entry

T = TypeVar("T")
log = logging.getLogger(__name__)

RECORDS_TRIED_MAX: Final = 8  # of one segment: more than the nodes that a segment of any class may lose lie at the same time
SECTIONS_CACHED_MAX: Final = 64  # 16 MiB of manifest sections
SEGMENTS_CACHED_MAX: Final = 512
ENTRIES_CACHED_MAX: Final = 200_000  # of loaded indexes together; some 400 bytes each


class ContentBlocks:
    """The blocks that one manifest says make up a content."""

    def __init__(self, found: Found, resolver: Resolver, fetcher: Fetcher) -> None:
        self.found = found
        self._resolver, self._fetcher = resolver, fetcher
        self._segments: dict[SegmentID, asyncio.Task[Segment]] = {}
        self._loading: dict[SegmentID, asyncio.Lock] = {}
        self._rows: dict[SegmentID, SegmentRow] = {}  # of the segments that are in use
        self._replacing = asyncio.Lock()
        self._sections: dict[CID, Body] = {}
        manifest = found.manifest
        self.root = Ref(manifest.content, 0, manifest.dag_bytes)
        self.kind = manifest.kind
        self.content_bytes: int | None = manifest.content_bytes
        self._section_starts = [section.position for section in manifest.sections]

    async def fetch(self, refs: Sequence[Ref]) -> list[bytes]:
        """Verified bytes of the blocks, in order; blocks of one segment are fetched together.

        Raises:
            NotFoundError: the manifest does not hold a block that the DAG needs.
            FormatError: a block is larger than the link to it says, or than the manifest does.
            NotEnoughFragments, IntegrityError: see Fetcher.
        """
        places = [await self._locate(ref) for ref in refs]
        for ref, (_, entry) in zip(refs, places, strict=True):
            if ref.tsize is not None and entry.raw_bytes > ref.tsize:
                raise FormatError(f"block {cid_text(ref.cid)} is larger than its link says", actual=entry.raw_bytes)
        groups: dict[SegmentID, list[int]] = {}
        for at, (segment, _) in enumerate(places):
            groups.setdefault(segment.segment_id, []).append(at)
        reads = [self._read(places[group[0]][0], [places[at][1] for at in group]) for group in groups.values()]
        blocks: list[bytes] = [b""] * len(refs)
        for group, got in zip(groups.values(), await gather_all(reads), strict=True):
            for at, block in zip(group, got, strict=True):
                blocks[at] = block
        return blocks

    async def bodies(self) -> AsyncIterator[Body]:
        """What the manifest says of the content's blocks, section by section."""
        if not self._section_starts:
            yield self.found.manifest.body
        for at in range(len(self._section_starts)):
            yield await self._body(at)

    async def segment(self, row: SegmentRow) -> Segment:
        """A segment with its encoding record."""
        return await self._segment(row)

    async def load_index(self, row: SegmentRow) -> Segment:
        """The same with its index."""
        return await self._loaded(row)

    def forget(self, segment_id: SegmentID) -> None:
        """It is not needed any more."""
        self._drop(segment_id)

    async def rows(self) -> list[SegmentRow]:
        """Every segment the content uses, those of the manifest's own sections last."""
        bodies = [body async for body in self.bodies()]
        rows = {row.segment_id: row for body in (*bodies, self.found.manifest.meta) for row in body.segments}
        return list(rows.values())

    async def stored(self, segment: Segment, entries: Sequence[Entry]) -> list[bytes | memoryview]:
        """Blocks of a segment as they lie in its data space, verified; with another encoding record where this one fails."""
        return await self._trying_others(segment, lambda current: self._fetcher.stored(current, entries))

    async def _read(self, segment: Segment, entries: Sequence[Entry]) -> list[bytes]:
        """Blocks of a segment, with another encoding record when what this one names is not to be had."""
        return await self._trying_others(segment, lambda current: self._fetcher.blocks(current, entries))

    async def _trying_others(self, segment: Segment, read: Callable[[Segment], Awaitable[T]]) -> T:
        for _ in range(RECORDS_TRIED_MAX):
            try:
                return await read(segment)
            except (NotEnoughFragments, IntegrityError):
                other = await self._other(segment)
                if other is None:
                    raise
                segment = other
        return await read(segment)

    async def _other(self, failed: Segment) -> Segment | None:
        """The segment with another encoding record than `failed` has, if anybody gives one; replaced once for all who ask."""
        row = self._rows.get(failed.segment_id) or SegmentRow(failed.segment_id, tuple(failed.nodes()))
        async with self._replacing:
            current = await self._segment(row)
            if current is not failed:
                return current
            self._resolver.refuse(failed)
            try:
                other = await self._resolver.segment(row, self.found)
            except NotFoundError:
                return None
            log.warning("segment %s: its encoding record does not serve, another is tried", id_text(failed.segment_id))
            other.entries, other.by_cid = failed.entries, failed.by_cid
            self._segments[failed.segment_id] = asyncio.create_task(_at_hand(other))
            return other

    # -- where a block is -------------------------------------------------------------------------------------------------

    async def _locate(self, ref: Ref) -> tuple[Segment, Entry]:
        for body, run in await self._likely(ref):
            segment = await self._loaded(body.segments[run.segment])
            entry = segment.entry_of(ref.cid)
            if entry is not None:
                return segment, entry
        return await self._search(ref.cid)

    async def _likely(self, ref: Ref) -> list[tuple[Body, Run]]:
        """The run that the block's position points to. A block is the last of its subtree in post-order."""
        if ref.start is None or ref.tsize is None:
            return []
        last = ref.start + max(ref.tsize, 1) - 1
        body = self.found.manifest.body
        if self._section_starts:
            body = await self._body(max(0, bisect_right(self._section_starts, last) - 1))
        at = bisect_right(body.runs, last, key=lambda run: run.position) - 1
        return [(body, body.runs[at])] if at >= 0 else []

    async def _search(self, cid: CID) -> tuple[Segment, Entry]:
        """Look everywhere the manifest names: indexes already loaded, then the others one by one."""
        for task in list(self._segments.values()):
            if task.done() and not _has_failed(task):
                entry = task.result().entry_of(cid)
                if entry is not None:
                    return task.result(), entry
        for at in range(max(1, len(self._section_starts))):
            body = await self._body(at) if self._section_starts else self.found.manifest.body
            for row in body.segments:
                segment = await self._loaded(row)
                entry = segment.entry_of(cid)
                if entry is not None:
                    return segment, entry
        raise NotFoundError(f"the manifest does not say where block {cid_text(cid)} is", hint="its publisher made it wrongly")

    # -- what is loaded once ----------------------------------------------------------------------------------------------

    async def _loaded(self, row: SegmentRow) -> Segment:
        """The segment with its index; loaded once however many blocks ask for it at the same time."""
        segment = await self._segment(row)
        if segment.entries is None:
            async with self._loading.setdefault(row.segment_id, asyncio.Lock()):
                if segment.entries is None:
                    segment = await self._load_index(segment)
                    self._make_room()
            self._loading.pop(row.segment_id, None)
        return segment

    def _make_room(self) -> None:
        """Forget the oldest indexes when there are too many entries; their readers keep what they use."""
        loaded = {at: task.result() for at, task in self._segments.items() if task.done() and not _has_failed(task)}
        entries = sum(len(segment.by_cid) for segment in loaded.values())
        for at, segment in list(loaded.items())[:-1]:
            if entries <= ENTRIES_CACHED_MAX:
                return
            entries -= len(segment.by_cid)
            self._drop(at)

    def _drop(self, segment_id: SegmentID) -> None:
        self._segments.pop(segment_id, None)
        self._rows.pop(segment_id, None)

    async def _load_index(self, segment: Segment) -> Segment:
        for _ in range(RECORDS_TRIED_MAX):
            try:
                await self._fetcher.index(segment)
            except (NotEnoughFragments, IntegrityError):
                other = await self._other(segment)
                if other is None:
                    raise
                segment = other
            else:
                return segment
        raise NotFoundError(
            f"no encoding record of segment {id_text(segment.segment_id)} serves: {RECORDS_TRIED_MAX} were tried"
        )

    async def _segment(self, row: SegmentRow) -> Segment:
        self._rows[row.segment_id] = row
        task = self._segments.get(row.segment_id)
        if task is None:
            if len(self._segments) >= SEGMENTS_CACHED_MAX:
                self._drop(next(iter(self._segments)))
            task = self._segments[row.segment_id] = self._resolver.start(row, self.found)
        return await asyncio.shield(task)

    async def _body(self, at: int) -> Body:
        """A section's body, read from the meta segments like any block."""
        section = self.found.manifest.sections[at]
        body = self._sections.get(section.cid)
        if body is None:
            raw = await self._section_bytes(section.cid)
            if not matches(section.cid, raw):
                raise FormatError("a manifest section that is not what its root names")
            body = decode_section(raw)
            if len(self._sections) >= SECTIONS_CACHED_MAX:
                self._sections.pop(next(iter(self._sections)))
            self._sections[section.cid] = body
        return body

    async def _section_bytes(self, cid: CID) -> bytes:
        for row in self.found.manifest.meta.segments:
            segment = await self._loaded(row)
            entry = segment.entry_of(cid)
            if entry is not None:
                return (await self._read(segment, [entry]))[0]
        raise NotFoundError(f"manifest section {cid_text(cid)} is in none of the segments that its root names")


def _has_failed(task: asyncio.Task[Segment]) -> bool:
    return task.cancelled() or task.exception() is not None


async def _at_hand(segment: Segment) -> Segment:
    return segment

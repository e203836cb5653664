"""What everything that was put from a home takes together: a block of several contents counts once.

Goes over the catalog's contents, asks the network for each manifest, and then over the segments that they use, each once. A
content that cannot be measured now is left out and named. Source: docs/spec/deduplication.md, "Statistics".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from dds.erasure.savings import stripe_shares
from dds.primitives.cid import cid_text
from dds.primitives.errors import DDSError
from dds.primitives.ids import SegmentID, id_text
from dds.runtime.content_stat import KnownIndex, Tally, Usage, used_entries
from dds.runtime.fetcher import Fetcher
from dds.runtime.get import Reading
from dds.runtime.network import Network
from dds.runtime.resolver import Resolver
from dds.runtime.results import HomeStat, Progress
from dds.runtime.segments import Segment, open_segment
from dds.runtime.tasks import gather_all
from dds.storage.catalog import Catalog, ContentNote
from dds.storage.distinct import DistinctBlocks
from dds.wire.manifest import SegmentRow

AT_ONCE: Final = 8  # contents, then segments
FINDINGS_MAX: Final = 100


def index_from(catalog: Catalog) -> KnownIndex:
    """Indexes that the catalog has; who takes one checks it against the segment id."""

    async def known(segment_id: SegmentID) -> bytes | None:
        cached = await asyncio.to_thread(catalog.segment, segment_id)
        return None if cached is None else cached.index_raw

    return known


async def measure_home(network: Network, catalog: Catalog, progress: Callable[[Progress], None]) -> HomeStat:
    """Sizes and savings over the catalog's contents."""
    notes = await asyncio.to_thread(lambda: list(_notes(catalog)))
    with DistinctBlocks() as distinct:
        survey = _Survey(network, catalog, Tally(distinct))
        for at in range(0, len(notes), AT_ONCE):
            await survey.contents(notes[at : at + AT_ONCE])
            progress(Progress("contents", min(at + AT_ONCE, len(notes)), len(notes)))
        await survey.segments()
        return survey.result(len(notes))


def _notes(catalog: Catalog) -> Iterator[ContentNote]:
    page = catalog.contents()
    while page:
        yield from page
        page = catalog.contents(after=page[-1])


@dataclass(slots=True)
class _Survey:
    network: Network
    catalog: Catalog
    tally: Tally
    usage: Usage = field(default_factory=Usage)
    counted: int = 0
    attributed_bytes: int = 0
    findings: list[str] = field(default_factory=list)
    unseen: int = 0  # findings beyond FINDINGS_MAX

    async def contents(self, notes: Sequence[ContentNote]) -> None:
        for usage in await gather_all([self._usage(note) for note in notes]):
            if usage is not None:
                self.usage.merge(usage)
                self.counted += 1

    async def _usage(self, note: ContentNote) -> Usage | None:
        try:
            return await Reading(self.network, note.cid, note.holders).usage()
        except DDSError as error:
            self._find(f"{cid_text(note.cid)} is not counted: {error.message}")
            return None

    async def segments(self) -> None:
        resolver, fetcher = Resolver(self.network), Fetcher(self.network)
        rows = iter([self.usage.rows[segment_id] for segment_id in self.usage.bits])
        try:
            while part := list(islice(rows, AT_ONCE)):
                for segment in await gather_all([self._segment(row, resolver, fetcher) for row in part]):
                    if segment is not None:
                        await self._count(segment)
        finally:
            resolver.close()

    async def _segment(self, row: SegmentRow, resolver: Resolver, fetcher: Fetcher) -> Segment | None:
        """With its index: the catalog's, which its id proves, else the network's."""
        cached = await asyncio.to_thread(self.catalog.segment, row.segment_id)
        try:
            segment = await resolver.segment(row)
            if cached is None or not segment.accepts_index(cached.index_raw):
                await fetcher.index(segment)
        except DDSError as error:
            noted = None if cached is None else open_segment(cached.encoding_raw, row.segment_id, self.network.name)
            if cached is not None and noted is not None and noted.accepts_index(cached.index_raw):
                return noted
            self._find(f"segment {id_text(row.segment_id)} is not counted: {error.message}")
            return None
        return segment

    async def _count(self, segment: Segment) -> None:
        try:
            used = used_entries(segment, self.usage.bits[segment.segment_id])
        except DDSError as error:
            self._find(error.message)
            return
        await self.tally.add(used)
        self.attributed_bytes += sum(stripe_shares(segment.record, used))

    def _find(self, text: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(text)
        else:
            self.unseen += 1

    def result(self, contents: int) -> HomeStat:
        tally, logical = self.tally, self.usage.logical_bytes
        more = [f"and {self.unseen} more"] if self.unseen else []
        return HomeStat(
            contents=contents,
            counted=self.counted,
            logical_bytes=logical,
            unique_bytes=tally.unique_bytes,
            stored_bytes=tally.stored_bytes,
            attributed_bytes=self.attributed_bytes,
            dedup_saved_bytes=logical - tally.unique_bytes,
            compression_saved_bytes=tally.unique_bytes - tally.stored_bytes,
            stored_again_bytes=tally.stored_again_bytes,
            segments=len(self.usage.bits),
            findings=self.findings + more,
        )

"""What a home's contents are, how often they are read, and which class each should be in.

Asks the holders of each content's segments how often they served them, and the edges how much of the content: readers whom an
edge serves never come to the holders. Does not move anything (runtime/tiering.py), nor decide what a count means
(protocol/popularity.py, protocol/tiering.py). Source: docs/spec/tiering.md, "Recommendations".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from dds.erasure.geometry import CUSTOM_CLASS
from dds.primitives.cid import CID
from dds.primitives.errors import DDSError
from dds.primitives.ids import NodeID, SegmentID
from dds.protocol.popularity import content_reads, edge_reads, segment_reads
from dds.protocol.tiering import Recommendation, Tier, idle_days, patience, recommend
from dds.runtime.content_blocks import ContentBlocks
from dds.runtime.fetcher import Fetcher
from dds.runtime.holders import search_holders
from dds.runtime.network import Network
from dds.runtime.resolver import Resolver
from dds.runtime.segments import Segment, open_segment
from dds.runtime.tasks import gather_all
from dds.runtime.tiering import own_manifest
from dds.storage.catalog import Catalog, ContentNote, TierNote
from dds.wire.manifest import SegmentRow
from dds.wire.retrieval import PopularityReply, PopularityRequest

SEGMENTS_ASKED_MAX: Final = 16  # of one content, spread over it: readers seldom take one end of a file only
POPULARITY_TIMEOUT_S: Final = 3.0
POPULARITY_REPLY_BYTES_MAX: Final = 16 << 10
CONTENTS_PER_PAGE: Final = 200  # as many as one edge is asked for at once
EDGES_ASKED_MAX: Final = 256
NODES_ASKED_AT_ONCE: Final = 32


@dataclass(frozen=True, slots=True)
class TierStatus:
    """One content of this home."""

    content: CID
    name: str
    class_name: str
    size_bytes: int
    reads: int | None  # thousandths, faded: the larger of what holders and what edges say; None: no holder could be asked
    edge_reads: int  # what edges say, as far as it counts
    idle_days: int  # since the last whole read, at least
    archive_after_days: int  # for this content; 0: never
    recommendation: Recommendation


class TierDesk:
    """Looks at contents one by one."""

    def __init__(self, network: Network, catalog: Catalog, archive_after_days: int) -> None:
        self._network, self._catalog, self._archive_after_days = network, catalog, archive_after_days
        self._room = asyncio.Semaphore(NODES_ASKED_AT_ONCE)

    async def all(self) -> AsyncIterator[TierStatus]:
        """Every content of this home, the newest first."""
        last: ContentNote | None = None
        while page := await asyncio.to_thread(self._page, last):
            at_edges = await self._ask_edges(page)
            for note in page:
                yield await self._status(note, at_edges[note.cid])
            last = page[-1]

    def _page(self, after: ContentNote | None) -> list[ContentNote]:
        return self._catalog.contents(after=after, limit=CONTENTS_PER_PAGE)

    async def _status(self, note: ContentNote, at_edges: int) -> TierStatus:
        held = await self.reads(note)
        reads = None if held is None else max(held, at_edges)
        move, tier = await asyncio.to_thread(lambda: (self._catalog.last_move(note.cid), self._catalog.tier(note.cid)))
        since_ms = max(note.put_ms, 0 if move is None else move.moved_ms)
        idle = idle_days(reads, since_ms, self._network.now_ms())
        wait = patience(tier.archive_after_days, self._archive_after_days)
        advice = recommend(note.class_name, note.size_bytes, reads, idle, wait, _goes_back_to(tier))
        return TierStatus(note.cid, note.name, note.class_name, note.size_bytes, reads, at_edges, idle, wait.days, advice)

    async def reads(self, note: ContentNote) -> int | None:
        """Thousandths of reads of a content, as those who hold it say; None where none of them could be asked."""
        resolver = Resolver(self._network)
        try:
            found = await own_manifest(self._network, resolver, note)
            blocks = ContentBlocks(found, resolver, Fetcher(self._network))
            rows = await blocks.rows()
            step = -(-len(rows) // SEGMENTS_ASKED_MAX)
            segments = [await self._segment(resolver, row) for row in rows[:: max(1, step)]]
        except DDSError:
            return None
        finally:
            resolver.close()
        said = await self._ask(segments)
        return content_reads(segment_reads(_k_of(segment), said[segment.segment_id]) for segment in segments)

    async def _segment(self, resolver: Resolver, row: SegmentRow) -> Segment:
        """The segment with its present holders: as this home remembers them, else as others say."""
        cached = await asyncio.to_thread(self._catalog.segment, row.segment_id)
        if cached is not None:
            segment = open_segment(cached.encoding_raw, row.segment_id, self._network.name)
            if segment is not None:
                segment.learn_holders(cached.holders)
                return segment
        segment = await resolver.segment(row)
        if len(segment.nodes()) < segment.record.width:
            await search_holders(self._network, segment)
        return segment

    async def _ask(self, segments: Sequence[Segment]) -> dict[SegmentID, dict[int, int]]:
        """By segment and fragment index, what the holder says."""
        asked: dict[NodeID, list[tuple[SegmentID, int]]] = {}
        for segment in segments:
            for index in range(segment.record.width):
                for node in segment.holders_of(index)[:1]:
                    asked.setdefault(node, []).append((segment.segment_id, index))
        said: dict[SegmentID, dict[int, int]] = {segment.segment_id: {} for segment in segments}
        answers = await gather_all([self._ask_node(node, [each for each, _ in places]) for node, places in asked.items()])
        for places, answer in zip(asked.values(), answers, strict=True):
            for (segment_id, index), reads in zip(places, answer, strict=False):
                said[segment_id][index] = reads
        return said

    async def _ask_edges(self, notes: Sequence[ContentNote]) -> dict[CID, int]:
        """Thousandths of reads that the known edges say they answered, the near ones asked first."""
        edges = [node for node, _ in sorted(self._network.edges(), key=lambda each: not each[1])][:EDGES_ASKED_MAX]
        request = PopularityRequest([], [note.cid for note in notes])
        answers = await gather_all([self._popularity(node, request) for node in edges])
        operators = [self._network.labels(node)[1] for node in edges]
        said = [(who, each.content_bytes) for who, each in zip(operators, answers, strict=True) if each is not None]
        return {
            note.cid: edge_reads(note.size_bytes, [(who, counts[place]) for who, counts in said])
            for place, note in enumerate(notes)
        }

    async def _ask_node(self, node: NodeID, segments: list[SegmentID]) -> list[int]:
        reply = await self._popularity(node, PopularityRequest(list(segments)))
        return [] if reply is None else reply.reads

    async def _popularity(self, node: NodeID, request: PopularityRequest) -> PopularityReply | None:
        """None where nothing comes that fits the question."""
        try:
            async with self._room:
                reply = await self._network.client.call(
                    node,
                    "/v1/popularity",
                    request,
                    PopularityReply,
                    max_bytes=POPULARITY_REPLY_BYTES_MAX,
                    timeout_s=POPULARITY_TIMEOUT_S,
                )
        except DDSError:
            return None
        fits = len(reply.reads) == len(request.segments) and len(reply.content_bytes) == len(request.contents)
        return reply if fits else None


def _k_of(segment: Segment) -> int:
    return max(shape.k for shape in segment.record.stripes)


def _goes_back_to(tier: TierNote) -> Tier | None:
    """What the content was before; None too where that was custom, put by a release that did not note its geometry."""
    before = tier.before
    return None if before is None or (before.class_name == CUSTOM_CLASS and before.k is None) else before

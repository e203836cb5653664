"""What a content takes, measured: from the segments' own indexes instead of what its manifest says.

An index is bound by the segment id, so its rows say truly what each block takes, raw and compressed; which rows a content uses
is the manifest's word, and the sum of the whole DAG stands in its root block, which the ContentID binds. Where the manifest's
own figures differ, that is a finding.

    logical = unique + saved by deduplication        unique = stored + saved by compression

Segments are looked at a few at a time and let go, so memory does not grow with the content but by half a kilobyte a segment.
Source: docs/spec/deduplication.md, "Statistics".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from dds.content.dagpb import decode_node
from dds.erasure.savings import rows_of, stripe_shares
from dds.ledger.records import Segment as LedgerSegment
from dds.primitives.cid import DAG_PB, codec_of
from dds.primitives.errors import DDSError, FormatError, IntegrityError, NotEnoughFragments, NotFoundError
from dds.primitives.ids import NodeID, SegmentID, id_text
from dds.runtime.content_blocks import ContentBlocks
from dds.runtime.holders import indices_held, search_holders
from dds.runtime.network import Network
from dds.runtime.results import ContentStat, HolderStat, SegmentStat
from dds.runtime.segments import Segment
from dds.runtime.tasks import gather_all
from dds.storage.distinct import DistinctBlocks
from dds.wire.manifest import Body, Manifest, SegmentRow
from dds.wire.segment import Entry

SEGMENTS_AT_ONCE: Final = 8

KnownIndex = Callable[[SegmentID], Awaitable[bytes | None]]
Payers = Callable[[Sequence[SegmentID]], Awaitable[Sequence[LedgerSegment | None]]]  # what the ledger has of segments


async def no_index(_segment_id: SegmentID) -> bytes | None:
    """For who remembers none."""
    return None


@dataclass(slots=True)
class Usage:
    """Which rows of which segments are used: bit r of `bits` for row r."""

    logical_bytes: int = 0  # of all blocks, repeats counted
    rows: dict[SegmentID, SegmentRow] = field(default_factory=dict)
    bits: dict[SegmentID, int] = field(default_factory=dict)

    def add(self, body: Body) -> None:
        for row in body.segments:
            self.rows.setdefault(row.segment_id, row)
        for run in body.runs:
            segment_id = body.segments[run.segment].segment_id
            self.bits[segment_id] = self.bits.get(segment_id, 0) | ((1 << run.count) - 1) << run.first

    def merge(self, other: Usage) -> None:
        self.logical_bytes += other.logical_bytes
        for segment_id, bits in other.bits.items():
            self.rows.setdefault(segment_id, other.rows[segment_id])
            self.bits[segment_id] = self.bits.get(segment_id, 0) | bits


async def usage_of(blocks: ContentBlocks) -> Usage:
    """What one content uses, its manifest's sections not counted.

    Raises:
        NotFoundError, NotEnoughFragments, FormatError: its root block or its manifest cannot be read.
    """
    usage = Usage()
    async for body in blocks.bodies():
        usage.add(body)
    (root,) = await blocks.fetch([blocks.root])
    usage.logical_bytes = len(root)
    if codec_of(blocks.root.cid) == DAG_PB:
        usage.logical_bytes += sum(link.tsize or 0 for link in decode_node(root).links)
    return usage


@dataclass(slots=True)
class Tally:
    """Counts rows of segments; a block counts once, wherever else it lies too."""

    distinct: DistinctBlocks
    unique_bytes: int = 0
    stored_bytes: int = 0
    stored_again_bytes: int = 0

    async def add(self, entries: Sequence[Entry]) -> None:
        new = await asyncio.to_thread(self.distinct.add, [entry.cid for entry in entries])
        for entry, is_new in zip(entries, new, strict=True):
            if is_new:
                self.unique_bytes += entry.raw_bytes
                self.stored_bytes += entry.stored_bytes
            else:
                self.stored_again_bytes += entry.stored_bytes


def used_entries(segment: Segment, bits: int) -> list[Entry]:
    """
    Raises:
        FormatError: the manifest names rows that the segment does not have.
    """
    assert segment.entries is not None
    if bits >> len(segment.entries):
        raise FormatError(f"a manifest names blocks that segment {id_text(segment.segment_id)} does not have")
    return [segment.entries[row] for row in rows_of(bits)]


@dataclass(slots=True)
class ContentStatistics:
    """One content, by one manifest."""

    network: Network
    blocks: ContentBlocks
    known: KnownIndex = no_index
    payers: Payers | None = None
    shares: dict[SegmentID, list[int]] = field(default_factory=dict)  # by stripe

    async def run(self) -> ContentStat:
        """
        Raises:
            NotFoundError, NotEnoughFragments, FormatError: this manifest does not serve.
        """
        manifest = self.blocks.found.manifest
        usage, findings = await self._usage()
        meta = Usage()
        meta.add(manifest.meta)
        with DistinctBlocks() as distinct:
            tally = Tally(distinct)
            stats: list[SegmentStat] = []
            is_measured = usage.logical_bytes > 0 or not findings
            for part in _batches([*usage.rows.values(), *(row for at, row in meta.rows.items() if at not in usage.rows)]):
                for row, (segment, stat) in zip(part, await gather_all([self._segment(row) for row in part]), strict=True):
                    if segment.entries is None:
                        is_measured = False
                        findings.append(f"the index of segment {id_text(row.segment_id)} cannot be read")
                    else:
                        await tally.add(used_entries(segment, usage.bits.get(row.segment_id, 0)))
                        bits = usage.bits.get(row.segment_id, 0) | meta.bits.get(row.segment_id, 0)
                        self.shares[row.segment_id] = stripe_shares(segment.record, used_entries(segment, bits))
                    stats.append(stat)
                    self.blocks.forget(row.segment_id)
        result = self._result(usage, tally if is_measured else None, stats, findings)
        return await self._with_payers(result)

    async def _with_payers(self, stat: ContentStat) -> ContentStat:
        """What others pay for too, where a ledger knows it and answers."""
        if self.payers is None or not stat.is_measured:
            return stat
        try:
            paid = await self.payers([segment.segment for segment in stat.segments])
        except DDSError as error:
            return replace(stat, findings=[*stat.findings, f"who pays for it is not known: {error.message}"])
        segments = [
            segment if entry is None else self._with_sponsors(segment, entry)
            for segment, entry in zip(stat.segments, paid, strict=True)
        ]
        known = [segment.shared_bytes for segment in segments if segment.shared_bytes is not None]
        return replace(stat, segments=segments, shared_bytes=sum(known) if len(known) == len(segments) else None)

    def _with_sponsors(self, segment: SegmentStat, entry: LedgerSegment) -> SegmentStat:
        shares = self.shares[segment.segment]
        payers = [sum(sponsor.stripes >> stripe & 1 for sponsor in entry.sponsors) for stripe in range(len(shares))]
        shared = sum(share for share, count in zip(shares, payers, strict=True) if count > 1)
        return replace(segment, sponsors=len(entry.sponsors), shared_bytes=shared)

    async def _usage(self) -> tuple[Usage, list[str]]:
        """With a logical size of 0 where the root block cannot be read: the places of a lost content are still shown."""
        try:
            return await usage_of(self.blocks), []
        except (NotEnoughFragments, IntegrityError) as error:
            usage = Usage()
            async for body in self.blocks.bodies():
                usage.add(body)
            return usage, [f"the root block cannot be read: {error.message}"]

    async def _segment(self, row: SegmentRow) -> tuple[Segment, SegmentStat]:
        """With its index, if that can be read."""
        segment = await self.blocks.segment(row)
        index = await self.known(row.segment_id)
        if index is None or not segment.accepts_index(index):
            try:
                segment = await self.blocks.load_index(row)
            except (NotEnoughFragments, NotFoundError, IntegrityError):
                segment.entries = None
        return segment, await segment_stat(self.network, segment)

    def _result(self, usage: Usage, tally: Tally | None, segments: list[SegmentStat], findings: list[str]) -> ContentStat:
        manifest = self.blocks.found.manifest
        nodes = {holder.node for segment in segments for holder in segment.holders}
        labels = [self.network.labels(node) for node in nodes]
        logical, unique, stored = manifest.dag_bytes, manifest.unique_bytes, manifest.stored_bytes
        if tally is not None:
            findings += _differences(manifest, usage.logical_bytes, tally)
            logical, unique, stored = usage.logical_bytes, tally.unique_bytes, tally.stored_bytes
        return ContentStat(
            content=manifest.content,
            kind=manifest.kind,
            class_name=manifest.class_name,
            publisher=manifest.publisher,
            chunker=manifest.chunker,
            content_bytes=manifest.content_bytes,
            dag_bytes=logical,
            unique_bytes=unique,
            stored_bytes=stored,
            encoded_bytes=sum(segment.encoded_bytes for segment in segments),
            dedup_saved_bytes=logical - unique,
            compression_saved_bytes=unique - stored,
            nodes=len(nodes),
            regions=len({region for region, _ in labels}),
            operators=len({operator for _, operator in labels}),
            losses_survived=min((segment.live - segment.k for segment in segments), default=0),
            segments=[_with_share(segment, self.shares) for segment in segments],
            is_measured=tally is not None,
            attributed_bytes=sum(map(sum, self.shares.values())),
            stored_again_bytes=tally.stored_again_bytes if tally is not None else 0,
            findings=findings,
        )


def _with_share(segment: SegmentStat, shares: Mapping[SegmentID, list[int]]) -> SegmentStat:
    return replace(segment, attributed_bytes=sum(shares.get(segment.segment, ())))


def _differences(manifest: Manifest, logical_bytes: int, tally: Tally) -> list[str]:
    rows = (
        ("bytes in blocks", manifest.dag_bytes, logical_bytes),
        ("bytes in distinct blocks", manifest.unique_bytes, tally.unique_bytes),
        ("bytes after compression", manifest.stored_bytes, tally.stored_bytes),
    )
    return [f"the manifest says {said:,} {what}, and there are {true:,}" for what, said, true in rows if said != true]


def _batches(rows: Sequence[SegmentRow]) -> Iterator[list[SegmentRow]]:
    left = iter(rows)
    while part := list(islice(left, SEGMENTS_AT_ONCE)):
        yield part


async def segment_stat(network: Network, segment: Segment) -> SegmentStat:
    """Who of a segment's holders is there now."""
    record = segment.record
    live = await _live_holders(network, segment)
    if len(live) < record.width and await search_holders(network, segment):
        live = await _live_holders(network, segment)
    holders: list[HolderStat] = []
    for index in range(record.width):
        for node in live.get(index, segment.holders_of(index))[:1]:
            region, operator = network.labels(node)
            holders.append(HolderStat(index, node, region, operator, index in live))
    encoded = sum(fragment.size for row in record.records for fragment in row)
    k = max(shape.k for shape in record.stripes)
    return SegmentStat(segment.segment_id, k, record.width, len(live), len(record.stripes), encoded, holders)


async def _live_holders(network: Network, segment: Segment) -> dict[int, list[NodeID]]:
    """By index, who of those we know of says that it has the fragment."""
    nodes = segment.nodes()
    held = await gather_all([indices_held(network, node, segment.segment_id) for node in nodes])
    live: dict[int, list[NodeID]] = {}
    for node, indices in zip(nodes, held, strict=True):
        for index in indices:
            if 0 <= index < segment.record.width:
                live.setdefault(index, []).append(node)
    return live

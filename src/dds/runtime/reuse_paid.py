"""Which stripes a put relies on that were stored before, and so must help to pay for.

Decides that from the runs of the manifest and the segments' indexes in the catalog; how they are paid is the desk's matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dds.erasure.layout import Layout
from dds.primitives.ids import SegmentID
from dds.runtime.contract_desk import ContractDesk
from dds.runtime.packer import PlacedRun
from dds.runtime.segments import Segment, open_segment
from dds.storage.catalog import Catalog
from dds.wire.segment import decode_index


async def pay_for_reused(desk: ContractDesk, catalog: Catalog, network: str, runs: Sequence[PlacedRun]) -> None:
    """Sponsor every stripe of earlier segments that `runs` lie in.

    Raises:
        UnavailableError: one cannot be paid for.
    """
    entries: dict[SegmentID, set[int]] = {}
    for run in runs:
        if isinstance(run.segment, bytes):
            entries.setdefault(run.segment, set()).update(range(run.first, run.first + run.count))
    for segment_id, wanted in entries.items():
        segment = await asyncio.to_thread(_segment, catalog, network, segment_id)
        if segment is None:
            continue  # forgotten meanwhile: a catalog is a memory, and the next put of this content sees to it
        await desk.reuse(segment_id, segment.record, stripes_of(segment, wanted))


def _segment(catalog: Catalog, network: str, segment_id: SegmentID) -> Segment | None:
    cached = catalog.segment(segment_id)
    segment = None if cached is None else open_segment(cached.encoding_raw, segment_id, network)
    if cached is not None and segment is not None:
        segment.entries = decode_index(cached.index_raw)
    return segment


def stripes_of(segment: Segment, entries: set[int]) -> set[int]:
    """The stripes in which these entries and the segment's own index lie."""
    assert segment.entries is not None
    record, layout = segment.record, Layout.of(segment.record)
    ranges = layout.locate(record.index_offset, record.data_bytes)
    for entry in entries:
        ranges += layout.locate_entry(segment.entries[entry])
    return {at.stripe for at in ranges}

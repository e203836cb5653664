"""From blocks to segments, in a worker thread: leaves out what is already stored, compresses, packs, encodes, keeps the runs.

Decides which blocks are sent and remembers where every block of the content lies, as the runs of the future manifest. It does
not send anything: finished stripes and segments are handed to `Outlet`, which blocks when the network is slower than we are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from dds.content.block import Block
from dds.erasure.compression import store_block
from dds.erasure.geometry import Geometry
from dds.erasure.segment_builder import ClosedSegment, SegmentBuilder
from dds.erasure.stripes import EncodedStripe
from dds.primitives.cid import CID
from dds.primitives.ids import SegmentID


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block already lies."""

    segment: SegmentID
    entry: int
    stored_bytes: int  # what it takes there


class Outlet(Protocol):
    """What becomes of the packer's work. Called from its thread; may block; raises to stop it."""

    def known(self, cid: CID) -> Place | None:
        """Where the network already has this block, if it is worth relying on."""

    def stripe(self, segment: int, stripe: EncodedStripe, last: bool) -> None: ...

    def closed(self, segment: int, closed: ClosedSegment, final: bool) -> None: ...


@dataclass(slots=True)
class PlacedRun:
    """A run of the manifest under construction; `segment` is the number of a new segment or the id of an old one."""

    segment: int | SegmentID
    first: int
    count: int
    position: int


@dataclass(slots=True)
class Packer:
    """One content's (or one manifest's) packing. `first_segment` numbers the new segments."""

    geometry: Geometry
    class_name: str
    outlet: Outlet
    first_segment: int = 0
    runs: list[PlacedRun] = field(default_factory=list)
    starts: dict[int, int] = field(default_factory=dict)  # new segment -> position of its first block
    unique_bytes: int = 0
    stored_bytes: int = 0  # of new blocks, after compression
    reused_bytes: int = 0
    reused_stored_bytes: int = 0  # of reused blocks, as they lie there
    _seen: set[CID] = field(default_factory=set)
    _builder: SegmentBuilder | None = None
    _number: int = -1

    def block(self, block: Block, position: int) -> None:
        """Take the next block of the post-order walk; a repeat within the content costs nothing."""
        if block.cid in self._seen:
            return
        self._seen.add(block.cid)
        self.unique_bytes += len(block.data)
        place = self.outlet.known(block.cid)
        if place is not None:
            self.reused_bytes += len(block.data)
            self.reused_stored_bytes += place.stored_bytes
            self._note(place.segment, place.entry, position)
            return
        stored = store_block(block.cid, block.data)
        self.stored_bytes += len(stored.stored)
        if self._builder is not None and not self._builder.fits(len(stored.stored)):
            self._close(final=False)
        if self._builder is None:
            self._number = self._number + 1 if self._number >= 0 else self.first_segment
            self.starts[self._number] = position
            self._builder = SegmentBuilder(self.geometry.k, self.geometry.m, self.class_name)
        self._note(self._number, len(self._builder), position)
        for stripe in self._builder.add_stored(stored):
            self.outlet.stripe(self._number, stripe, last=False)

    def has(self, cid: CID) -> bool:
        """Whether the block has been taken."""
        return cid in self._seen

    def finish(self) -> None:
        """Close the last segment, if there is any."""
        if self._builder is not None:
            self._close(final=True)

    def _close(self, *, final: bool) -> None:
        assert self._builder is not None
        closed = self._builder.close()
        self._builder = None
        for stripe in closed.stripes:
            self.outlet.stripe(self._number, stripe, last=stripe is closed.stripes[-1])
        self.outlet.closed(self._number, closed, final)

    def _note(self, segment: int | SegmentID, entry: int, position: int) -> None:
        last = self.runs[-1] if self.runs else None
        if last is not None and last.segment == segment and last.first + last.count == entry:
            last.count += 1
        else:
            self.runs.append(PlacedRun(segment, entry, 1, position))

"""The packer: blocks in, encoded stripes out, then the index and the encoding record.

Stored blocks lie end to end in the order they came; the index follows them as the last bytes of the data space. A stripe is
encoded and handed out as soon as its data is complete, so the builder never holds more than one stripe's data. Which blocks
go into a segment, and when to start the next, is the caller's: `fits` says whether a block still has room.
Source: docs/spec/segments.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dds.erasure.compression import StoredBlock, store_block
from dds.erasure.geometry import Geometry, full_stripe, last_stripe
from dds.erasure.stripes import EncodedStripe, encode_stripe
from dds.primitives.cid import CID
from dds.primitives.errors import LimitError
from dds.primitives.hashing import Buffer
from dds.primitives.units import SEGMENT_ENTRIES_MAX, STRIPES_PER_SEGMENT_MAX
from dds.wire.segment import (
    INDEX_HEAD_BYTES,
    INDEX_ROW_BYTES,
    EncodingRecord,
    Entry,
    FragmentRecord,
    StripeShape,
    encode_index,
    segment_id_of,
)


@dataclass(frozen=True, slots=True)
class ClosedSegment:
    """What `close` gives: the last stripes, and everything that describes the segment."""

    stripes: list[EncodedStripe]
    record: EncodingRecord
    index: bytes
    entries: list[Entry]


class SegmentBuilder:
    """Builds one segment. Not for use by two threads at once."""

    def __init__(self, k: int, m: int, class_name: str, *, stripes_max: int = STRIPES_PER_SEGMENT_MAX) -> None:
        assert 1 <= stripes_max <= STRIPES_PER_SEGMENT_MAX
        self.geometry = Geometry(k, m)
        self.class_name = class_name
        self._limit_bytes = stripes_max * self.geometry.stripe_bytes
        self._entries: list[Entry] = []
        self._offset = 0  # of the next block in the data space
        self._pending: list[Buffer] = []  # pieces of the stripe under way
        self._pending_bytes = 0
        self._shapes: list[StripeShape] = []
        self._records: list[tuple[FragmentRecord, ...]] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def stored_bytes(self) -> int:
        """Stored bytes of the blocks added so far."""
        return self._offset

    def fits(self, stored_bytes: int) -> bool:
        """Whether a block of so many stored bytes still has room, the index counted."""
        rows = len(self._entries) + 1
        after = self._offset + stored_bytes + INDEX_HEAD_BYTES + rows * INDEX_ROW_BYTES
        return rows <= SEGMENT_ENTRIES_MAX and after <= self._limit_bytes

    def add(self, cid: CID, block: Buffer) -> list[EncodedStripe]:
        """Compress and append a block; see `add_stored`."""
        return self.add_stored(store_block(cid, block))

    def add_stored(self, block: StoredBlock) -> list[EncodedStripe]:
        """Append a block; the stripes that it completed (seldom more than none) are encoded now.

        The bytes are kept, not copied, until their stripe is complete: do not change them.

        Raises:
            LimitError: the segment is full (nothing has changed: close it and add the block to the next).
        """
        assert not self._closed
        size = len(block.stored)
        if not self.fits(size):
            raise LimitError(f"the segment is full: {len(self)} blocks, {self._offset} bytes")
        self._entries.append(Entry(block.cid, self._offset, size, block.raw_bytes, block.codec))
        self._offset += size
        return self._append(block.stored)

    def close(self) -> ClosedSegment:
        """Append the index, encode what is left and seal the segment."""
        assert self._entries
        assert not self._closed
        self._closed = True
        index = encode_index(self._entries)
        stripes = self._append(index)
        if self._pending_bytes:
            stripes.append(self._encode(last_stripe(self.geometry, self._pending_bytes), self._pending))
            self._pending = []
        record = EncodingRecord(
            segment_id_of(index), self.class_name, self._offset, len(index), tuple(self._shapes), tuple(self._records)
        )
        return ClosedSegment(stripes, record, index, self._entries)

    def _append(self, piece: Buffer) -> list[EncodedStripe]:
        full = full_stripe(self.geometry)
        stripes: list[EncodedStripe] = []
        while self._pending_bytes + len(piece) >= full.data_bytes:
            taken = full.data_bytes - self._pending_bytes
            head, piece = _split(piece, taken)
            stripes.append(self._encode(full, [*self._pending, head]))
            self._pending, self._pending_bytes = [], 0
        if len(piece):
            self._pending.append(piece)
            self._pending_bytes += len(piece)
        return stripes

    def _encode(self, shape: StripeShape, pieces: Sequence[Buffer]) -> EncodedStripe:
        stripe = encode_stripe(shape, pieces, number=len(self._shapes))
        self._shapes.append(shape)
        self._records.append(stripe.records)
        return stripe


def _split(piece: Buffer, at: int) -> tuple[Buffer, Buffer]:
    if at == len(piece):
        return piece, b""
    view = memoryview(piece)
    return view[:at], view[at:]

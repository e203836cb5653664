"""Where the bytes of a data space lie: ranges of slots to ask for, and how to put them together again.

Pure arithmetic over an encoding record's stripes. Does not choose whom to ask, nor fetch.
Source: docs/spec/segments.md, "Data space".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from dds.primitives.errors import FormatError
from dds.primitives.hashing import Buffer
from dds.wire.segment import EncodingRecord, Entry, StripeShape


class SlotRange(NamedTuple):
    """Bytes [lo, hi) of one data slot. Where that slot's holder fails, the same [lo, hi) of any k fragments decodes it."""

    stripe: int
    slot: int
    lo: int
    hi: int


class Layout:
    """The data space of one segment, for readers."""

    def __init__(self, shapes: Sequence[StripeShape]) -> None:
        self._shapes = tuple(shapes)
        self._starts = [0, *accumulate(shape.data_bytes for shape in shapes)]

    @classmethod
    def of(cls, record: EncodingRecord) -> Layout:
        return cls(record.stripes)

    @property
    def data_bytes(self) -> int:
        return self._starts[-1]

    def stripe_range(self, stripe: int) -> tuple[int, int]:
        """The part of the data space that lies in one stripe."""
        return self._starts[stripe], self._starts[stripe + 1]

    def locate(self, lo: int, hi: int) -> list[SlotRange]:
        """The slot ranges whose bytes, end to end, are [lo, hi) of the data space.

        Raises:
            FormatError: a range that the data space does not have (it came from an index or manifest).
        """
        if not 0 <= lo <= hi <= self.data_bytes:
            raise FormatError(f"bytes {lo}..{hi} of a data space of {self.data_bytes}")
        ranges: list[SlotRange] = []
        stripe = bisect_right(self._starts, lo) - 1
        while lo < hi:
            start, end = self.stripe_range(stripe)
            slot_bytes = self._shapes[stripe].slot_bytes
            slot, at = divmod(lo - start, slot_bytes)
            taken = min(hi - lo, slot_bytes - at, end - lo)
            ranges.append(SlotRange(stripe, slot, at, at + taken))
            lo += taken
            if lo == end:
                stripe += 1
        return ranges

    def locate_entry(self, entry: Entry) -> list[SlotRange]:
        """Where a block's stored bytes lie; one range for a 1 MiB chunk of a full, incompressible stripe."""
        return self.locate(entry.offset, entry.offset + entry.stored_bytes)


def verbatim_indices(shape: StripeShape, slot: int) -> range:
    """Fragments that hold the slot's bytes as they are: the slot's own, or for k = 1 every one of the copies."""
    return range(shape.k + shape.m) if shape.k == 1 else range(slot, slot + 1)


def assemble(ranges: Sequence[SlotRange], parts: Iterable[Buffer]) -> bytes:
    """The bytes that `locate` was asked for, from what the ranges gave, in the same order.

    Raises:
        FormatError: a part of another length than its range.
    """
    parts = list(parts)
    if [len(part) for part in parts] != [at.hi - at.lo for at in ranges]:
        raise FormatError("parts of other lengths than their slot ranges")
    return b"".join(parts)

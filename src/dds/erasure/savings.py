"""What a content takes of a segment that it may share with others: raw, compressed and encoded bytes, from the index's rows.

Decides how a stripe's fragments are attributed to those who have blocks in it: by stored bytes, so that the shares of all
users of all rows together are the stripe; padding, parity and the segment's own index are borne in the same proportion. Pure
arithmetic. Source: docs/spec/deduplication.md, "Statistics".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

from dds.wire.segment import EncodingRecord, Entry


def rows_of(bits: int) -> list[int]:
    """The numbers of the bits that are set, ascending: a segment has at most 4,096 rows."""
    return [at for at in range(bits.bit_length()) if bits >> at & 1]


def stripe_shares(record: EncodingRecord, used: Iterable[Entry]) -> list[int]:
    """Bytes of fragments, stripe by stripe, that are attributed to the `used` rows of a segment; rounded down.

    A stripe that holds nothing but the index is shared by all rows of the segment.
    """
    used = list(used)
    if not record.index_offset:  # one empty block, and all there is is its row
        return [(shape.k + shape.m) * shape.slot_bytes * bool(used) for shape in record.stripes]
    starts = [0, *accumulate(shape.data_bytes for shape in record.stripes)]
    inside = [0] * len(record.stripes)
    for entry in used:
        lo, hi = entry.offset, min(entry.offset + entry.stored_bytes, record.index_offset)
        stripe = bisect_right(starts, lo) - 1
        while lo < hi:
            taken = min(hi, starts[stripe + 1]) - lo
            inside[stripe] += taken
            lo, stripe = lo + taken, stripe + 1
    return [_share(record, starts, inside, stripe) for stripe in range(len(record.stripes))]


def _share(record: EncodingRecord, starts: Sequence[int], inside: Sequence[int], stripe: int) -> int:
    shape = record.stripes[stripe]
    whole = (shape.k + shape.m) * shape.slot_bytes
    blocks = min(starts[stripe + 1], record.index_offset) - starts[stripe]
    if blocks > 0:
        return whole * inside[stripe] // blocks
    return whole * sum(inside) // record.index_offset

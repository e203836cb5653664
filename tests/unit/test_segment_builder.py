"""The packer: where blocks land, when stripes come out, when a segment is full."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from dds.erasure.compression import StoredBlock, decompress
from dds.erasure.fragment_tree import matches_record
from dds.erasure.geometry import Geometry, stripe_shapes
from dds.erasure.layout import Layout, SlotRange, assemble
from dds.erasure.segment_builder import ClosedSegment, SegmentBuilder
from dds.erasure.stripes import EncodedStripe, cut_slots, decode_stripe, encode_stripe, rebuild_fragment
from dds.primitives.cid import CID, cid_of
from dds.primitives.errors import FormatError, IntegrityError, LimitError, NotEnoughFragments
from dds.primitives.units import KIB, MIB
from dds.wire.segment import CODEC_PLAIN, StripeShape, decode_encoding, decode_index, segment_id_of
from tests.vectors.keystream import keystream

BLANK = CID(cid_of(b""))


@dataclass
class Packed:
    """A finished segment: its stripes in order, and what `close` said."""

    stripes: list[EncodedStripe]
    closed: ClosedSegment
    before_close: int
    raw: list[bytes] = field(default_factory=list)

    def data_space(self) -> bytes:
        return b"".join(decode_stripe(s.shape, dict(enumerate(s.fragments))) for s in self.stripes)


def pack(k: int, m: int, blocks: list[bytes]) -> Packed:
    builder = SegmentBuilder(k, m, "custom")
    stripes = [stripe for block in blocks for stripe in builder.add(cid_of(block), block)]
    closed = builder.close()
    return Packed(stripes + closed.stripes, closed, len(stripes), blocks)


def noise(size: int, seed: str = "block") -> bytes:
    return keystream(seed, size)


def test_chunks_of_one_mebibyte_lie_one_to_a_slot_without_a_copy() -> None:
    chunks = [noise(MIB, f"chunk {number}") for number in range(3)]
    packed = pack(3, 2, chunks)
    assert packed.before_close == 1
    assert all(packed.stripes[0].fragments[slot] is chunk for slot, chunk in enumerate(chunks))
    layout = Layout.of(packed.closed.record)
    assert [layout.locate_entry(entry) for entry in packed.closed.entries] == [[SlotRange(0, s, 0, MIB)] for s in range(3)]


def test_stripes_come_out_as_soon_as_their_data_is_complete() -> None:
    builder = SegmentBuilder(2, 1, "custom")
    sizes = [MIB, MIB - 1, 1, MIB, MIB + MIB // 2, MIB]
    numbers = [[s.number for s in builder.add_stored(StoredBlock(BLANK, n, CODEC_PLAIN, bytes(n)))] for n in sizes]
    assert numbers == [[], [], [0], [], [1], []]
    assert [s.number for s in builder.close().stripes] == [2]


def test_a_block_of_two_slots_may_complete_two_stripes_of_copies() -> None:
    builder = SegmentBuilder(1, 2, "custom")
    stripes = builder.add_stored(StoredBlock(BLANK, 2 * MIB, CODEC_PLAIN, bytes(2 * MIB)))
    assert [s.number for s in stripes] == [0, 1]


def test_the_index_is_the_end_of_the_data_space() -> None:
    packed = pack(3, 2, [noise(MIB), noise(MIB), noise(900 * KIB), b"tiny", b"a" * 5000])
    record, space = packed.closed.record, packed.data_space()
    assert space[record.index_offset :] == packed.closed.index
    assert record.data_bytes == len(space)
    assert decode_index(packed.closed.index) == packed.closed.entries
    assert record.segment_id == segment_id_of(packed.closed.index)
    assert list(record.stripes) == stripe_shapes(Geometry(3, 2), len(space))


def test_the_record_describes_every_fragment() -> None:
    packed = pack(3, 2, [noise(2 * MIB), noise(MIB + 50_000)])
    record = packed.closed.record
    assert decode_encoding(record.encode()) == record
    assert [s.number for s in packed.stripes] == list(range(len(record.stripes)))
    for stripe in packed.stripes:
        assert stripe.shape == record.stripes[stripe.number]
        assert stripe.records == record.records[stripe.number]
        assert all(matches_record(r, f) for r, f in zip(stripe.records, stripe.fragments, strict=True))


def test_a_small_segment_is_one_stripe_of_copies() -> None:
    packed = pack(10, 6, [b"a post", b"and another"])
    (stripe,) = packed.stripes
    assert stripe.shape == StripeShape(1, 6, 17 + 10 + 2 * 53, 17 + 10 + 2 * 53)
    assert stripe.fragments == (packed.data_space(),) * 7
    assert (packed.closed.record.width, packed.closed.record.loss_tolerance) == (7, 6)


def test_a_small_rest_behind_full_stripes_is_copies_and_n_stays_whole() -> None:
    packed = pack(2, 2, [noise(MIB), noise(MIB, "b")])
    assert [shape.k for shape in packed.closed.record.stripes] == [2, 1]
    assert (packed.closed.record.width, packed.closed.record.loss_tolerance) == (4, 2)


def test_an_index_that_crosses_a_stripe_boundary_is_cut_there() -> None:
    packed = pack(2, 1, [noise(MIB), noise(MIB - 20, "b")])
    assert [shape.data_bytes for shape in packed.closed.record.stripes] == [2 * MIB, 10 + 2 * 53 - 20]
    assert packed.data_space()[-(10 + 2 * 53) :] == packed.closed.index


def test_a_segment_is_full_when_blocks_and_index_fill_all_stripes() -> None:
    builder = SegmentBuilder(2, 1, "custom", stripes_max=1)
    room = 2 * MIB - 10 - 53
    assert builder.fits(room)
    assert not builder.fits(room + 1)
    builder.add_stored(StoredBlock(BLANK, MIB, CODEC_PLAIN, bytes(MIB)))
    assert builder.fits(room - MIB - 53)
    assert not builder.fits(room - MIB - 52)
    with pytest.raises(LimitError):
        builder.add_stored(StoredBlock(BLANK, MIB, CODEC_PLAIN, bytes(MIB)))
    assert len(builder) == 1
    rest = room - MIB - 53
    builder.add_stored(StoredBlock(BLANK, rest, CODEC_PLAIN, bytes(rest)))
    assert builder.stored_bytes == MIB + rest
    assert [s.shape for s in builder.close().stripes] == [StripeShape(2, 1, MIB, 2 * MIB)]


def test_a_segment_is_full_after_4096_blocks() -> None:
    builder = SegmentBuilder(10, 6, "standard")
    for _ in range(4096):
        builder.add_stored(StoredBlock(BLANK, 1, CODEC_PLAIN, b"x"))
    assert not builder.fits(0)
    closed = builder.close()
    assert len(decode_index(closed.index)) == 4096


def test_an_empty_block_takes_a_row_and_no_bytes() -> None:
    packed = pack(10, 6, [b""])
    assert packed.closed.entries[0].stored_bytes == 0
    assert Layout.of(packed.closed.record).locate_entry(packed.closed.entries[0]) == []


def test_compressed_blocks_come_back() -> None:
    blocks = [b"the same line again\n" * 4000, noise(30_000), b"z" * MIB]
    packed = pack(4, 2, blocks)
    space, layout = packed.data_space(), Layout.of(packed.closed.record)
    for block, entry in zip(blocks, packed.closed.entries, strict=True):
        ranges = layout.locate_entry(entry)
        parts = [packed.stripes[r.stripe].fragments[r.slot][r.lo : r.hi] for r in ranges]
        stored = assemble(ranges, parts)
        assert stored == space[entry.offset : entry.offset + entry.stored_bytes]
        assert decompress(entry.codec, stored, entry.raw_bytes) == block


def test_encoding_a_stripe_again_gives_the_same_fragments() -> None:
    packed = pack(3, 2, [noise(MIB), noise(MIB, "b"), noise(700_000, "c")])
    space, layout = packed.data_space(), Layout.of(packed.closed.record)
    for stripe in packed.stripes:
        lo, hi = layout.stripe_range(stripe.number)
        assert encode_stripe(stripe.shape, space[lo:hi], stripe.number) == stripe
        assert encode_stripe(stripe.shape, [memoryview(space)[lo : lo + 7], space[lo + 7 : hi]], stripe.number) == stripe


def test_any_lost_fragment_is_rebuilt_and_checked() -> None:
    stripe = encode_stripe(StripeShape(4, 2, 4096, 4 * 4096 - 100), noise(4 * 4096 - 100))
    for lost, record in enumerate(stripe.records):
        have = {index: f for index, f in enumerate(stripe.fragments) if index != lost}
        assert rebuild_fragment(stripe.shape, record, have) == stripe.fragments[lost]
        liar = next(iter(have))
        with pytest.raises(IntegrityError):
            rebuild_fragment(stripe.shape, record, {**have, liar: bytes(4096)})
    with pytest.raises(NotEnoughFragments):
        rebuild_fragment(stripe.shape, stripe.records[0], dict(list(enumerate(stripe.fragments))[3:]))
    with pytest.raises(FormatError):
        rebuild_fragment(stripe.shape, stripe.records[0], {1: b"short"})


def test_slots_are_filled_up_with_zeros() -> None:
    shape = StripeShape(3, 1, 64, 70)
    assert cut_slots(shape, [b"x" * 60, b"y" * 10]) == [b"x" * 60 + b"y" * 4, b"y" * 6 + bytes(58), bytes(64)]


def test_a_stripe_of_another_length_than_its_shape_is_refused() -> None:
    for size in (69, 71):
        with pytest.raises(FormatError):
            encode_stripe(StripeShape(3, 1, 64, 70), bytes(size))

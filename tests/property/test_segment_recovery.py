"""Whatever the blocks, whichever m fragments of each stripe are lost: the same blocks come back."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dds.erasure.compression import decompress
from dds.erasure.fragment_tree import matches_record
from dds.erasure.geometry import Geometry, stripe_shapes
from dds.erasure.layout import Layout, assemble, verbatim_indices
from dds.erasure.reed_solomon import decode
from dds.erasure.segment_builder import SegmentBuilder
from dds.erasure.stripes import EncodedStripe, decode_stripe, rebuild_fragment
from dds.primitives.cid import cid_of, matches
from dds.primitives.errors import NotEnoughFragments
from dds.primitives.units import MIB, SLOT_BYTES_MIN
from dds.wire.segment import EncodingRecord, decode_encoding, decode_index, segment_id_of

geometries = st.tuples(st.integers(1, 20), st.integers(1, 16)).map(lambda pair: Geometry(*pair))
block_sizes = st.one_of(st.integers(0, 300), st.integers(0, 40_000), st.sampled_from([MIB - 1, MIB]))


@st.composite
def blocks(draw: st.DrawFn) -> list[bytes]:
    source = random.Random(draw(st.integers(0, 1 << 32)))
    made: list[bytes] = []
    for size in draw(st.lists(block_sizes, min_size=1, max_size=12)):
        unit = source.randbytes(draw(st.sampled_from([1, 700, 1 << 21])) if size else 1)
        made.append((unit * (size // len(unit) + 1))[:size])
    return made


def build(geometry: Geometry, made: list[bytes]) -> tuple[list[EncodedStripe], EncodingRecord]:
    builder = SegmentBuilder(*geometry, "custom")
    stripes = [stripe for block in made for stripe in builder.add(cid_of(block), block)]
    closed = builder.close()
    return stripes + closed.stripes, decode_encoding(closed.record.encode())


@settings(max_examples=60, deadline=None)
@given(geometry=geometries, made=blocks(), seed=st.integers(0, 1 << 32))
def test_any_m_fragments_of_each_stripe_may_be_lost(geometry: Geometry, made: list[bytes], seed: int) -> None:
    stripes, record = build(geometry, made)
    source = random.Random(seed)
    space = b""
    for stripe in stripes:
        kept = source.sample(range(stripe.shape.k + stripe.shape.m), stripe.shape.k)
        have = {index: stripe.fragments[index] for index in kept}
        assert all(matches_record(stripe.records[index], fragment) for index, fragment in have.items())
        space += decode_stripe(stripe.shape, have)
    index = space[record.index_offset :]
    assert segment_id_of(index) == record.segment_id
    back = [
        decompress(entry.codec, space[entry.offset : entry.offset + entry.stored_bytes], entry.raw_bytes)
        for entry in decode_index(index)
    ]
    assert back == made
    assert all(matches(entry.cid, block) for entry, block in zip(decode_index(index), made, strict=True))


@settings(max_examples=60, deadline=None)
@given(geometry=geometries, made=blocks(), seed=st.integers(0, 1 << 32))
def test_any_range_is_read_from_slots_or_decoded_from_the_same_columns(
    geometry: Geometry, made: list[bytes], seed: int
) -> None:
    stripes, record = build(geometry, made)
    source = random.Random(seed)
    layout = Layout.of(record)
    lo, hi = sorted(source.randrange(layout.data_bytes + 1) for _ in range(2))
    parts: list[bytes] = []
    for at in layout.locate(lo, hi):
        stripe = stripes[at.stripe]
        assert {stripe.fragments[index][at.lo : at.hi] for index in verbatim_indices(stripe.shape, at.slot)} == {
            stripe.fragments[at.slot][at.lo : at.hi]
        }
        others = [index for index in range(stripe.shape.k + stripe.shape.m) if index != at.slot]
        have = {index: stripe.fragments[index][at.lo : at.hi] for index in source.sample(others, stripe.shape.k)}
        parts.append(decode(stripe.shape.k, stripe.shape.m, have, [at.slot])[at.slot])
    space = b"".join(decode_stripe(stripe.shape, dict(enumerate(stripe.fragments))) for stripe in stripes)
    assert assemble(layout.locate(lo, hi), parts) == space[lo:hi]


@settings(max_examples=40, deadline=None)
@given(geometry=geometries, made=blocks(), seed=st.integers(0, 1 << 32))
def test_any_fragment_is_rebuilt_to_its_record_and_k_minus_one_never_suffice(
    geometry: Geometry, made: list[bytes], seed: int
) -> None:
    source = random.Random(seed)
    stripe = source.choice(build(geometry, made)[0])
    k, m = stripe.shape.k, stripe.shape.m
    lost = source.randrange(k + m)
    kept = source.sample([index for index in range(k + m) if index != lost], k)
    have = {index: stripe.fragments[index] for index in kept}
    assert rebuild_fragment(stripe.shape, stripe.records[lost], have) == stripe.fragments[lost]
    have.popitem()
    with pytest.raises(NotEnoughFragments):
        rebuild_fragment(stripe.shape, stripe.records[lost], have)


@given(geometry=geometries, data_bytes=st.integers(0, 64 * MIB))
def test_shapes_hold_exactly_the_data_and_obey_the_limits(geometry: Geometry, data_bytes: int) -> None:
    shapes = stripe_shapes(geometry, data_bytes)
    assert sum(shape.data_bytes for shape in shapes) == data_bytes
    for shape in shapes:
        assert shape.m == geometry.m
        assert 0 < shape.data_bytes <= shape.k * shape.slot_bytes
        assert shape.slot_bytes <= MIB
        assert (shape.k == 1 and shape.data_bytes == shape.slot_bytes) or (
            shape.k == geometry.k and shape.slot_bytes >= SLOT_BYTES_MIN and shape.slot_bytes % 64 == 0
        )

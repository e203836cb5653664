"""Foreign bytes: every parser of the wire gives a value or a FormatError, never anything else; what it gives round-trips."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dds.primitives.cid import cid_of
from dds.primitives.errors import FormatError, IntegrityError, UnsupportedVersion
from dds.wire import api, dialback, origin, retrieval
from dds.wire.codec import Message, decode, encode
from dds.wire.dagcbor import decode_dag_cbor, encode_dag_cbor
from dds.wire.manifest import Body, Manifest, Run, Section, SegmentRow, decode_manifest, decode_section, open_manifest
from dds.wire.receipts import Receipt, open_receipt
from dds.wire.segment import (
    CODEC_PLAIN,
    CODEC_ZSTD,
    Entry,
    decode_encoding,
    decode_index,
    encode_index,
)
from dds.wire.signed import Signed, open_signed, sign
from tests.vectors.wire_samples import NETWORK, SAMPLE_KEY, samples

PARSERS: dict[str, Callable[[bytes], object]] = {
    "index": decode_index,
    "encoding": decode_encoding,
    "manifest": decode_manifest,
    "signed manifest": lambda raw: open_manifest(raw, NETWORK),
    "section": decode_section,
    "receipt": lambda raw: open_receipt(raw, NETWORK),
    "frames": api.decode_frames,
    "dag-cbor": lambda raw: decode_dag_cbor(raw, max_bytes=4096),
    **{
        kind.__name__: lambda raw, kind=kind: decode(raw, kind)  # type: ignore[misc]
        for kind in (
            *(api.ErrorReply, api.PeersReply, api.StageManyReply, api.StagedReply, api.CommitRequest, api.CommitReply),
            *(api.PaidCommitRequest,),
            *(api.ManifestRequest, api.ManifestReply, api.ContentReply, api.SegmentReply, api.HoldingRequest),
            *(api.HoldingReply, api.ReadRequest, api.LeavesRequest, api.LeavesReply, Signed, Receipt),
            *(origin.OriginPut, origin.OriginJob, origin.OriginJobs),
            *(retrieval.EdgeReadRequest, retrieval.ReadingTerms, retrieval.VoucherRequest),
            *(retrieval.PopularityRequest, retrieval.PopularityReply),
            *(dialback.DialbackRequest, dialback.DialbackReply, dialback.SelfTestRequest, dialback.SelfTestReply),
        )
    },
}


def parses_or_is_refused(name: str, raw: bytes) -> None:
    with suppress(FormatError):
        PARSERS[name](raw)


@pytest.mark.parametrize("name", PARSERS)
def test_arbitrary_bytes_are_refused_cleanly(name: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(raw=st.binary(max_size=300))
    @example(raw=b"")
    def check(raw: bytes) -> None:
        parses_or_is_refused(name, raw)

    check()


@pytest.mark.parametrize("name", samples())
def test_damaged_messages_are_refused_cleanly(name: str) -> None:
    good, source = samples()[name], random.Random(name)
    PARSERS[name](good)
    for _ in range(300):
        at, length = source.randrange(len(good)), source.randrange(1, 9)
        noise = source.randbytes(length)
        damaged = source.choice([good[:at] + noise + good[at + length :], good[:at] + noise + good[at:], good[:at]])
        parses_or_is_refused(name, damaged)


@pytest.mark.parametrize("name", samples())
def test_no_message_is_accepted_with_bytes_missing_or_behind_it(name: str) -> None:
    good = samples()[name]
    for wrong in (good + b"\x00", good[:-1], good + good):
        with pytest.raises(FormatError):
            PARSERS[name](wrong)


@pytest.mark.parametrize("unit", [b"\x81", b"\xa1\x61a", b"\xd8\x2a", b"\x91", b"\x81\x91", b"\xdc\x00\x01"])
@pytest.mark.parametrize("name", PARSERS)
def test_deep_nesting_is_refused(name: str, unit: bytes) -> None:
    with pytest.raises(FormatError):
        PARSERS[name](unit * (250_000 // len(unit)))


@pytest.mark.parametrize("name", PARSERS)
def test_oversized_bytes_are_refused_before_they_are_parsed(name: str) -> None:
    with pytest.raises(FormatError):
        PARSERS[name](bytes(5 << 20))


plain_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), (1 << 64) - 1) | st.text(max_size=9) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(value=plain_values)
@example(value=bytes(cid_of(b"a link")))
def test_dag_cbor_round_trips_and_is_canonical(value: object) -> None:
    raw = encode_dag_cbor(value)
    assert decode_dag_cbor(raw, max_bytes=len(raw)) == value
    assert encode_dag_cbor(decode_dag_cbor(raw, max_bytes=len(raw))) == raw
    with pytest.raises(FormatError):
        decode_dag_cbor(raw, max_bytes=len(raw) - 1)


@pytest.mark.parametrize(
    "raw",
    [
        "1801",
        "190001",
        "5800",
        "a2616200616100",
        "a2616100616100",
        "9fff",
        "f97e00",
        "c100",
        "a10000",
        "0101",
        "fb7ff8000000000000",
    ],
)
def test_dag_cbor_that_is_not_canonical_is_refused(raw: str) -> None:
    with pytest.raises(FormatError):
        decode_dag_cbor(bytes.fromhex(raw), max_bytes=100)


@st.composite
def entries(draw: st.DrawFn) -> list[Entry]:
    rows: list[Entry] = []
    offset = 0
    for raw_bytes, stored in draw(st.lists(st.tuples(st.integers(0, 2 << 20), st.integers(1, 2 << 20)), max_size=20)):
        codec = CODEC_ZSTD if stored < raw_bytes else CODEC_PLAIN
        size = stored if codec == CODEC_ZSTD else raw_bytes
        rows.append(Entry(cid_of(raw_bytes.to_bytes(4, "big")), offset, size, raw_bytes, codec))
        offset += size
    return rows


@given(rows=entries())
def test_indexes_round_trip(rows: list[Entry]) -> None:
    assert decode_index(encode_index(rows)) == rows


@given(frames=st.lists(st.none() | st.binary(max_size=50), max_size=12))
def test_frame_lists_round_trip(frames: list[bytes | None]) -> None:
    raw = api.encode_frames(list(frames))
    assert [None if frame is None else bytes(frame) for frame in api.decode_frames(raw)] == frames


def test_frames_beyond_the_limits_are_refused() -> None:
    with pytest.raises(FormatError):
        api.decode_frames((api.FRAMES_MAX + 1).to_bytes(4, "big") + bytes(4 * (api.FRAMES_MAX + 1)))
    with pytest.raises(FormatError):
        api.decode_frames(api.encode_frames([b"12345"]), max_frame_bytes=4)


numbers = st.integers(0, (1 << 63) - 1)
ids = st.binary(min_size=32, max_size=32)
names = st.text(min_size=1, max_size=64)


@st.composite
def bodies(draw: st.DrawFn) -> Body:
    rows = draw(st.lists(st.tuples(ids, st.lists(ids, max_size=4)), max_size=4))
    runs = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4095), st.integers(1, 4096), numbers), max_size=5))
    return Body(
        tuple(SegmentRow(segment, tuple(holders)) for segment, holders in rows),  # type: ignore[arg-type]
        tuple(Run(s, first, min(count, 4096 - first), at) for s, first, count, at in runs if s < len(rows)),
    )


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    return Manifest(
        content=cid_of(draw(st.binary(max_size=3))),
        publisher=SAMPLE_KEY.public,  # type: ignore[arg-type]
        kind=draw(names),
        class_name=draw(names),
        chunker=draw(names),
        content_bytes=draw(numbers),
        dag_bytes=draw(numbers),
        unique_bytes=draw(numbers),
        stored_bytes=draw(numbers),
        created_ms=draw(numbers),
        body=draw(bodies()),
        sections=tuple(Section(cid_of(b"section"), at) for at in draw(st.lists(numbers, max_size=3))),
        meta=draw(bodies()),
    )


@settings(deadline=None)
@given(manifest=manifests())
def test_manifests_round_trip_signed(manifest: Manifest) -> None:
    assert decode_manifest(manifest.encode()) == manifest
    assert open_manifest(manifest.sign(SAMPLE_KEY, NETWORK), NETWORK) == manifest
    with pytest.raises(IntegrityError):
        open_manifest(manifest.sign(SAMPLE_KEY, NETWORK), "another")


@given(payload=st.binary(max_size=100), tag=st.sampled_from([b"dds/a/v1", b"dds/b/v1"]), network=st.sampled_from(["x", "y"]))
def test_a_signature_is_good_for_one_tag_and_network_only(payload: bytes, tag: bytes, network: str) -> None:
    raw = sign(SAMPLE_KEY, tag, network, payload)
    for other_tag in (b"dds/a/v1", b"dds/b/v1"):
        for other_network in ("x", "y"):
            if (other_tag, other_network) == (tag, network):
                assert open_signed(raw, tag, network, max_bytes=100).payload == payload
            else:
                with pytest.raises(IntegrityError):
                    open_signed(raw, other_tag, other_network, max_bytes=100)


def test_newer_versions_are_refused_as_such() -> None:
    good = samples()
    newer_index = b"DDSI\x02" + good["index"][5:]
    plain = decode_dag_cbor(good["manifest"], max_bytes=1 << 18)
    for parse, raw in (
        (decode_index, newer_index),
        (decode_encoding, good["encoding"].replace(b"\x97\x01", b"\x97\x02", 1)),
        (decode_manifest, encode_dag_cbor({**plain, "version": 2})),
    ):
        with pytest.raises(UnsupportedVersion):
            parse(raw)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", True),
        ("version", "1"),
        ("content", b"short"),
        ("publisher", bytes(31)),
        ("kind", ""),
        ("kind", "x" * 65),
        ("created_ms", -1),
        ("created_ms", 1 << 63),
        ("created_ms", True),
        ("sections", [[b"no cid", 0]]),
        ("sections", [[cid_of(b"x"), 0, 0]]),
        ("body", []),
        ("body", {"r": [], "s": [], "x": 0}),
        ("body", {"r": [[0, 0, 1, 0]], "s": []}),
        ("body", {"r": [[0, 0, 0, 0]], "s": [[bytes(32), b""]]}),
        ("body", {"r": [[0, 4096, 1, 0]], "s": [[bytes(32), b""]]}),
        ("body", {"r": [], "s": [[bytes(32), bytes(33)]]}),
        ("body", {"r": [], "s": [[bytes(31), b""]]}),
        ("meta", None),
        ("extra", 1),
    ],
)
def test_a_manifest_with_a_bad_field_is_refused(field: str, value: object) -> None:
    plain = decode_dag_cbor(samples()["manifest"], max_bytes=1 << 18)
    with pytest.raises(FormatError):
        decode_manifest(encode_dag_cbor({**plain, field: value}))


@pytest.mark.parametrize(
    "change",
    [
        {"network": "another"},
        {"version": 2},
        {"node_id": bytes(32)},
        {"segment_id": bytes(31)},
        {"segment_root": b""},
        {"contract": bytes(65)},
        {"index": -1},
        {"fragment_bytes": -1},
        {"leaf_count": -5},
        {"expires_ms": -1},
    ],
)
def test_a_receipt_with_a_bad_field_is_refused(change: dict[str, Any]) -> None:
    receipt = open_receipt(samples()["receipt"], NETWORK)
    fields = {name: getattr(receipt, name) for name in receipt.__struct_fields__}
    forged: Message = Receipt(**{**fields, **change})
    with pytest.raises(FormatError):
        open_receipt(sign(SAMPLE_KEY, b"dds/receipt/v1", NETWORK, encode(forged)), NETWORK)

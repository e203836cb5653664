"""One well-formed example of every record and message of the wire, from fixed inputs."""

from __future__ import annotations

from functools import lru_cache

from dds.erasure.fragment_tree import record_of
from dds.erasure.stripes import encode_stripe
from dds.primitives.cid import cid_of
from dds.primitives.ids import NodeID, PublisherID, SegmentID
from dds.primitives.keys import SigningKey
from dds.wire import api
from dds.wire.codec import encode
from dds.wire.manifest import Body, Manifest, Run, Section, SegmentRow, encode_body
from dds.wire.receipts import Receipt, sign_receipt
from dds.wire.retrieval import ReadingTerms, VoucherRequest
from dds.wire.segment import (
    CODEC_PLAIN,
    CODEC_ZSTD,
    EncodingRecord,
    Entry,
    StripeShape,
    encode_index,
    segment_id_of,
)
from dds.wire.signed import sign
from tests.vectors.keystream import keystream

NETWORK = "testnet"
SAMPLE_KEY = SigningKey(bytes(range(32)))
DIGEST = bytes(range(100, 132))


def sample_entries() -> list[Entry]:
    return [
        Entry(cid_of(b"first"), 0, 20_000, 20_000, CODEC_PLAIN),
        Entry(cid_of(b"second"), 20_000, 1_000, 30_000, CODEC_ZSTD),
        Entry(cid_of(b""), 21_000, 0, 0, CODEC_PLAIN),
    ]


def sample_encoding() -> EncodingRecord:
    """A segment of 21,000 bytes of blocks and 169 of index, as one 3+2 stripe and one of three copies."""
    index = encode_index(sample_entries())
    space = keystream("blocks", 21_000) + index
    shapes = (StripeShape(3, 2, 6976, 20_900), StripeShape(1, 2, 269, 269))
    stripes = [encode_stripe(shapes[0], space[:20_900]), encode_stripe(shapes[1], space[20_900:], 1)]
    records = tuple(tuple(record_of(at, f) for at, f in enumerate(stripe.fragments)) for stripe in stripes)
    return EncodingRecord(segment_id_of(index), "custom", 21_000, len(index), shapes, records)


def sample_body() -> Body:
    holders = (NodeID(DIGEST), NodeID(DIGEST[::-1]))
    return Body(
        (SegmentRow(SegmentID(DIGEST), holders), SegmentRow(SegmentID(bytes(32)), ())), (Run(0, 1, 2, 0), Run(1, 0, 9, 77))
    )


def sample_manifest() -> Manifest:
    return Manifest(
        content=cid_of(b"first"),
        publisher=PublisherID(SAMPLE_KEY.public),
        kind="file",
        class_name="standard",
        chunker="fixed",
        content_bytes=50_000,
        dag_bytes=50_100,
        unique_bytes=50_000,
        stored_bytes=21_000,
        created_ms=1_700_000_000_000,
        body=sample_body(),
        sections=(Section(cid_of(b"section"), 0),),
        meta=Body(),
    )


def sample_receipt() -> bytes:
    return sign_receipt(
        SAMPLE_KEY, Receipt(1, NETWORK, b"contract", DIGEST, DIGEST[::-1], 4, SAMPLE_KEY.public, 7000, 2, 1_800_000_000_000)
    )


@lru_cache(1)
def samples() -> dict[str, bytes]:
    """Bytes by the name of their parser."""
    messages = (
        api.ErrorReply("not-found", "nobody has it", None),
        api.PeersReply([b"record"]),
        api.StageManyReply([DIGEST]),
        api.StagedReply([]),
        api.CommitRequest(bytes(16), 3, b"encoding", [b"fragment"], None, b"contract"),
        api.PaidCommitRequest(api.CommitRequest(bytes(16), 3, b"encoding", [], None, b"contract"), b"ticket"),
        api.CommitReply(b"receipt"),
        api.ManifestRequest(b"manifest"),
        api.ManifestReply(True),
        api.ContentReply([b"manifest"], [b"encoding"], [api.InlineFragment(DIGEST, b"data")]),
        api.SegmentReply([b"encoding"], [1, 2]),
        api.HoldingRequest([DIGEST]),
        api.HoldingReply([[1, 2], []]),
        api.ReadRequest([api.ReadItem(DIGEST, 5, 9)]),
        api.LeavesRequest(DIGEST, 0, 2),
        api.LeavesReply(4000, [b"leaf", b"last"], [[DIGEST], []]),
        ReadingTerms(1_862, 0, 1 << 24, 1 << 40, 2_000_000, 1_999_999),
        VoucherRequest(b"voucher", b"grant"),
    )
    return {
        "index": encode_index(sample_entries()),
        "encoding": sample_encoding().encode(),
        "manifest": sample_manifest().encode(),
        "signed manifest": sample_manifest().sign(SAMPLE_KEY, NETWORK),
        "section": encode_body(sample_body()),
        "receipt": sample_receipt(),
        "frames": api.encode_frames([b"one", None, b"", b"four"]),
        "Signed": sign(SAMPLE_KEY, b"dds/sample/v1", NETWORK, b"payload"),
        **{type(message).__name__: encode(message) for message in messages},
    }

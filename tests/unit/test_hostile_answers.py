"""Reading while some of those who answer lie about manifests and records: their word costs a request, never the content."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from pathlib import Path

import pytest

from dds.primitives.cid import CID, cid_of
from dds.primitives.errors import NotFoundError, UnavailableError
from dds.primitives.ids import PublisherID
from dds.primitives.keys import SigningKey
from dds.runtime.get import Reading
from dds.runtime.network import Network
from dds.runtime.results import PutOptions
from dds.transport.routes import Request, Response, message_response
from dds.wire.api import ContentReply, SegmentReply
from dds.wire.manifest import open_manifest
from dds.wire.segment import ENCODING_TAG, EncodingRecord, FragmentRecord, decode_encoding
from dds.wire.signed import open_signed, sign
from tests.discovery_samples import NETWORK
from tests.node_sites import Handler, Site, put, reader, sites

OPTIONS = PutOptions(class_name="custom", k=2, m=3)
LIAR = SigningKey(b"\x09" * 32)


def always(reply: ContentReply | SegmentReply) -> Handler:
    async def handle(request: Request) -> Response:
        return message_response(reply)

    return handle


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(random.Random(7).randbytes(3_000_000))
    return path


async def read(network: Network, content: CID, first: Site) -> bytes:
    """Ask `first` before anybody else."""
    out = io.BytesIO()
    await Reading(network, content, [first.node_id]).to_stream(out, "", None)
    return out.getvalue()


def wrong_records(raw: bytes, key: SigningKey = LIAR) -> bytes:
    """An encoding record that is sound but for its fragments' roots, which nobody has."""
    record = decode_encoding(open_signed(raw, ENCODING_TAG, NETWORK, max_bytes=1 << 20).payload)

    def other(fragment: FragmentRecord) -> FragmentRecord:
        return FragmentRecord(type(fragment.root)(bytes(32)), fragment.size, fragment.index, fragment.leaf_count)

    rows = tuple(tuple(other(fragment) for fragment in row) for row in record.records)
    made = EncodingRecord(record.segment_id, record.class_name, record.index_offset, record.index_bytes, record.stripes, rows)
    return sign(key, ENCODING_TAG, NETWORK, made.encode())


async def test_a_record_of_fragments_that_nobody_has_is_passed_over(source: Path, tmp_path: Path) -> None:
    async with sites(tmp_path, 5) as nodes, reader(nodes) as network:
        content = (await put(network, tmp_path / "home", source, OPTIONS)).content
        liar = nodes[0]
        honest = liar.service.content(content)
        (segment,) = open_manifest(honest.manifests[0], NETWORK).body.segments
        lie = wrong_records(liar.service.segment(segment.segment_id).encodings[0])
        liar.lies["GET", "/v1/content/{cid}"] = always(ContentReply(honest.manifests, [lie], []))
        liar.lies["GET", "/v1/segments/{segment}"] = always(SegmentReply([lie], [0, 1, 2, 3, 4]))
        assert await read(network, content, liar) == source.read_bytes()


async def test_manifests_of_segments_that_cannot_be_read_are_passed_over(source: Path, tmp_path: Path) -> None:
    async with sites(tmp_path, 5) as nodes, reader(nodes) as network:
        content = (await put(network, tmp_path / "home", source, OPTIONS)).content
        liar = nodes[0]
        honest = liar.service.content(content)
        manifest = open_manifest(honest.manifests[0], NETWORK)
        lie = wrong_records(liar.service.segment(manifest.body.segments[0].segment_id).encodings[0])
        keys = [SigningKey(bytes([200 + number]) * 32) for number in range(20)]
        forged = [replace(manifest, publisher=PublisherID(key.public)).sign(key, NETWORK) for key in keys]
        liar.lies["GET", "/v1/content/{cid}"] = always(ContentReply(forged, [lie], []))
        for node in nodes:  # none of them has another record to give for the forged manifests
            node.lies["GET", "/v1/segments/{segment}"] = always(SegmentReply([lie], [0, 1, 2, 3, 4]))
        for node in nodes[1:]:
            true = node.service.segment(manifest.body.segments[0].segment_id).encodings
            node.lies["GET", "/v1/content/{cid}"] = always(ContentReply(honest.manifests, true, []))
        assert await read(network, content, liar) == source.read_bytes()


async def test_bytes_that_are_no_manifest_are_an_absent_one(tmp_path: Path) -> None:
    content = cid_of(b"nobody has this")
    async with sites(tmp_path, 3) as nodes, reader(nodes) as network:
        nodes[0].lies["GET", "/v1/content/{cid}"] = always(ContentReply([b"garbage", b""], [], []))
        for operation in (Reading(network, content).stat, lambda: Reading(network, content).entries("")):
            with pytest.raises(NotFoundError, match="of 3 nodes"):
                await operation()


async def test_a_content_whose_holders_cannot_be_reached_is_unavailable_and_not_unknown(source: Path, tmp_path: Path) -> None:
    async with sites(tmp_path, 6) as nodes, reader(nodes) as network:
        content = (await put(network, tmp_path / "home", source, OPTIONS)).content
        for node in nodes:
            if node.store.manifests(content):
                await node.stop()
        with pytest.raises(UnavailableError, match="5 of 6 nodes") as raised:
            await Reading(network, content).stat()
        assert not isinstance(raised.value, NotFoundError)

"""Reads over real servers and stores in one process: what they move, and how much they hold."""

from __future__ import annotations

import asyncio
import io
import random
from pathlib import Path

import pytest

from dds.content.block import Ref
from dds.content.reader import Request
from dds.erasure import segment_builder
from dds.primitives.cid import CID, DAG_PB, RAW, cid_of
from dds.primitives.errors import FormatError
from dds.primitives.units import MIB
from dds.runtime import content_blocks
from dds.runtime.content_blocks import ContentBlocks
from dds.runtime.dag_host import bounded
from dds.runtime.fetcher import neighbours
from dds.runtime.get import Reading
from dds.runtime.results import PutOptions
from dds.transport.client import PeerClient
from dds.wire.segment import CODEC_PLAIN, Entry
from tests.node_sites import put, reader, sites

OPTIONS = PutOptions(class_name="custom", k=2, m=3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    for number in range(4):
        (path / f"file-{number}").write_bytes(random.Random(number).randbytes(900_000))
    return path


async def test_a_listing_moves_no_file(source: Path, tmp_path: Path) -> None:
    async with sites(tmp_path, 5) as nodes, reader(nodes) as network:
        content = (await put(network, tmp_path / "home", source, OPTIONS)).content
        before = network.received_bytes()
        rows = await Reading(network, content).entries("")
        assert [(row.name, row.kind, row.size) for row in rows] == [(f"file-{n}", "file", 900_000) for n in range(4)]
        assert network.received_bytes() - before < 100_000


async def test_a_block_larger_than_its_link_says_is_not_fetched(source: Path, tmp_path: Path) -> None:
    async with sites(tmp_path, 5) as nodes, reader(nodes) as network:
        content = (await put(network, tmp_path / "home", source, OPTIONS)).content
        leaf = cid_of((source / "file-1").read_bytes())
        reading = Reading(network, content)
        found = await anext(reading.resolver.manifests(content))
        blocks = ContentBlocks(found, reading.resolver, reading.fetcher)
        before = network.received_bytes()
        with pytest.raises(FormatError, match="larger than its link"):
            await blocks.fetch([Ref(leaf, None, 10)])
        assert network.received_bytes() - before < 100_000
        reading.resolver.close()


def test_a_request_is_bound_by_the_window_and_not_by_its_link() -> None:
    leaf, node = cid_of(b"leaf", RAW), cid_of(b"node", DAG_PB)
    assert bounded(Request(Ref(leaf, 5, 2 * MIB), 10)) == Ref(leaf, 5, 10)
    assert bounded(Request(Ref(leaf, None, None), 10)) == Ref(leaf, None, 10)
    assert bounded(Request(Ref(node, 5, 9 * MIB), 2 * MIB)) == Ref(node, 5, 9 * MIB)


async def test_a_fault_of_ours_ends_a_read_instead_of_hanging_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sites(tmp_path, 5) as nodes, reader(nodes) as network:
        content = CID((await put(network, tmp_path / "home", source / "file-0", OPTIONS)).content)
        get = PeerClient.get

        async def broken(client: PeerClient, node: object, path: str, **rest: object) -> bytes:
            if path.startswith("/v1/fragments/"):
                raise ZeroDivisionError("a bug")
            return await get(client, node, path, **rest)  # type: ignore[arg-type]

        monkeypatch.setattr(PeerClient, "get", broken)
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(Reading(network, content).to_stream(io.BytesIO(), "", None), 5)


def test_blocks_far_apart_in_their_slots_are_not_fetched_together() -> None:
    ends = [Entry(cid_of(bytes([n])), at, 100, 100, CODEC_PLAIN) for n in range(100) for at in (n * MIB, (n + 1) * MIB - 100)]
    random.Random(5).shuffle(ends)
    groups = neighbours(ends, MIB)
    assert sorted(at for group in groups for at in group) == list(range(200))
    assert max(map(len, groups)) <= 10
    dense = [Entry(cid_of(bytes([n])), n * 100, 100, 100, CODEC_PLAIN) for n in range(200)]
    assert neighbours(dense, MIB) == [list(range(200))]
    assert neighbours([], MIB) == []


async def test_a_reader_forgets_indexes_rather_than_hold_them_all(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_builder, "SEGMENT_ENTRIES_MAX", 2)
    monkeypatch.setattr(content_blocks, "ENTRIES_CACHED_MAX", 3)
    async with sites(tmp_path, 5) as nodes, reader(nodes) as network:
        content = (await put(network, tmp_path / "home", source, OPTIONS)).content
        await Reading(network, content).to_path(tmp_path / "out", "", None, overwrite=False)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"file-{n}" for n in range(4)]

"""Moves over real servers and stores in one process: the content stays what it is, whatever nodes do meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from dds.erasure.geometry import Geometry, stored_bytes, stripe_shapes
from dds.primitives.cid import CID
from dds.primitives.errors import InputError, UnavailableError
from dds.primitives.ids import SegmentID
from dds.runtime.get import Reading
from dds.runtime.network import Network
from dds.runtime.results import PutOptions
from dds.runtime.segments import open_segment
from dds.runtime.tiering import Move, MoveResult, Target
from dds.storage.catalog import Catalog
from dds.transport.routes import Request, Response
from tests.discovery_samples import NETWORK
from tests.node_sites import Site, put, reader, sites

SMALL = PutOptions(class_name="custom", k=2, m=2)
WIDE = Target("custom", Geometry(4, 3))
BYTES = 1_500_000


def source_of(directory: Path) -> Path:
    path = directory / "file"
    path.write_bytes(random.Random(3).randbytes(BYTES))
    return path


async def move(network: Network, home: Path, content: CID, target: Target = WIDE) -> MoveResult:
    with Catalog(home / "catalog.sqlite") as catalog:
        note = catalog.content(content)
        assert note is not None
        return await Move(network, catalog, home / "spool", note, target, desk=None).run()


async def read(network: Network, content: CID, out: Path) -> bytes:
    await Reading(network, content).to_path(out, "", None, overwrite=True)
    return out.read_bytes()


def let_go_of_old(nodes: Sequence[Site], width: int) -> int:
    """What a paid node does once its share is no longer assigned: here at once, for every encoding that is not `width` wide."""
    count = 0
    for node in nodes:
        for segment, _ in node.store.segments_after(b"", 100):
            for hold in node.store.holds([segment]):
                count += width_of(node, hold.segment, hold.root) != width and node.store.release(segment, hold.place, hold.root)
        node.store.restore
    return count


def width_of(node: Site, segment: SegmentID, root: bytes) -> int:
    records = [opened.record for raw, _ in node.store.segment(segment) if (opened := open_segment(raw, segment, NETWORK))]
    return next(record.width for record in records if record.root() == root)


async def test_a_moved_content_is_the_same_content_in_the_bytes_that_its_new_geometry_implies(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    async with sites(tmp_path, 12) as nodes, reader(nodes) as network:
        first = await put(network, tmp_path / "home", source, SMALL)
        before = sum(node.store.stats().committed_bytes for node in nodes)
        result = await move(network, tmp_path / "home", first.content)
        assert (result.moved, result.segments, result.class_name) == (1, 1, "custom")
        assert let_go_of_old(nodes, 7) == 4
        after = sum(node.store.stats().committed_bytes for node in nodes)
        assert (before, after) == (result.before.stored_bytes, result.after.stored_bytes)
        assert after == stored_bytes(stripe_shapes(WIDE.geometry, data_bytes_of(tmp_path / "home")))
        assert await read(network, first.content, tmp_path / "out") == source.read_bytes()
        again = await move(network, tmp_path / "home", first.content)
        assert (again.moved, again.sent_bytes) == (0, 0)
        back = await move(network, tmp_path / "home", first.content, Target("custom", Geometry(2, 2)))
        assert back.moved == 1 and await read(network, first.content, tmp_path / "out") == source.read_bytes()


def data_bytes_of(home: Path) -> int:
    """Of the one segment that is stored."""
    with Catalog(home / "catalog.sqlite") as catalog:
        (segment,) = {location.segment_id for location in catalog.lookup(all_cids(catalog)).values()}
        cached = catalog.segment(segment)
        assert cached is not None
        opened = open_segment(cached.encoding_raw, segment, NETWORK)
        assert opened is not None
        return opened.record.data_bytes


def all_cids(catalog: Catalog) -> list[CID]:
    return [CID(row[0]) for row in catalog._db.execute("SELECT cid FROM chunks")]


async def test_a_read_under_way_goes_on_in_the_new_encoding_when_the_old_holders_let_go(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    async with sites(tmp_path, 12) as nodes, reader(nodes) as network, reader(nodes) as other:
        content = (await put(network, tmp_path / "home", source, SMALL)).content
        out = (tmp_path / "stream").open("wb")
        reading = Reading(other, content)
        moved = asyncio.Event()

        def on_progress(progress: object) -> None:
            if not moved.is_set():
                moved.set()
                gone.append(let_go_of_old(nodes, 7))

        gone: list[int] = []
        await move(network, tmp_path / "home", content)
        reading.progress = on_progress
        with out:
            await reading.to_stream(out, "", None)
        assert gone[0] > 0
        assert (tmp_path / "stream").read_bytes() == source.read_bytes()


async def test_a_broken_move_goes_on_with_what_its_nodes_had_staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path)
    async with sites(tmp_path, 12) as nodes, reader(nodes) as network:
        content = (await put(network, tmp_path / "home", source, SMALL)).content

        async def is_stopped(*_values: object) -> None:
            raise UnavailableError("stopped")

        with monkeypatch.context() as broken:
            broken.setattr(Move, "_check_or_forget", is_stopped)
            with pytest.raises(UnavailableError, match="stopped"):
                await move(network, tmp_path / "home", content)
        result = await move(network, tmp_path / "home", content)
        assert result.moved == 1
        held = [node.store.holding([segment])[0] for node in nodes for segment, _ in node.store.segments_after(b"", 1)]
        assert sorted(index for at in held for index in at) == sorted([*range(4), *range(7)])  # nothing was stored twice


async def test_a_holder_that_does_not_prove_what_it_took_leaves_everything_as_it_was(tmp_path: Path) -> None:
    source = source_of(tmp_path)

    async def lie(_request: Request) -> Response:
        return Response(404)

    async with sites(tmp_path, 12) as nodes, reader(nodes) as network:
        content = (await put(network, tmp_path / "home", source, SMALL)).content
        holders = {node.node_id for node in nodes if node.store.segments_after(b"", 1)}
        for node in nodes:
            if node.node_id not in holders:
                node.lies["POST", "/v1/leaves"] = lie
        with pytest.raises(UnavailableError, match="does not prove"):
            await move(network, tmp_path / "home", content)
        with Catalog(tmp_path / "home" / "catalog.sqlite") as catalog:
            assert catalog.last_move(content) is None
        assert await read(network, content, tmp_path / "out") == source.read_bytes()
        for node in nodes:
            node.lies.clear()
        again = await move(network, tmp_path / "home", content)
        assert again.moved == 1


async def test_a_segment_that_is_too_large_for_the_geometry_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(tmp_path)
    async with sites(tmp_path, 6) as nodes, reader(nodes) as network:
        content = (await put(network, tmp_path / "home", source, SMALL)).content
        monkeypatch.setattr("dds.erasure.geometry.STRIPES_PER_SEGMENT_MAX", 1)
        with pytest.raises(InputError, match="at most 1048576"):
            await move(network, tmp_path / "home", content, Target("custom", Geometry(1, 3)))

"""Reading through an edge: real servers, caches and nodes in one process, and edges that lie, hang, lose blocks or are gone."""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from dds.content.block import Ref
from dds.primitives.cid import CID, cid_of, cid_text
from dds.primitives.errors import NotFoundError, PaymentRequired, PeerRefused
from dds.primitives.units import MIB
from dds.protocol import edge_choice
from dds.runtime.edge_blocks import Edges, _groups
from dds.runtime.get import Reading
from dds.runtime.network import Network
from dds.runtime.results import GetResult, PutOptions
from dds.storage.home import parse_host_port
from dds.storage.source import SourceOptions, build_dag
from dds.transport.client import PeerClient
from dds.transport.routes import Request, Response
from dds.wire.api import encode_frames
from dds.wire.codec import decode, encode
from dds.wire.retrieval import EDGE_REPLY_BYTES_MAX, EdgeReadRequest
from tests.discovery_samples import NETWORK
from tests.edge_kit import READER, EdgeSite, edge_site, reader_near, received_from, until
from tests.node_sites import Site, put, reader, sites

OPTIONS = PutOptions(class_name="custom", k=2, m=2)
EDGE_READ = ("POST", "/v1/edge/read")
GET_BLOCK = ("GET", "/v1/blocks/{cid}")


@pytest.fixture(autouse=True)
def patient_readers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A busy machine must not make an edge look late."""
    monkeypatch.setattr(edge_choice, "PATIENCE_S_UNKNOWN", 60.0)
    monkeypatch.setattr(edge_choice, "PATIENCE_S_MIN", 60.0)
    monkeypatch.setattr(edge_choice, "PATIENCE_S_MAX", 60.0)
    return iter(())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    root.mkdir()
    (root / "large").write_bytes(random.Random(3).randbytes(2 * MIB + 77))
    for number in range(30):
        (root / f"{number}").write_text(f"file {number}")
    return root


def dag_of(source: Path) -> dict[CID, bytes]:
    blocks: dict[CID, bytes] = {}
    build_dag(source, SourceOptions(), lambda block, position: blocks.__setitem__(block.cid, block.data))
    return blocks


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def stored(nodes: list[Site], tmp_path: Path, source: Path) -> CID:
    async with reader(nodes) as network:
        return (await put(network, tmp_path / "home", source, OPTIONS)).content


async def read(network: Network, content: CID, out: Path) -> GetResult:
    return await Reading(network, content).to_path(out, "", None, overwrite=False)


async def warmed(edge: EdgeSite, nodes: list[Site], content: CID, source: Path) -> None:
    """A reader near by has read it, and the edge has fetched what it missed."""
    async with reader_near(nodes, edge) as network:
        await Reading(network, content).to_stream(io.BytesIO(), "large", None)
        for name in sorted(path.name for path in source.iterdir()):
            await Reading(network, content).to_stream(io.BytesIO(), name, None)
    blocks = dag_of(source)
    await until(lambda: all(cid in edge.cache for cid in blocks))


async def test_the_second_read_comes_from_the_edge_and_moves_no_byte_from_other_regions(source: Path, tmp_path: Path) -> None:
    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge") as edge:
        content, blocks = await stored(nodes, tmp_path, source), dag_of(source)
        async with reader_near(nodes, edge) as network:
            first = await read(network, content, tmp_path / "first")
            assert (snapshot(tmp_path / "first"), first.edge_bytes) == (snapshot(source), 0)
        await until(lambda: all(cid in edge.cache for cid in blocks))
        assert edge.announces(content)
        async with reader_near(nodes, edge) as network:
            second = await read(network, content, tmp_path / "second")
            assert snapshot(tmp_path / "second") == snapshot(source)
            assert received_from(network, nodes) == 0
            assert (second.kind, second.files, second.culprits) == ("directory", 31, [])
            assert second.edge_bytes == sum(map(len, blocks.values()))


async def test_a_range_is_served_without_the_rest_being_fetched(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(random.Random(4).randbytes(6 * MIB))
    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge") as edge:
        content = await stored(nodes, tmp_path, file)
        for wanted_from_edge in (0, 1):
            async with reader_near(nodes, edge) as network:
                out = io.BytesIO()
                result = await Reading(network, content).to_stream(out, "", (3 * MIB + 5, 3 * MIB + 50))
                assert out.getvalue() == file.read_bytes()[3 * MIB + 5 : 3 * MIB + 50]
                assert (result.edge_bytes > 0) == wanted_from_edge
            await until(lambda: edge.cache.count == 2)  # the root and one chunk
        assert edge.edge.warmer.counters.fetched_blocks == 2


async def test_an_edge_that_lies_is_named_and_asked_no_more(source: Path, tmp_path: Path) -> None:
    async def lie(request: Request) -> Response:
        message = decode(request.body, EdgeReadRequest, max_bytes=1 << 20)
        return Response(200, encode_frames([b"something else"] * len(message.blocks)))

    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge") as edge:
        content = await stored(nodes, tmp_path, source)
        await warmed(edge, nodes, content, source)
        edge.lies[EDGE_READ] = lie
        async with reader_near(nodes, edge) as network:
            result = await read(network, content, tmp_path / "out")
            assert snapshot(tmp_path / "out") == snapshot(source)
            assert [culprit.node for culprit in result.culprits] == [edge.node_id]
            assert "as an edge" in result.culprits[0].reason
            edge.asked.clear()
            assert (await read(network, content, tmp_path / "again")).edge_bytes == 0
            assert edge.asked == []


async def test_a_wrong_root_block_is_no_better(source: Path, tmp_path: Path) -> None:
    async def lie(request: Request) -> Response:
        return Response(200, b"\x12\x00")

    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge") as edge:
        content = await stored(nodes, tmp_path, source)
        edge.lies[GET_BLOCK] = lie
        async with reader_near(nodes, edge) as network:
            result = await read(network, content, tmp_path / "out")
        assert snapshot(tmp_path / "out") == snapshot(source)
        assert [culprit.node for culprit in result.culprits] == [edge.node_id]


@pytest.mark.parametrize("garbage", [b"", b"\xff" * 64, encode_frames([None]), encode_frames([b"x" * (3 * MIB)])])
async def test_an_answer_that_is_no_frame_list_costs_one_try(garbage: bytes, source: Path, tmp_path: Path) -> None:
    async def answer(request: Request) -> Response:
        return Response(200, garbage)

    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge") as edge:
        content = await stored(nodes, tmp_path, source)
        edge.lies[EDGE_READ] = answer
        async with reader_near(nodes, edge) as network:
            result = await read(network, content, tmp_path / "out")
            assert snapshot(tmp_path / "out") == snapshot(source)
            assert result.edge_bytes == 0
            assert (
                network.edges() and network.edge_choice.order(network.edges(), content, asyncio.get_running_loop().time()) == []
            )


async def test_blocks_damaged_on_the_edges_disk_come_from_the_nodes(source: Path, tmp_path: Path) -> None:
    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge") as edge:
        content = await stored(nodes, tmp_path, source)
        await warmed(edge, nodes, content, source)
        large = cid_of((source / "large").read_bytes()[:MIB])
        (path,) = (tmp_path / "edge").glob(f"*/{cid_text(large)}")
        path.write_bytes(b"rotten")
        async with reader_near(nodes, edge) as network:
            result = await read(network, content, tmp_path / "out")
            assert snapshot(tmp_path / "out") == snapshot(source)
            assert received_from(network, nodes) >= MIB
            assert result.culprits == []  # it said nothing wrong: it had the block no more
        assert edge.cache.counters.damaged == 1
        await until(lambda: large in edge.cache)  # and fetches it again


async def test_a_hanging_edge_costs_one_wait(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_choice, "PATIENCE_S_UNKNOWN", 0.05)

    async def hang(request: Request) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge") as edge:
        content = await stored(nodes, tmp_path, source)
        edge.lies |= {EDGE_READ: hang, GET_BLOCK: hang}
        async with reader_near(nodes, edge) as network:
            await read(network, content, tmp_path / "out")
            assert snapshot(tmp_path / "out") == snapshot(source)
            assert len(edge.asked) == 1


async def test_another_edge_takes_the_place_of_one_that_is_gone(source: Path, tmp_path: Path) -> None:
    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge") as edge:
        content = await stored(nodes, tmp_path, source)
        await warmed(edge, nodes, content, source)
        async with edge_site(nodes, tmp_path / "gone", number=1) as gone:
            record = gone.record()
        async with reader_near(nodes, edge) as network:
            network.learn([record])
            for number in range(2):  # whichever of the two is the first for this content
                result = await read(network, content, tmp_path / f"{number}")
                assert snapshot(tmp_path / f"{number}") == snapshot(source)
            assert result.edge_bytes == sum(map(len, dag_of(source).values()))


async def test_without_its_storage_nodes_a_content_reads_while_an_edge_has_it(source: Path, tmp_path: Path) -> None:
    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge") as edge:
        content = await stored(nodes, tmp_path, source)
        await warmed(edge, nodes, content, source)
        async with reader_near(nodes, edge) as network:
            for node in nodes:
                await node.stop()
            await read(network, content, tmp_path / "out")
        assert snapshot(tmp_path / "out") == snapshot(source)


async def test_a_request_for_the_root_alone_warms_the_whole_content(source: Path, tmp_path: Path) -> None:
    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge") as edge:
        content = await stored(nodes, tmp_path, source)
        async with reader_near(nodes, edge) as network:
            body = encode(EdgeReadRequest(content, [content]))
            await network.client.post(edge.node_id, "/v1/edge/read", body, max_bytes=EDGE_REPLY_BYTES_MAX, timeout_s=10)
        blocks = dag_of(source)
        await until(lambda: all(cid in edge.cache for cid in blocks))
        assert edge.cache.size == sum(map(len, blocks.values()))


async def test_blocks_strange_to_the_content_end_the_job_and_keep_what_is_its_own(source: Path, tmp_path: Path) -> None:
    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge") as edge:
        content = await stored(nodes, tmp_path, source)
        own = cid_of((source / "7").read_bytes())
        strange = [cid_of(bytes([number])) for number in range(20)]
        edge.edge.warmer.want(content, [own, *strange])
        await until(lambda: edge.edge.warmer.counters.failed == 1)
        assert not any(cid in edge.cache for cid in strange)
        assert not edge.edge.warmer.want(content, [own])  # left alone for a while
        assert edge.edge.warmer.counters.dropped == 1


async def test_readers_of_one_content_share_a_job_and_too_many_contents_are_dropped(source: Path, tmp_path: Path) -> None:
    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge") as edge:
        await edge.edge.stop()  # nothing is taken up: all wait
        warmer = edge.edge.warmer
        contents = [cid_of(number.to_bytes(4, "big")) for number in range(100)]
        assert all(warmer.want(contents[0], [block]) for block in contents)
        assert warmer.busy == 1
        taken = [warmer.want(content, []) for content in contents]
        assert (sum(taken), warmer.busy, warmer.counters.dropped) == (64, 64, 36)


class Meter:
    """An account that is full after `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0

    def admit(self, request: Request) -> None:
        if self.bytes >= self.limit:
            raise PaymentRequired("pay first")

    def served(self, request: Request, byte_count: int) -> None:
        assert request.peer == READER.public
        self.bytes += byte_count


async def test_what_an_edge_serves_is_metered_and_who_may_read_no_more_reads_from_the_nodes(
    source: Path, tmp_path: Path
) -> None:
    meter = Meter(MIB)
    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge", meter=meter) as edge:
        content = await stored(nodes, tmp_path, source)
        await warmed(edge, nodes, content, source)
        async with reader_near(nodes, edge) as network:
            for number in range(2):
                result = await read(network, content, tmp_path / f"{number}")
                assert snapshot(tmp_path / f"{number}") == snapshot(source)
            assert meter.bytes >= MIB
            assert result.edge_bytes == 0


async def test_what_nobody_has_is_not_found_with_an_edge_as_without(tmp_path: Path) -> None:
    async with (
        sites(tmp_path, 4) as nodes,
        edge_site(nodes, tmp_path / "edge") as edge,
        reader_near(nodes, edge) as network,
    ):
        with pytest.raises(NotFoundError, match="nobody of"):
            await read(network, cid_of(b"never stored"), tmp_path / "out")


async def test_a_restarted_edge_serves_what_it_kept(source: Path, tmp_path: Path) -> None:
    async with sites(tmp_path, 4) as nodes:
        content = await stored(nodes, tmp_path, source)
        async with edge_site(nodes, tmp_path / "edge") as edge:
            await warmed(edge, nodes, content, source)
        async with edge_site(nodes, tmp_path / "edge") as edge, reader_near(nodes, edge) as network:
            result = await read(network, content, tmp_path / "out")
            assert received_from(network, nodes) == 0
            assert result.edge_bytes == sum(map(len, dag_of(source).values()))


async def test_an_edge_that_lost_the_root_of_a_content_no_longer_announces_it(source: Path, tmp_path: Path) -> None:
    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge") as edge:
        content = await stored(nodes, tmp_path, source)
        await warmed(edge, nodes, content, source)
        assert edge.announces(content)
        (path,) = (tmp_path / "edge").glob(f"*/{cid_text(content)}")
        path.write_bytes(b"rotten")
        assert await edge.edge.block(content) is None
        await until(lambda: not edge.announces(content))


async def test_an_edge_fetches_no_more_than_it_may_keep(source: Path, tmp_path: Path) -> None:
    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge", bytes_max=MIB // 2) as edge:
        content = await stored(nodes, tmp_path, source)
        async with reader_near(nodes, edge) as network:
            await read(network, content, tmp_path / "out")
        small = [cid_of((source / f"{number}").read_bytes()) for number in range(30)]
        edge.edge.warmer.want(content, [])
        await until(lambda: edge.edge.warmer.busy == 0)
        assert edge.cache.size <= MIB // 2
        assert edge.edge.warmer.counters.fetched_bytes < MIB  # no whole chunk was fetched to be thrown away
        assert not any(cid in edge.cache for cid in small)  # before one is here, a leaf is taken for a whole chunk
        assert content in edge.cache


@pytest.mark.parametrize(
    "blocks", [[], [bytes(36)] * 65, [b"short"], [b"\x01\x55\x12\x20" + bytes(33)], [b"\x01\x99\x12\x20" + bytes(32)]]
)
async def test_a_request_that_does_not_hold_is_refused(blocks: list[bytes], tmp_path: Path) -> None:
    async with edge_site([], tmp_path / "edge") as edge, reader_near([], edge) as network:
        body = encode(EdgeReadRequest(cid_of(b"content"), blocks))
        with pytest.raises(PeerRefused) as refused:
            await network.client.post(edge.node_id, "/v1/edge/read", body, max_bytes=MIB, timeout_s=10)
        assert refused.value.status == 400
        assert edge.edge.warmer.busy == 0


async def test_who_shows_no_key_is_refused(tmp_path: Path) -> None:
    async with edge_site([], tmp_path / "edge") as edge, PeerClient(None, network=NETWORK) as stranger:
        stranger.learn(edge.node_id, [parse_host_port(edge.address)])
        body = encode(EdgeReadRequest(cid_of(b"content"), [cid_of(b"block")]))
        with pytest.raises(PeerRefused) as refused:
            await stranger.post(edge.node_id, "/v1/edge/read", body, max_bytes=MIB, timeout_s=10)
        assert refused.value.status == 401


async def test_an_answer_stays_within_its_bound_and_what_does_not_fit_comes_with_the_next(tmp_path: Path) -> None:
    blocks = [random.Random(number).randbytes(MIB) for number in range(6)]
    cids = [cid_of(block) for block in blocks]
    async with edge_site([], tmp_path / "edge") as edge, reader_near([], edge) as network:
        assert all(edge.cache.put(cid, block) for cid, block in zip(cids, blocks, strict=True))
        answer = await edge.edge.read(EdgeReadRequest(cids[0], list(cids)))
        assert answer == [*blocks[:4], None, None]
        assert edge.edge.warmer.busy == 0  # that is no miss
        edges = Edges(network, cids[0], [])
        got = await edges.ask(edge.node_id, [Ref(cid, None, 100) for cid in cids])  # taken for small ones
        assert got == dict(zip(cids, blocks, strict=True))


def test_what_is_asked_for_together_fits_one_answer() -> None:
    from dds.content.block import Ref

    leaves = [Ref(cid_of(bytes([number])), None, MIB) for number in range(9)]
    assert [len(group) for group in _groups(leaves)] == [4, 4, 1]
    small = [Ref(cid_of(number.to_bytes(4, "big")), None, 10) for number in range(130)]
    assert [len(group) for group in _groups(small)] == [64, 64, 2]
    assert _groups([]) == []

"""Reading from origins: real servers, a real DHT, and some that lie, hang or have gone."""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dds.primitives.cid import CID, cid_text, parse_cid
from dds.primitives.errors import NotEnoughFragments, NotFoundError
from dds.primitives.ids import NodeID
from dds.primitives.keys import SigningKey
from dds.primitives.units import BLOCK_BYTES_MAX
from dds.runtime.get import Reading
from dds.runtime.network import Network, put_origin_record
from dds.runtime.results import Culprit
from dds.storage.home import ClientConfig
from dds.storage.source import SourceOptions, build_dag
from dds.transport.client import PeerClient
from dds.transport.dht import DHTNode
from dds.transport.routes import Request, Response, Route
from dds.transport.server import PeerServer
from dds.wire.discovery import format_address
from tests.dht_network import dht_network
from tests.discovery_samples import NETWORK

READER = SigningKey(b"\x01" * 32)
Blocks = dict[CID, bytes]


@dataclass
class OriginSite:
    """A process that says it is the origin of a content. `answer` decides what it gives for a block."""

    number: int
    answer: Callable[[CID], bytes | None]
    asked: list[CID] = field(default_factory=list)
    hangs: bool = False
    address: str = ""

    @property
    def key(self) -> SigningKey:
        return SigningKey(bytes([100 + self.number]) * 32)

    @property
    def node_id(self) -> NodeID:
        return NodeID(self.key.public)

    @asynccontextmanager
    async def serving(self, dht: DHTNode, content: CID) -> AsyncIterator[None]:
        route = Route("GET", "/v1/blocks/{cid}", self._get, max_reply_bytes=BLOCK_BYTES_MAX)
        server = PeerServer(self.key, network=NETWORK, routes=[route])
        self.address = format_address("127.0.0.1", await server.start())
        await put_origin_record(dht, self.key, NETWORK, content, [self.address])
        try:
            yield
        finally:
            await server.stop(0.0)

    async def _get(self, request: Request) -> Response:
        self.asked.append(parse_cid(request.params["cid"]))
        if self.hangs:
            await asyncio.Event().wait()
        block = self.answer(self.asked[-1])
        if block is None:
            raise NotFoundError("not served here")
        return Response(200, block)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "source"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_bytes(random.Random(3).randbytes(3_000_000))
    for number in range(40):
        (root / f"{number}").write_text(f"file {number}")
    return root


def dag_of(source: Path) -> tuple[CID, Blocks]:
    blocks: Blocks = {}
    root = build_dag(source, SourceOptions(), lambda block, position: blocks.__setitem__(block.cid, block.data)).root
    return root.cid, blocks


@asynccontextmanager
async def network_with(content: CID, *sites: OriginSite) -> AsyncIterator[Network]:
    """A reader's view of a network whose only nodes are these origins, found through the DHT; the last is announced last."""
    async with AsyncExitStack() as stack:
        dhts = await stack.enter_async_context(dht_network(3, NETWORK))
        client = await stack.enter_async_context(PeerClient(READER, network=NETWORK))
        for site in sites:
            await stack.enter_async_context(site.serving(dhts[1], content))
        yield Network(READER, ClientConfig(NETWORK), client, dhts[0])


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def test_a_tree_is_read_from_an_origin_that_the_dht_names(source: Path, tmp_path: Path) -> None:
    content, blocks = dag_of(source)
    site = OriginSite(1, blocks.get)
    async with network_with(content, site) as network:
        result = await Reading(network, content).to_path(tmp_path / "out", "", None, overwrite=False)
        assert snapshot(tmp_path / "out") == snapshot(source)
        assert (result.kind, result.files, result.culprits) == ("directory", 41, [])
        assert sorted(site.asked) == sorted(blocks)  # each block once
        names = [entry.name for entry in await Reading(network, content).entries("sub")]
        assert names == ["file"]


async def test_a_range_of_a_file_takes_only_its_blocks(source: Path) -> None:
    content, blocks = dag_of(source)
    site, out = OriginSite(1, blocks.get), io.BytesIO()
    async with network_with(content, site) as network:
        result = await Reading(network, content).to_stream(out, "sub/file", (1_500_000, 1_500_100))
    assert out.getvalue() == (source / "sub" / "file").read_bytes()[1_500_000:1_500_100]
    assert result.kind == "file"
    assert len(site.asked) == 4  # two directories, the file's node, one chunk


async def test_an_origin_that_lies_is_named_and_asked_no_more(source: Path, tmp_path: Path) -> None:
    content, blocks = dag_of(source)

    def wrong(cid: CID) -> bytes:
        return blocks[cid][:-1] + b"!"

    honest, liar = OriginSite(1, blocks.get), OriginSite(2, wrong)
    async with network_with(content, honest, liar) as network:  # the newest word, the liar's, is tried first
        result = await Reading(network, content).to_path(tmp_path / "out", "", None, overwrite=False)
    assert snapshot(tmp_path / "out") == snapshot(source)
    assert result.culprits == [Culprit(liar.node_id, f"as an origin, sent other bytes than block {cid_text(content)}")]
    assert liar.asked == [content]


async def test_a_lie_alone_gives_nothing_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    content, _ = dag_of(source)
    async with network_with(content, OriginSite(1, lambda cid: b"anything")) as network:
        with pytest.raises(NotFoundError):
            await Reading(network, content).to_path(tmp_path / "out", "", None, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


async def test_origins_that_hang_refuse_or_have_gone_cost_patience_only(source: Path, tmp_path: Path) -> None:
    content, blocks = dag_of(source)
    honest, refusing = OriginSite(1, blocks.get), OriginSite(2, lambda cid: None)
    hanging, gone = OriginSite(3, blocks.get, hangs=True), OriginSite(4, blocks.get)
    async with network_with(content, honest, refusing, hanging) as network:
        async with dht_of(network) as dht, gone.serving(dht, content):
            pass
        began = time.monotonic()
        await Reading(network, content).to_path(tmp_path / "out", "", None, overwrite=False)
        assert time.monotonic() - began < 15
    assert snapshot(tmp_path / "out") == snapshot(source)


async def test_the_newest_word_says_where_an_origin_is(source: Path, tmp_path: Path) -> None:
    """The origin of a put has another port every time, and the records of earlier ones lie in the DHT for minutes."""
    content, blocks = dag_of(source)
    first, second = OriginSite(1, blocks.get), OriginSite(1, blocks.get)
    async with network_with(content) as network, dht_of(network) as dht:
        async with first.serving(dht, content):
            await Reading(network, content).to_path(tmp_path / "one", "", None, overwrite=False)
        async with second.serving(dht, content):
            await Reading(network, content).to_path(tmp_path / "two", "", None, overwrite=False)
    assert snapshot(tmp_path / "two") == snapshot(source)


async def test_content_that_is_nowhere_is_not_found(source: Path, tmp_path: Path) -> None:
    content, _ = dag_of(source)
    async with network_with(content) as network:
        with pytest.raises(NotFoundError, match="nobody"):
            await Reading(network, content).to_path(tmp_path / "out", "", None, overwrite=False)


@asynccontextmanager
async def dht_of(network: Network) -> AsyncIterator[DHTNode]:
    """The DHT node that the reader was given."""
    dht = await network.dht()
    assert dht is not None
    yield dht


async def test_a_source_that_stalls_is_left_only_while_there_is_an_origin(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dds.runtime.get.STALL_S", 0.1)
    content, blocks = dag_of(source)

    async def late(after_s: float) -> list[bytes]:
        await asyncio.sleep(after_s)
        return [b"late"]

    async with network_with(content, OriginSite(1, blocks.get)) as network:
        reading = Reading(network, content)
        assert await reading.unless_stalled(late(0.5)) == [b"late"]  # the DHT has not been asked yet
        await reading.resolver.providers(content)
        with pytest.raises(NotEnoughFragments, match="nothing has come"):
            await reading.unless_stalled(late(60))
        assert await reading.unless_stalled(late(0.0)) == [b"late"]
        reading.resolver.close()

"""Paying an edge: a real one with its meter, a real ledger, and readers that pay, do not, or are asked too much."""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dds.content.block import Ref
from dds.ledger.records import DEPOSITS
from dds.primitives.cid import CID, cid_of
from dds.primitives.errors import DDSError
from dds.primitives.money import AMOUNT_MAX, TOKEN, mul_div_ceil
from dds.primitives.units import GIB, KIB, MIB
from dds.protocol import edge_choice
from dds.protocol.reading_account import ReadingPolicy
from dds.runtime.edge_blocks import Edges
from dds.runtime.get import Reading
from dds.runtime.ledger_client import open_ledger
from dds.runtime.network import Network
from dds.runtime.node import open_node
from dds.runtime.purse import Purse, PurseTerms
from dds.runtime.reading_meter import PaidMeter
from dds.runtime.results import GetResult
from dds.storage.home import NodeConfig, NodeHome, parse_host_port
from dds.storage.keyfile import create_key
from dds.storage.purse_book import PurseBook
from dds.storage.source import SourceOptions, build_dag
from dds.transport.routes import Request, Response, message_response
from dds.wire.api import encode_frames
from dds.wire.codec import decode
from dds.wire.ledger import Transfer
from dds.wire.retrieval import EdgeReadRequest, ReadingTerms
from tests.edge_kit import EdgeSite, edge_key, edge_site, reader_near
from tests.ledger_desk import CREATOR, NETWORK, LedgerDesk, ledger_desk
from tests.paid_site import BLOCK_BYTES, BLOCK_COST, paid_site

PRICE = 1_862
POLICY = ReadingPolicy(PRICE, 0, 64 * KIB)  # paid from the first byte, and little credit
EDGE_READ = ("POST", "/v1/edge/read")
TERMS = ("GET", "/v1/reading/terms")
DATA = random.Random(5).randbytes(3 * MIB)


@pytest.fixture(autouse=True)
def patient_readers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A busy machine must not make an edge look late."""
    for name in ("PATIENCE_S_UNKNOWN", "PATIENCE_S_MIN", "PATIENCE_S_MAX"):
        monkeypatch.setattr(edge_choice, name, 60.0)
    return iter(())


@pytest.fixture(scope="module")
def dag(tmp_path_factory: pytest.TempPathFactory) -> dict[CID, bytes]:
    """The content's blocks, its root last."""
    file = tmp_path_factory.mktemp("dag") / "file"
    file.write_bytes(DATA)
    blocks: dict[CID, bytes] = {}
    build_dag(file, SourceOptions(), lambda block, position: blocks.__setitem__(block.cid, block.data))
    return blocks


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[LedgerDesk]:
    with ledger_desk(tmp_path) as made:
        yield made


@asynccontextmanager
async def paid_edge(desk: LedgerDesk, directory: Path, dag: dict[CID, bytes]) -> AsyncIterator[EdgeSite]:
    """It has the whole content, and nobody else has any of it: what it does not give cannot be read."""
    directory.mkdir()
    key = edge_key(0)
    now_ms = lambda: time.time_ns() // 1_000_000  # noqa: E731
    with ThreadPoolExecutor(1) as pool:
        async with open_ledger(desk.home.client_config().ledger, network=NETWORK, key=key) as books:
            meter = PaidMeter(key, NETWORK, POLICY, directory, books, pool, now_ms, redeem_epochs=24)
            async with edge_site([], directory / "edge", meter=meter, more=meter.routes()) as edge:
                assert all(edge.cache.put(cid, block) for cid, block in dag.items())
                yield edge
            await meter.close()


@asynccontextmanager
async def paying(
    desk: LedgerDesk, directory: Path, edge: EdgeSite, price_max: int = 10_000
) -> AsyncIterator[tuple[Network, Purse]]:
    terms = PurseTerms(TOKEN, price_max)
    purse = Purse(CREATOR, NETWORK, directory / "purse.sqlite", terms, desk.home.client_config().ledger)
    try:
        async with reader_near([], edge, key=CREATOR, purse=purse) as network:
            yield network, purse
    finally:
        await purse.close()


async def read(network: Network, dag: dict[CID, bytes]) -> GetResult:
    out = io.BytesIO()
    result = await Reading(network, list(dag)[-1]).to_stream(out, "", None)
    assert out.getvalue() == DATA
    return result


async def test_an_edge_that_serves_no_more_on_credit_is_paid_and_the_read_goes_on_there(
    desk: LedgerDesk, dag: dict[CID, bytes], tmp_path: Path
) -> None:
    whole = sum(map(len, dag.values()))
    async with paid_edge(desk, tmp_path / "site", dag) as edge, paying(desk, tmp_path, edge) as (network, purse):
        for done in range(3):
            assert (await read(network, dag)).edge_bytes == whole
            assert (purse.paid > 0) == (done > 0)  # the first read is on credit; each other one begins with a refusal
        assert edge.asked.count("GET /v1/blocks/{cid}") == 3 + 2
        assert network.edge_choice.is_usable(edge.node_id, asyncio.get_running_loop().time())
        assert await purse.settle() == mul_div_ceil(3 * whole, PRICE, KIB)
        assert purse.unpaid == {}


async def test_an_edge_dearer_than_the_limit_is_paid_nothing_and_left_alone(
    desk: LedgerDesk, dag: dict[CID, bytes], tmp_path: Path
) -> None:
    async with (
        paid_edge(desk, tmp_path / "site", dag) as edge,
        paying(desk, tmp_path, edge, price_max=PRICE - 1) as (network, purse),
    ):
        await read(network, dag)
        with pytest.raises(DDSError):
            await read(network, dag)
        assert "reading_price_max" in str(purse.hint())
        assert await purse.settle() == 0
        assert not network.edge_choice.is_usable(edge.node_id, asyncio.get_running_loop().time())


async def test_an_edge_that_asks_for_more_than_it_served_is_paid_for_what_it_served(
    desk: LedgerDesk, dag: dict[CID, bytes], tmp_path: Path
) -> None:
    async def greedy(request: Request) -> Response:
        return message_response(ReadingTerms(10_000, 0, 64 * KIB, GIB, AMOUNT_MAX, 0))

    async with paid_edge(desk, tmp_path / "site", dag) as edge, paying(desk, tmp_path, edge) as (network, purse):
        edge.lies[TERMS] = greedy
        await read(network, dag)
        await purse.settle()
        came = network.client.counters[edge.node_id].received_bytes
        assert 0 < purse.paid <= came * 10_000 // KIB


async def test_an_edge_that_lied_is_not_paid_in_that_session(desk: LedgerDesk, dag: dict[CID, bytes], tmp_path: Path) -> None:
    async def lie(request: Request) -> Response:
        blocks = decode(request.body, EdgeReadRequest, max_bytes=MIB).blocks
        answer = Response(200, encode_frames([bytes(MIB)] * len(blocks)))
        meter.served(request, len(blocks) * MIB)
        return answer

    async with paid_edge(desk, tmp_path / "site", dag) as edge, paying(desk, tmp_path, edge) as (network, purse):
        assert edge.meter is not None
        meter = edge.meter
        edge.lies[EDGE_READ] = lie
        with pytest.raises(DDSError):
            await read(network, dag)
        assert await purse.settle() == 0
        assert not await purse.pay(edge.node_id, "/v1/edge/read")
        assert "wrong bytes" in str(purse.hint())


async def test_what_a_reader_asked_an_edge_for_and_broke_off_can_still_be_paid(
    desk: LedgerDesk, dag: dict[CID, bytes], tmp_path: Path
) -> None:
    """The edge counts the answers that it made: a reader that forgot them would be stopped there for good."""
    came = asyncio.Event()

    async def hang(request: Request) -> Response:
        came.set()
        return await asyncio.Future()

    leaves = [Ref(cid, 0, len(block)) for cid, block in list(dag.items())[:-1]]
    async with paid_edge(desk, tmp_path / "site", dag) as edge, paying(desk, tmp_path, edge) as (network, _):
        edge.lies[EDGE_READ] = hang
        asking = asyncio.create_task(Edges(network, cid_of(b"content"), []).ask(edge.node_id, leaves))
        await came.wait()
        asking.cancel()
        await asyncio.wait((asking,))
        assert asking.cancelled()
    book = PurseBook(tmp_path / "purse.sqlite", NETWORK, CREATOR.public)
    assert book.tab(edge.node_id).bytes == len(DATA)
    book.close()


async def test_an_edge_pays_for_what_it_fetches_from_its_own_account(desk: LedgerDesk, tmp_path: Path) -> None:
    files = NodeHome(tmp_path / "node")
    files.root.mkdir(mode=0o700)
    account = create_key(files.key_file, b"\x77" * 32).public
    await asyncio.to_thread(desk.send, CREATOR, Transfer(account, TOKEN))
    ledger = desk.home.client_config().ledger
    config = NodeConfig("edge", NETWORK, roles=("ecn",), ledger=ledger, reading_deposit=TOKEN // 2)
    async with paid_site(desk, tmp_path / "site") as site:
        async with open_node(config, files) as node:
            assert node.edge is not None
            network = node.edge.warmer._network()  # what contents are fetched through
            network.client.learn(site.node_id, [parse_host_port(site.address)])
            for _ in range(12):  # four on credit
                assert len(await site.read(network.client)) == BLOCK_BYTES
        async with open_node(config, files) as node:  # what it has promised is known after a restart
            assert node.edge is not None
            network = node.edge.warmer._network()
            network.client.learn(site.node_id, [parse_host_port(site.address)])
            for _ in range(4):
                await site.read(network.client)
        assert await site.meter.redeemer.redeem() == 12 * BLOCK_COST  # the last four are on credit again
    deposit = desk.replica.find(DEPOSITS, account)
    assert deposit is not None and deposit.amount == TOKEN // 2 - 12 * BLOCK_COST

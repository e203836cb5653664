"""An edge inside the test's own process: a real server, cache and warmer over the storing nodes of node_sites.py, no daemon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from dds.primitives.cid import CID, cid_text, parse_cid
from dds.primitives.errors import NotFoundError
from dds.primitives.ids import NodeID
from dds.primitives.keys import SigningKey
from dds.primitives.units import BLOCK_BYTES_MAX, MIB
from dds.runtime.announce import Announcer
from dds.runtime.edge import Edge, EdgeParts
from dds.runtime.edge_routes import EdgeRoutes
from dds.runtime.network import Network
from dds.runtime.purse import Purse
from dds.runtime.reading_port import ReadingMeter
from dds.storage.announce_queue import AnnounceQueue
from dds.storage.block_cache import BlockCache
from dds.storage.home import ClientConfig, NodeConfig
from dds.transport.client import PeerClient
from dds.transport.dht import DHTNode
from dds.transport.routes import Request, Response, Route, rpc_route
from dds.transport.server import PeerServer
from dds.wire.discovery import NODE, format_address, sign_record
from dds.wire.retrieval import PopularityReply, PopularityRequest
from tests.discovery_samples import NETWORK, node_record
from tests.node_sites import Handler, Site

REGION = "here"
READER = SigningKey(b"\x02" * 32)


def edge_key(number: int) -> SigningKey:
    return SigningKey(bytes([90 + number]) * 32)


class EdgeSite:
    """One edge of the region `here`. `lies` replaces handlers, as in node_sites.py."""

    def __init__(self, number: int, root: Path, config: NodeConfig, network: Network, pool: ThreadPoolExecutor) -> None:
        self.key = edge_key(number)
        self.node_id = NodeID(self.key.public)
        self.address = ""
        self.lies: dict[tuple[str, str], Handler] = {}
        self.asked: list[str] = []
        self.root, self.network = root, network
        seed = bytes([number]) * 32
        self.announcer = Announcer(
            self.key,
            NETWORK,
            DHTNode(NETWORK),
            lambda: AnnounceQueue(root.with_name(f"{root.name}-announced.sqlite")),
            lambda: [self.address],
            seed,
            held=lambda announcements: [True for _ in announcements],
        )
        self.edge = Edge(root, config, EdgeParts(pool, self.announcer, lambda: network, seed))

    def record(self) -> bytes:
        made = node_record(self.key, seq=time.time_ns() // 1_000_000)
        return sign_record(
            self.key, NODE, msgspec.structs.replace(made, addresses=[self.address], roles=["ecn"], region=REGION)
        )

    def server(self, meter: ReadingMeter | None, more: Sequence[Route]) -> PeerServer:
        block = Route("GET", "/v1/blocks/{cid}", self._block, max_reply_bytes=BLOCK_BYTES_MAX)
        self.meter = meter
        popularity = rpc_route("/v1/popularity", PopularityRequest, self._popularity, max_body_bytes=64 << 10)
        routes = [block, popularity, *EdgeRoutes(self.edge, meter).routes(), *more]
        return PeerServer(self.key, network=NETWORK, routes=[self._route(route) for route in routes])

    def _route(self, route: Route) -> Route:
        async def handle(request: Request) -> Response:
            self.asked.append(f"{route.method} {route.path}")
            return await self.lies.get((route.method, route.path), route.handler)(request)

        return replace(route, handler=handle)

    async def _block(self, request: Request) -> Response:
        cid = parse_cid(request.params["cid"])
        if self.meter is not None:
            self.meter.admit(request)
        block = await self.edge.block(cid)
        if block is None:
            raise NotFoundError(f"block {cid_text(cid)} is not served here")
        if self.meter is not None:
            self.meter.served(request, len(block))
        return Response(200, block)

    async def _popularity(self, _request: Request, message: PopularityRequest) -> PopularityReply:
        return PopularityReply([0] * len(message.segments), self.edge.popularity.served_bytes(message.contents))

    @property
    def cache(self) -> BlockCache:
        return self.edge._cache

    def announces(self, content: CID) -> bool:
        return content in self.edge._announced


@asynccontextmanager
async def edge_site(
    nodes: Sequence[Site],
    root: Path,
    *,
    number: int = 0,
    bytes_max: int = 64 * MIB,
    meter: ReadingMeter | None = None,
    more: Sequence[Route] = (),
) -> AsyncIterator[EdgeSite]:
    """An edge that knows the nodes; it is stopped like a killed one. `more`: routes of its meter."""
    config = NodeConfig("edge", NETWORK, roles=("ecn",), region=REGION, edge_bytes_max=bytes_max)
    async with AsyncExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2))
        key = edge_key(number)
        client = await stack.enter_async_context(PeerClient(key, network=NETWORK))
        network = Network(key, ClientConfig(NETWORK, region=REGION), client)
        network.learn([node.record() for node in nodes])
        site = EdgeSite(number, root, config, network, pool)
        await site.edge.start()
        stack.push_async_callback(site.edge.stop)
        server = site.server(meter, more)
        site.address = format_address("127.0.0.1", await server.start())
        stack.push_async_callback(server.stop, 0.0)
        yield site


@asynccontextmanager
async def reader_near(
    nodes: Sequence[Site], *edges: EdgeSite, key: SigningKey = READER, rtt_ms: int = 0, purse: Purse | None = None
) -> AsyncIterator[Network]:
    """A reader in the edges' region; all storing nodes are elsewhere, `rtt_ms` away."""
    known: list[Network] = []
    distance = (lambda node: known[0].distance_s(node)) if rtt_ms else None
    async with PeerClient(key, network=NETWORK, distance=distance, payer=purse) as client:
        if purse is not None:
            purse.start(client)
        network = Network(key, ClientConfig(NETWORK, region=REGION, simulated_rtt_ms=rtt_ms), client, purse=purse)
        known.append(network)
        network.learn([*(node.record() for node in nodes), *(edge.record() for edge in edges)])
        try:
            yield network
        finally:
            await network.stop()


async def until(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
    """Wait for what goes on in the background."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def received_from(network: Network, nodes: Sequence[Site]) -> int:
    """Bytes that a reader got from storing nodes."""
    counters = network.client.counters
    return sum(counters[node.node_id].received_bytes for node in nodes if node.node_id in counters)

"""Storing nodes inside the test's own process: real servers, stores and certificates, but no DHT and no daemon around them.

    async with sites(tmp_path, 8) as nodes, reader(nodes) as network: ...

A site may be stopped like a killed node, and any of its routes may be replaced by a handler that lies.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import msgspec

from dds.primitives.cid import CID
from dds.primitives.ids import NodeID
from dds.primitives.keys import SigningKey
from dds.primitives.units import GIB
from dds.runtime.network import Network
from dds.runtime.node_routes import NodeFaces, NodeRoutes
from dds.runtime.node_service import NodeService
from dds.runtime.popularity import PopularityCounter
from dds.runtime.put import Put, Source
from dds.runtime.results import PutOptions, PutResult
from dds.runtime.staging import StagingQuota
from dds.storage.catalog import Catalog
from dds.storage.fragment_store import FragmentStore, StoreConfig
from dds.storage.home import ClientConfig
from dds.transport.client import PeerClient
from dds.transport.routes import Request, Response, Route
from dds.transport.server import PeerServer
from dds.wire.discovery import NODE, format_address, sign_record
from dds.wire.manifest import INLINE_BODY_BYTES_MAX
from tests.discovery_samples import NETWORK, node_record

PUBLISHER = SigningKey(b"\x01" * 32)
Handler = Callable[[Request], Awaitable[Response]]


class Site:
    """One storing node."""

    def __init__(self, number: int, directory: Path) -> None:
        self.key = SigningKey(bytes([50 + number]) * 32)
        self.node_id = NodeID(self.key.public)
        self.number, self.address = number, ""
        self.roles = ["ssn"]
        self.store = FragmentStore(directory, StoreConfig(GIB))
        self.service = NodeService(self.store, self.key, NETWORK)
        self.popularity = PopularityCounter(self.store, directory)
        self.lies: dict[tuple[str, str], Handler] = {}  # (method, path) -> what answers instead
        self._pool = ThreadPoolExecutor(1)
        self._server: PeerServer | None = None

    def record(self) -> bytes:
        made = node_record(self.key, seq=time.time_ns() // 1_000_000)
        record = msgspec.structs.replace(
            made,
            addresses=[self.address],
            roles=self.roles,
            region=f"region-{self.number % 5}",
            operator=f"operator-{self.number}",
            subnet=f"net-{self.number}",
        )
        return sign_record(self.key, NODE, record)

    async def start(self, nodes: Sequence[Site]) -> None:
        async def no_metrics() -> str:
            return ""

        faces = NodeFaces(
            record=self.record,
            peers=lambda: [node.record() for node in nodes],
            health=lambda: {"ready": True},
            metrics=no_metrics,
            committed=lambda receipted: None,
            published=lambda manifest: None,
            popularity=self.popularity,
        )
        quota = StagingQuota(total_bytes_max=GIB, ttl_s=3600)
        routes = NodeRoutes(self.service, self._pool, quota, faces).routes()
        self._server = PeerServer(self.key, network=NETWORK, routes=[self._route(route) for route in routes])
        self.address = format_address("127.0.0.1", await self._server.start())

    def _route(self, route: Route) -> Route:
        async def handle(request: Request) -> Response:
            return await self.lies.get((route.method, route.path), route.handler)(request)

        return replace(route, handler=handle)

    async def stop(self) -> None:
        """Like a killed node: its port is closed."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(0.0)

    def close(self) -> None:
        self._pool.shutdown()
        self.store.close()


@asynccontextmanager
async def sites(directory: Path, count: int, archive: int = 0) -> AsyncIterator[list[Site]]:
    """So many storage nodes, and behind them so many archive nodes."""
    nodes = [Site(number, directory / f"node-{number}") for number in range(count + archive)]
    for node in nodes[count:]:
        node.roles = ["asn"]
    async with AsyncExitStack() as stack:
        for node in nodes:
            stack.callback(node.close)
            await node.start(nodes)
            stack.push_async_callback(node.stop)
        yield nodes


@asynccontextmanager
async def reader(nodes: Sequence[Site], key: SigningKey = PUBLISHER) -> AsyncIterator[Network]:
    """A client's view of them, which knows them all."""
    async with PeerClient(key, network=NETWORK) as client:
        network = Network(key, ClientConfig(NETWORK), client)
        for node in nodes:
            network._learn(node.record())
        try:
            yield network
        finally:
            await network.stop()


async def put(network: Network, directory: Path, source: Source, options: PutOptions, *, inline_bytes: int = 0) -> PutResult:
    """Put `source` from a home in `directory`."""
    with Catalog(directory / "catalog.sqlite") as catalog:
        room = inline_bytes or INLINE_BODY_BYTES_MAX
        one = Put(
            network, catalog, directory / "spool", options, lambda progress: None, inline_body_bytes_max=room, serve=False
        )
        return await one.run(source)


def holders_of(nodes: Sequence[Site], content: CID) -> list[Site]:
    """Who keeps a manifest of the content."""
    return [node for node in nodes if node.store.manifests(content)]

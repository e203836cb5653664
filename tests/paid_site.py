"""A node that is paid for reads, on loopback, beside a real ledger: it serves made-up blocks and keeps accounts of who reads.

with ledger_desk(tmp_path) as desk:
    async with paid_site(desk, tmp_path / "node") as site, reading(desk, tmp_path / "reader", site) as (client, purse): ...
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dds.primitives.cid import CID, cid_of, cid_text
from dds.primitives.ids import NodeID
from dds.primitives.keys import SigningKey
from dds.primitives.money import TOKEN
from dds.primitives.units import GIB, KIB
from dds.protocol.reading_account import ReadingPolicy
from dds.runtime.ledger_client import open_ledger
from dds.runtime.node_routes import NodeFaces, NodeRoutes
from dds.runtime.node_service import NodeService
from dds.runtime.purse import Purse, PurseTerms
from dds.runtime.reading_meter import PaidMeter
from dds.runtime.staging import StagingQuota
from dds.storage.fragment_store import FragmentStore, StoreConfig
from dds.storage.home import parse_host_port
from dds.transport.client import PeerClient
from dds.transport.server import PeerServer
from dds.wire.discovery import format_address
from tests.ledger_desk import CREATOR, NETWORK, NODES, LedgerDesk

BLOCK_BYTES = 64 * KIB
PRICE = 1_862
BLOCK_COST = PRICE * BLOCK_BYTES // KIB
POLICY = ReadingPolicy(PRICE, 0, 4 * BLOCK_BYTES)  # paid from the first byte, four blocks on credit
NODE_KEY = NODES[0]


@lru_cache
def block() -> bytes:
    return bytes(range(256)) * (BLOCK_BYTES // 256)


PATH = f"/v1/blocks/{cid_text(cid_of(block()))}"


@dataclass
class PaidSite:
    node_id: NodeID
    meter: PaidMeter
    address: str

    async def read(self, client: PeerClient) -> bytes:
        return await client.get(self.node_id, PATH, max_bytes=BLOCK_BYTES, timeout_s=20)


@asynccontextmanager
async def paid_site(
    desk: LedgerDesk, directory: Path, policy: ReadingPolicy = POLICY, *, key: SigningKey = NODE_KEY, ledger: str = ""
) -> AsyncIterator[PaidSite]:
    """One node; what it was paid and owed stays in `directory` for the next. `ledger`: another than the desk's."""

    async def no_metrics() -> str:
        return ""

    async def source(cid: CID) -> bytes | None:
        return block() if cid == cid_of(block()) else None

    directory.mkdir(parents=True, exist_ok=True)
    store = FragmentStore(directory / "store", StoreConfig(GIB))
    pool = ThreadPoolExecutor(2)
    try:
        async with open_ledger(ledger or desk.home.client_config().ledger, network=NETWORK, key=key) as books:
            now_ms = lambda: time.time_ns() // 1_000_000  # noqa: E731
            meter = PaidMeter(key, NETWORK, policy, directory, books, pool, now_ms, redeem_epochs=24)
            faces = NodeFaces(
                record=lambda: b"",
                peers=list,
                health=lambda: {"ready": True},
                metrics=no_metrics,
                committed=lambda receipted: None,
                published=lambda manifest: None,
                meter=meter,
            )
            quota = StagingQuota(total_bytes_max=GIB, ttl_s=3600)
            routes = NodeRoutes(NodeService(store, key, NETWORK), pool, quota, faces)
            routes.serve_blocks(source)
            server = PeerServer(key, network=NETWORK, routes=[*routes.routes(), *meter.routes()])
            address = format_address("127.0.0.1", await server.start())
            try:
                yield PaidSite(NodeID(key.public), meter, address)
            finally:
                await server.stop(0.0)
                await meter.close()
    finally:
        pool.shutdown()
        store.close()


@asynccontextmanager
async def reading(
    desk: LedgerDesk,
    directory: Path,
    *sites: PaidSite,
    key: SigningKey = CREATOR,
    deposit: int = TOKEN,
    price_max: int = 10_000,
    grant: bytes = b"",
    ledger: str | None = None,
) -> AsyncIterator[tuple[PeerClient, Purse]]:
    """A reader with a purse; its catalog stays in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    address = desk.home.client_config().ledger if ledger is None else ledger
    purse = Purse(key, NETWORK, directory / "catalog.sqlite", PurseTerms(deposit, price_max), address, grant=grant)
    try:
        async with PeerClient(key, network=NETWORK, payer=purse) as client:
            purse.start(client)
            for site in sites:
                client.learn(site.node_id, [parse_host_port(site.address)])
            yield client, purse
    finally:
        await purse.close()

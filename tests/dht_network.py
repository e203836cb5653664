"""A network of real OpenDHT nodes on 127.0.0.1 for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dds.transport.dht import DHTNode


@asynccontextmanager
async def dht_network(count: int, network: str) -> AsyncIterator[list[DHTNode]]:
    """`count` nodes of one process, joined through the first; all are stopped at the end."""
    nodes = [DHTNode(network) for _ in range(count)]
    try:
        await nodes[0].start("127.0.0.1")
        for node in nodes[1:]:
            await node.start("127.0.0.1", bootstrap=[("127.0.0.1", nodes[0].port)])
        yield nodes
    finally:
        assert all(await asyncio.gather(*(node.stop() for node in nodes)))

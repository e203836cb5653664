"""A node behind a router is reached: a real miniupnpd in network namespaces, and iroh where nothing can be dialled."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dds.primitives.ids import NodeID, parse_id
from dds.primitives.keys import SigningKey
from dds.transport.client import PeerClient
from dds.transport.iroh_link import IrohLink
from dds.wire.discovery import NODE, SIGNED_RECORD_BYTES_MAX, open_record
from tests.e2e.devnet_cli import wait_until
from tests.e2e.node_process import NETWORK, NodeProcess
from tests.namespaces import HOME, WAN, Home, home_behind_router, missing

pytestmark = pytest.mark.e2e

READER = SigningKey(b"r" * 32)
ASK = """
import asyncio, json, sys
from dds.primitives.ids import NodeID, parse_id
from dds.transport.client import PeerClient
from dds.wire.discovery import NODE, open_record

async def main(node, network, host, port):
    async with PeerClient(None, network=network) as client:
        client.learn(NodeID(parse_id(node)), [(host, int(port))])
        raw = await client.get(NodeID(parse_id(node)), "/v1/node", max_bytes=4096, timeout_s=10)
        print(json.dumps(open_record(raw, NODE, network).addresses))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(params=["NAT-PMP", "UPnP"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Home]:
    if reason := missing():
        pytest.skip(f"a router cannot be set up: {reason}")
    with home_behind_router(tmp_path, natpmp=request.param == "NAT-PMP", upnp=request.param == "UPnP") as made:
        yield made


def test_a_node_at_home_is_dialled_from_outside_and_takes_its_mapping_back(home: Home, tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "node", via=home.inside("home"), host=HOME, nat="auto") as node:
        port, node_id = node.state.address.rpartition(":")[2], node.state.id
        wait_until(lambda: f"dport {port}" in home.rules())
        mapped = f"{WAN}:{port}"

        def told_outside() -> list[str]:
            asked = home.run("outside", sys.executable, "-c", ASK, node_id, NETWORK, WAN, port)
            addresses: list[str] = json.loads(asked)
            return addresses

        wait_until(lambda: told_outside() == [mapped, f"{HOME}:{port}"])
        assert node.stop() == 0
        assert f"dport {port}" not in home.rules()


async def test_a_node_that_cannot_be_dialled_is_reached_over_iroh_under_its_own_key(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "node", iroh=True) as node:
        node_id = NodeID(parse_id(node.state.id))
        async with node_client() as dialling:
            dialling.learn(node_id, [("127.0.0.1", int(node.state.address.rpartition(":")[2]))])
            raw = await dialling.get(node_id, "/v1/node", max_bytes=SIGNED_RECORD_BYTES_MAX, timeout_s=10)
        record = open_record(raw, NODE, NETWORK)
        assert record.iroh
        async with node_client() as client:
            link = IrohLink(READER, lambda asked: record.iroh if asked == node_id else ())
            await link.start("127.0.0.1")
            try:
                client.add_way(link.way_to)  # no address is known: this is the only way
                assert await client.get(node_id, "/v1/node", max_bytes=SIGNED_RECORD_BYTES_MAX, timeout_s=20)
                pages = [client.get(node_id, "/metrics", max_bytes=1 << 20, timeout_s=20) for _ in range(8)]
                assert all(page.startswith(b"#") for page in await asyncio.gather(*pages))
            finally:
                await link.stop()


def node_client() -> PeerClient:
    return PeerClient(READER, network=NETWORK)

"""An edge in its own process, on a devnet of other regions: the second read of an object is served by it, checked and near."""

from __future__ import annotations

import asyncio
import re
import ssl
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dds.primitives.cid import CID, cid_of, cid_text
from dds.primitives.errors import PeerRefused
from dds.runtime.node import Node, open_node
from dds.storage.home import (
    Home,
    NodeHome,
    load_client_config,
    load_node_config,
    parse_host_port,
    write_client_config,
    write_node_config,
)
from dds.transport.client import PeerClient
from dds.wire.retrieval import PopularityReply, PopularityRequest
from tests.e2e.devnet_cli import Program, running_devnet, same_file, wait_until, write_random
from tests.e2e.node_process import NETWORK, SMALL_NODE

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("edge")]

MIB = 1 << 20
HERE = "here"
RTT_MS = 80


@pytest.fixture(scope="module")
def dds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running_devnet(tmp_path_factory.mktemp("edge") / "home", "--nodes", "6", "--operators", "6") as program:
        yield program


@contextmanager
def running_edge(dds: Program, home: Path) -> Iterator[Program]:
    """A node with the role ecn and nothing else, in the region `here`."""
    home.mkdir(mode=0o700)
    config = replace(load_client_config(dds.home / "config.toml"), simulated_rtt_ms=RTT_MS)
    write_client_config(home / "config.toml", config)
    edge = Program(home)
    edge.run("node", "init", "--role", "ecn", "--region", HERE)
    file = Home(home).node.config_file
    write_node_config(file, replace(load_node_config(file), simulated_rtt_ms=RTT_MS))
    with edge.start("node", "run") as process:
        try:
            wait_until((home / "node" / "state.json").exists)
            yield edge
        finally:
            process.terminate()
            assert process.wait(30) == 0


def status(edge: Program) -> dict[str, Any]:
    said: dict[str, Any] = edge.json("node", "status")["health"]["edge"]
    return said


def cached(home: Path) -> list[Path]:
    return list((home / "node" / "edge").glob("*/ba*"))


def served_by(addresses: list[str]) -> int:
    """Requests for content, metadata included, that the storing nodes have answered."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    total = 0
    for address in addresses:
        with urllib.request.urlopen(f"https://{address}/metrics", context=trusting, timeout=30) as page:
            text = page.read().decode()
        for route in ("/v1/content", "/v1/segments", "/v1/fragments", "/v1/read", "/v1/leaves"):
            found = re.findall(rf'^dds_requests_total{{route="[A-Z ]*{route}[^"]*".*}} (\d+)$', text, re.MULTILINE)
            total += sum(map(int, found))
    return total


def test_an_object_read_twice_from_another_region_comes_from_the_edge(dds: Program, tmp_path: Path) -> None:
    with running_edge(dds, tmp_path / "edge") as edge:
        source = write_random(tmp_path / "source", 3 * MIB + 5, seed=1)
        content = dds.text("put", "--class", "custom", "-k", "2", "-m", "2", source)
        first = edge.json("get", content, "--region", HERE, "-o", tmp_path / "first")
        assert same_file(source, tmp_path / "first")
        assert first["edge_bytes"] == 0
        wait_until(lambda: len(cached(edge.home)) == 5)  # the root and four chunks
        elsewhere = [node["address"] for node in dds.nodes()]
        before = served_by(elsewhere)
        assert before > 0  # the first read
        for attempt in range(20):  # on a machine that stands still, a reader does not wait for the edge
            second = edge.json("get", content, "--region", HERE, "-o", tmp_path / f"second-{attempt}")
            assert same_file(source, tmp_path / f"second-{attempt}")
            if (after := served_by(elsewhere)) == before:
                break
            before = after
        assert after == before
        assert second["edge_bytes"] > 3 * MIB
        assert second["culprits"] == []
        assert status(edge)["hit_bytes"] >= second["edge_bytes"]

        for path in cached(edge.home):
            path.write_bytes(b"rotten")
        third = edge.json("get", content, "--region", HERE, "-o", tmp_path / "third")
        assert same_file(source, tmp_path / "third")
        assert third["edge_bytes"] == 0


async def until_announced(node: Node, contents: list[CID]) -> None:
    """News reach the queue on disk a moment later."""
    async with asyncio.timeout(60):
        while await node.announcer.contents_announced("edge", 10) != contents:
            await asyncio.sleep(0.01)


async def test_a_node_may_store_and_be_an_edge(tmp_path: Path) -> None:
    files = NodeHome(tmp_path / "node")
    files.root.mkdir(mode=0o700)
    block = b"a block that readers ask for"
    cid = cid_of(block)
    async with open_node(replace(SMALL_NODE, roles=("ssn", "ecn")), files) as node, PeerClient(None, network=NETWORK) as client:
        client.learn(node.node_id, [parse_host_port(node.addresses[0])])
        path = f"/v1/blocks/{cid_text(cid)}"
        with pytest.raises(PeerRefused):
            await client.get(node.node_id, path, max_bytes=MIB, timeout_s=20)
        assert node.edge is not None
        await node.edge.keep(cid, [(cid, block)])
        assert await client.get(node.node_id, path, max_bytes=MIB, timeout_s=20) == block
        page = await node.metrics_page()
        assert re.search(r"^dds_edge_hits_total 1$", page, re.MULTILINE)
        assert re.search(r"^dds_edge_misses_total 1$", page, re.MULTILINE)
        assert re.search(rf"^dds_edge_bytes {len(block)}$", page, re.MULTILINE)
        node.edge.popularity.served(cid, 1000)
        said = await client.call(
            node.node_id,
            "/v1/popularity",
            PopularityRequest([bytes(32)], [cid]),
            PopularityReply,
            max_bytes=MIB,
            timeout_s=20,
        )
        assert said == PopularityReply([0], [1000])
        await until_announced(node, [cid])
    async with open_node(load_node_config(files.config_file), files) as node:  # it knows what it has, and has said
        assert node.edge is not None
        assert await node.edge.block(cid) == block
        assert 990 <= node.edge.popularity.served_bytes([cid])[0] <= 1000
        (tmp_path / "node" / "edge" / f"{cid[4]:02x}" / cid_text(cid)).write_bytes(b"rotten")
        assert await node.edge.block(cid) is None
        await until_announced(node, [])


def test_a_region_that_is_none_is_refused(dds: Program, tmp_path: Path) -> None:
    content = dds.text("cid", Path(__file__))
    error = dds.error("get", content, "--region", "no such place", "-o", tmp_path / "out", code=2)
    assert "not a region" in error["message"]

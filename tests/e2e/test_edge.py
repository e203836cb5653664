"""An edge in its own process, on a devnet of other regions: the second read of an object is served by it, checked and near."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dds.storage.home import Home, load_client_config, load_node_config, write_client_config, write_node_config
from tests.e2e.devnet_cli import Program, running_devnet, same_file, wait_until, write_random

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


def served_elsewhere(dds: Program) -> int:
    """Requests for content, metadata included, that the storing nodes have answered."""
    import ssl

    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    total = 0
    for node in dds.nodes():
        with urllib.request.urlopen(f"https://{node['address']}/metrics", context=trusting, timeout=30) as page:
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
        wait_until(lambda: status(edge)["blocks"] == 5)  # the root and four chunks
        before = served_elsewhere(dds)
        assert before > 0  # the first read
        for attempt in range(20):  # on a machine that stands still, a reader does not wait for the edge
            second = edge.json("get", content, "--region", HERE, "-o", tmp_path / f"second-{attempt}")
            assert same_file(source, tmp_path / f"second-{attempt}")
            if (after := served_elsewhere(dds)) == before:
                break
            before = after
        assert after == before
        assert second["edge_bytes"] > 3 * MIB
        assert second["culprits"] == []
        assert status(edge)["hit_bytes"] >= second["edge_bytes"]

        blocks = list((tmp_path / "edge" / "node" / "edge").glob("*/*"))
        for path in blocks:
            path.write_bytes(b"rotten")
        third = edge.json("get", content, "--region", HERE, "-o", tmp_path / "third")
        assert same_file(source, tmp_path / "third")
        assert third["edge_bytes"] == 0


def test_a_region_that_is_none_is_refused(dds: Program, tmp_path: Path) -> None:
    content = dds.text("cid", Path(__file__))
    error = dds.error("get", content, "--region", "no such place", "-o", tmp_path / "out", code=2)
    assert "not a region" in error["message"]

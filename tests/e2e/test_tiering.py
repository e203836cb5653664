"""A cold object moves to the archive and back on a paid devnet: nobody who reads it notices, and space and rent add up."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dds.erasure.geometry import Geometry, stored_bytes, stripe_shapes
from dds.ledger import rent
from dds.primitives.ids import NodeID, parse_id
from dds.protocol.quote import MONTH_EPOCHS
from dds.runtime.segments import open_segment
from dds.storage.home import load_client_config, parse_host_port
from dds.transport.client import PeerClient
from tests.e2e.devnet_cli import Program, running_devnet, same_file, wait_until, write_random

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("tiering")]

SMALL, ARCHIVE = Geometry(4, 2), Geometry(6, 6)
CUSTOM = ("--class", "custom", "-k", "4", "-m", "2")
BACK = ("--to", "custom", "-k", "4", "-m", "2")
SIZE = 3_000_000


@pytest.fixture(scope="module")
def dds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    home = tmp_path_factory.mktemp("tiering") / "home"
    shape = ("--nodes", "8", "--asn", "12", "--regions", "3", "--operators", "6", "--epoch", "2")
    with running_devnet(home, *shape, "--ledger", "embedded") as program:
        yield program


class Reader:
    """Somebody who reads one content again and again, in processes of their own."""

    def __init__(self, dds: Program, content: str, source: Path, out: Path) -> None:
        self.reads = 0
        self.problems: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(dds, content, source, out))

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self, dds: Program, content: str, source: Path, out: Path) -> None:
        while not self._stop.is_set():
            done = dds.start("get", content, "-o", out, "--force")
            _, said = done.communicate(timeout=120)
            if done.returncode or not same_file(source, out):
                self.problems.append(said.decode())
            self.reads += 1


def stored(dds: Program, nodes: list[dict[str, Any]], kind: str) -> int:
    """Bytes that the nodes of a kind hold for others, the trash left out, by their own word."""

    async def ask() -> int:
        config = load_client_config(dds.home / "config.toml")
        async with PeerClient(None, network=config.network) as client:
            total = 0
            for row in nodes:
                if kind in row["roles"]:
                    node, (host, port) = NodeID(parse_id(row["id"])), parse_host_port(row["address"])
                    client.learn(node, [(host, port)])
                    page = (await client.get(node, "/metrics", max_bytes=1 << 20, timeout_s=30)).decode()
                    (line,) = [each for each in page.splitlines() if each.startswith('dds_store_bytes{kind="committed"}')]
                    total += int(float(line.split()[-1]))
            return total

    return asyncio.run(ask())


def contracts(dds: Program) -> dict[str, dict[str, Any]]:
    return {row["class_name"]: row for row in dds.json("contract", "list")["contracts"]}


def moved(dds: Program, content: str, *to: str) -> dict[str, Any]:
    """Move, in the next epoch where the content was stored in this one, or nodes have just missed their audits."""
    made: list[dict[str, Any]] = []

    def attempt() -> bool:
        done = dds.start("--json", "tier", "move", content, *to, "--term", "500", "--yes")
        out, said = done.communicate(timeout=120)
        if done.returncode:
            assert "this very epoch" in said.decode() or "not-enough-nodes" in said.decode(), said.decode()
            return False
        made.append(json.loads(out))
        return True

    wait_until(attempt, timeout_s=120)
    return made[0]


def test_a_cold_object_moves_to_the_archive_and_back_and_nobody_notices(dds: Program, tmp_path: Path) -> None:
    source, nodes = write_random(tmp_path / "cold", SIZE, seed=1), dds.nodes()
    put = dds.json("put", *CUSTOM, "--term", "500", source)
    content = put["content"]
    standard_bytes = stored_bytes(stripe_shapes(SMALL, data_bytes(dds)))
    assert put["encoded_bytes"] == standard_bytes
    assert stored(dds, nodes, "ssn") == standard_bytes and stored(dds, nodes, "asn") == 0
    first_rent = contracts(dds)["custom-4-2"]["rent_per_epoch"]
    with Reader(dds, content, source, tmp_path / "copy") as reader:
        there = moved(dds, content, "--to", "archive")
        archive_bytes = there["after"]["stored_bytes"]
        assert there["before"]["stored_bytes"] == standard_bytes
        assert archive_bytes == stored_bytes(stripe_shapes(ARCHIVE, data_bytes(dds)))
        wait_until(lambda: stored(dds, nodes, "ssn") == 0)
        assert stored(dds, nodes, "asn") == archive_bytes
        assert there["after"]["rent_month"] == rent.rent(archive_bytes, there["payment"]["price"], MONTH_EPOCHS)
        books = contracts(dds)
        assert books["custom-4-2"]["rent_per_epoch"] == 0 and books["custom-4-2"]["rent_bytes"] == 0
        assert books["archive"]["rent_bytes"] == archive_bytes
        back = moved(dds, content, *BACK)
        assert back["after"]["stored_bytes"] == standard_bytes
        wait_until(lambda: stored(dds, nodes, "asn") == 0)
        assert stored(dds, nodes, "ssn") == standard_bytes
        reads = reader.reads
        wait_until(lambda: reader.reads > reads + 1)
    assert reader.reads > 3 and reader.problems == []
    books = contracts(dds)
    assert books["archive"]["rent_per_epoch"] == 0 and books["custom-4-2"]["rent_bytes"] == standard_bytes
    assert books["custom-4-2"]["rent_per_epoch"] >= first_rent > 0  # the price may have moved; the bytes are the same
    (row,) = [each for each in dds.json("tier", "status")["contents"] if each["content"] == content]
    assert row["class_name"] == "custom" and row["reads"] is not None
    verified = dds.json("ledger", "verify")
    assert verified["problems"] == []


def data_bytes(dds: Program) -> int:
    """Of the one segment that this home has put."""
    with sqlite3.connect(dds.home / "catalog.sqlite") as db:
        ((segment, encoding),) = db.execute("SELECT segment, encoding FROM segments").fetchall()
    opened = open_segment(encoding, segment, load_client_config(dds.home / "config.toml").network)
    assert opened is not None
    return opened.record.data_bytes

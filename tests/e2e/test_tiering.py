"""A cold object moves to the archive and back on a paid devnet: nobody who reads it notices, and space and rent add up.

The nodes and the ledger are processes of their own; whoever puts, moves, reads and looks on is this one.
"""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dds.erasure.geometry import Geometry, stored_bytes, stripe_shapes
from dds.ledger import rent
from dds.primitives.cid import CID, cid_text
from dds.primitives.errors import DDSError
from dds.primitives.ids import NodeID, parse_id
from dds.protocol.quote import MONTH_EPOCHS
from dds.runtime.client import Client, open_client
from dds.runtime.results import PutOptions
from dds.runtime.segments import open_segment
from dds.runtime.tiering import MoveResult
from dds.storage.home import Home, load_client_config, parse_host_port
from dds.transport.client import PeerClient
from tests.e2e.devnet_cli import Program, running_devnet, write_random

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("tiering")]

SMALL, ARCHIVE = Geometry(2, 2), Geometry(6, 6)
CUSTOM = PutOptions(class_name="custom", k=2, m=2, term="500")
SIZE = 1_500_000
DEADLINE_S = 180.0  # for what takes a few epochs
POLL_S = 0.2


@pytest.fixture(scope="module")
def dds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    home = tmp_path_factory.mktemp("tiering") / "home"
    shape = ("--nodes", "6", "--asn", "12", "--regions", "3", "--operators", "6", "--epoch", "2")
    with running_devnet(home, *shape, "--ledger", "embedded") as program:
        yield program


@dataclass
class Reader:
    """Somebody else, who reads one content again and again."""

    content: CID
    source: bytes
    reads: int = 0
    problems: list[str] = field(default_factory=list)
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, client: Client) -> None:
        while True:
            await self.read(client)
            self._came.set()

    async def read(self, client: Client) -> None:
        out = io.BytesIO()
        try:
            await client.get(self.content, out)
        except DDSError as error:
            self.problems.append(f"read {self.reads}: {error.message}")
        if out.getvalue() != self.source:
            self.problems.append(f"read {self.reads}: {len(out.getvalue())} bytes, and not what was put")
        self.reads += 1

    async def another(self) -> None:
        """A read that begins from now on has ended."""
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(2):
                self._came.clear()
                await self._came.wait()


@asynccontextmanager
async def reading(home: Home, content: CID, source: bytes) -> AsyncIterator[Reader]:
    """One session from the beginning to the end, so that what it remembers of holders grows old."""
    reader = Reader(content, source)
    async with open_client(home) as client:
        task = asyncio.create_task(reader.run(client))
        try:
            yield reader
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait([task])


def home_of_another(dds: Program, root: Path) -> Home:
    root.mkdir(mode=0o700)
    shutil.copy(dds.home / "config.toml", root)
    return Home.open(root)


@dataclass
class Look:
    """What nodes say of themselves."""

    client: PeerClient
    nodes: list[dict[str, Any]]

    async def stored(self, kind: str) -> int:
        """Bytes that the nodes of a kind hold for others, the trash left out."""
        return sum(await asyncio.gather(*(self._stored(row) for row in self.nodes if kind in row["roles"])))

    async def _stored(self, row: dict[str, Any]) -> int:
        node = NodeID(parse_id(row["id"]))
        self.client.learn(node, [parse_host_port(row["address"])])
        page = (await self.client.get(node, "/metrics", max_bytes=1 << 20, timeout_s=DEADLINE_S)).decode()
        (line,) = [each for each in page.splitlines() if each.startswith('dds_store_bytes{kind="committed"}')]
        return int(float(line.split()[-1]))

    async def until_empty(self, kind: str) -> None:
        async def is_empty() -> bool:
            return await self.stored(kind) == 0

        await until(is_empty)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll what other processes do."""
    async with asyncio.timeout(DEADLINE_S):
        while not await condition():
            await asyncio.sleep(POLL_S)


async def moved(client: Client, content: CID, class_name: str, k: int | None = None, m: int | None = None) -> MoveResult:
    """Move, in the next epoch where the content was stored in this one, or nodes have just missed their audits."""
    made: list[MoveResult] = []

    async def attempt() -> bool:
        try:
            made.append(await client.move(content, class_name, k=k, m=m, term="500"))
        except DDSError as error:
            said = json.dumps(error.to_dict())
            assert "this very epoch" in said or "not-enough-nodes" in said, said
        return bool(made)

    await until(attempt)
    return made[0]


async def contracts(dds: Program) -> dict[str, dict[str, Any]]:
    said = await asyncio.to_thread(dds.json, "contract", "list")
    return {row["class_name"]: row for row in said["contracts"]}


async def test_a_cold_object_moves_to_the_archive_and_back_and_nobody_notices(dds: Program, tmp_path: Path) -> None:
    source, network = write_random(tmp_path / "cold", SIZE, seed=1), load_client_config(dds.home / "config.toml").network
    async with open_client(Home.open(dds.home)) as client, PeerClient(None, network=network) as asking:
        look = Look(asking, dds.nodes())
        put = await client.put(source, CUSTOM)
        standard_bytes = stored_bytes(stripe_shapes(SMALL, data_bytes(dds)))
        assert put.encoded_bytes == standard_bytes
        assert (await look.stored("ssn"), await look.stored("asn")) == (standard_bytes, 0)
        first_rent = (await contracts(dds))["custom-2-2"]["rent_per_epoch"]
        other = home_of_another(dds, tmp_path / "reader")
        async with reading(other, put.content, source.read_bytes()) as reader:
            there = await moved(client, put.content, "archive")
            archive_bytes = there.after.stored_bytes
            assert there.before.stored_bytes == standard_bytes
            assert archive_bytes == stored_bytes(stripe_shapes(ARCHIVE, data_bytes(dds)))
            assert there.payment is not None
            assert there.after.rent_month == rent.rent(archive_bytes, there.payment.price, MONTH_EPOCHS)
            await look.until_empty("ssn")
            assert await look.stored("asn") == archive_bytes
            await reader.another()
            async with open_client(other) as newcomer:
                await reader.read(newcomer)
            books = await contracts(dds)
            assert books["custom-2-2"]["rent_per_epoch"] == 0 and books["custom-2-2"]["rent_bytes"] == 0
            assert books["archive"]["rent_bytes"] == archive_bytes
            back = await moved(client, put.content, "custom", *SMALL)
            assert back.after.stored_bytes == standard_bytes
            await look.until_empty("asn")
            assert await look.stored("ssn") == standard_bytes
            await reader.another()
        assert reader.reads > 3 and reader.problems == []
    books = await contracts(dds)
    assert books["archive"]["rent_per_epoch"] == 0 and books["custom-2-2"]["rent_bytes"] == standard_bytes
    assert books["custom-2-2"]["rent_per_epoch"] >= first_rent > 0  # the price may have moved; the bytes are the same
    (row,) = [each for each in dds.json("tier", "status")["contents"] if each["content"] == cid_text(put.content)]
    assert row["class_name"] == "custom" and row["reads"] is not None
    assert dds.json("ledger", "verify")["problems"] == []


def data_bytes(dds: Program) -> int:
    """Of the one segment that this home has put."""
    with sqlite3.connect(dds.home / "catalog.sqlite") as db:
        ((segment, encoding),) = db.execute("SELECT segment, encoding FROM segments").fetchall()
    opened = open_segment(encoding, segment, load_client_config(dds.home / "config.toml").network)
    assert opened is not None
    return opened.record.data_bytes

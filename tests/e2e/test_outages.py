"""A whole region, then a whole operator, is gone at once: every object reads, byte for byte."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

import pytest

from dds.primitives.cid import CID
from dds.runtime.client import Client, open_client
from dds.runtime.results import PutOptions
from dds.storage.home import Home
from tests.e2e.devnet_cli import Program, running_devnet

pytestmark = pytest.mark.e2e

SHAPE = ("--nodes", "30", "--regions", "6", "--operators", "12", "--capacity", "1GiB")
OBJECTS = 200
LARGE_EVERY = 50  # most content is small; every so manyth object has several MB
AT_ONCE = 8


def bytes_of(number: int) -> bytes:
    """Object `number`: incompressible, its own, the same each time."""
    source = random.Random(number)
    size = 3_000_000 + number if number % LARGE_EVERY == 0 else source.randrange(1, 30_000)
    return source.randbytes(size)


@asynccontextmanager
async def _client(dds: Program) -> AsyncIterator[Client]:
    async with open_client(Home.open(dds.home)) as client:
        yield client


async def put_all(dds: Program) -> dict[CID, int]:
    """ContentID -> number of the object."""
    room = asyncio.Semaphore(AT_ONCE)

    async def put(client: Client, number: int) -> tuple[CID, int]:
        async with room:
            return (await client.put(BytesIO(bytes_of(number)), PutOptions())).content, number

    async with _client(dds) as client:
        return dict(await asyncio.gather(*(put(client, number) for number in range(OBJECTS))))


async def read_all(dds: Program, contents: dict[CID, int]) -> list[int]:
    """The numbers of the objects that did not come back as they were. A client that starts now knows nothing of before."""
    room = asyncio.Semaphore(AT_ONCE)

    async def reads(client: Client, content: CID, number: int) -> bool:
        async with room:
            out = BytesIO()
            await client.get(content, out)
            return out.getvalue() == bytes_of(number)

    async with _client(dds) as client:
        right = await asyncio.gather(*(reads(client, content, number) for content, number in contents.items()))
    return [number for number, is_right in zip(contents.values(), right, strict=True) if not is_right]


def names(rows: Iterable[dict[str, str]]) -> set[str]:
    return {row["name"] for row in rows}


def test_every_object_reads_while_a_whole_region_and_then_a_whole_operator_is_gone(tmp_path: Path) -> None:
    with running_devnet(tmp_path / "home", *SHAPE) as dds:
        contents = asyncio.run(put_all(dds))
        assert len(contents) == OBJECTS

        gone = names(dds.json("devnet", "outage", "--region", "region-2")["nodes"])
        assert gone == {f"node-{number:02}" for number in range(2, 30, 6)}
        assert asyncio.run(read_all(dds, contents)) == []

        assert names(dds.json("devnet", "outage", "--restore")["nodes"]) == gone
        gone = names(dds.json("devnet", "outage", "--operator", "operator-7")["nodes"])
        assert gone == set(dds.names("stopped")) == {"node-07", "node-19"}
        assert asyncio.run(read_all(dds, contents)) == []

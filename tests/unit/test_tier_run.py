"""`dds tier` over real servers and stores: what is due moves and by whose word, what comes back, and what edges say of it."""

from __future__ import annotations

import asyncio
import io
import json
import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dds.primitives.cid import CID, cid_text
from dds.primitives.ids import id_text
from dds.protocol.popularity import DAY_MS, READ, VOICE_MAX
from dds.runtime.client import Client, open_client
from dds.runtime.get import Reading
from dds.runtime.network import Network
from dds.runtime.results import PutOptions
from dds.runtime.tier_status import TierDesk, TierStatus
from dds.storage.catalog import Catalog
from dds.storage.home import ClientConfig, Home, write_client_config
from dds.transport.routes import Request, Response, message_response
from dds.wire.codec import decode, encode
from dds.wire.retrieval import PopularityReply, PopularityRequest
from tests.discovery_samples import NETWORK
from tests.edge_kit import EdgeSite, edge_site, reader_near, until
from tests.node_sites import PUBLISHER, Site, put, reader, sites

SMALL = PutOptions(class_name="custom", k=2, m=2)
BYTES = 200_000
RULES = """
[[rule]]
name = "*.log"
class = "custom"
k = 2
m = 2
archive_after = "10d"
[[rule]]
class = "custom"
k = 2
m = 2
"""


def file_of(directory: Path, name: str) -> Path:
    path = directory / name
    path.write_bytes(random.Random(name).randbytes(BYTES))
    return path


@asynccontextmanager
async def client_of(home: Path, nodes: Sequence[Site]) -> AsyncIterator[Client]:
    bootstrap = f"{id_text(nodes[0].node_id)}@{nodes[0].address}"
    home.mkdir(mode=0o700, exist_ok=True)
    config = ClientConfig(NETWORK, bootstrap=(bootstrap,), archive="6+6", archive_after_days=30)
    write_client_config(home / "config.toml", config)
    (home / "policy.toml").write_text(RULES)
    async with open_client(Home.open(home)) as client:
        yield client


def put_days_ago(home: Path, content: CID, days: int) -> None:
    with Catalog(home / "catalog.sqlite") as catalog:
        note = catalog.content(content)
        assert note is not None
        catalog.add_content(replace(note, put_ms=note.put_ms - days * DAY_MS), catalog.tier(content))


async def dds(home: Path, *argv: str) -> Any:
    """The program itself, while the nodes run here."""
    command = (sys.executable, "-m", "dds.apps.cli.main", "--home", str(home), "--json", *argv)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={"DDS_HOME": str(home)}
    )
    out, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    return json.loads(out)


async def test_run_moves_what_is_due_leaves_the_rest_and_brings_back_what_it_was(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with sites(tmp_path, 6, archive=12) as nodes, client_of(home, nodes) as client:
        names = ("due.log", "read.log", "young.log", "other.bin")
        contents = {name: (await client.put(file_of(tmp_path, name))).content for name in names}
        for name in names:
            put_days_ago(home, contents[name], 5 if name == "young.log" else 20)
        await client.get(contents["read.log"], io.BytesIO())

        first = await dds(home, "tier", "run")
        assert [row["content"] for row in first["moved"]] == [cid_text(contents["due.log"])]
        assert (first["moved"][0]["class_name"], first["failed"]) == ("archive", [])
        rows = {row["name"]: row for row in (await dds(home, "tier", "status"))["contents"]}
        assert {name: row["class_name"] for name, row in rows.items()} == {
            "due.log": "archive", "read.log": "custom", "young.log": "custom", "other.bin": "custom"
        }  # fmt: skip
        assert {name: row["archive_after_days"] for name, row in rows.items() if name != "due.log"} == {
            "read.log": 10, "young.log": 10, "other.bin": 30
        }  # fmt: skip
        assert "by the rule" in rows["young.log"]["recommendation"]["reason"]
        assert "config.toml" in rows["other.bin"]["recommendation"]["reason"]
        assert rows["read.log"]["idle_days"] == 0

        for _ in range(4):
            out = io.BytesIO()
            await client.get(contents["due.log"], out)
            assert out.getvalue() == (tmp_path / "due.log").read_bytes()
        back = await dds(home, "tier", "run")
        assert [(row["content"], row["class_name"], row["geometry"]) for row in back["moved"]] == [
            (cid_text(contents["due.log"]), "custom", "2+2")
        ]
        assert (await dds(home, "tier", "run"))["moved"] == []


async def measured(network: Network, home: Path) -> TierStatus:
    with Catalog(home / "catalog.sqlite") as catalog:
        (row,) = [row async for row in TierDesk(network, catalog, 30).all()]
    return row


async def read_through(edge: EdgeSite, nodes: Sequence[Site], content: CID) -> None:
    async with reader_near(nodes, edge) as network:
        await Reading(network, content).to_stream(io.BytesIO(), "", None)


async def test_what_only_an_edge_serves_counts_as_read(tmp_path: Path) -> None:
    home, source = tmp_path / "home", file_of(tmp_path, "popular")
    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge") as edge:
        async with reader(nodes) as network:
            content = (await put(network, home, source, SMALL)).content
        put_days_ago(home, content, 60)
        async with reader_near(nodes, edge, key=PUBLISHER) as network:
            assert (await measured(network, home)).recommendation.to == "archive"
        await edge.edge.keep(content, [(content, source.read_bytes())])
        await until(lambda: edge.cache.count == 1)
        edge.edge.popularity.served(content, BYTES // 2)
        async with reader_near(nodes, edge, key=PUBLISHER) as network:
            half = await measured(network, home)
        await read_through(edge, nodes, content)
        async with reader_near(nodes, edge, key=PUBLISHER) as network:
            row = await measured(network, home)
        assert (half.edge_reads, half.reads) == (READ // 2, READ // 2)
        assert (row.edge_reads, row.idle_days, row.recommendation.to) == (READ * 3 // 2, 0, "custom")


async def test_an_edge_is_one_voice_and_nonsense_is_none(tmp_path: Path) -> None:
    home, replies = (
        tmp_path / "home",
        [PopularityReply([], [1 << 60]), PopularityReply([], []), PopularityReply([0], [1 << 60])],
    )

    async def lie(request: Request) -> Response:
        assert decode(request.body, PopularityRequest).segments == []
        return message_response(replies[0])

    async with sites(tmp_path, 4) as nodes, edge_site(nodes, tmp_path / "edge") as edge:
        async with reader(nodes) as network:
            await put(network, home, file_of(tmp_path, "content"), SMALL)
        edge.lies["POST", "/v1/popularity"] = lie
        heard = []
        while replies:
            async with reader_near(nodes, edge, key=PUBLISHER) as network:
                heard.append((await measured(network, home)).edge_reads)
            replies.pop(0)
        assert heard == [VOICE_MAX, 0, 0]


def test_a_request_for_nothing_and_one_of_an_older_release_are_understood() -> None:
    assert decode(encode(PopularityRequest([])), PopularityRequest) == PopularityRequest([], [])
    assert decode(bytes.fromhex("9190"), PopularityRequest) == PopularityRequest([], [])

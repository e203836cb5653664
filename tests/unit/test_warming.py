"""An edge fetches on demand, in the background: jobs take turns, however long what one of them asks for takes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dds.content.block import Ref
from dds.primitives.cid import CID, cid_of
from dds.runtime import warming
from dds.runtime.network import Network
from dds.runtime.warming import JOBS_AT_ONCE, Warmer
from dds.storage.source import SourceOptions, build_dag

FILES = 200


class Shelf:
    """Wants everything, keeps nothing but names."""

    def __init__(self) -> None:
        self.kept: list[CID] = []

    async def peek(self, cid: CID) -> bytes | None:
        return None

    async def wants(self, cids: Sequence[tuple[CID, int]]) -> list[bool]:
        return [True for _ in cids]

    async def keep(self, content: CID, blocks: Sequence[tuple[CID, bytes]]) -> None:
        self.kept += [cid for cid, _ in blocks]


class Source:
    """Nodes that give blocks, slowly."""

    blocks: dict[CID, bytes] = {}  # noqa: RUF012 - filled by a fixture
    delay_s = 0.02

    def __init__(self, network: Network, content: CID) -> None:
        self.content = content

    async def fetch(self, refs: Sequence[Ref]) -> list[tuple[CID, bytes]]:
        await asyncio.sleep(self.delay_s)
        return [(ref.cid, self.blocks[ref.cid]) for ref in refs if ref.cid in self.blocks]

    async def aclose(self) -> None:
        pass


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[CID]]:
    """Contents that take seconds to walk."""
    monkeypatch.setattr(warming, "_Source", Source)
    monkeypatch.setattr(warming, "SLICE_S", 0.1)
    roots: list[CID] = []
    for number in range(JOBS_AT_ONCE):
        directory = tmp_path / str(number)
        directory.mkdir()
        for file in range(FILES):
            (directory / str(file)).write_text(f"{number} {file}")
        blocks: dict[CID, bytes] = {}
        built = build_dag(directory, SourceOptions(), lambda block, _, into=blocks: into.__setitem__(block.cid, block.data))  # type: ignore[misc]
        Source.blocks |= blocks
        roots.append(built.root.cid)
    yield roots
    Source.blocks = {}


async def test_walks_of_large_contents_make_way_for_others_and_end(large: list[CID]) -> None:
    """Anybody may ask for them: two that are slow must not hold up what all other readers miss."""
    shelf = Shelf()
    warmer = Warmer(lambda: None, shelf)  # type: ignore[arg-type, return-value]
    warmer.start()
    for root in large:
        assert warmer.want(root, [], walk=True)
    await asyncio.sleep(0.01)
    small = cid_of(b"what another reader misses")
    Source.blocks[small] = b"what another reader misses"
    assert warmer.want(small, [])
    while small not in shelf.kept:
        await asyncio.sleep(0.01)
    assert len(set(shelf.kept)) < JOBS_AT_ONCE * FILES  # they were not done yet
    while warmer.busy and len(set(shelf.kept)) < len(Source.blocks):
        await asyncio.sleep(0.02)
    assert set(shelf.kept) == set(Source.blocks)
    await warmer.stop()

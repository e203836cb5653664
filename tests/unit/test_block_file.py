"""An origin's own copy of a content: whole or not there, every block found, replayed as it was built."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from dds.content.block import Block
from dds.primitives.cid import CID, RAW, cid_of
from dds.primitives.errors import CorruptError, DiskFullError, LimitError
from dds.storage.block_file import BLOCKS_NAME, INDEX_NAME, BlockFile, BlockFileWriter
from dds.storage.source import BuiltTree, SourceOptions, build_dag

MIB = 1 << 20
Walk = list[tuple[CID, int, bytes]]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two equal files, a larger one, an empty one and a directory."""
    root, source = tmp_path / "tree", random.Random(1)
    (root / "sub").mkdir(parents=True)
    (root / "a").write_bytes(b"the same")
    (root / "b").write_bytes(b"the same")
    (root / "empty").write_bytes(b"")
    (root / "sub" / "large").write_bytes(source.randbytes(3 * MIB + 5))
    return root


def copied(source: Path, directory: Path, bytes_max: int = 1 << 30) -> tuple[BlockFile, BuiltTree, Walk]:
    """The copy, and what was built: each block at its first place."""
    writer, walk, seen = BlockFileWriter(directory, bytes_max), Walk(), set[CID]()

    def sink(block: Block, position: int) -> None:
        writer.add(block, position)
        if block.cid not in seen:
            seen.add(block.cid)
            walk.append((block.cid, position, block.data))

    try:
        built = build_dag(source, SourceOptions(), sink)
        return writer.seal(built), built, walk
    finally:
        writer.close()


def replayed(copy: BlockFile) -> tuple[BuiltTree, Walk]:
    walk: Walk = []
    return copy.replay(lambda block, position: walk.append((block.cid, position, block.data))), walk


def test_a_copy_replays_the_build_and_gives_every_block(tree: Path, tmp_path: Path) -> None:
    copy, built, walk = copied(tree, tmp_path / "copy")
    assert replayed(copy) == (built, walk)
    assert copy.content == built.root.cid
    assert all(copy.read(cid) == data for cid, _, data in walk)
    assert copy.read(cid_of(b"another block", RAW)) is None
    copy.close()


def test_a_copy_outlives_its_writer_and_its_source(tree: Path, tmp_path: Path) -> None:
    first, built, walk = copied(tree, tmp_path / "copy")
    first.close()
    (tree / "a").write_bytes(b"changed")
    again = BlockFile(tmp_path / "copy")
    assert replayed(again) == (built, walk)
    assert again.size_bytes == first.size_bytes == sum(path.stat().st_size for path in (tmp_path / "copy").iterdir())
    again.close()
    assert again.read(walk[0][0]) is None


def test_a_copy_that_was_broken_off_is_none(tree: Path, tmp_path: Path) -> None:
    writer = BlockFileWriter(tmp_path / "copy", 1 << 30)
    build_dag(tree, SourceOptions(), writer.add)
    writer.close()
    with pytest.raises(CorruptError):
        BlockFile(tmp_path / "copy")
    copy, built, _ = copied(tree, tmp_path / "copy")  # beginning again takes its place
    assert copy.built == built
    copy.close()


def test_a_copy_never_becomes_larger_than_it_may(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(LimitError, match="origin"):
        copied(tree, tmp_path / "copy", bytes_max=2 * MIB)
    assert (tmp_path / "copy" / BLOCKS_NAME).stat().st_size <= 2 * MIB


@pytest.mark.parametrize("name", [BLOCKS_NAME, INDEX_NAME])
@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_damage_is_found_or_changes_nothing(tree: Path, tmp_path: Path, name: str, damage: str) -> None:
    """Whatever happens to the files, no block is sent as what it is not; whoever reads one checks it as well."""
    _, built, walk = copied(tree, tmp_path / "copy")
    path = tmp_path / "copy" / name
    good, source = path.read_bytes(), random.Random(f"{name} {damage}")
    for _ in range(16):
        at = source.randrange(len(good))
        flipped = good[:at] + bytes([good[at] ^ (1 << source.randrange(8))]) + good[at + 1 :]
        path.write_bytes(flipped if damage == "flipped" else good[:at])
        try:
            copy = BlockFile(tmp_path / "copy")
        except CorruptError:
            continue
        for cid, _, _ in walk:
            copy.read(cid)
        try:
            got, blocks = replayed(copy)
        except CorruptError:
            pass
        else:
            assert all(cid == cid_of(data, cid[1]) for cid, _, data in blocks)
            assert got == built
        copy.close()


def test_a_copy_is_read_by_several_threads_while_it_is_closed(tree: Path, tmp_path: Path) -> None:
    copy, _, walk = copied(tree, tmp_path / "copy")
    wrong: list[CID] = []

    def read() -> None:
        for _ in range(200):
            for cid, _, data in walk:
                if copy.read(cid) not in (data, None):
                    wrong.append(cid)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    copy.close()
    other = os.open(tree / "b", os.O_RDONLY)  # takes a descriptor that the copy had
    for thread in threads:
        thread.join()
    os.close(other)
    assert wrong == []


def test_a_full_disk_is_told_as_one(tree: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    writer = BlockFileWriter(tree / "copy", 1 << 30)
    os.dup2(os.open("/dev/full", os.O_WRONLY), writer._file.fileno())
    data = random.Random(1).randbytes(2 * MIB)
    with pytest.raises(DiskFullError):
        writer.add(Block(cid_of(data, RAW), data), 0)
    with pytest.raises(DiskFullError):
        writer.close()

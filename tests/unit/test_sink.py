"""Fetched trees come onto a disk whole, where they were meant to, or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from dds.content.block import Ref
from dds.content.events import CLOSE, Data, Event, OpenDirectory, OpenFile, Symlink
from dds.content.reader import read_tree, run
from dds.primitives.cid import CID
from dds.primitives.errors import DiskFullError, FormatError, InputError, LimitError, StorageError
from dds.storage.removal import remove
from dds.storage.sink import StreamWriter, TreeWriter
from dds.storage.source import SourceOptions, build_dag, compute_cid
from tests.content_dags import Tree, stored
from tests.unit.test_source import DEPTH, open_descriptors, open_files_at_most

REF = Ref(CID(b""))


def write(target: Path, events: Iterable[Event], **options: bool) -> None:
    with TreeWriter(target, **options) as writer:
        for event in events:
            writer.write(event)
        writer.commit()


def fetch(tree: Tree, target: Path, **options: bool) -> None:
    store, root = stored(tree, chunk_bytes=1000)
    write(target, run(read_tree(root), store.fetch), **options)


def then_fail(events: Iterable[Event]) -> Iterator[Event]:
    yield from events
    raise LimitError("the network went away")


TREE: Tree = {b"a": b"text" * 1000, b"d": {b"e": {}, b"\xff raw": b""}, b"link": "../../outside", b"z": "d"}


def test_what_is_written_has_the_same_content_id(tmp_path: Path) -> None:
    fetch(TREE, tmp_path / "out", fsync=True)
    _, root = stored(TREE, chunk_bytes=1 << 20)
    assert compute_cid(tmp_path / "out") == root.cid
    assert os.readlink(tmp_path / "out" / "link") == "../../outside"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("tree", [b"a file", "a link", {}])
def test_any_kind_of_root_is_written(tmp_path: Path, tree: Tree) -> None:
    fetch(tree, tmp_path / "out")
    assert compute_cid(tmp_path / "out") == stored(tree)[1].cid
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("tree", [b"new", "new", {b"new": b""}])
@pytest.mark.parametrize("there", ["file", "directory", "link"])
def test_what_exists_is_kept_unless_overwriting_is_allowed(tmp_path: Path, tree: Tree, there: str) -> None:
    target = tmp_path / "out"
    if there == "file":
        target.write_bytes(b"old")
    elif there == "directory":
        (target / "old").mkdir(parents=True)
    else:
        target.symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere").write_bytes(b"untouched")
    before = compute_cid(target)
    with pytest.raises(InputError, match="exists"):
        fetch(tree, target)
    assert compute_cid(target) == before
    fetch(tree, target, overwrite=True)
    assert compute_cid(target) == stored(tree)[1].cid
    assert set(os.listdir(tmp_path)) <= {"out", "elsewhere"}
    assert there != "link" or (tmp_path / "elsewhere").read_bytes() == b"untouched"


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with TreeWriter(target) as writer:
        for event in (OpenFile(b"", 1, REF), Data(b"x"), CLOSE):
            writer.write(event)
        target.write_bytes(b"somebody else's")
        with pytest.raises(InputError, match="exists"):
            writer.commit()
    assert target.read_bytes() == b"somebody else's"
    assert os.listdir(tmp_path) == ["out"]


def test_nothing_is_left_of_a_fetch_that_fails(tmp_path: Path) -> None:
    before = open_descriptors()
    events = (OpenDirectory(b"", REF), OpenDirectory(b"d", REF), OpenFile(b"f", 9, REF), Data(b"half"))
    with pytest.raises(LimitError):
        write(tmp_path / "out", then_fail(events))
    assert os.listdir(tmp_path) == []
    assert open_descriptors() == before


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"/etc/passwd", b"../up", b"nul\x00"])
def test_a_hostile_name_is_refused_even_when_a_reader_lets_it_pass(tmp_path: Path, name: bytes) -> None:
    (tmp_path / "in").mkdir()
    for hostile in (OpenFile(name, 0, REF), OpenDirectory(name, REF), Symlink(name, b"x")):
        with pytest.raises(FormatError):
            write(tmp_path / "in" / "out", (OpenDirectory(b"", REF), hostile))
    assert os.listdir(tmp_path) == ["in"]
    assert os.listdir(tmp_path / "in") == []


def test_nothing_is_written_through_a_symbolic_link_of_the_tree(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    begin = (OpenDirectory(b"", REF), Symlink(b"a", os.fsencode(outside)))
    file = (OpenFile(b"a", 1, REF), Data(b"x"), CLOSE)
    directory = (OpenDirectory(b"a", REF), OpenFile(b"f", 1, REF), Data(b"x"), CLOSE, CLOSE)
    for then in (file, directory):
        with pytest.raises(FormatError, match="'a' exists twice"):
            write(tmp_path / "out", (*begin, *then, CLOSE))
    assert os.listdir(outside) == []
    assert os.listdir(tmp_path) == ["outside"]


def test_a_thousand_levels_are_written_and_removed_with_few_open_files(tmp_path: Path) -> None:
    down, up = [OpenDirectory(b"", REF), *[OpenDirectory(b"directory", REF)] * DEPTH], [CLOSE] * (DEPTH + 1)
    with open_files_at_most(open_descriptors() + 8):
        write(tmp_path / "out", [*down, *up])
        assert build_dag(tmp_path / "out", SourceOptions(), lambda block, position: None).directories == DEPTH + 1
        with pytest.raises(LimitError):
            write(tmp_path / "other", then_fail(down))
        assert os.listdir(tmp_path) == ["out"]
        assert remove(tmp_path / "out")


def test_a_name_too_long_for_the_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="xxxx"):
        fetch({b"x" * 300: b""}, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_missing_parent_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no-parent"):
        fetch(b"x", tmp_path / "no-parent" / "out")


def test_a_stream_gets_a_file_s_bytes_and_refuses_directories() -> None:
    stream = io.BytesIO()
    store, root = stored(b"some bytes", chunk_bytes=3)
    writer = StreamWriter(stream)
    for event in run(read_tree(root), store.fetch):
        writer.write(event)
    assert stream.getvalue() == b"some bytes"
    with pytest.raises(InputError, match="directory"):
        writer.write(OpenDirectory(b"", REF))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_told_from_other_failures() -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(DiskFullError):
        StreamWriter(full).write(Data(b"x"))

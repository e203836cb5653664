"""What of a file tree becomes content, and what is refused."""

from __future__ import annotations

import bisect
import os
import queue
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dds.content.block import Block, Ref
from dds.content.builder import needs_shards_by_names
from dds.content.reader import EMPTY_BLOCK, read_tree, run
from dds.primitives.cid import CID, cid_text
from dds.primitives.errors import InputError, LimitError, SourceChangedError
from dds.primitives.units import MIB
from dds.storage.removal import remove
from dds.storage.source import BuiltTree, SourceOptions, build_dag, compute_cid, measure_dag
from tests.content_dags import Store, tree_of
from tests.content_trees import keystream

DEPTH = 1000


def built(path: Path, **options: object) -> tuple[BuiltTree, Store]:
    store = Store()
    tree = build_dag(path, SourceOptions(**options), lambda block, position: store._take(block, position))  # type: ignore[arg-type]
    return tree, store


def content(path: Path, **options: object) -> object:
    tree, store = built(path, **options)
    return tree_of(run(read_tree(Ref(tree.root.cid, 0, tree.root.tsize)), store.fetch))


@contextmanager
def open_files_at_most(count: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_hidden_entries_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    for name in (".hidden", "seen"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / ".git").mkdir()
    assert content(tmp_path) == {b"seen": b"seen"}
    assert content(tmp_path, hidden=True) == {b"seen": b"seen", b".hidden": b".hidden", b".git": {}}


def test_a_hidden_root_named_outright_is_stored(tmp_path: Path) -> None:
    (tmp_path / ".profile").write_bytes(b"x")
    assert content(tmp_path / ".profile") == b"x"


def test_symbolic_links_and_empty_directories_are_kept(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.symlink("nowhere", tmp_path / "link")
    assert content(tmp_path) == {b"empty": {}, b"link": "nowhere"}
    assert content(tmp_path / "link") == "nowhere"
    assert built(tmp_path)[0].symlinks == 1


def test_symbolic_links_are_followed_on_demand(tmp_path: Path) -> None:
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "real" / "below" / "file").write_bytes(b"here")
    (tmp_path / "tree").mkdir()
    os.symlink("../real", tmp_path / "tree" / "a")
    os.symlink("../real/below/file", tmp_path / "tree" / "b")
    (tmp_path / "tree" / "c").write_bytes(b"after")
    expected = {b"a": {b"below": {b"file": b"here"}}, b"b": b"here", b"c": b"after"}
    assert content(tmp_path / "tree", follow_symlinks=True) == expected


def test_a_link_to_a_directory_above_is_not_followed_for_ever(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.symlink("..", tmp_path / "a" / "up")
    with pytest.raises(InputError, match="up"):
        compute_cid(tmp_path, SourceOptions(follow_symlinks=True))


def test_a_dangling_link_that_is_to_be_followed_is_named(tmp_path: Path) -> None:
    os.symlink("nowhere", tmp_path / "dangling")
    with pytest.raises(InputError, match="dangling"):
        compute_cid(tmp_path, SourceOptions(follow_symlinks=True))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no-such-thing"):
        compute_cid(tmp_path / "no-such-thing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "secret").chmod(0)
    with pytest.raises(InputError, match="secret"):
        compute_cid(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc")
def test_a_file_that_fails_while_it_is_read_is_named() -> None:
    with pytest.raises(InputError, match=r"/proc/self/mem: Input/output error"):
        compute_cid(Path("/proc/self/mem"))


@pytest.mark.parametrize("at_root", [False, True])
def test_pipes_sockets_and_devices_are_refused_by_name(tmp_path: Path, at_root: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is a named pipe"):
        compute_cid(tmp_path / "pipe" if at_root else tmp_path)
    os.unlink(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "sock"))
        with pytest.raises(InputError, match="sock is a socket"):
            compute_cid(tmp_path / "sock" if at_root else tmp_path)
    with pytest.raises(InputError, match="/dev/null is a device"):
        compute_cid(Path("/dev/null"))


def test_names_that_are_not_utf_8_are_stored_as_they_are(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff\xfe", "wb") as file:
        file.write(b"x")
    assert content(tmp_path) == {b"\xff\xfe": b"x"}


def test_sparse_files_read_as_zeros(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(3 * MIB + 1)
    assert content(tmp_path / "sparse") == bytes(3 * MIB + 1)


def test_a_file_that_grows_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(bytes(3 * MIB))

    def grow(block: Block, position: int) -> None:
        if position == 0:
            with open(path, "ab") as file:
                file.write(b"more")

    with pytest.raises(SourceChangedError, match="log"):
        build_dag(path, SourceOptions(), grow)


def test_a_file_rewritten_in_place_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(3 * MIB))

    def rewrite(block: Block, position: int) -> None:
        with open(path, "r+b") as file:
            file.write(b"x")
        os.utime(path, ns=(1, 1 + position))

    with pytest.raises(SourceChangedError, match="data"):
        build_dag(path, SourceOptions(), rewrite)


def test_a_directory_that_gains_an_entry_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(SourceChangedError, match="directory"):
        build_dag(tmp_path, SourceOptions(), lambda block, position: (tmp_path / "b").touch())


def test_an_entry_that_vanishes_while_its_directory_is_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"y")
    with pytest.raises(SourceChangedError, match="b"):
        build_dag(tmp_path, SourceOptions(), lambda block, position: (tmp_path / "b").unlink(missing_ok=True))


def test_a_thousand_levels_need_neither_recursion_nor_open_files(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir("a rather long name for a directory", dir_fd=fd)
        below = os.open("a rather long name for a directory", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    with open_files_at_most(open_descriptors() + 8):
        tree = build_dag(tmp_path, SourceOptions(), lambda block, position: None)
        assert measure_dag(tmp_path).root.tsize == tree.root.tsize
        assert (tree.directories, tree.files) == (DEPTH + 1, 1)
        assert remove(tmp_path)


def test_no_descriptor_is_left_behind_whatever_happens(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x")
    before = open_descriptors()

    def stop(block: Block, position: int) -> None:
        raise LimitError("enough")

    with pytest.raises(LimitError):
        build_dag(tmp_path, SourceOptions(), stop)
    os.mkfifo(tmp_path / "a" / "c")
    with pytest.raises(InputError):
        compute_cid(tmp_path)
    assert open_descriptors() == before


@pytest.mark.parametrize("count", [4000, 4400, 4600, 4700, 5200])
def test_positions_and_measures_hold_for_directories_of_every_size(tmp_path: Path, count: int) -> None:
    """4,400 to 4,700 entries lie in the band where the kind of a directory hangs on its entries' sizes."""
    for at in range(count):
        (tmp_path / f"{at:011d}").write_bytes(b"some bytes here" * (at % 40))
    assert (needs_shards_by_names([b"%011d" % at for at in range(count)]) is None) == (4300 < count < 5000)
    tree, store = built(tmp_path)
    assert measure_dag(tmp_path).root.tsize == tree.root.tsize == sum(size for _, _, size in store.positions)
    starts = [position for position, _, _ in store.positions]
    reader = read_tree(Ref(tree.root.cid, 0, tree.root.tsize))
    while not reader.done:
        for request in reader.requests():
            assert request.ref.end is not None
            _, cid, _ = store.positions[bisect.bisect_left(starts, request.ref.end) - 1]
            assert cid == request.ref.cid != EMPTY_BLOCK
            reader.receive(request, store.blocks[cid])
        list(reader.events())


def test_positions_are_those_of_a_directory_that_only_its_subdirectories_sizes_decide(tmp_path: Path) -> None:
    for at in range(4500):
        (tmp_path / f"{at:011d}").mkdir()
        (tmp_path / f"{at:011d}" / "f").write_bytes(b"%d" % at * 50)
    tree, store = built(tmp_path)
    assert [position for position, _, _ in store.positions] == sorted(position for position, _, _ in store.positions)
    assert sum(size for _, _, size in store.positions) == tree.root.tsize


def test_the_measure_of_a_tree_is_the_tree_s(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "big").write_bytes(keystream("measure", 2 * MIB + 77))
    (tmp_path / "small").write_bytes(b"small")
    os.symlink("small", tmp_path / "link")
    for chunker in ("fixed", "fastcdc"):
        options = SourceOptions(chunker=chunker)
        tree, measured = build_dag(tmp_path, options, lambda block, position: None), measure_dag(tmp_path, options)
        assert measured.root._replace(cid=tree.root.cid) == tree.root
        assert (measured.files, measured.content_bytes) == (tree.files, tree.content_bytes) == (2, 2 * MIB + 82)


def test_content_defined_chunks_give_a_dag_that_reads_back(tmp_path: Path) -> None:
    data = keystream("fastcdc-dag", 3 * MIB)
    (tmp_path / "file").write_bytes(data)
    assert content(tmp_path / "file", chunker="fastcdc") == data
    assert compute_cid(tmp_path / "file", SourceOptions(chunker="fastcdc")) != compute_cid(tmp_path / "file")


def test_a_thread_builds_into_a_bounded_queue_and_stops_when_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(keystream("queue", 6 * MIB))
    blocks: queue.Queue[Block | CID] = queue.Queue(maxsize=2)
    thread = threading.Thread(
        target=lambda: blocks.put(build_dag(tmp_path / "file", SourceOptions(), lambda block, _: blocks.put(block)).root.cid)
    )
    thread.start()
    got = [blocks.get() for _ in range(8)]
    thread.join()
    assert len([block for block in got if isinstance(block, Block)]) == 7
    assert got[-1] == compute_cid(tmp_path / "file")


def test_hello_world_on_disk_has_the_published_content_id(tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"hello world")
    assert cid_text(compute_cid(tmp_path / "hello")) == "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"

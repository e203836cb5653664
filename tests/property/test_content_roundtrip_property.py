"""Whatever is built is read back, in any order of arrival, and every block lies where its position says."""

from __future__ import annotations

import bisect
import random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dds.content.block import Built, Ref
from dds.content.builder import FileBuilder, fixed_file_tsize
from dds.content.events import Data, Event
from dds.content.hamt import ShardBuilder, hash_order
from dds.content.reader import EMPTY_BLOCK, DagReader, Window, read_file, read_tree, resolve, run
from dds.primitives.cid import RAW, codec_of
from dds.primitives.units import CHUNK_BYTES
from tests.content_dags import Store, Tree, stored, tree_of

NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: name not in (b".", b"..") and not {0, 47} & set(name))
TARGETS = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), min_size=1, max_size=20)
FILES = st.binary(max_size=200)
TREES: st.SearchStrategy[Tree] = st.recursive(
    FILES | TARGETS, lambda below: st.dictionaries(NAMES, below, max_size=6), max_leaves=15
)


def read_shuffled(reader: DagReader, store: Store, seed: int) -> list[Event]:
    """Drive a reader with blocks that arrive in random order and at random moments."""
    order = random.Random(seed)
    events: list[Event] = []
    under_way = reader.requests()
    while not reader.done:
        if order.random() < 0.5:
            events.extend(reader.events())
        under_way.extend(reader.requests())
        if under_way:
            request = under_way.pop(order.randrange(len(under_way)))
            block = store.fetch(request.ref)
            assert len(block) <= request.bytes_max
            reader.receive(request, block)
        else:
            events.extend(reader.events())
    return events


@settings(max_examples=60, deadline=None)
@given(TREES, st.integers(1, 64), st.integers(0, 1000))
def test_a_tree_is_read_back_whatever_order_its_blocks_arrive_in(tree: Tree, chunk_bytes: int, seed: int) -> None:
    store, root = stored(tree, chunk_bytes)
    window = Window(bytes_max=1 + seed * 3, requests_max=1 + seed % 7)
    assert tree_of(read_shuffled(read_tree(root, window), store, seed)) == tree
    assert tree_of(run(read_tree(root), store.fetch)) == tree


def check_positions(store: Store, root: Ref) -> int:
    """Every block a reader asks for is where positions say; the number of blocks looked up."""
    starts = [position for position, _, _ in store.positions]
    reader, looked_up = read_tree(root), 0
    while not reader.done:
        for request in reader.requests():
            ref = request.ref
            assert ref.end is not None
            position, cid, _ = store.positions[bisect.bisect_left(starts, ref.end) - 1]
            assert cid == ref.cid
            assert codec_of(cid) != RAW or position == ref.start
            looked_up += 1
            reader.receive(request, store.fetch(ref))
        list(reader.events())
    return looked_up


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_every_block_is_found_by_its_position(tree: Tree) -> None:
    store, root = stored(tree)
    empty = sum(cid == EMPTY_BLOCK for _, cid, _ in store.positions)
    assert check_positions(store, root) == len(store.positions) - empty


def test_positions_hold_within_sharded_directories() -> None:
    tree: Tree = {b"%0200d" % at: {b"f": b"%d" % at, b"g": bytes(25)} for at in range(1200)}
    store, root = stored({b"a": b"first", b"sharded": tree, b"z": b"last"})
    assert check_positions(store, root) == len(store.positions)
    assert store.positions[-1][0] + store.positions[-1][2] == root.tsize


@settings(max_examples=40, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=300, unique=True))
def test_every_entry_of_a_sharded_directory_is_found_by_name(names: list[bytes]) -> None:
    store = Store()
    file = FileBuilder(store.out)
    file.add(b"x")
    child = file.finish()
    ordered = hash_order(names)
    shards = ShardBuilder(store.out, ordered)
    for _ in ordered:
        shards.add(child)
    built = shards.finish()
    root = Ref(built.cid, 0, built.tsize)
    assert tree_of(run(read_tree(root), store.fetch)) == dict.fromkeys(names, b"x")
    for name in names:
        assert found(root, store, [name]).cid == child.cid


def found(root: Ref, store: Store, path: list[bytes]) -> Ref:
    steps = resolve(root, path)
    try:
        ref = next(steps)
        while True:
            ref = steps.send(store.fetch(ref))
    except StopIteration as stop:
        result: Ref = stop.value
        return result


@settings(max_examples=60, deadline=None)
@example(3, 2, 1, 1)
@given(st.integers(0, 3000), st.integers(1, 40), st.integers(0, 3100), st.integers(0, 3100))
def test_a_range_is_exactly_those_bytes_and_touches_only_their_leaves(size: int, chunk: int, one: int, other: int) -> None:
    content = random.Random(size).randbytes(size)
    store, root = stored(content, chunk)
    start, stop = sorted((one, other))
    asked: list[bytes] = []

    def fetch(ref: Ref) -> bytes:
        asked.append(ref.cid)
        return store.fetch(ref)

    parts = [event.data for event in run(read_file(root, start, stop), fetch) if isinstance(event, Data)]
    assert b"".join(parts) == content[start:stop]
    touched = -(-min(stop, size) // chunk) - start // chunk if start < min(stop, size) else 0
    if size > chunk:
        assert sum(codec_of(cid) == RAW for cid in asked) == touched  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 5 * CHUNK_BYTES) | st.integers(0, 1 << 50))
def test_the_size_of_a_file_s_dag_follows_from_the_file_s_size(size: int) -> None:
    tsize = fixed_file_tsize(size)
    assert tsize == size if size <= CHUNK_BYTES else size < tsize < size + 4096 + size // 8192


def test_the_computed_size_is_the_built_one_around_every_change_of_shape() -> None:
    class Count:
        def emit(self, data: bytes, codec: int) -> bytes:
            return bytes(36)

    chunk = bytes(CHUNK_BYTES)
    for chunks in (0, 1, 2, 1023, 1024, 1025, 2048, 2049, 3000):
        for rest in (0, 1, 127, 128, CHUNK_BYTES - 1):
            file = FileBuilder(Count())  # type: ignore[arg-type]
            for _ in range(chunks):
                file.add(chunk)
            if rest:
                file.add(chunk[:rest])
            built: Built = file.finish()
            assert built.tsize == fixed_file_tsize(chunks * CHUNK_BYTES + rest)

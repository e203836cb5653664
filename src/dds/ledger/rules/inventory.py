"""What each node can be challenged on: a hash trie of its active assignments, with sums of leaves, frozen for an epoch.

Decides which leaf a number stands for and what the inventory's root is. Rules only announce changes (`set_leaves`): they are
queued, and an epoch's end applies them, so that all of an epoch's challenges see one inventory. The same assignments give the
same pages in whatever order they came. Reading needs nothing but `find`, so a light client can read over proven entries.
Source: docs/spec/ledger.md, "Inventories".

    entries in PAGES, behind the node's number_key
      (nothing)      head: leaves u64 | assignments u64 | root 32
      "t" nibbles    a page of the trie; one byte for each nibble of the way there
                       leaf page   0x00 | by ascending digest: segment id 32 | index u16 | leaves u32 | released u64
                       inner page  0x01 | 16 x (assignments u32 | leaves u64 | page hash 32)
      "n"            the newly active: epoch u64 | up to 64 x (segment id 32 | index u16)
      "q" ...        queued changes
    entries of all nodes: "d" ... nodes with queued changes, "g" ... segments that end with the epoch

A page is an inner page exactly when more than 128 assignments lie below it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from dds.ledger.records import CHAIN, PAGES, SEGMENTS, Page, Table, V, number_key
from dds.ledger.state import State
from dds.primitives.hashing import tagged_hash

PAGE_ENTRIES_MAX: Final = 128
FANOUT: Final = 16
NEW_MAX: Final = 64
EMPTY_ROOT: Final = bytes(32)
CHUNK_ITEMS: Final = 64  # of a queue, in one entry

_HEAD: Final = struct.Struct(">QQ32s")
_ENTRY: Final = struct.Struct(">32sHIQ")
_CHILD: Final = struct.Struct(">IQ32s")
_NEW: Final = struct.Struct(">32sH")
_LEAF, _INNER = b"\x00", b"\x01"


class Reader(Protocol):
    """A state, or a light client's proven entries."""

    def find(self, table: Table[V], identifier: bytes = b"") -> V | None: ...


@dataclass(frozen=True, slots=True)
class Held:
    """One assignment in an inventory, as of the epoch's beginning."""

    segment_id: bytes
    index: int
    leaves: int
    released: int  # stripes (bits) that it leaves out: leaf numbers count the others only

    def pack(self) -> bytes:
        return _ENTRY.pack(self.segment_id, self.index, self.leaves, self.released)

    @property
    def digest(self) -> bytes:
        """Its place in the trie; hashed, because publishers choose segment ids."""
        return _digest(self.segment_id, self.index)


class _Sum(NamedTuple):
    """What a page says of everything below it."""

    assignments: int
    leaves: int
    root: bytes


_NOTHING: Final = _Sum(0, 0, EMPTY_ROOT)
Changes = dict[bytes, Held]  # by digest; no leaves: it goes


def _digest(segment_id: bytes, index: int) -> bytes:
    return tagged_hash(b"dds/inventory-place/v1", _NEW.pack(segment_id, index))


# -- reading ----------------------------------------------------------------------------------------------------------------


def total_leaves(reader: Reader, number: int) -> int:
    """How many leaves a node can be challenged on in the present epoch."""
    return _head(reader, number).leaves


def inventory_root(reader: Reader, number: int) -> bytes:
    """Of the present epoch; 32 zero bytes: it has nothing."""
    return _head(reader, number).root


def locate(reader: Reader, number: int, leaf: int) -> tuple[bytes, int, int]:
    """(segment id, index, leaf within that assignment) of leaf number `leaf`, 0 <= leaf < total_leaves.

    `rent.leaf_place` with `find_held(...).released` tells the stripe.
    """
    assert 0 <= leaf < total_leaves(reader, number), "no such leaf"
    path = b""
    while True:
        page = _page(reader, number, path)
        if page[:1] == _LEAF:
            break
        for nibble, child in enumerate(_children(page)):
            if leaf < child.leaves:
                path += bytes((nibble,))
                break
            leaf -= child.leaves
    for held in _entries(page):
        if leaf < held.leaves:
            return held.segment_id, held.index, leaf
        leaf -= held.leaves
    raise AssertionError("a page's sums are its entries'")


def find_held(reader: Reader, number: int, segment_id: bytes, index: int) -> Held | None:
    """What the inventory of the present epoch says of one assignment; None: it is not in it."""
    path, way = b"", _nibbles(_digest(segment_id, index))
    while (page := _page(reader, number, path))[:1] == _INNER:
        path += bytes((way[len(path)],))
    return next((held for held in _entries(page) if (held.segment_id, held.index) == (segment_id, index)), None)


def new_assignments(reader: Reader, number: int) -> tuple[tuple[bytes, int], ...]:
    """(segment id, index) of what is in the inventory for the first epoch now, at most 64: one extra leaf is asked of each."""
    chain, found = reader.find(CHAIN), reader.find(PAGES, number_key(number) + b"n")
    if chain is None or found is None or int.from_bytes(found.data[:8], "big") != chain.epoch:
        return ()
    return tuple(_NEW.iter_unpack(found.data[8:]))


def _head(reader: Reader, number: int) -> _Sum:
    found = reader.find(PAGES, number_key(number))
    if found is None:
        return _NOTHING
    leaves, count, root = _HEAD.unpack(found.data)
    return _Sum(count, leaves, root)


def _page(reader: Reader, number: int, path: bytes) -> bytes:
    found = reader.find(PAGES, number_key(number) + b"t" + path)
    return _LEAF if found is None else found.data


def _children(page: bytes) -> list[_Sum]:
    return [_Sum(*child) for child in _CHILD.iter_unpack(page[1:])]


def _entries(page: bytes) -> Iterator[Held]:
    return (Held(*entry) for entry in _ENTRY.iter_unpack(page[1:]))


def _nibbles(digest: bytes) -> bytes:
    return bytes(nibble for byte in digest for nibble in (byte >> 4, byte & 15))


# -- announcing changes -----------------------------------------------------------------------------------------------------


def set_leaves(state: State, number: int, segment_id: bytes, index: int, leaves: int, released: int = 0) -> None:
    """From the next epoch on the node can be asked for so many leaves of this assignment; 0: for none."""
    if _append(state, number_key(number) + b"q", Held(segment_id, index, leaves, released).pack()) == 1:
        _append(state, b"d", number_key(number))


def end_segment(state: State, segment_id: bytes) -> None:
    """Forget a segment that nobody sponsors with the epoch: until then it can still be proven."""
    _append(state, b"g", segment_id)


def freeze(state: State, ending: int, beginning: int) -> None:
    """Epoch step: apply what was announced. After a pause what is new was new in the first epoch of the pause."""
    for raw in list(_take(state, b"d", 8)):
        number = int.from_bytes(raw, "big")
        changes = {held.digest: held for held in map(_unpack, _take(state, number_key(number) + b"q", _ENTRY.size))}
        _note_new(state, number, ending + 1, changes)
        summed = _change(state, number, b"", changes)
        _write(
            state, number_key(number), _HEAD.pack(summed.leaves, summed.assignments, summed.root) if summed.assignments else b""
        )
    for segment_id in list(_take(state, b"g", 32)):
        state.delete(SEGMENTS, segment_id)


def _unpack(raw: bytes) -> Held:
    return Held(*_ENTRY.unpack(raw))


def _note_new(state: State, number: int, epoch: int, changes: Changes) -> None:
    fresh = [
        held
        for _, held in sorted(changes.items())
        if held.leaves and find_held(state, number, held.segment_id, held.index) is None
    ][:NEW_MAX]
    if fresh:
        data = b"".join(_NEW.pack(held.segment_id, held.index) for held in fresh)
        _write(state, number_key(number) + b"n", epoch.to_bytes(8, "big") + data)


# -- the trie ---------------------------------------------------------------------------------------------------------------


def _change(state: State, number: int, path: bytes, changes: Changes) -> _Sum:
    """Apply changes that all lie below `path`."""
    page = _page(state, number, path)
    if page[:1] == _LEAF:
        entries = {held.digest: held for held in _entries(page)} | changes
        return _build(state, number, path, {digest: held for digest, held in entries.items() if held.leaves})
    children = _children(page)
    for nibble, below in _by_nibble(changes, len(path)):
        children[nibble] = _change(state, number, path + bytes((nibble,)), below)
    if sum(child.assignments for child in children) > PAGE_ENTRIES_MAX:
        return _write_inner(state, number, path, children)
    return _build(state, number, path, {held.digest: held for held in _collect(state, number, path)})


def _build(state: State, number: int, path: bytes, entries: Changes) -> _Sum:
    """Write the pages of `entries` below `path`, where at most a leaf page was."""
    if len(entries) > PAGE_ENTRIES_MAX:
        children = [_NOTHING] * FANOUT
        for nibble, below in _by_nibble(entries, len(path)):
            children[nibble] = _build(state, number, path + bytes((nibble,)), below)
        return _write_inner(state, number, path, children)
    data = _LEAF + b"".join(held.pack() for _, held in sorted(entries.items()))
    _write(state, number_key(number) + b"t" + path, data if entries else b"")
    return _Sum(len(entries), sum(held.leaves for held in entries.values()), _hash(data)) if entries else _NOTHING


def _write_inner(state: State, number: int, path: bytes, children: list[_Sum]) -> _Sum:
    data = _INNER + b"".join(_CHILD.pack(*child) for child in children)
    _write(state, number_key(number) + b"t" + path, data)
    return _Sum(sum(child.assignments for child in children), sum(child.leaves for child in children), _hash(data))


def _collect(state: State, number: int, path: bytes) -> list[Held]:
    """What lies below an inner page that has become too small to be one; its children's pages are gone then."""
    found: list[Held] = []
    for nibble in range(FANOUT):
        below = path + bytes((nibble,))
        page = _page(state, number, below)
        found += _collect(state, number, below) if page[:1] == _INNER else _entries(page)
        state.delete(PAGES, number_key(number) + b"t" + below)
    return found


def _by_nibble(changes: Changes, depth: int) -> Iterable[tuple[int, Changes]]:
    groups: list[Changes] = [{} for _ in range(FANOUT)]
    for digest, held in changes.items():
        groups[digest[depth // 2] >> (0 if depth % 2 else 4) & 15][digest] = held
    return ((nibble, group) for nibble, group in enumerate(groups) if group)


def _hash(data: bytes) -> bytes:
    return tagged_hash(b"dds/inventory/v1", data)


# -- queues: items of one length, many to an entry, so that appending does not rewrite them all ------------------------


def _append(state: State, key: bytes, item: bytes) -> int:
    """How many there are then."""
    count = _length(state, key)
    at = key + (count // CHUNK_ITEMS).to_bytes(4, "big")
    found = state.find(PAGES, at)
    _write(state, at, (found.data if found and count % CHUNK_ITEMS else b"") + item)
    _write(state, key, (count + 1).to_bytes(8, "big"))
    return count + 1


def _take(state: State, key: bytes, item_bytes: int) -> Iterator[bytes]:
    """Every item, first to last; the queue is empty then."""
    for chunk in range(-(-_length(state, key) // CHUNK_ITEMS)):
        at = key + chunk.to_bytes(4, "big")
        page: Any = state.find(PAGES, at)
        yield from (page.data[start : start + item_bytes] for start in range(0, len(page.data), item_bytes))
        state.delete(PAGES, at)
    state.delete(PAGES, key)


def _length(state: State, key: bytes) -> int:
    found = state.find(PAGES, key)
    return 0 if found is None else int.from_bytes(found.data, "big")


def _write(state: State, key: bytes, data: bytes) -> None:
    if data:
        state.put(PAGES, key, Page(data))
    elif state.find(PAGES, key) is not None:
        state.delete(PAGES, key)

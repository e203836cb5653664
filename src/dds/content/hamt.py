"""Sharded directories: a hash array mapped trie of directory entries.

Decides which bucket of which shard an entry lies in, and builds the shards in post-order from entries that come in hash
order, holding only the shards on the path to the current one.
Source: UnixFS specification, "HAMTDirectory"; fanout 256 by IPIP-499. Two traps: the hash is the first half of murmur3-x64-128,
big-endian, consumed from its most significant bits; the bitfield is big-endian with leading zero bytes trimmed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import mmh3

from dds.content.block import Built
from dds.content.dagpb import PBLink, PBNode, encode_node
from dds.content.unixfs import MURMUR3_X64_64, DataType, UnixFSData, encode_unixfs
from dds.primitives.cid import DAG_PB
from dds.primitives.errors import LimitError

if TYPE_CHECKING:
    from dds.content.builder import Output

FANOUT: Final = 256
HASH_BITS: Final = 64
_LEVELS = HASH_BITS // 8


def name_hash(name: bytes) -> bytes:
    """The 8 bytes that lead to a name: one per level at fanout 256, first byte first."""
    return mmh3.mmh3_x64_128_digest(name)[7::-1]


def hash_order(names: Iterable[bytes]) -> list[bytes]:
    """The order in which a post-order traversal of the sharded directory meets its entries."""
    return sorted(names, key=name_hash)


class ShardBuilder:
    """Builds the trie over `names`, distinct and in hash order; `add` takes their subtrees in the same order.

    Raises:
        LimitError: two names share all 64 bits of their hash.
    """

    def __init__(self, out: Output, names: list[bytes]) -> None:
        self._out = out
        self._names = names
        self._keys = [name_hash(name) for name in names]
        self._next = 0
        self._path = b""  # buckets from the root to the innermost open shard
        self._open: list[list[tuple[int, PBLink]]] = [[]]  # links of the open shards, root first
        for at in range(1, len(names)):
            if self._keys[at] == self._keys[at - 1]:
                raise LimitError(
                    f"the names {names[at - 1]!r} and {names[at]!r} have the same 64-bit hash: no directory can hold both"
                )

    def add(self, child: Built) -> None:
        at, self._next = self._next, self._next + 1
        key, name = self._keys[at], self._names[at]
        before = _shared(key, self._keys[at - 1]) if at else 0
        behind = _shared(key, self._keys[at + 1]) if at + 1 < len(self._keys) else 0
        while len(self._path) < max(before, behind):  # as deep as it must be to stand alone in its bucket
            self._path += key[len(self._path) : len(self._path) + 1]
            self._open.append([])
        bucket = key[len(self._path)]
        self._open[-1].append((bucket, PBLink(child.cid, b"%02X%s" % (bucket, name), child.tsize)))
        while len(self._path) > behind:  # now, not with the next entry: its blocks come behind the shards that end here
            self._close()

    def finish(self) -> Built:
        return self._emit(self._open.pop())

    def _close(self) -> None:
        built = self._emit(self._open.pop())
        bucket, self._path = self._path[-1], self._path[:-1]
        self._open[-1].append((bucket, PBLink(built.cid, b"%02X" % bucket, built.tsize)))

    def _emit(self, links: list[tuple[int, PBLink]]) -> Built:
        bits = sum(1 << bucket for bucket, _ in links)
        data = UnixFSData(
            DataType.HAMT_SHARD,
            data=bits.to_bytes((bits.bit_length() + 7) // 8, "big"),
            hash_type=MURMUR3_X64_64,
            fanout=FANOUT,
        )
        block = encode_node(PBNode(tuple(link for _, link in links), encode_unixfs(data)))
        return Built(self._out.emit(block, DAG_PB), len(block) + sum(link.tsize or 0 for _, link in links), 0)


def _shared(one: bytes, other: bytes) -> int:
    """How many leading bytes two hashes share."""
    return next((at for at in range(_LEVELS) if one[at] != other[at]), _LEVELS)

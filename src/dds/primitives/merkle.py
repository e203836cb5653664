"""Merkle trees over byte strings, RFC 9162 section 2.1 style.

leaf = SHA-256(0x00 || bytes), node = SHA-256(0x01 || left || right); an odd node at the end of a level is promoted unchanged,
which gives the same shape as the RFC's split at the largest power of two. The leaf count is bound by whoever commits to the
root (a fragment record holds it), so a proof is always checked against root *and* count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from dds.primitives.hashing import Buffer

_sha256 = hashlib.sha256
EMPTY_ROOT = _sha256(b"").digest()  # RFC 9162: the root of no leaves


def leaf_hash(data: Buffer) -> bytes:
    return _sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return _sha256(b"\x01" + left + right).digest()


def leaf_hashes(data: Buffer, leaf_bytes: int) -> list[bytes]:
    """Hashes of `data` cut into leaves of exactly `leaf_bytes`; the last is padded with zero bytes (docs/spec/segments.md)."""
    view = memoryview(data)
    whole = len(view) // leaf_bytes * leaf_bytes
    hashes = [_sha256(b"\x00" + view[at : at + leaf_bytes]).digest() for at in range(0, whole, leaf_bytes)]
    if whole < len(view):
        hashes.append(leaf_hash(bytes(view[whole:]).ljust(leaf_bytes, b"\x00")))
    return hashes


def root_of(hashes: Sequence[bytes]) -> bytes:
    """Root over leaf hashes."""
    if not hashes:
        return EMPTY_ROOT
    level = list(hashes)
    while len(level) > 1:
        paired = [_sha256(b"\x01" + level[at] + level[at + 1]).digest() for at in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level = paired
    return level[0]


def path_of(hashes: Sequence[bytes], index: int) -> list[bytes]:
    """Siblings from leaf `index` up to the root (levels where the node is promoted contribute none)."""
    assert 0 <= index < len(hashes)
    path: list[bytes] = []
    level = list(hashes)
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(level[sibling])
        paired = [node_hash(level[at], level[at + 1]) for at in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            paired.append(level[-1])
        level, index = paired, index // 2
    return path


def path_length(index: int, count: int) -> int:
    """How many siblings the path of leaf `index` in a tree of `count` leaves has."""
    length = 0
    while count > 1:
        length += (index ^ 1) < count
        index, count = index // 2, (count + 1) // 2
    return length


def verify_path(leaf: bytes, index: int, count: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether `leaf` (a leaf hash) stands at `index` of the tree of `count` leaves with `root`."""
    if not 0 <= index < count or len(path) != path_length(index, count):
        return False
    current, used = leaf, 0
    while count > 1:
        if index ^ 1 < count:
            sibling = path[used]
            used += 1
            current = node_hash(sibling, current) if index & 1 else node_hash(current, sibling)
        index, count = index // 2, (count + 1) // 2
    return current == root

"""Fragment trees: what makes a fragment verifiable alone, leaf by leaf.

A fragment is cut into leaves of 3,968 bytes; the last is hashed as if filled up with zero bytes, but stored and sent as it
is. The record binds root, size and leaf count, so the filler cannot be taken for content.
Source: docs/spec/segments.md, "Fragment records"; RFC 9162 section 2.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from dds.primitives.hashing import Buffer
from dds.primitives.ids import FragmentRoot
from dds.primitives.merkle import leaf_hash, leaf_hashes, path_of, root_of, verify_path
from dds.primitives.units import LEAF_BYTES
from dds.wire.segment import FragmentRecord, leaf_count_of


def leaf_hashes_of(fragment: Buffer) -> list[bytes]:
    """Leaf hashes of a fragment, in order; 32 bytes each."""
    return leaf_hashes(fragment, LEAF_BYTES)


def fragment_root(fragment: Buffer) -> FragmentRoot:
    return FragmentRoot(root_of(leaf_hashes_of(fragment)))


def record_of(index: int, fragment: Buffer) -> FragmentRecord:
    """The record of a fragment's bytes at `index` of its stripe."""
    hashes = leaf_hashes_of(fragment)
    return FragmentRecord(FragmentRoot(root_of(hashes)), len(fragment), index, len(hashes))


def matches_record(record: FragmentRecord, fragment: Buffer) -> bool:
    """Whether these are the bytes that the record describes."""
    return len(fragment) == record.size and fragment_root(fragment) == record.root


def path_for(hashes: Sequence[bytes], leaf: int) -> list[bytes]:
    """Siblings of leaf `leaf`, from the bottom up, given all of the fragment's leaf hashes."""
    return path_of(hashes, leaf)


def leaf_range(size: int, leaf: int) -> tuple[int, int]:
    """First byte and the byte behind the last of a leaf, in a fragment of `size` bytes."""
    assert 0 <= leaf < leaf_count_of(size)
    return leaf * LEAF_BYTES, min((leaf + 1) * LEAF_BYTES, size)


def verify_leaf(record: FragmentRecord, leaf: int, stored: Buffer, path: Sequence[bytes]) -> bool:
    """Whether `stored` (unpadded, as it lies on disk) is leaf `leaf` of the fragment. Wrong lengths are a plain False."""
    if not 0 <= leaf < record.leaf_count or record.leaf_count != leaf_count_of(record.size):
        return False
    lo, hi = leaf_range(record.size, leaf)
    if len(stored) != hi - lo:
        return False
    padded = bytes(stored).ljust(LEAF_BYTES, b"\x00")
    return verify_path(leaf_hash(padded), leaf, record.leaf_count, path, record.root)

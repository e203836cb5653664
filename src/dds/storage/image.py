"""The image of a fragment at rest: its bytes with everything that is needed to check them alone (docs/spec/fragment-store.md).

    head        b"DDSFRAG1" | root 32 | size u32 | CRC of the leaf hashes u32 | CRC of the head so far and the block table u32
    block table CRC-32 of every 64 KiB block of the data, u32 each
    leaf hashes 32 bytes for each leaf of 3,968 bytes
    data        the fragment itself

All numbers are big endian. The same image is a file of its own or lies inside a pack. A range read checks the head and the
blocks that it touches, nothing else; a proof reads the leaf hashes and the leaves asked for, so an audit never reads a whole
fragment. A CRC finds what a disk did by accident; against an adversary stands the Merkle root, which `verify_deep` recomputes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from dds.primitives.errors import CorruptError
from dds.primitives.hashing import Buffer
from dds.primitives.ids import FragmentRoot
from dds.primitives.merkle import leaf_hashes, node_hash, root_of
from dds.primitives.units import KIB, LEAF_BYTES
from dds.storage.checksum import crc32

MAGIC = b"DDSFRAG1"
BLOCK_BYTES = 64 * KIB
HASH_BYTES = 32
_HEAD = struct.Struct(">8s32sIII")
_HEAD_UNSUMMED = _HEAD.size - 4
HEAD_BYTES = _HEAD.size

ReadAt = Callable[[int, int], bytes]  # (length, offset within the image) -> bytes


class Layout(NamedTuple):
    """Where things lie in an image, in bytes from its start."""

    leaves_at: int
    data_at: int
    length: int


def layout_of(size: int) -> Layout:
    leaves_at = HEAD_BYTES + 4 * -(-size // BLOCK_BYTES)
    data_at = leaves_at + HASH_BYTES * -(-size // LEAF_BYTES)
    return Layout(leaves_at, data_at, data_at + size)


@dataclass(frozen=True, slots=True)
class Image:
    """A fragment ready to be written: `tables` then `data`."""

    root: FragmentRoot
    tables: bytes
    data: bytes

    @property
    def length(self) -> int:
        return len(self.tables) + len(self.data)


def build_image(data: Buffer) -> Image:
    """Hash a fragment once and lay out its image. Costs about 1 ms for 1 MiB."""
    raw = data if isinstance(data, bytes) else bytes(data)
    hashes = leaf_hashes(raw, LEAF_BYTES)
    root = FragmentRoot(root_of(hashes))
    leaves = b"".join(hashes)
    blocks = b"".join(crc.to_bytes(4, "big") for crc in _block_crcs(raw))
    head = _HEAD.pack(MAGIC, root, len(raw), crc32(leaves), 0)[:_HEAD_UNSUMMED]
    summed = crc32(blocks, crc32(head)).to_bytes(4, "big")
    return Image(root, b"".join((head, summed, blocks, leaves)), raw)


def _block_crcs(raw: Buffer) -> list[int]:
    view = memoryview(raw)
    return [crc32(view[at : at + BLOCK_BYTES]) for at in range(0, len(view), BLOCK_BYTES)]


class _Head(NamedTuple):
    leaves_crc: int
    block_crcs: list[int]


def _read_head(read: ReadAt, root: FragmentRoot, size: int) -> _Head:
    """The checked head and block table of the fragment that should be there."""
    raw = read(layout_of(size).leaves_at, 0)
    if len(raw) != layout_of(size).leaves_at:
        raise corrupt(root, "its image is cut short")
    magic, found, found_size, leaves_crc, summed = _HEAD.unpack_from(raw)
    body = memoryview(raw)
    if magic != MAGIC or crc32(body[HEAD_BYTES:], crc32(body[:_HEAD_UNSUMMED])) != summed:
        raise corrupt(root, "its head fails its checksum")
    if found != root or found_size != size:
        raise corrupt(root, "another fragment lies in its place")
    return _Head(leaves_crc, list(struct.unpack(f">{len(raw[HEAD_BYTES:]) // 4}I", raw[HEAD_BYTES:])))


def corrupt(root: bytes, why: str) -> CorruptError:
    return CorruptError(f"fragment {root.hex()[:16]} is damaged at rest: {why}", root=root)


def read_range(read: ReadAt, root: FragmentRoot, size: int, offset: int, length: int) -> bytes:
    """Bytes [offset, offset + length) of a fragment, every touched block checked.

    Raises:
        CorruptError: a checksum fails, or the image is not this fragment's.
    """
    head = _read_head(read, root, size)
    first, last = offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)
    start, stop = first * BLOCK_BYTES, min(size, last * BLOCK_BYTES)
    raw = read(stop - start, layout_of(size).data_at + start)
    if len(raw) != stop - start:
        raise corrupt(root, "its data is cut short")
    if _block_crcs(raw) != head.block_crcs[first:last]:
        raise corrupt(root, "its data fails its checksum")
    return raw if len(raw) == length else raw[offset - start : offset - start + length]


def read_leaf_hashes(read: ReadAt, root: FragmentRoot, size: int) -> list[bytes]:
    """The stored leaf hashes, checked by their CRC.

    Raises:
        CorruptError
    """
    head = _read_head(read, root, size)
    where = layout_of(size)
    raw = read(where.data_at - where.leaves_at, where.leaves_at)
    if len(raw) != where.data_at - where.leaves_at or crc32(raw) != head.leaves_crc:
        raise corrupt(root, "its leaf hashes fail their checksum")
    return [raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES)]


def read_leaves(read: ReadAt, root: FragmentRoot, size: int, first: int, count: int) -> tuple[list[bytes], list[list[bytes]]]:
    """Leaves [first, first + count) as stored (the fragment's last one unpadded) and their Merkle paths.

    Raises:
        CorruptError
    """
    levels = _levels(read_leaf_hashes(read, root, size))
    if levels[-1] and levels[-1][0] != root:
        raise corrupt(root, "its leaf hashes do not give its root")
    start, stop = first * LEAF_BYTES, min(size, (first + count) * LEAF_BYTES)
    raw = read_range(read, root, size, start, stop - start)
    leaves = [raw[at : at + LEAF_BYTES] for at in range(0, len(raw), LEAF_BYTES)]
    return leaves, [_path(levels, index) for index in range(first, first + count)]


def _levels(hashes: list[bytes]) -> list[list[bytes]]:
    """All levels of the tree of primitives.merkle, leaves first: hashed once for any number of paths."""
    levels = [hashes]
    while len(levels[-1]) > 1:
        below = levels[-1]
        level = [node_hash(below[at], below[at + 1]) for at in range(0, len(below) - 1, 2)]
        levels.append(level + below[len(level) * 2 :])
    return levels


def _path(levels: list[list[bytes]], index: int) -> list[bytes]:
    path = []
    for level in levels[:-1]:
        if index ^ 1 < len(level):
            path.append(level[index ^ 1])
        index //= 2
    return path


def verify(read: ReadAt, root: FragmentRoot, size: int, *, deep: bool) -> None:
    """Check every checksum of an image; `deep` also recomputes leaf hashes and root from the data.

    Raises:
        CorruptError
    """
    stored = read_leaf_hashes(read, root, size)
    data = read_range(read, root, size, 0, size)
    if deep and (leaf_hashes(data, LEAF_BYTES) != stored or root_of(stored) != root):
        raise corrupt(root, "its data does not give its root")

"""What a block means: strict validation of the UnixFS nodes inside foreign DAGs.

Decides whether a block, whose bytes already match its CID, is a well-formed raw leaf, file node, directory, shard or symbolic
link, and whether the sizes it states agree with each other. A hash proves only that the bytes are the named ones, not that
whoever made them was honest. Order and extent of reading are reader.py's.
Source: UnixFS specification; bounds on fanout from CVE-2023-23625.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dds.content.dagpb import PBLink, PBNode, decode_node
from dds.content.hamt import HASH_BITS
from dds.content.names import check_name
from dds.content.unixfs import (
    FANOUT_MAX,
    MURMUR3_X64_64,
    SYMLINK_TARGET_BYTES_MAX,
    DataType,
    UnixFSData,
    decode_unixfs,
)
from dds.primitives.cid import CID, CODEC_NAMES, DAG_PB, RAW, codec_of
from dds.primitives.errors import FormatError
from dds.primitives.units import BLOCK_BYTES_MAX

_SIZE_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class FileNode:
    """A file, or part of one: `inline` bytes first, then the children, `sizes` bytes of content each."""

    filesize: int
    inline: bytes
    links: tuple[PBLink, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DirectoryNode:
    """A basic directory; every link's name is the entry's name."""

    links: tuple[PBLink, ...]


@dataclass(frozen=True, slots=True)
class ShardNode:
    """One shard: `buckets[i]` and `names[i]` belong to `links[i]`; an empty name marks a sub-shard."""

    fanout: int
    links: tuple[PBLink, ...]
    buckets: tuple[int, ...]
    names: tuple[bytes, ...]

    @property
    def bits(self) -> int:
        """Bits of a name's hash that one level uses up."""
        return self.fanout.bit_length() - 1


@dataclass(frozen=True, slots=True)
class SymlinkNode:
    target: bytes


Node = FileNode | DirectoryNode | ShardNode | SymlinkNode
NO_LINKS: Final[tuple[PBLink, ...]] = ()


def parse_node(cid: CID, block: bytes, tsize: int | None = None) -> Node:
    """The meaning of a block that matches `cid`; `tsize` is what the link that led here says, if it says so.

    Raises:
        FormatError: another codec, not UnixFS, or sizes that contradict each other.
    """
    if len(block) > BLOCK_BYTES_MAX:
        raise FormatError(f"a block of {len(block)} bytes exceeds the limit of {BLOCK_BYTES_MAX}")
    codec = codec_of(cid)
    if codec == RAW:
        _check_tsize(len(block), NO_LINKS, tsize)
        return FileNode(len(block), block, NO_LINKS, ())
    if codec != DAG_PB:
        raise FormatError(f"not a file or directory: its codec is {CODEC_NAMES.get(codec, hex(codec))}", codec=codec)
    node = decode_node(block)
    _check_tsize(len(block), node.links, tsize)
    if node.data is None:
        raise FormatError("a dag-pb node without UnixFS data")
    return _parse_unixfs(node, decode_unixfs(node.data))


def _parse_unixfs(node: PBNode, meta: UnixFSData) -> Node:
    for link in node.links:
        if codec_of(link.cid) not in (RAW, DAG_PB):
            raise FormatError(f"a file or directory links to a {CODEC_NAMES[codec_of(link.cid)]} block")
    match meta.type:
        case DataType.FILE | DataType.RAW:
            return _parse_file(node.links, meta)
        case DataType.DIRECTORY:
            return _parse_directory(node.links, meta)
        case DataType.HAMT_SHARD:
            return _parse_shard(node.links, meta)
        case DataType.SYMLINK:
            return _parse_symlink(node.links, meta)
        case _:
            raise FormatError(f"UnixFS nodes of type {meta.type.name} are not supported")


def _check_tsize(own_bytes: int, links: tuple[PBLink, ...], claimed: int | None) -> None:
    """A link's Tsize must be what the node behind it adds up to, else positions could not be trusted."""
    total = own_bytes
    for link in links:
        if link.tsize is None:
            return
        total += link.tsize
    if total > _SIZE_MAX:
        raise FormatError("the sizes in a node add up to more than 63 bits hold")
    if claimed is not None and claimed != total:
        raise FormatError("a link's Tsize is not what its subtree adds up to", expected=claimed, actual=total)


def _parse_file(links: tuple[PBLink, ...], meta: UnixFSData) -> FileNode:
    inline, sizes = meta.data or b"", meta.blocksizes
    if len(sizes) != len(links):
        raise FormatError(f"a file node with {len(links)} links and {len(sizes)} block sizes")
    total = len(inline) + sum(sizes)
    if total > _SIZE_MAX or (meta.filesize or 0) != total:
        raise FormatError("a file node's size is not the sum of its parts", expected=meta.filesize, actual=total)
    if meta.hash_type is not None or meta.fanout is not None:
        raise FormatError("a file node with fields of a shard")
    for link, size in zip(links, sizes, strict=True):
        if link.name:
            raise FormatError("a file node with a named link")
        if size == 0:  # nothing to deliver for the work: the stuff of bombs, and no writer makes it
            raise FormatError("a file node with an empty part")
        if codec_of(link.cid) == RAW and (size > BLOCK_BYTES_MAX or link.tsize not in (None, size)):
            raise FormatError("a leaf's size is not what its link says")
    return FileNode(total, inline, links, sizes)


def _parse_directory(links: tuple[PBLink, ...], meta: UnixFSData) -> DirectoryNode:
    if meta.data or meta.filesize or meta.blocksizes or meta.hash_type is not None or meta.fanout is not None:
        raise FormatError("a directory with fields of another type")
    for link in links:
        check_name(link.name or b"")
    if len({link.name for link in links}) != len(links):
        raise FormatError("a directory has the same name twice")
    return DirectoryNode(links)


def _parse_shard(links: tuple[PBLink, ...], meta: UnixFSData) -> ShardNode:
    fanout = meta.fanout or 0
    if meta.hash_type != MURMUR3_X64_64:
        raise FormatError(f"a sharded directory with hash {meta.hash_type}; only murmur3-x64-64 is known")
    if not 8 <= fanout <= FANOUT_MAX or fanout & (fanout - 1):
        raise FormatError(f"a sharded directory with fanout {fanout}; powers of two from 8 to {FANOUT_MAX} are possible")
    if meta.filesize or meta.blocksizes:
        raise FormatError("a shard with fields of a file")
    buckets = _buckets(meta.data or b"", fanout)
    if len(buckets) != len(links):
        raise FormatError(f"a shard with {len(links)} links and {len(buckets)} used buckets")
    digits = len(f"{fanout - 1:X}")
    names: list[bytes] = []
    for bucket, link in zip(buckets, links, strict=True):
        full = link.name or b""
        if full[:digits] != b"%0*X" % (digits, bucket):
            raise FormatError("a shard's link does not name its bucket")
        name = full[digits:]
        if name:
            check_name(name)
        elif codec_of(link.cid) != DAG_PB:
            raise FormatError("a shard's sub-shard is not a dag-pb node")
        names.append(name)
    return ShardNode(fanout, links, buckets, tuple(names))


def _buckets(bitfield: bytes, fanout: int) -> tuple[int, ...]:
    bits = int.from_bytes(bitfield, "big")
    if len(bitfield) > fanout // 8 or bits >> fanout:
        raise FormatError("a shard's bitfield is longer than its fanout")
    return tuple(bucket for bucket in range(fanout) if bits >> bucket & 1)


def _parse_symlink(links: tuple[PBLink, ...], meta: UnixFSData) -> SymlinkNode:
    target = meta.data or b""
    if links or meta.blocksizes or meta.hash_type is not None or meta.fanout is not None:
        raise FormatError("a symbolic link with fields of another type")
    if not 0 < len(target) <= SYMLINK_TARGET_BYTES_MAX or b"\x00" in target:
        raise FormatError("a symbolic link with an impossible target")
    return SymlinkNode(target)


def bucket_of(name_hash: bytes, path: int, used_bits: int, node: ShardNode) -> int:
    """The bucket of this shard that a name's hash leads to; `path` are the `used_bits` hash bits that led to the shard.

    Raises:
        FormatError: the shard is deeper than the hash has bits, or this name's hash does not lead to it at all.
    """
    left = HASH_BITS - used_bits - node.bits
    if left < 0:
        raise FormatError("a sharded directory is deeper than its hash")
    head = int.from_bytes(name_hash, "big") >> left
    if head >> node.bits != path:
        raise FormatError("an entry of a sharded directory lies in the wrong shard")
    return head & (node.fanout - 1)

"""From one verified node to what follows from it: events that are ready, and children that must be fetched, in output order.

Decides which children are needed (a range touches only some), what each must turn out to be, and the limits on depth. It is
lazy: a node's children are produced one at a time. When they are fetched is reader.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from dds.content.block import Ref, child_refs
from dds.content.events import CLOSE, Data, Entry, Event, OpenDirectory, OpenFile, Symlink
from dds.content.hamt import HASH_BITS, name_hash
from dds.content.nodes import DirectoryNode, FileNode, Node, ShardNode, SymlinkNode, bucket_of, parse_node
from dds.primitives.errors import FormatError, InputError

FILE_DEPTH_MAX: Final = 32  # 1024 links a node reach 10 TB at depth 3; other layouts are deeper
DIRECTORY_DEPTH_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Whole:
    """The block is a root or a directory's entry: of any kind. `descend` False lists a directory's entries only.
    [start, stop) clips a file's bytes; `stop` None means its end."""

    name: bytes = b""
    depth: int = 0
    descend: bool = True
    start: int = 0
    stop: int | None = None
    file_only: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """The block is a part of a file with exactly `size` bytes, of which [start, stop) are wanted."""

    size: int
    start: int
    stop: int
    depth: int


@dataclass(frozen=True, slots=True)
class SubShard:
    """The block is a shard of the directory `whole`; the first `used_bits` bits of its names' hashes are `path`."""

    whole: Whole
    fanout: int
    path: int
    used_bits: int


Role = Whole | Part | SubShard


@dataclass(frozen=True, slots=True)
class Child:
    """A block that is needed next, and what it must be."""

    ref: Ref
    role: Role


def expand(child: Child, block: bytes) -> Iterator[Event | Child]:
    """What follows from a fetched block. The first step validates it.

    Raises:
        FormatError: malformed, of the wrong kind, or too deep.
        InputError: a file was asked for and the root is none.
    """
    node = parse_node(child.ref.cid, block, child.ref.tsize)
    match child.role:
        case Part() as part:
            return _part(child.ref, node, part)
        case SubShard() as shard:
            if not isinstance(node, ShardNode) or node.fanout != shard.fanout or not node.links:
                raise FormatError("a sub-shard is not a shard of the same directory")
            return _shard(child.ref, node, shard)
        case Whole() as whole:
            return _whole(child.ref, node, whole)


def _whole(ref: Ref, node: Node, whole: Whole) -> Iterator[Event | Child]:
    if isinstance(node, FileNode):
        return _file(ref, node, whole)
    if whole.file_only:
        raise InputError("not a file, but a " + ("symbolic link" if isinstance(node, SymlinkNode) else "directory"))
    if isinstance(node, SymlinkNode):
        return iter((Symlink(whole.name, node.target),))
    return _directory(ref, node, whole)


def _file(ref: Ref, node: FileNode, whole: Whole) -> Iterator[Event | Child]:
    stop = node.filesize if whole.stop is None else min(whole.stop, node.filesize)
    yield OpenFile(whole.name, node.filesize, ref)
    yield from _part(ref, node, Part(node.filesize, min(whole.start, stop), stop, 0))
    yield CLOSE


def _part(ref: Ref, node: Node, part: Part) -> Iterator[Event | Child]:
    if not isinstance(node, FileNode):
        raise FormatError("a part of a file is not a file")
    if node.filesize != part.size:
        raise FormatError("a part of a file has another size than its link says", expected=part.size, actual=node.filesize)
    if part.depth > FILE_DEPTH_MAX:
        raise FormatError(f"a file is deeper than {FILE_DEPTH_MAX} levels")
    return _pieces(ref, node, part)


def _pieces(ref: Ref, node: FileNode, part: Part) -> Iterator[Event | Child]:
    """Inline bytes, then the children that [start, stop) touches."""
    if part.start >= part.stop:
        return
    if part.start < len(node.inline):
        yield Data(node.inline[part.start : part.stop])
    at = len(node.inline)
    for child, size in zip(child_refs(ref.start, node.links), node.sizes, strict=True):
        if at >= part.stop:
            return
        if at + size > part.start:
            yield Child(child, Part(size, max(part.start - at, 0), min(part.stop - at, size), part.depth + 1))
        at += size


def _directory(ref: Ref, node: DirectoryNode | ShardNode, whole: Whole) -> Iterator[Event | Child]:
    if whole.depth > DIRECTORY_DEPTH_MAX:
        raise FormatError(f"directories nested deeper than {DIRECTORY_DEPTH_MAX} levels")
    return _entries(ref, node, whole)


def _entries(ref: Ref, node: DirectoryNode | ShardNode, whole: Whole) -> Iterator[Event | Child]:
    yield OpenDirectory(whole.name, ref)
    if isinstance(node, ShardNode):
        yield from _shard(ref, node, SubShard(whole, node.fanout, 0, 0))
    else:
        for link, child in zip(node.links, child_refs(ref.start, node.links), strict=True):
            yield _entry(whole, link.name or b"", child)
    yield CLOSE


def _shard(ref: Ref, node: ShardNode, shard: SubShard) -> Iterator[Event | Child]:
    refs = child_refs(ref.start, node.links)
    for name, bucket, child in zip(node.names, node.buckets, refs, strict=True):
        if name:
            if bucket_of(name_hash(name), shard.path, shard.used_bits, node) != bucket:
                raise FormatError("an entry of a sharded directory lies in the wrong bucket")
            yield _entry(shard.whole, name, child)
        elif shard.used_bits + node.bits >= HASH_BITS:
            raise FormatError("a sharded directory is deeper than its hash")
        else:
            path = shard.path << node.bits | bucket
            yield Child(child, replace(shard, path=path, used_bits=shard.used_bits + node.bits))


def _entry(whole: Whole, name: bytes, ref: Ref) -> Child | Entry:
    return Child(ref, Whole(name, whole.depth + 1)) if whole.descend else Entry(name, ref)

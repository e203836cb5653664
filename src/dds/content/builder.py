"""Building UnixFS DAGs, block by block, in post-order.

Decides the shape of files, directories and symbolic links under the profile `unixfs-v1-2025`: raw leaves, balanced files with
at most 1024 links a node, a lone trailing child wrapped at each level, basic directories up to 262,144 bytes. Each block goes
to a sink the moment it is known, children before parents, with its position; memory is O(depth x 1024 links) for files and
O(entries) for one directory. Sharded directories: hamt.py. Reading files and choosing what to build: storage/source.py.
Source: IPIP-499; UnixFS specification.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from dds.content.block import Block, Built
from dds.content.dagpb import PBLink, PBNode, encode_node, link_bytes, varint_bytes
from dds.content.hamt import ShardBuilder, hash_order
from dds.content.names import check_name
from dds.content.unixfs import DIRECTORY_DATA, SYMLINK_TARGET_BYTES_MAX, DataType, UnixFSData, encode_unixfs
from dds.primitives.cid import CID, DAG_PB, RAW, cid_from_digest, cid_of
from dds.primitives.errors import FormatError, InputError, SourceChangedError
from dds.primitives.units import CHUNK_BYTES

FILE_LINKS_MAX: Final = 1024
BASIC_DIRECTORY_BYTES_MAX: Final = 262_144

_EMPTY_DIRECTORY_BYTES = len(encode_node(PBNode((), DIRECTORY_DATA)))
_TSIZE_MAX = (1 << 63) - 1
_ANY_CID = {codec: cid_from_digest(bytes(32), codec) for codec in (RAW, DAG_PB)}

Sink = Callable[[Block, int], None]


class Output(Protocol):
    """Where builders put their blocks."""

    def emit(self, data: bytes, codec: int) -> CID:
        """Take the next block of the traversal and name it."""
        ...


class PostOrder:
    """Names each block and hands it with its position to `sink`. One PostOrder per content root, shared by the builders of
    all its files and directories."""

    __slots__ = ("_sink", "position")

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.position = 0

    def emit(self, data: bytes, codec: int) -> CID:
        block = Block(cid_of(data, codec), data)
        self._sink(block, self.position)
        self.position += len(data)
        return block.cid


class SizeOnly:
    """An output that forgets its blocks: for learning a subtree's Tsize without hashing it. Sizes do not depend on what the
    CIDs are, because all have the same length."""

    def emit(self, data: bytes, codec: int) -> CID:
        return _ANY_CID[codec]


class FileBuilder:
    """Builds one file from its chunks, in order; `finish` gives its root."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._levels: list[list[Built]] = [[]]  # levels[0]: leaves that have no parent yet

    def add(self, chunk: bytes) -> None:
        """Append a chunk of 1 to CHUNK_BYTES bytes."""
        assert 0 < len(chunk) <= CHUNK_BYTES
        self._push(0, Built(self._out.emit(chunk, RAW), len(chunk), len(chunk)))

    def finish(self) -> Built:
        """The root: the single leaf itself, or the node above all; an empty file is the raw leaf of no bytes."""
        level = 0
        while True:
            waiting, higher = self._levels[level], any(self._levels[level + 1 :])
            if not higher and len(waiting) == 1:
                return waiting[0]
            if not higher and not waiting:
                return Built(self._out.emit(b"", RAW), 0, 0)
            if waiting:
                self._close(level)
            level += 1

    def _push(self, level: int, child: Built) -> None:
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append(child)
        if len(self._levels[level]) == FILE_LINKS_MAX:
            self._close(level)

    def _close(self, level: int) -> None:
        """Put a node above all that waits on a level; it follows its last child at once, which is what post-order asks."""
        children, self._levels[level] = self._levels[level], []
        block = _file_node(children)
        filesize = sum(child.filesize for child in children)
        tsize = len(block) + sum(child.tsize for child in children)
        self._push(level + 1, Built(self._out.emit(block, DAG_PB), tsize, filesize))


def _file_node(children: list[Built]) -> bytes:
    sizes = tuple(child.filesize for child in children)
    links = tuple(PBLink(child.cid, b"", child.tsize) for child in children)  # an empty name, not none: as others write it
    return encode_node(PBNode(links, encode_unixfs(UnixFSData(DataType.FILE, filesize=sum(sizes), blocksizes=sizes))))


def fixed_file_tsize(size: int) -> int:
    """The Tsize of a file of `size` bytes under the fixed chunker, without its bytes.

    Every level is a run of equal subtrees and at most one odd subtree behind it, so the work is O(levels).
    """
    count, whole = size // CHUNK_BYTES, (CHUNK_BYTES, CHUNK_BYTES)
    odd = (size % CHUNK_BYTES, size % CHUNK_BYTES)
    while count + (odd[1] > 0) > 1:
        groups, left = divmod(count, FILE_LINKS_MAX)
        tail = [(left, *whole), (int(odd[1] > 0), *odd)]
        odd = _node_sizes(tail) if left or odd[1] else (0, 0)
        count, whole = groups, _node_sizes([(FILE_LINKS_MAX, *whole)])
    return whole[0] if count else odd[0]


def _node_sizes(runs: list[tuple[int, int, int]]) -> tuple[int, int]:
    """(tsize, filesize) of the file node above runs of (count, tsize, filesize)."""
    filesize = sum(count * size for count, _, size in runs)
    links = sum(count * (link_bytes(0, tsize) + tsize) for count, tsize, _ in runs)
    data = 2 + 1 + varint_bytes(filesize) + sum(count * (1 + varint_bytes(size)) for count, _, size in runs)
    return links + 1 + varint_bytes(data) + data, filesize


def build_symlink(out: Output, target: bytes) -> Built:
    """A symbolic link's node.

    Raises:
        InputError: the target is empty or longer than SYMLINK_TARGET_BYTES_MAX.
    """
    if not 0 < len(target) <= SYMLINK_TARGET_BYTES_MAX:
        raise InputError(f"a symbolic link's target of {len(target)} bytes; 1 to {SYMLINK_TARGET_BYTES_MAX} are possible")
    block = encode_node(PBNode((), encode_unixfs(UnixFSData(DataType.SYMLINK, data=target))))
    return Built(out.emit(block, DAG_PB), len(block), 0)


def basic_directory_bytes(entries: Iterable[tuple[bytes, int]]) -> int:
    """Serialized bytes of the basic directory with these (name, tsize)."""
    return _EMPTY_DIRECTORY_BYTES + sum(link_bytes(len(name), tsize) for name, tsize in entries)


def needs_shards(entries: Iterable[tuple[bytes, int]]) -> bool:
    """Whether a directory with these (name, tsize) is sharded: its basic block would exceed BASIC_DIRECTORY_BYTES_MAX."""
    return basic_directory_bytes(entries) > BASIC_DIRECTORY_BYTES_MAX


def needs_shards_by_names(names: Iterable[bytes]) -> bool | None:
    """The same from the names alone, or None when it depends on the entries' sizes (some 4,200 to 4,800 entries)."""
    least = most = _EMPTY_DIRECTORY_BYTES
    for name in names:
        least += link_bytes(len(name), 0)
        most += link_bytes(len(name), _TSIZE_MAX)
    if most <= BASIC_DIRECTORY_BYTES_MAX:
        return False
    return True if least > BASIC_DIRECTORY_BYTES_MAX else None


class DirectoryBuilder:
    """Builds one directory from its finished entries, which must come in `order`.

    The names, and whether the directory is sharded, are needed at the start, because they fix the order of the traversal:
    sorted names in a basic directory, hash order in a sharded one (`needs_shards`).

    Raises:
        FormatError: a name that no directory may have, or the same name twice.
        LimitError: two names with the same 64-bit hash in a sharded directory.
    """

    def __init__(self, out: Output, names: Iterable[bytes], *, sharded: bool) -> None:
        self._out = out
        self._sharded = sharded
        given = list(names)
        for name in given:
            check_name(name)
        if len(set(given)) != len(given):
            raise FormatError("the same name appears twice in a directory")
        self.order: list[bytes] = hash_order(given) if sharded else sorted(given)
        self._shards = ShardBuilder(out, self.order) if sharded else None
        self._links: list[PBLink] = []
        self._basic_bytes = _EMPTY_DIRECTORY_BYTES
        self._next = 0

    def add(self, name: bytes, child: Built) -> None:
        """The next entry of `order`; its blocks have been emitted just before."""
        assert name == self.order[self._next], "entries come in the builder's own order"
        self._next += 1
        self._basic_bytes += link_bytes(len(name), child.tsize)
        if self._shards is not None:
            self._shards.add(child)
        else:
            self._links.append(PBLink(child.cid, name, child.tsize))

    def finish(self) -> Built:
        """The directory's root.

        Raises:
            SourceChangedError: the entries' sizes call for the other kind of directory than the one that was announced.
        """
        assert self._next == len(self.order), "every entry has been added"
        if (self._basic_bytes > BASIC_DIRECTORY_BYTES_MAX) != self._sharded:
            raise SourceChangedError("a directory's entries changed their sizes while it was read")
        if self._shards is not None:
            return self._shards.finish()
        block = encode_node(PBNode(tuple(self._links), DIRECTORY_DATA))
        tsize = len(block) + sum(link.tsize or 0 for link in self._links)
        return Built(self._out.emit(block, DAG_PB), tsize, 0)


def build_directory(out: Output, entries: Mapping[bytes, Built]) -> Built:
    """A directory over entries that exist already.

    Positions hold when `out` is told of the entries' blocks in this directory's own order; where that does not matter (only
    the ContentID is wanted, or sizes), any order will do.
    """
    sharded = needs_shards((name, child.tsize) for name, child in entries.items())
    builder = DirectoryBuilder(out, entries, sharded=sharded)
    for name in builder.order:
        builder.add(name, entries[name])
    return builder.finish()

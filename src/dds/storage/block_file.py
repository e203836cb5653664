"""One content's blocks in a file of an origin's own, so that it can serve and send them whatever becomes of the source.

    blocks   for each distinct block, in the post-order of its first occurrence: head, then the block's bytes
             head = CID (36 bytes), length u32, position u64 (big-endian)
    index    magic, the tree's totals (root CID, then seven u64: tsize, filesize, files, directories, symbolic links, content
             bytes, blocks), SHA-256 of these, then a row for each block, sorted by CID: CID, offset u64, length u32

The index is written last, atomically, after the blocks are synced: a file without an index was not finished and counts for
nothing. Looking a block up is a binary search in the index on disk, so a kept content costs no memory, however large.

Decides the layout and when it is durable. Does not decide what is kept, nor for how long (runtime/origin.py).
"""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path
from typing import Final

from dds.content.block import Block, Built
from dds.content.builder import Sink
from dds.primitives.cid import CID, cid_text, matches
from dds.primitives.errors import ConfigError, CorruptError, LimitError, StorageError
from dds.primitives.hashing import sha256
from dds.primitives.units import BLOCK_BYTES_MAX, CID_BYTES, human_bytes
from dds.storage.fileops import disk_errors
from dds.storage.home import write_atomic
from dds.storage.source import BuiltTree

BLOCKS_NAME: Final = "blocks"
INDEX_NAME: Final = "index"
_MAGIC: Final = b"DDSBLK1\n"
_HEAD: Final = struct.Struct(f">{CID_BYTES}sIQ")
_TOTALS: Final = struct.Struct(f">8s{CID_BYTES}s7Q")
_HEADER_BYTES: Final = _TOTALS.size + 32
_ROW: Final = struct.Struct(f">{CID_BYTES}sQI")
_BUFFER_BYTES: Final = 1 << 20


class BlockFileWriter:
    """Takes the blocks of one build. `seal` makes them a BlockFile; anything else leaves nothing worth keeping.

    Args:
        bytes_max: how large the file may become.
    """

    def __init__(self, directory: Path, bytes_max: int) -> None:
        self._directory, self._bytes_max = directory, bytes_max
        self._rows: dict[bytes, tuple[int, int]] = {}
        self._end = 0
        with disk_errors(f"opening {directory}"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            (directory / INDEX_NAME).unlink(missing_ok=True)
            descriptor = os.open(directory / BLOCKS_NAME, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "wb", _BUFFER_BYTES)

    @property
    def size_bytes(self) -> int:
        return self._end

    def add(self, block: Block, position: int) -> None:
        """The sink of a build: a block that has been here before is not kept again.

        Raises:
            LimitError: the file would become larger than it may.
            DiskFullError, StorageError
        """
        if block.cid in self._rows:
            return
        after = self._end + _HEAD.size + len(block.data)
        if after > self._bytes_max:
            raise LimitError(
                f"the origin has room for {human_bytes(self._bytes_max)} more of its own copies, and this needs more",
                hint="raise origin_bytes_max in node.toml, or wait until earlier copies are dropped (dds node status)",
            )
        with disk_errors(f"writing {self._directory}"):
            self._file.write(_HEAD.pack(block.cid, len(block.data), position))
            self._file.write(block.data)
        self._rows[block.cid] = self._end + _HEAD.size, len(block.data)
        self._end = after

    def seal(self, built: BuiltTree) -> BlockFile:
        """Make the file durable and whole.

        Raises:
            DiskFullError, StorageError
        """
        root = built.root
        counts = (root.tsize, root.filesize, built.files, built.directories, built.symlinks, built.content_bytes)
        totals = _TOTALS.pack(_MAGIC, root.cid, *counts, len(self._rows))
        rows = b"".join(_ROW.pack(cid, *self._rows[cid]) for cid in sorted(self._rows))
        with disk_errors(f"writing {self._directory}"):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        try:
            write_atomic(self._directory / INDEX_NAME, totals + sha256(totals) + rows)
        except ConfigError as error:
            raise StorageError(error.message) from None
        return BlockFile(self._directory)

    def close(self) -> None:
        with disk_errors(f"closing {self._directory}"):
            self._file.close()


class BlockFile:
    """A sealed file. Safe to use from several threads; after `close` nothing is found."""

    def __init__(self, directory: Path) -> None:
        """
        Raises:
            CorruptError: it was not sealed, or is not such a file.
            StorageError
        """
        self._directory = directory
        self._lock = threading.Lock()
        self._descriptors: tuple[int, int] | None = None
        with disk_errors(f"opening {directory}"):
            if not (directory / INDEX_NAME).exists():
                raise CorruptError(f"{directory} was never finished")
            index = os.open(directory / INDEX_NAME, os.O_RDONLY | os.O_CLOEXEC)
            try:
                header = os.pread(index, _HEADER_BYTES, 0)
                rows_bytes = os.fstat(index).st_size - _HEADER_BYTES
                blocks = os.open(directory / BLOCKS_NAME, os.O_RDONLY | os.O_CLOEXEC)
            except BaseException:
                os.close(index)
                raise
            self._descriptors = index, blocks
            self.size_bytes = os.fstat(blocks).st_size + rows_bytes + _HEADER_BYTES
        self._take_totals(header, rows_bytes)

    def _take_totals(self, header: bytes, rows_bytes: int) -> None:
        totals = header[: _TOTALS.size]
        if totals[: len(_MAGIC)] != _MAGIC or sha256(totals) != header[_TOTALS.size :]:
            self.close()
            raise CorruptError(f"{self._directory / INDEX_NAME} is not an index of blocks")
        _, root, tsize, filesize, files, directories, symlinks, content_bytes, count = _TOTALS.unpack(totals)
        if rows_bytes != count * _ROW.size:
            self.close()
            raise CorruptError(f"{self._directory / INDEX_NAME} does not have the {count} rows that it names")
        self.built = BuiltTree(Built(CID(root), tsize, filesize), files, directories, symlinks, content_bytes)
        self._count: int = count

    @property
    def content(self) -> CID:
        return self.built.root.cid

    def read(self, cid: CID) -> bytes | None:
        """A block's bytes as they lie there, unchecked; None if it is not here.

        Raises:
            StorageError
        """
        with disk_errors(f"reading {self._directory}"), self._lock:
            if self._descriptors is None:
                return None
            index, blocks = self._descriptors
            found = self._search(index, cid)
            return None if found is None else os.pread(blocks, found[1], found[0])

    def _search(self, index: int, cid: CID) -> tuple[int, int] | None:
        """Offset and length of a block."""
        low, high = 0, self._count
        while low < high:
            middle = (low + high) // 2
            row = os.pread(index, _ROW.size, _HEADER_BYTES + middle * _ROW.size)
            if len(row) != _ROW.size:
                return None
            at, offset, length = _ROW.unpack(row)
            if at == cid:
                return offset, min(length, BLOCK_BYTES_MAX)
            low, high = (middle + 1, high) if at < cid else (low, middle)
        return None

    def replay(self, sink: Sink) -> BuiltTree:
        """Hand the blocks to `sink` as the build did, each checked, repeats left out. Blocks until done.

        Raises:
            CorruptError: a block is not what it was.
            StorageError, and whatever `sink` raises.
        """
        last = b""
        with disk_errors(f"reading {self._directory}"), (self._directory / BLOCKS_NAME).open("rb", _BUFFER_BYTES) as file:
            while head := file.read(_HEAD.size):
                if len(head) != _HEAD.size:
                    raise CorruptError(f"{self._directory / BLOCKS_NAME} ends in the middle of a block")
                cid, length, position = _HEAD.unpack(head)
                data = file.read(length) if length <= BLOCK_BYTES_MAX else b""
                if not matches(CID(cid), data):
                    raise CorruptError(f"block {cid_text(CID(cid))} in {self._directory} is damaged")
                sink(Block(CID(cid), data), position)
                last = cid
        if last != self.content:  # the root comes last
            raise CorruptError(f"{self._directory / BLOCKS_NAME} does not end with the root of its content")
        return self.built

    def close(self) -> None:
        with self._lock:
            for descriptor in self._descriptors or ():
                os.close(descriptor)
            self._descriptors = None

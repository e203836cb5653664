"""An edge's blocks on disk: verified when they come and again when they are read, never more bytes than the cap.

    NODEHOME/edge/XX/CID      one file for each block; XX are the first two hexadecimal digits of its digest

Decides how blocks lie on disk and what happens to one that is damaged, and carries out what protocol/edge_cache.py decides. It
is a cache: files are written whole (a temporary name, then a rename) but not synced, and their time of modification says when
they were last read. At the start the index is made anew from the directories; what has no place in it any more is removed. A
full disk or one that fails costs the block and nothing else.

Every method may be called from any thread; changes to the disk happen one at a time. Source: docs/spec/retrieval.md.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dds.primitives.cid import CID, cid_text, digest_of, matches, parse_cid
from dds.primitives.errors import InputError, StorageError
from dds.primitives.units import BLOCK_BYTES_MAX
from dds.protocol.edge_cache import ENTRIES_MAX, EdgeCache
from dds.storage.fileops import FileOps, disk_errors

FILES_LOOKED_AT_MAX: Final = 4 * ENTRIES_MAX  # at the start; whoever put more there has to remove them
_FANOUT: Final = 256
_TEMPORARY: Final = ".new"


@dataclass(slots=True)
class CacheCounters:
    """Since the start."""

    hits: int = 0
    misses: int = 0
    hit_bytes: int = 0
    kept: int = 0  # blocks taken in
    evicted: int = 0  # for others
    expired: int = 0
    damaged: int = 0  # found on reading
    failed: int = 0  # not to be written: the disk is full or fails


@dataclass(frozen=True, slots=True)
class _Found:
    read_s: float
    size: int
    cid: CID


class BlockCache:
    """Use `load` once, then `get`, `put`, `expire`.

    Args:
        ttl_s: a block that was not read for so long goes, in seconds.
        on_gone: told, in whatever thread it happens, which blocks are not kept any more.
    """

    def __init__(
        self,
        root: Path,
        bytes_max: int,
        ttl_s: float,
        seed: bytes,
        *,
        on_gone: Callable[[list[CID]], None] = lambda gone: None,
        ops: FileOps | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.counters = CacheCounters()
        self._root, self._ttl_s = root, ttl_s
        self._on_gone, self._ops, self._clock = on_gone, ops or FileOps(), clock
        self._index = EdgeCache(bytes_max, seed)
        self._looking = threading.Lock()  # guards the index; held for moments
        self._changing = threading.Lock()  # one change of the disk at a time, taken before the other

    def load(self) -> list[CID]:
        """Make the index from what lies on disk, without what is too old, too much or of no use. The blocks that are kept.

        Raises:
            StorageError: the directory cannot be made or read.
        """
        with self._changing, disk_errors("opening the edge cache"):
            for number in range(_FANOUT):
                (self._root / f"{number:02x}").mkdir(mode=0o700, parents=True, exist_ok=True)
            found = sorted(self._found(), key=lambda each: (-each.read_s, each.cid))
            kept, room = [], self._index.main_bytes_max
            for each in found[:ENTRIES_MAX]:  # who was read last has the first claim
                room -= each.size
                kept += [each] if room >= 0 and each.read_s >= self._clock() - self._ttl_s else []
            with self._looking:
                taken = [each.cid for each in reversed(kept) if self._index.restore(each.cid, each.size, each.read_s)]
            self._remove({each.cid for each in found}.difference(taken))
        return taken

    def _found(self) -> Iterator[_Found]:
        looked_at = 0
        for number in range(_FANOUT):
            with os.scandir(self._root / f"{number:02x}") as entries:
                for entry in entries:
                    looked_at += 1
                    if looked_at > FILES_LOOKED_AT_MAX:
                        raise StorageError(f"there are more than {FILES_LOOKED_AT_MAX} files in {self._root}", hint="remove it")
                    cid, about = _cid_of_name(entry.name), entry.stat(follow_symlinks=False)
                    if cid is not None and self._path(cid) == Path(entry.path) and about.st_size <= BLOCK_BYTES_MAX:
                        yield _Found(min(about.st_mtime, self._clock()), about.st_size, cid)
                    elif entry.is_file(follow_symlinks=False):
                        os.unlink(entry.path)

    # -- blocks -----------------------------------------------------------------------------------------------------------

    def get(self, cid: CID) -> bytes | None:
        """The block, checked; it counts as asked for, whether it is here or not."""
        now = self._clock()
        with self._looking:
            is_kept = self._index.asked(cid, now)
        block = self._read(cid, now) if is_kept else None
        if block is None:
            self.counters.misses += 1
        else:
            self.counters.hits += 1
            self.counters.hit_bytes += len(block)
        return block

    def peek(self, cid: CID) -> bytes | None:
        """The same, without counting: for the cache's own host."""
        return self._read(cid, self._clock()) if cid in self else None

    def _read(self, cid: CID, now: float) -> bytes | None:
        path = self._path(cid)
        try:
            block = path.read_bytes()
            with suppress(OSError):
                os.utime(path, (now, now))
        except FileNotFoundError:  # evicted a moment ago, or removed by hand
            block = None
        except OSError:
            block = b""
        if block is not None and matches(cid, block):
            return block
        self._drop_unless_whole(cid)
        return None

    def _drop_unless_whole(self, cid: CID) -> None:
        """Look again where nobody changes anything: it may have been evicted and taken in anew in between."""
        with self._changing:
            try:
                if matches(cid, self._path(cid).read_bytes()):
                    return
            except OSError:
                pass
            with self._looking:
                was_kept = self._index.drop(cid)
            if was_kept:
                self.counters.damaged += 1
                self._remove({cid})

    def wants(self, cid: CID, size: int) -> bool:
        """Whether a block of about `size` bytes that is not here is worth fetching."""
        with self._looking:
            return cid not in self._index and self._index.would_keep(cid, size)

    def put(self, cid: CID, block: bytes) -> bool:
        """Keep a block, if it is what its CID says and there is demand for it. Whether it is kept now."""
        if len(block) > BLOCK_BYTES_MAX or not matches(cid, block):
            return False
        with self._changing:
            with self._looking:
                known = cid in self._index
                change = self._index.offer(cid, len(block), self._clock())
            self.counters.evicted += len(change.evicted)
            self._remove({CID(key) for key in change.evicted})
            if known or not change.kept:
                return known
            if self._write(cid, block):
                self.counters.kept += 1
                return True
            with self._looking:
                self._index.drop(cid)
            self.counters.failed += 1
            return False

    def expire(self) -> None:
        """Remove what nobody has read within the time to live."""
        with self._changing:
            with self._looking:
                old = self._index.expire(self._clock() - self._ttl_s)
            self.counters.expired += len(old)
            self._remove({CID(key) for key in old})

    def __contains__(self, cid: CID) -> bool:
        with self._looking:
            return cid in self._index

    @property
    def size(self) -> int:
        """Bytes of blocks."""
        with self._looking:
            return self._index.size

    @property
    def count(self) -> int:
        with self._looking:
            return len(self._index)

    # -- files ------------------------------------------------------------------------------------------------------------

    def _path(self, cid: CID) -> Path:
        return self._root / f"{digest_of(cid)[0]:02x}" / cid_text(cid)

    def _write(self, cid: CID, block: bytes) -> bool:
        path = self._path(cid)
        temporary = path.with_name(path.name + _TEMPORARY)
        try:
            fd = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                self._ops.write(fd, [block], 0)
            finally:
                self._ops.close(fd)
            self._ops.rename(temporary, path)
        except OSError as error:
            if error.errno == errno.ENOENT:  # somebody removed the directory: the next block finds it again
                with suppress(OSError):
                    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(OSError):
                self._ops.unlink(temporary)
            return False
        return True

    def _remove(self, cids: set[CID]) -> None:
        for cid in sorted(cids):
            with suppress(OSError):
                self._ops.unlink(self._path(cid))
        if cids:
            self._on_gone(sorted(cids))


def _cid_of_name(name: str) -> CID | None:
    try:
        return parse_cid(name)
    except InputError:
        return None

"""The few operating-system calls by which the fragment store touches its files, in one place.

Everything that must survive a power loss goes through here: writes, syncs of files and directories, renames, unlinks. So a test
can put another `FileOps` in their place which records their order, stops half-way, or answers "disk full" - and what is shown
about that order is shown about the store. It decides nothing; it also maps the system's errors to ours (`disk_errors`).

Source: open(2), pwritev(2), fdatasync(2): a file's bytes and size are durable after fdatasync, its name only after an fsync of
the directory which holds it.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dds.primitives.errors import DDSError, DiskFullError, StorageError
from dds.primitives.hashing import Buffer

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700
_PAGE_BYTES = 4096
_FULL = (errno.ENOSPC, errno.EDQUOT)


class FileOps:
    """The real thing. Every method raises OSError; the store's public calls wrap them in `disk_errors`."""

    def create(self, path: Path) -> int:
        """A new, empty file for reading and writing; it must not exist."""
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, FILE_MODE)

    def open(self, path: Path, *, write: bool = False) -> int:
        return os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def write(self, fd: int, parts: Sequence[Buffer], at: int) -> None:
        """Write all parts end to end at an absolute offset."""
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        while views:
            done = os.pwritev(fd, views[:1024], at)
            at += done
            while views and done >= len(views[0]):
                done -= len(views.pop(0))
            if done:
                views[0] = views[0][done:]

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file; one that is gone already is no error."""
        path.unlink(missing_ok=True)

    def make_directory(self, path: Path) -> None:
        path.mkdir(DIRECTORY_MODE, exist_ok=True)

    def read(self, fd: int, length: int, at: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        first = os.pread(fd, length, at)
        if len(first) == length or not first:
            return first
        parts, got = [first], len(first)
        while got < length and (more := os.pread(fd, length - got, at + got)):
            parts.append(more)
            got += len(more)
        return b"".join(parts)

    def free_bytes(self, path: Path) -> int:
        """What this user may still write to the device."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize

    def forget_cached(self, fd: int, length: int, at: int) -> None:
        """Drop a range from the page cache, so that the next read comes from the disk itself."""
        start = at // _PAGE_BYTES * _PAGE_BYTES
        stop = -(-(at + length) // _PAGE_BYTES) * _PAGE_BYTES
        os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_DONTNEED)


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn what the system says into the store's own errors; `doing` completes "while ...".

    Raises:
        DiskFullError: the device or the user's disk quota is full.
        StorageError: anything else (EIO, a read-only file system, a broken index).
    """
    try:
        yield
    except DDSError:
        raise
    except OSError as error:
        raise _mapped(error, doing) from error
    except sqlite3.Error as error:
        if "disk is full" in str(error):
            raise DiskFullError(f"the disk is full while {doing}", hint=_FULL_HINT) from error
        raise StorageError(f"the index failed while {doing}: {error}", hint=_INDEX_HINT) from error


_FULL_HINT = "free space on the device; nothing that was acknowledged is lost"
_INDEX_HINT = "stop the node and run `dds node fsck --repair`: the index can be rebuilt from the data"


def _mapped(error: OSError, doing: str) -> StorageError:
    if error.errno in _FULL:
        return DiskFullError(f"the disk is full while {doing}", hint=_FULL_HINT)
    name = errno.errorcode.get(error.errno or 0, "error")
    return StorageError(f"the disk failed while {doing}: {name}: {error.strerror or error}", errno=name)


def write_file_durably(ops: FileOps, path: Path, data: bytes) -> None:
    """Create or replace a small file so that, whenever the power goes, either the old or the new one is there whole."""
    temporary = path.with_name(path.name + ".new")
    ops.unlink(temporary)
    fd = ops.create(temporary)
    try:
        ops.write(fd, [data], 0)
        ops.sync(fd)
    finally:
        ops.close(fd)
    ops.rename(temporary, path)
    ops.sync_directory(path.parent)

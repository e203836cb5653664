"""From a content DAG that is being read to files on this machine.

Decides how fetched content, made by anybody, comes onto a disk: all of it under a fresh name beside the target and in one
rename at the end, or nothing. Nothing is ever written through a symbolic link or outside the target: names are checked, every
step is relative to an open directory, files are created exclusively, and a directory's symbolic links are made last, when
nothing more will be written in it. Links are made as they are stored, also when they point outside: following them is up to
whoever opens them. What the events mean: content/events.py.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

from dds.content.events import Close, Data, Entry, Event, OpenDirectory, OpenFile, Symlink
from dds.content.names import check_name, name_text
from dds.primitives.errors import DiskFullError, FormatError, InputError, StorageError
from dds.storage.removal import remove

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY_NAME_BYTES: Final = 6


class TreeWriter:
    """Writes one tree to `target`; a context manager. `commit` makes it appear, leaving without it removes every trace.

    Raises (from any method):
        InputError: the target exists already and `overwrite` is not set, or its parent is missing.
        FormatError: two entries that this file system cannot tell apart, or a name that leads out.
        DiskFullError: no room.
        StorageError: any other refusal of the disk.
    """

    def __init__(self, target: Path, *, overwrite: bool = False, fsync: bool = False) -> None:
        self._target = Path(os.path.abspath(target))
        self._overwrite = overwrite
        self._fsync = fsync
        self._temporary = self._target.parent / f".dds-{os.urandom(_TEMPORARY_NAME_BYTES).hex()}.part"
        self._cwd = -1
        self._file: int | None = None
        self._links: list[list[tuple[bytes, bytes]]] = []  # of each open directory: symbolic links still to be made
        self._check_target()

    def __enter__(self) -> TreeWriter:
        try:
            self._cwd = os.open(self._target.parent, _DIRECTORY & ~os.O_NOFOLLOW)
        except OSError as error:
            raise InputError(f"cannot write to {self._target.parent}: {error.strerror}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close_file()
        if self._cwd >= 0:
            os.close(self._cwd)
            self._cwd = -1
        remove(self._temporary)

    def write(self, event: Event) -> None:
        """Take the next event."""
        name = self._name(event)
        try:
            match event:
                case Data():
                    self._data(event.data)
                case OpenFile():
                    self._file = os.open(name, _CREATE, 0o666, dir_fd=self._cwd)
                case OpenDirectory():
                    self._enter(name)
                case Symlink():
                    self._symlink(name, event.target)
                case Close():
                    self._leave() if self._file is None else self._finish_file()
                case Entry():
                    raise AssertionError("a listing is not written")
        except OSError as error:
            raise self._failed(name, error) from error

    def commit(self) -> None:
        """Give the finished tree its name."""
        assert self._file is None, "commit comes after the last event"
        assert not self._links, "commit comes after the last event"
        self._check_target()
        try:
            if self._overwrite:
                self._replace()
            else:
                self._appear()
            if self._fsync:
                os.fsync(self._cwd)
        except OSError as error:
            raise self._failed(b"", error) from error

    # --- entries ----------------------------------------------------------------------------------------------------------

    def _name(self, event: Event) -> bytes:
        """The entry's name where it is created: the root goes under the temporary name."""
        if isinstance(event, Data | Close | Entry):
            return b""
        if not self._links:
            return os.fsencode(self._temporary.name)
        check_name(event.name)
        return event.name

    def _data(self, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]

    def _finish_file(self) -> None:
        if self._fsync and self._file is not None:
            os.fsync(self._file)
        self._close_file()

    def _close_file(self) -> None:
        fd, self._file = self._file, None
        if fd is not None:
            os.close(fd)

    def _enter(self, name: bytes) -> None:
        os.mkdir(name, dir_fd=self._cwd)
        self._move(os.open(name, _DIRECTORY, dir_fd=self._cwd))
        self._links.append([])

    def _leave(self) -> None:
        for name, target in self._links[-1]:
            try:
                os.symlink(target, name, dir_fd=self._cwd)
            except OSError as error:
                raise self._failed(name, error) from error
        self._links.pop()
        if self._fsync:
            os.fsync(self._cwd)
        self._move(os.open("..", _DIRECTORY, dir_fd=self._cwd))

    def _symlink(self, name: bytes, target: bytes) -> None:
        if self._links:
            self._links[-1].append((name, target))
        else:
            os.symlink(target, name, dir_fd=self._cwd)

    def _move(self, fd: int) -> None:
        os.close(self._cwd)
        self._cwd = fd

    # --- the target -------------------------------------------------------------------------------------------------------

    def _check_target(self) -> None:
        if not self._target.name:
            raise InputError(f"{self._target} cannot be written to as a whole")
        if not self._overwrite and os.path.lexists(self._target):
            raise InputError(f"{self._target} exists already", hint="name another output, or allow overwriting")

    def _appear(self) -> None:
        """Without ever replacing anything: a hard link refuses an existing name, where a rename would not. A directory's
        rename refuses everything but an empty directory."""
        if stat.S_ISREG(os.lstat(self._temporary).st_mode):
            try:
                os.link(self._temporary, self._target, follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                    raise
            else:
                os.unlink(self._temporary)
                return
        os.rename(self._temporary, self._target)

    def _replace(self) -> None:
        """A file replaces a file in one step. A directory is moved aside first and back again should the rename fail."""
        old = self._temporary.with_suffix(".old")
        if not os.path.lexists(self._target) or not (_is_directory(self._target) or _is_directory(self._temporary)):
            os.rename(self._temporary, self._target)
            return
        os.rename(self._target, old)
        try:
            os.rename(self._temporary, self._target)
        except OSError:
            os.rename(old, self._target)
            raise
        remove(old)

    def _failed(self, name: bytes, error: OSError) -> FormatError | InputError | StorageError:
        if error.errno == errno.EEXIST:
            if self._links:
                return FormatError(f"the entry {name_text(name)!r} exists twice on this file system")
            return InputError(f"{self._target} exists already", hint="name another output, or allow overwriting")
        return _disk_error(
            f"cannot write {name_text(name)} of {self._target}" if name else f"cannot write {self._target}", error
        )


class StreamWriter:
    """Writes one file's bytes to a stream, for example standard output."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, event: Event) -> None:
        """Take the next event.

        Raises:
            InputError: the content is a directory or a symbolic link.
            StorageError: the stream was closed, or has no room.
        """
        match event:
            case Data():
                try:
                    self._stream.write(event.data)
                except OSError as error:
                    raise _disk_error("cannot write to the output", error) from error
            case OpenFile() | Close():
                pass
            case _:
                raise InputError("a directory cannot be written to a stream", hint="name an output path, or a file inside it")


def _disk_error(what: str, error: OSError) -> StorageError:
    return (DiskFullError if error.errno in _FULL else StorageError)(f"{what}: {error.strerror}")


def _is_directory(path: Path) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)

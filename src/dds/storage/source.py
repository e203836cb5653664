"""From a path on this machine to a content DAG.

Decides what of a file tree becomes content: regular files, directories (empty ones too) and symbolic links as themselves;
hidden entries (a name that starts with a dot) only when asked for; anything else is refused by name. Names are the file
system's bytes. Nothing is followed out of the tree unless asked for. A file or directory that changes while it is read is
an error, never a mixture of two states. Shapes of nodes: content/builder.py.

Directories are walked relative to an open descriptor, one at a time, without recursion: neither depth nor path length nor the
number of open files limits the tree.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from dds.content.block import Built
from dds.content.builder import (
    DirectoryBuilder,
    FileBuilder,
    Output,
    PostOrder,
    Sink,
    SizeOnly,
    build_directory,
    build_symlink,
    fixed_file_tsize,
    needs_shards,
    needs_shards_by_names,
)
from dds.content.chunking import FIXED, Chunker, make_chunker
from dds.content.expand import DIRECTORY_DEPTH_MAX
from dds.primitives.cid import CID, RAW
from dds.primitives.errors import DDSError, InputError, SourceChangedError
from dds.primitives.units import CHUNK_BYTES

FOLLOWED_DEPTH_MAX: Final = 40  # symbolic links to directories on the way to one entry, as in the kernel's own limit
_OPEN = (
    os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
)  # not blocking: a pipe must not hang us before we can refuse it


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What `dds put` and `dds cid` let the user choose about a source; the defaults give the canonical ContentID."""

    chunker: str = FIXED
    hidden: bool = False
    follow_symlinks: bool = False


@dataclass(frozen=True, slots=True)
class BuiltTree:
    """The root, and counts over everything below it (the root included). `content_bytes`: bytes of all files."""

    root: Built
    files: int
    directories: int
    symlinks: int
    content_bytes: int


def build_dag(path: Path, options: SourceOptions, sink: Sink) -> BuiltTree:
    """Build the DAG of a file or directory and hand every block with its position to `sink`, in post-order.

    Blocks until done; run it in a thread of its own and let `sink` block on a bounded queue to hold it back, or raise to stop
    it. Memory: one chunk, a file's open nodes, and the names of the directories on the current path.

    Raises:
        InputError: missing, unreadable, or a kind of file that content cannot hold; the message names the path.
        SourceChangedError: something changed while it was read.
    """
    return _Walk(path, options, PostOrder(sink)).run()


class Readable(Protocol):
    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, none only at the end."""


def build_stream(stream: Readable, options: SourceOptions, sink: Sink) -> BuiltTree:
    """Build the DAG of one file from a stream of unknown length, for example standard input; like `build_dag` otherwise."""
    built = _build_file(stream.read, make_chunker(options.chunker), PostOrder(sink))
    return BuiltTree(built, 1, 0, 0, built.filesize)


def _build_file(read: Callable[[int], bytes], chunker: Chunker, out: Output) -> Built:
    builder = FileBuilder(out)
    while data := read(CHUNK_BYTES):
        for chunk in chunker.feed(data):
            builder.add(chunk)
    for chunk in chunker.finish():
        builder.add(chunk)
    return builder.finish()


def compute_cid(path: Path, options: SourceOptions | None = None) -> CID:
    """The ContentID that `build_dag` would give. Raises what it raises."""
    return build_dag(path, options or SourceOptions(), lambda block, position: None).root.cid


def measure_dag(path: Path, options: SourceOptions | None = None) -> BuiltTree:
    """Sizes and counts ahead of `build_dag`, from metadata alone (with a content-defined chunker, files are read but not
    hashed). The root's CID in it means nothing. Raises what `build_dag` raises."""
    return _Walk(path, options or SourceOptions(), SizeOnly()).run()


class _Frame:
    """A directory that is being read: `todo` in the order that its builder wants, or any when only sizes count."""

    __slots__ = ("before", "builder", "built", "entries", "name", "return_fd", "todo")

    def __init__(self, name: bytes, before: os.stat_result, entries: dict[bytes, int], return_fd: int | None) -> None:
        self.name = name
        self.before = before
        self.entries = entries  # name to the type bits of its mode
        self.return_fd = return_fd  # the parent, where ".." does not lead back: behind a symbolic link
        self.builder: DirectoryBuilder | None = None
        self.built: dict[bytes, Built] = {}
        self.todo: Iterator[bytes] = iter(entries)


class _Walk:
    """One run over one source. `SizeOnly` as output: nothing is hashed, and files of the fixed chunker are not read."""

    def __init__(self, path: Path, options: SourceOptions, out: Output) -> None:
        self._path = path
        self._options = options
        self._out = out
        self._measuring = isinstance(out, SizeOnly)
        self._cwd = -1  # descriptor of the innermost frame's directory
        self._frames: list[_Frame] = []
        self._files = self._directories = self._symlinks = self._content_bytes = 0

    def run(self) -> BuiltTree:
        make_chunker(self._options.chunker)  # a wrong name shows before any work
        try:
            name = os.fsencode(self._path)
            root = self._run_at(None, name, self._mode(name))
        finally:
            self._close_all()
        return BuiltTree(root, self._files, self._directories, self._symlinks, self._content_bytes)

    def tsizes_here(self, directory_fd: int, frame: _Frame) -> list[tuple[bytes, int]]:
        """Measure the entries of a directory that another walk is about to read."""
        self._cwd = os.dup(directory_fd)
        self._frames = [frame]
        try:
            while (name := next(frame.todo, None)) is not None:
                frame.built[name] = self._run_at(self._cwd, name, frame.entries[name])
        finally:
            self._close_all()
        return [(name, built.tsize) for name, built in frame.built.items()]

    def _run_at(self, directory_fd: int | None, name: bytes, mode: int) -> Built:
        """Build one thing to the end, with all that is below it."""
        floor = len(self._frames)
        built = self._entry(directory_fd, name, mode)
        while len(self._frames) > floor:
            frame = self._frames[-1]
            below = next(frame.todo, None)
            if below is None:
                built = self._leave()
                if len(self._frames) > floor:
                    self._add(self._frames[-1], frame.name, built)
            elif (leaf := self._entry(self._cwd, below, frame.entries[below])) is not None:
                self._add(frame, below, leaf)
        assert built is not None
        return built

    def _add(self, frame: _Frame, name: bytes, built: Built) -> None:
        if frame.builder is None:
            frame.built[name] = built
        else:
            frame.builder.add(name, built)

    def _entry(self, directory_fd: int | None, name: bytes, mode: int) -> Built | None:
        """Build a file or link; enter a directory and return None."""
        if stat.S_ISREG(mode):
            return self._file(directory_fd, name)
        if stat.S_ISLNK(mode):
            return self._symlink(directory_fd, name)
        if stat.S_ISDIR(mode):
            self._enter(directory_fd, name)
            return None
        raise InputError(f"{self._where(name)} is {_kind(mode)}: only files, directories and symbolic links can be stored")

    def _mode(self, name: bytes) -> int:
        try:
            return stat.S_IFMT(os.stat(name, follow_symlinks=self._options.follow_symlinks).st_mode)
        except OSError as error:
            raise self._refused(name, error) from error

    # --- leaves -----------------------------------------------------------------------------------------------------------

    def _symlink(self, directory_fd: int | None, name: bytes) -> Built:
        try:
            target = os.readlink(name, dir_fd=directory_fd)
        except OSError as error:
            raise self._refused(name, error) from error
        self._symlinks += 1
        return build_symlink(self._out, target)

    def _file(self, directory_fd: int | None, name: bytes) -> Built:
        fd = self._open(directory_fd, name)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise SourceChangedError(f"{self._where(name)} was a file and no longer is one")
            if self._measuring and self._options.chunker == FIXED:
                built = Built(self._out.emit(b"", RAW), fixed_file_tsize(before.st_size), before.st_size)
            else:
                built = self._read(fd, name)
            if _state(before) != _state(os.fstat(fd)) or built.filesize != before.st_size:
                raise SourceChangedError(f"{self._where(name)} changed while it was read", path=self._where(name))
        finally:
            os.close(fd)
        self._files += 1
        self._content_bytes += built.filesize
        return built

    def _read(self, fd: int, name: bytes) -> Built:
        try:
            return _build_file(lambda size: os.read(fd, size), make_chunker(self._options.chunker), self._out)
        except OSError as error:
            raise self._refused(name, error) from error

    # --- directories ------------------------------------------------------------------------------------------------------

    def _enter(self, directory_fd: int | None, name: bytes) -> None:
        if len(self._frames) > DIRECTORY_DEPTH_MAX:
            raise InputError(f"{self._where(name)} is nested deeper than {DIRECTORY_DEPTH_MAX} directories")
        fd = self._open(directory_fd, name, os.O_DIRECTORY)
        try:
            before = os.fstat(fd)
            entries = self._list(fd, name)
            return_fd = self._way_back(directory_fd, name, before)
        except BaseException:
            os.close(fd)
            raise
        if self._cwd >= 0 and return_fd is None:
            os.close(self._cwd)
        self._cwd = fd
        frame = _Frame(name, before, entries, return_fd)
        self._frames.append(frame)
        self._directories += 1
        if not self._measuring:
            frame.builder = DirectoryBuilder(self._out, entries, sharded=self._is_sharded(frame))
            frame.todo = iter(frame.builder.order)

    def _list(self, fd: int, name: bytes) -> dict[bytes, int]:
        entries: dict[bytes, int] = {}
        at = name
        try:
            with os.scandir(fd) as listing:
                for entry in listing:
                    entry_name = os.fsencode(entry.name)
                    if self._options.hidden or not entry_name.startswith(b"."):
                        at = os.path.join(name, entry_name)
                        entries[entry_name] = _mode_of(entry, self._options.follow_symlinks)
        except OSError as error:
            raise self._refused(at, error) from error
        return entries

    def _way_back(self, directory_fd: int | None, name: bytes, entered: os.stat_result) -> int | None:
        """The parent's descriptor when the entry is a symbolic link that is being followed, None when ".." will do."""
        if directory_fd is None or not self._options.follow_symlinks:
            return None
        if not stat.S_ISLNK(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode):
            return None
        here = (entered.st_dev, entered.st_ino)
        if any((frame.before.st_dev, frame.before.st_ino) == here for frame in self._frames):
            raise InputError(f"{self._where(name)} is a symbolic link to a directory that holds it: it cannot be followed")
        if sum(frame.return_fd is not None for frame in self._frames) >= FOLLOWED_DEPTH_MAX:
            raise InputError(f"{self._where(name)}: more than {FOLLOWED_DEPTH_MAX} symbolic links on the way")
        return self._cwd

    def _is_sharded(self, frame: _Frame) -> bool:
        """Decided before the entries are read, because it fixes their order; in the narrow band where it hangs on the sizes
        of the entries, those are measured first."""
        decided = needs_shards_by_names(frame.entries)
        if decided is not None:
            return decided
        ahead = _Walk(self._path, self._options, SizeOnly())
        return needs_shards(ahead.tsizes_here(self._cwd, _Frame(frame.name, frame.before, frame.entries, None)))

    def _leave(self) -> Built:
        frame = self._frames[-1]
        if _state(frame.before) != _state(os.fstat(self._cwd)):
            raise SourceChangedError(f"the directory {self._where()} changed while it was read", path=self._where())
        built = frame.builder.finish() if frame.builder else build_directory(self._out, frame.built)
        self._frames.pop()
        self._go_back(frame)
        return built

    def _go_back(self, frame: _Frame) -> None:
        if not self._frames:
            return
        here, parent = self._cwd, self._frames[-1]
        self._cwd = frame.return_fd if frame.return_fd is not None else os.open("..", _OPEN | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        if not os.path.samestat(os.fstat(self._cwd), parent.before):
            raise SourceChangedError(f"the directory {self._where(frame.name)} was moved while it was read")

    # --- shared -----------------------------------------------------------------------------------------------------------

    def _open(self, directory_fd: int | None, name: bytes, flags: int = 0) -> int:
        nofollow = 0 if self._options.follow_symlinks else os.O_NOFOLLOW
        try:
            return os.open(name, _OPEN | nofollow | flags, dir_fd=directory_fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOENT, errno.ENOTDIR) and directory_fd is not None:
                raise SourceChangedError(f"{self._where(name)} changed while it was read") from error
            raise self._refused(name, error) from error

    def _where(self, name: bytes | None = None) -> str:
        """The path of an entry of the innermost directory, for messages."""
        parts = [os.fsencode(self._path), *(frame.name for frame in self._frames[1:])]
        if name is not None and self._frames:
            parts.append(name)
        return os.path.join(*parts).decode("utf-8", "backslashreplace")

    def _refused(self, name: bytes, error: OSError) -> DDSError:
        return InputError(f"cannot read {self._where(name)}: {error.strerror}", path=self._where(name))

    def _close_all(self) -> None:
        for frame in self._frames:
            if frame.return_fd is not None:
                os.close(frame.return_fd)
        if self._cwd >= 0:
            os.close(self._cwd)
        self._frames, self._cwd = [], -1


def _mode_of(entry: os.DirEntry[str], follow: bool) -> int:
    """An entry's type bits, from the listing itself where it holds them."""
    if entry.is_symlink() and not follow:
        return stat.S_IFLNK
    if entry.is_file(follow_symlinks=follow):
        return stat.S_IFREG
    if entry.is_dir(follow_symlinks=follow):
        return stat.S_IFDIR
    return stat.S_IFMT(entry.stat(follow_symlinks=follow).st_mode)


def _state(status: os.stat_result) -> tuple[int, ...]:
    """What changes when a file or directory does."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "a special file")

"""The directory of a store: whose it is, which format it has, and that one process at a time uses it.

    FORMAT      two lines: "dds fragment store, format 1", then the salt of its records in hex
    LOCK        held by flock(2) while a process uses the store; names that process
    packs/      the journal and small fragments    (packs)
    frags/      large fragments, one file each     (fragment_files)
    quarantine/ bytes that could not be understood, kept for a person to look at
    index.db    an index that can be rebuilt       (index)

Source: lifecycle of a fragment store, docs/spec/fragment-store.md.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from pathlib import Path

from dds.primitives.errors import ConfigError, UnsupportedVersion
from dds.storage.fileops import DIRECTORY_MODE, FILE_MODE, FileOps, write_file_durably
from dds.storage.packs import SALT_BYTES

FORMAT_VERSION = 1
_FORMAT_LINE = "dds fragment store, format "
_DIRECTORIES = ("packs", "frags", "quarantine")
INDEX_FILES = ("index.db", "index.db-wal", "index.db-shm")


class StoreHome:
    """An opened, locked store directory."""

    def __init__(self, path: Path, ops: FileOps, *, create: bool = True) -> None:
        """Lock the directory, making it first where there is none.

        Raises:
            ConfigError: not ours, open to others, in use, or not a store.
            UnsupportedVersion: made by a newer release.
            OSError: the disk refused.
        """
        self.path, self._ops = path, ops
        if create:
            _make_directories(path, ops)
        _check_owner(path)
        self._lock = _lock(path)
        try:
            self.salt = self._read_format(create)
        except BaseException:
            self.close()
            raise

    @property
    def packs(self) -> Path:
        return self.path / "packs"

    @property
    def frags(self) -> Path:
        return self.path / "frags"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine"

    @property
    def index(self) -> Path:
        return self.path / INDEX_FILES[0]

    def index_bytes(self) -> int:
        return sum(_size(self.path / name) for name in INDEX_FILES)

    def other_bytes(self) -> int:
        """FORMAT, LOCK and the quarantine."""
        return _size(self.path / "FORMAT") + _size(self.path / "LOCK") + quarantine_bytes(self.quarantine)

    def remove_index(self) -> None:
        for name in INDEX_FILES:
            (self.path / name).unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self._lock)

    def _read_format(self, create: bool) -> bytes:
        file = self.path / "FORMAT"
        if not file.exists():
            if not create or any((self.path / "packs").iterdir()):
                raise ConfigError(f"{self.path} is not a fragment store: it has no FORMAT file")
            salt = secrets.token_bytes(SALT_BYTES)
            write_file_durably(self._ops, file, f"{_FORMAT_LINE}{FORMAT_VERSION}\n{salt.hex()}\n".encode())
        return _parse_format(file)


def _parse_format(file: Path) -> bytes:
    lines = file.read_bytes()[:256].decode("ascii", "replace").split("\n")
    if not lines[0].startswith(_FORMAT_LINE) or len(lines) < 2:
        raise ConfigError(f"{file} is damaged", hint="its second line is the salt, bytes 8 to 16 of any pack file, in hex")
    if lines[0] != f"{_FORMAT_LINE}{FORMAT_VERSION}":
        raise UnsupportedVersion(f"{file.parent} is a store of another format: {lines[0]!r}", hint="upgrade dds")
    try:
        salt = bytes.fromhex(lines[1])
    except ValueError:
        salt = b""
    if len(salt) != SALT_BYTES:
        raise ConfigError(f"{file} is damaged", hint="its second line is the salt, bytes 8 to 16 of any pack file, in hex")
    return salt


def _make_directories(path: Path, ops: FileOps) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        ops.make_directory(path)
        ops.sync_directory(path.parent)
    _check_owner(path)
    missing = [name for name in _DIRECTORIES if not (path / name).is_dir()]
    for name in missing:
        ops.make_directory(path / name)
    if missing:
        ops.sync_directory(path)


def _check_owner(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"the store {path} cannot be opened: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"the store {path} is not a directory")
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"the store {path} belongs to user {status.st_uid}, and this process runs as user {os.geteuid()}",
            hint="run the node as the store's owner, or change the owner of the whole directory",
        )
    if status.st_mode & 0o022:
        raise ConfigError(f"the store {path} can be written by others", hint=f"chmod {DIRECTORY_MODE:o} {path}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"the store {path} cannot be written", hint=f"chmod {DIRECTORY_MODE:o} {path}")


def _lock(path: Path) -> int:
    fd = os.open(path / "LOCK", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, FILE_MODE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise ConfigError(
            f"the store {path} is in use by process {holder}",
            hint="stop that process first: one process at a time uses a store",
        ) from None
    text = f"{os.getpid():<16}\n".encode()
    os.pwrite(fd, text, 0)
    return fd


def quarantine_bytes(directory: Path) -> int:
    return sum(_size(Path(entry.path)) for entry in os.scandir(directory))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

"""Key files: the 32-byte Ed25519 seed of a node or publisher, as 64 hex digits and a newline, mode 0600.

A file is made atomically (temporary file, sync, rename, sync of the directory) and never replaces one that exists. One that
others can read is refused: a key which may have been copied is no identity. No seed appears in an error, a log or a repr.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from dds.primitives.errors import ConfigError
from dds.primitives.keys import SEED_BYTES, SigningKey
from dds.storage.fileops import FILE_MODE, FileOps, disk_errors

_TEXT_BYTES = 2 * SEED_BYTES + 1


def create_key(path: Path, seed: bytes | None = None) -> SigningKey:
    """Make a key file with a fresh seed (or the given one) and load it.

    Raises:
        ConfigError: the file exists already.
        StorageError, DiskFullError: the disk refused.
    """
    key = SigningKey(secrets.token_bytes(SEED_BYTES) if seed is None else seed)
    ops = FileOps()
    with disk_errors(f"writing the key file {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        fd = ops.create(temporary)
        try:
            ops.write(fd, [key.seed.hex().encode() + b"\n"], 0)
            ops.sync(fd)
            os.link(temporary, path)  # fails where a file exists: a rename would replace somebody's key
        except FileExistsError:
            raise ConfigError(f"the key file {path} exists already") from None
        finally:
            ops.close(fd)
            ops.unlink(temporary)
        ops.sync_directory(path.parent)
    return key


def load_key(path: Path) -> SigningKey:
    """Load a key file.

    Raises:
        ConfigError: missing, readable by others, not ours, or not a key file.
        StorageError: the disk failed.
    """
    with disk_errors(f"reading the key file {path}"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise ConfigError(f"there is no key file {path}") from None
        except PermissionError:
            raise ConfigError(f"the key file {path} cannot be read by this user") from None
        try:
            _check_private(path, os.fstat(fd))
            raw = os.pread(fd, _TEXT_BYTES + 1, 0)
        finally:
            os.close(fd)
    return SigningKey(_parse_seed(path, raw))


def load_or_create_key(path: Path) -> SigningKey:
    """The key of a home: made at the first start. Two processes that start at once get the same key.

    Raises:
        ConfigError, StorageError: as `load_key` and `create_key`.
    """
    if not path.exists():
        try:
            return create_key(path)
        except ConfigError:
            if not path.exists():
                raise
    return load_key(path)


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"the key file {path} is not a regular file")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(
            f"the key file {path} is open to other users (mode {mode:04o})",
            hint=f"if nobody can have copied it: chmod {FILE_MODE:o} {path}; else make a new key",
        )
    if status.st_uid != os.geteuid():
        raise ConfigError(f"the key file {path} belongs to user {status.st_uid}, this process runs as {os.geteuid()}")


def _parse_seed(path: Path, raw: bytes) -> bytes:
    try:
        seed = bytes.fromhex(raw.decode("ascii").strip())
    except ValueError:
        seed = b""
    if len(seed) != SEED_BYTES:
        raise ConfigError(f"{path} is not a key file: it should hold {2 * SEED_BYTES} hex digits")
    return seed

"""Key files: an Ed25519 seed as 64 hexadecimal characters and a newline, readable by its owner alone.

Written to a temporary name, synced and linked into place, so that a crash leaves the old key or the new one, and two processes
that both find none end up with the same one. The seed never reaches a log or an error message.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from dds.primitives.errors import ConfigError
from dds.primitives.keys import SEED_BYTES, SigningKey

_FILE_BYTES: Final = 2 * SEED_BYTES + 1


def load_key(path: Path) -> SigningKey:
    """Read a key file.

    Raises:
        ConfigError: missing, malformed, or readable by others.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise ConfigError(f"cannot read the key file {path}: {error.strerror}") from None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path} is not a file")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise ConfigError(f"the key file {path} can be read by others", hint=f"chmod 600 {path}")
        text = file.read(_FILE_BYTES + 1)
    try:
        seed = bytes.fromhex(text.decode("ascii"))
        return SigningKey(seed)
    except ValueError:
        raise ConfigError(f"{path} is not a key file: it should hold {2 * SEED_BYTES} hexadecimal characters") from None


def load_or_create_key(path: Path) -> SigningKey:
    """Read a key file, making it first if there is none.

    Raises:
        ConfigError: see `load_key`; or the directory cannot be written.
    """
    if not path.exists():
        _create(path)
    return load_key(path)


def _create(path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(os.urandom(SEED_BYTES).hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process made one first: that one is used
            os.link(temporary, path)
        os.unlink(temporary)
        _sync_directory(path.parent)
    except OSError as error:
        raise ConfigError(f"cannot make the key file {path}: {error.strerror}") from None


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

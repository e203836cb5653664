"""An open segment's data space on disk: written as stripes are made, read back when a late spare needs an old stripe, or
when a reader is served from here before the network has the content.

Calls may come from any thread; after `close` nothing is found or written any more, rather than in what another file has under
the same descriptor.
"""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from dds.erasure.stripes import EncodedStripe
from dds.primitives.errors import DiskFullError, StorageError
from dds.wire.segment import StripeShape


class Spool:
    """Data fragments of the stripes of one segment. Deleted on `close`; opened only when the first stripe comes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._closed = False
        self._end = 0
        self._lock = threading.Lock()
        self._where: dict[int, tuple[int, StripeShape]] = {}

    def append(self, stripe: EncodedStripe) -> None:
        """Keep a stripe's k data fragments.

        Raises:
            DiskFullError, StorageError: naming the spool's path.
        """
        data = stripe.fragments[: stripe.shape.k]
        with self._lock:
            if self._closed:
                raise StorageError(f"the spool {self._path} is closed")
            try:
                self._fd = self._open() if self._fd is None else self._fd
                written = os.pwritev(self._fd, data, self._end)
            except OSError as error:
                kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
                raise kind(
                    f"cannot spool to {self._path}: {error.strerror}", hint="free some space or set DDS_HOME elsewhere"
                ) from None
            if written != sum(map(len, data)):
                raise DiskFullError(f"cannot spool to {self._path}: short write", hint="free some space")
            self._where[stripe.number] = (self._end, stripe.shape)
            self._end += written

    def _open(self) -> int:
        """A file without a name: another put of the same thing, with the same upload id, must not meet it."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = f"{self._path}.{os.urandom(8).hex()}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.unlink(path)  # it lives as long as this process has it open
        return fd

    def read(self, number: int) -> tuple[StripeShape, bytes]:
        """The stripe's shape and its k slots end to end, padding included."""
        offset, shape = self._where[number]
        return shape, self._pread(offset, shape.k * shape.slot_bytes)

    def read_slot(self, number: int, slot: int, lo: int, hi: int) -> bytes:
        """Bytes [lo, hi) of one data slot of a stripe."""
        offset, shape = self._where[number]
        return self._pread(offset + slot * shape.slot_bytes + lo, hi - lo)

    def _pread(self, offset: int, size: int) -> bytes:
        with self._lock:
            if self._fd is None:
                raise StorageError(f"the spool {self._path} is closed")
            data = os.pread(self._fd, size, offset)
        if len(data) != size:
            raise StorageError(f"the spool {self._path} lost bytes")
        return data

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

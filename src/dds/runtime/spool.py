"""An open segment's data space on disk: written as stripes are made, read back when a late spare needs an old stripe, or
when a reader is served from here before the network has the content.

Reads may come from any thread; after `close` they find nothing, rather than what another file has under the same descriptor.
"""

from __future__ import annotations

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
        self._end = 0
        self._lock = threading.Lock()
        self._where: dict[int, tuple[int, StripeShape]] = {}

    def append(self, stripe: EncodedStripe) -> None:
        """Keep a stripe's k data fragments.

        Raises:
            DiskFullError, StorageError: naming the spool's path.
        """
        data = stripe.fragments[: stripe.shape.k]
        try:
            if self._fd is None:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                self._path.unlink()  # it lives as long as this process has it open
            self._where[stripe.number] = (self._end, stripe.shape)
            written = os.pwritev(self._fd, data, self._end)
        except OSError as error:
            kind = DiskFullError if error.errno == 28 else StorageError
            raise kind(
                f"cannot spool to {self._path}: {error.strerror}", hint="free some space or set DDS_HOME elsewhere"
            ) from None
        if written != sum(map(len, data)):
            raise DiskFullError(f"cannot spool to {self._path}: short write", hint="free some space")
        self._end += written

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
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

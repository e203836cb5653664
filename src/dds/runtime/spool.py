"""An open segment's data space on disk: written as stripes are made, read back only when a late spare needs an old stripe."""

from __future__ import annotations

import os
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
        assert self._fd is not None
        data = os.pread(self._fd, shape.k * shape.slot_bytes, offset)
        if len(data) != shape.k * shape.slot_bytes:
            raise StorageError(f"the spool {self._path} lost bytes")
        return shape, data

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

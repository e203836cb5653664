"""What a witness must not forget over a restart: whom it has acknowledged in an epoch, and what it has said of it.

    <epoch>.proven    26-byte entries appended as answers come; the last whole one of a node counts:
                      node number u32 | targets u16 | proven, bit i: target i (16 bytes) | CRC-32 of these
    <epoch>.report    the report as it was first signed, body only; replaced whole, synced before anybody sees it

A report that was said and forgotten could be said again otherwise, which is an offence: so it is durable before it is sent, and
sent again as it is. An acknowledgement that is lost with the power costs a node one vote of many; it is not synced.
Source: docs/spec/proofs.md, "Witnesses".
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Final

from dds.primitives.errors import StorageError
from dds.storage.checksum import crc32
from dds.storage.fileops import DIRECTORY_MODE, FileOps, disk_errors, write_file_durably

EPOCHS_KEPT: Final = 4
REPORT_BYTES_MAX: Final = 256 << 10
PROVEN_BYTES_MAX: Final = 64 << 20
_FIELDS: Final = struct.Struct(">IH16s")
_ENTRY_BYTES: Final = _FIELDS.size + 4
_NAME: Final = re.compile(r"([0-9]{1,13})\.(proven|report)")


class WitnessLog:
    """One directory, of one network: epochs of another are others. For one process, one thread at a time."""

    def __init__(self, directory: Path, ops: FileOps | None = None) -> None:
        self._directory, self._ops = directory, ops or FileOps()
        with disk_errors("opening the witness' log"):
            directory.mkdir(DIRECTORY_MODE, parents=True, exist_ok=True)

    def note_proven(self, epoch: int, number: int, asked: int, proven: int) -> None:
        """
        Raises:
            StorageError
        """
        with disk_errors("noting an audit"), self._path(epoch, "proven").open("ab") as file:
            fields = _FIELDS.pack(number, asked, proven.to_bytes(16, "big"))
            file.write(fields + crc32(fields).to_bytes(4, "big"))

    def proven(self, epoch: int) -> dict[int, tuple[int, int]]:
        """(targets, proven) by node number. An entry that a crash cut short is cut off, so that others can follow.

        Raises:
            StorageError
        """
        raw, found = self._read(epoch, "proven", PROVEN_BYTES_MAX), {}
        whole = len(raw) // _ENTRY_BYTES * _ENTRY_BYTES
        if whole < len(raw):
            with disk_errors("mending the witness' log"):
                os.truncate(self._path(epoch, "proven"), whole)
        for at in range(0, whole, _ENTRY_BYTES):
            fields = raw[at : at + _FIELDS.size]
            if crc32(fields) == int.from_bytes(raw[at + _FIELDS.size : at + _ENTRY_BYTES], "big"):
                number, asked, proven = _FIELDS.unpack(fields)
                found[number] = asked, int.from_bytes(proven, "big")
        return found

    def keep_report(self, epoch: int, body: bytes) -> None:
        """Durable when this returns.

        Raises:
            StorageError
        """
        with disk_errors("keeping a report"):
            write_file_durably(self._ops, self._path(epoch, "report"), body)

    def report(self, epoch: int) -> bytes | None:
        """
        Raises:
            StorageError
        """
        return self._read(epoch, "report", REPORT_BYTES_MAX) or None

    def forget(self, epoch: int) -> None:
        """Remove what is older than EPOCHS_KEPT epochs before `epoch`."""
        with disk_errors("clearing the witness' log"):
            for path in self._directory.iterdir():
                found = _NAME.fullmatch(path.name)
                if found and int(found[1]) < epoch - EPOCHS_KEPT:
                    path.unlink(missing_ok=True)

    def _path(self, epoch: int, kind: str) -> Path:
        return self._directory / f"{epoch}.{kind}"

    def _read(self, epoch: int, kind: str, bytes_max: int) -> bytes:
        path = self._path(epoch, kind)
        with disk_errors(f"reading {path.name}"):
            try:
                with path.open("rb") as file:
                    raw = file.read(bytes_max + 1)
            except FileNotFoundError:
                return b""
        if len(raw) > bytes_max:
            raise StorageError(f"{path} is larger than {bytes_max} bytes")
        return raw

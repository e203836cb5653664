"""Pack files: the append-only journal of a store, and the home of its small fragments (docs/spec/fragment-store.md).

    pack file  packs/NNNNNNNN.pack: b"DDSPACK1" | salt 8 | number u32 | CRC of these u32, then records
    record     head | operations (msgpack) | body (blobs end to end)
    head       salt 8 | own offset u32 | operations bytes u32 | body bytes u32 | durable u32 | CRC of operations u32 |
               CRC of the head so far u32                                                          (32 bytes, big endian)

The salt is drawn when the store is made. Together with a record's own offset it keeps bytes that a stranger stored in a
fragment from ever being taken for a record. `durable` is how far this pack was known to be synced when the record was written:
what does not parse *below* some later record's `durable` is damage and is reported; what does not parse above all of them was
never acknowledged, and the journal ends there.

This module frames, appends, syncs, scans and drops. What operations mean is for `index`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dds.primitives.errors import FormatError, LimitError, StorageError
from dds.primitives.hashing import Buffer
from dds.primitives.units import MIB
from dds.storage.checksum import crc32
from dds.storage.fileops import FileOps
from dds.storage.journal import BODY_BYTES_MAX, META_BYTES_MAX, Op, blob_faults, decode_ops, encode_ops

PACK_BYTES = 64 * MIB  # a new pack begins beyond this
SALT_BYTES = 8
_PACK_HEAD = struct.Struct(">8s8sII")
_PACK_MAGIC = b"DDSPACK1"
PACK_HEAD_BYTES = _PACK_HEAD.size
_RECORD_HEAD = struct.Struct(">8sIIIIII")
RECORD_HEAD_BYTES = _RECORD_HEAD.size
_NAME = re.compile(r"(\d{8})\.pack")
_SEARCH_BYTES = MIB


@dataclass(frozen=True, slots=True)
class Record:
    """A record that parses: where it lies in its pack, and its operations."""

    pack: int
    offset: int
    body_at: int
    end: int
    durable: int
    operations: list[Op]


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes [offset, end) of a pack which once were durable and do not parse any more."""

    pack: int
    offset: int
    end: int
    why: str


@dataclass(frozen=True, slots=True)
class Torn:
    """Bytes [offset, end) at the end of the journal that were being written when the process or the machine died."""

    pack: int
    offset: int
    end: int


@dataclass(frozen=True, slots=True)
class Framed:
    """A record ready to be appended at exactly `offset`."""

    offset: int
    body_at: int
    end: int
    parts: list[Buffer]


class PackLog:
    """All packs of one store. Appending is for one thread at a time; reading for any."""

    def __init__(self, ops: FileOps, directory: Path, salt: bytes, pack_bytes: int = PACK_BYTES) -> None:
        self._ops, self.directory, self.salt, self._pack_bytes = ops, directory, salt, pack_bytes
        found = (_NAME.fullmatch(path.name) for path in directory.iterdir())
        numbers = sorted(int(match[1]) for match in found if match)
        self.sizes = {number: self.path(number).stat().st_size for number in numbers}
        self.bytes_total = sum(self.sizes.values())
        self._fd = -1
        self._fresh_wanted = False
        self._gone = numbers[0] - 1 if numbers else 0

    def path(self, number: int) -> Path:
        return self.directory / f"{number:08d}.pack"

    @property
    def numbers(self) -> list[int]:
        return sorted(self.sizes)

    @property
    def missing(self) -> list[int]:
        """Numbers of packs that should be there: the oldest are dropped in order, so there are no gaps."""
        return [number for number in range(min(self.sizes, default=1), max(self.sizes, default=0)) if number not in self.sizes]

    @property
    def current(self) -> int:
        return max(self.sizes)

    @property
    def end(self) -> int:
        """Where the next record goes: everything before it is durable."""
        return self.sizes[self.current]

    def _resize(self, number: int, size: int | None) -> None:
        self.bytes_total += (size or 0) - self.sizes.get(number, 0)
        if size is None:
            del self.sizes[number]
        else:
            self.sizes[number] = size

    # Appending

    def open_for_append(self) -> None:
        """Continue the newest pack, or begin the first. The caller has truncated a torn tail."""
        if not self.sizes:
            self._begin(self._gone + 1)
            return
        if self.end < PACK_HEAD_BYTES or not self._head_is_sound(self.current):
            self._abandon_headless()
            return
        self._fd = self._ops.open(self.path(self.current), write=True)
        self._ops.sync(self._fd)

    def _abandon_headless(self) -> None:
        """The newest pack has no sound head. One cut off in creation holds nothing and is made again; else go past it."""
        number = self.current
        if self.end <= PACK_HEAD_BYTES:
            self._ops.unlink(self.path(number))
            self._resize(number, None)
            self._begin(number)
        else:
            self._begin(number + 1)

    def _begin(self, number: int) -> None:
        head = _PACK_HEAD.pack(_PACK_MAGIC, self.salt, number, 0)[:-4]
        fd = self._ops.create(self.path(number))
        try:
            self._ops.write(fd, [head, crc32(head).to_bytes(4, "big")], 0)
            self._ops.sync(fd)
            self._ops.sync_directory(self.directory)
        except OSError:
            self._ops.close(fd)
            self._ops.unlink(self.path(number))
            raise
        self.close()
        self._fd = fd
        self._resize(number, PACK_HEAD_BYTES)
        self._fresh_wanted = False

    def rotate_if_full(self) -> None:
        if self.end >= self._pack_bytes or self._fresh_wanted:
            self._begin(self.current + 1)

    def frame(self, at: int, operations: list[Op], blobs: list[Buffer]) -> Framed:
        """Frame a record for offset `at` of the current pack.

        Raises:
            LimitError: larger than a record may be.
        """
        meta = encode_ops(operations)
        body_bytes = sum(len(blob) for blob in blobs)
        if len(meta) > META_BYTES_MAX or body_bytes > BODY_BYTES_MAX:
            raise LimitError(f"a journal record of {len(meta)} + {body_bytes} bytes is too large")
        head = _RECORD_HEAD.pack(self.salt, at, len(meta), body_bytes, self.end, crc32(meta), 0)[:-4]
        body_at = at + RECORD_HEAD_BYTES + len(meta)
        return Framed(at, body_at, body_at + body_bytes, [head, crc32(head).to_bytes(4, "big"), meta, *blobs])

    def append(self, records: list[Framed], directories: Iterable[Path] = ()) -> None:
        """Sync the directories of files which the records name, then write the records end to end and sync once.

        On failure the pack ends where it ended before.

        Raises:
            OSError: nothing was appended.
            StorageError: nothing was appended either, but the tail could not be cut off; no more may be written.
        """
        start, end = self.end, records[-1].end
        for directory in directories:
            self._ops.sync_directory(directory)
        try:
            self._ops.write(self._fd, [part for record in records for part in record.parts], start)
            self._ops.sync(self._fd)
        except BaseException:
            self._cut_back(start)
            raise
        self._resize(self.current, end)

    def _cut_back(self, start: int) -> None:
        """After a failed write or sync nobody knows what is on the disk behind `start`: cut it off, and go on in a new pack."""
        self._fresh_wanted = True
        try:
            self._ops.truncate(self._fd, start)
            self._ops.sync(self._fd)
        except OSError as error:
            raise StorageError("the journal's tail is unknown after a failed write", hint="restart the node") from error

    def begin_new_next(self) -> None:
        """The newest pack's tail is damaged: leave it as it is and let the next record begin another pack."""
        self._fresh_wanted = True

    def fill(self, hole: Damage) -> None:
        """Overwrite damage with records that say nothing, so that the journal parses again. Its bytes are in quarantine."""
        fd = self._ops.open(self.path(hole.pack), write=True)
        try:
            if hole.offset == 0:
                head = _PACK_HEAD.pack(_PACK_MAGIC, self.salt, hole.pack, 0)[:-4]
                self._ops.write(fd, [head, crc32(head).to_bytes(4, "big")], 0)
            else:
                meta, length = encode_ops([]), min(hole.end, self.sizes[hole.pack]) - hole.offset
                body = length - RECORD_HEAD_BYTES - len(meta)
                head = _RECORD_HEAD.pack(self.salt, hole.offset, len(meta), max(0, body), 0, crc32(meta), 0)[:-4]
                if body >= 0:
                    self._ops.write(fd, [head, crc32(head).to_bytes(4, "big"), meta], hole.offset)
                else:
                    self._ops.truncate(fd, hole.offset)
            self._ops.sync(fd)
        finally:
            self._ops.close(fd)

    def truncate(self, torn: Torn) -> None:
        """Cut off a tail that was never acknowledged."""
        fd = self._ops.open(self.path(torn.pack), write=True)
        try:
            self._ops.truncate(fd, torn.offset)
            self._ops.sync(fd)
        finally:
            self._ops.close(fd)
        self._resize(torn.pack, torn.offset)

    def drop_oldest(self) -> None:
        """Remove the oldest pack. The directory is synced at once: packs must vanish in order."""
        number = min(self.sizes)
        assert number != self.current
        self._ops.unlink(self.path(number))
        self._ops.sync_directory(self.directory)
        self._resize(number, None)

    def close(self) -> None:
        if self._fd >= 0:
            self._ops.close(self._fd)
            self._fd = -1

    # Reading

    def read(self, number: int, length: int, at: int) -> bytes:
        """Raw bytes of a pack; FileNotFoundError when it has been compacted away."""
        fd = self._ops.open(self.path(number))
        try:
            return self._ops.read(fd, length, at)
        finally:
            self._ops.close(fd)

    def scan(self, number: int, start: int, proven: int) -> Iterator[Record | Damage | Torn]:
        """Everything from offset `start` (0: from the first record) to the end of a pack.

        `proven`: what lies below it is known to have been durable, whatever later records say.
        """
        fd = self._ops.open(self.path(number))
        try:
            yield from _Scanner(self._ops, fd, self.salt, number, self.sizes[number]).run(start, proven)
        finally:
            self._ops.close(fd)

    def _head_is_sound(self, number: int) -> bool:
        return _pack_head_is_sound(self.read(number, PACK_HEAD_BYTES, 0), self.salt, number)


def _pack_head_is_sound(raw: bytes, salt: bytes, number: int) -> bool:
    if len(raw) != PACK_HEAD_BYTES:
        return False
    return raw == _PACK_HEAD.pack(_PACK_MAGIC, salt, number, crc32(raw[:-4]))


class _Scanner:
    def __init__(self, ops: FileOps, fd: int, salt: bytes, number: int, size: int) -> None:
        self._ops, self._fd, self._salt, self._number, self._size = ops, fd, salt, number, size

    def run(self, start: int, proven: int) -> Iterator[Record | Damage | Torn]:
        at = max(start, PACK_HEAD_BYTES)
        if start < PACK_HEAD_BYTES and not self._head_ok():
            short = self._size <= PACK_HEAD_BYTES and proven <= PACK_HEAD_BYTES
            yield Torn(self._number, 0, self._size) if short else Damage(self._number, 0, PACK_HEAD_BYTES, "pack head")
            if short:
                return
        while at < self._size:
            record = self._record_at(at)
            if record is not None and (at < proven or self._body_is_whole(record)):
                yield record
                at = record.end
                continue
            found = self._after_damage(at, proven, record)
            yield found
            if isinstance(found, Torn):
                return
            if record is not None:
                yield record
            at = found.end
        if at < proven:
            yield Damage(self._number, at, proven, "pack is cut short")

    def _head_ok(self) -> bool:
        return _pack_head_is_sound(self._ops.read(self._fd, PACK_HEAD_BYTES, 0), self._salt, self._number)

    def _record_at(self, at: int) -> Record | None:
        raw = self._ops.read(self._fd, RECORD_HEAD_BYTES, at)
        if len(raw) < RECORD_HEAD_BYTES or not raw.startswith(self._salt):
            return None
        _, own, meta_bytes, body_bytes, durable, meta_crc, head_crc = _RECORD_HEAD.unpack(raw)
        end = at + RECORD_HEAD_BYTES + meta_bytes + body_bytes
        if crc32(raw[:-4]) != head_crc or own != at or meta_bytes > META_BYTES_MAX or end > self._size:
            return None
        meta = self._ops.read(self._fd, meta_bytes, at + RECORD_HEAD_BYTES)
        if len(meta) != meta_bytes or crc32(meta) != meta_crc:
            return None
        try:
            operations = decode_ops(meta)
        except FormatError:
            return None
        return Record(self._number, at, end - body_bytes, end, durable, operations)

    def _body_is_whole(self, record: Record) -> bool:
        return next(blob_faults(record.operations, self.body_reader(record)), None) is None

    def body_reader(self, record: Record) -> Callable[[int, int], bytes]:
        """Reads (length, offset within the record's body), never beyond it."""

        def read(length: int, at: int) -> bytes:
            left = record.end - record.body_at - at
            return self._ops.read(self._fd, max(0, min(length, left)), record.body_at + at)

        return read

    def _after_damage(self, at: int, proven: int, half: Record | None) -> Damage | Torn:
        """Tell damage from a torn tail. `half`: the record at `at`, if only its body is bad."""
        following = self._records_after(at if half is None else half.end - 1)
        first = next(following, None)
        later = first
        while later is not None and later.durable <= at and proven <= at:
            later = next(following, None)
        if later is None and proven <= at:
            return Torn(self._number, at, self._size)
        if half is not None:
            return Damage(self._number, at, half.end, "record body")
        return Damage(self._number, at, first.offset if first is not None else self._size, "record")

    def _records_after(self, at: int) -> Iterator[Record]:
        """Records found by looking for the salt byte by byte, then by walking on."""
        at += 1
        while at < self._size:
            chunk = self._ops.read(self._fd, _SEARCH_BYTES, at)
            hit = chunk.find(self._salt)
            if hit < 0:
                at += max(1, len(chunk) - SALT_BYTES + 1)
                continue
            record = self._record_at(at + hit)
            if record is None:
                at += hit + 1
                continue
            yield record
            at = record.end

"""What a record of the store's journal says: the operations, their bytes and their limits (docs/spec/fragment-store.md).

A record is one acknowledged request: a list of operations and the blobs they name (fragment images, encoding records,
manifests), which lie end to end behind it. Applied in the order of the journal they give the index, always the same one: each
operation is a plain fact about one key, the newest wins, and nothing in it depends on a clock or on what a disk says today.
This module is pure; `packs` frames records, `index` applies them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Union

import msgspec

from dds.primitives.errors import CorruptError, FormatError
from dds.primitives.ids import FragmentRoot
from dds.primitives.units import MIB
from dds.storage import image
from dds.storage.checksum import crc32

META_BYTES_MAX = 4 * MIB
BODY_BYTES_MAX = 32 * MIB


class Operation(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all. Blob positions (`at`) are bytes from the start of the record's body."""


class Put(Operation, frozen=True, tag=1):
    """A fragment's image is this record's blob."""

    root: bytes
    size: int
    at: int
    length: int


class PutFile(Operation, frozen=True, tag=2):
    """A fragment's image is a file of its own, durable before this record was written."""

    root: bytes
    size: int
    file: int
    length: int


class Stage(Operation, frozen=True, tag=3):
    upload: bytes
    owner: bytes
    root: bytes
    at_ms: int


class Unstage(Operation, frozen=True, tag=4):
    """Forget staged fragments: all of the upload, or those named."""

    upload: bytes
    owner: bytes
    roots: list[bytes] | None = None


class Encoding(Operation, frozen=True, tag=5):
    """A signed encoding record is this record's blob."""

    segment: bytes
    segment_root: bytes
    at: int
    length: int
    crc: int


class Hold(Operation, frozen=True, tag=6):
    """The fragments `roots` (end to end, 32 bytes each) are held for an index of a segment; they leave `upload`'s stage.

    `released_ms` is set only by compaction, which writes a hold that is in the trash as what it is.
    """

    segment: bytes
    segment_root: bytes
    index: int
    roots: bytes
    upload: bytes = b""
    owner: bytes = b""
    released_ms: int | None = None


class Release(Operation, frozen=True, tag=7):
    """A hold goes to the trash."""

    segment: bytes
    segment_root: bytes
    index: int
    at_ms: int


class Purge(Operation, frozen=True, tag=8):
    """A released hold leaves the trash; fragments that nothing else names are gone."""

    segment: bytes
    segment_root: bytes
    index: int


class Manifest(Operation, frozen=True, tag=9):
    """A signed manifest root section is this record's blob."""

    cid: bytes
    publisher: bytes
    created_ms: int
    at: int
    length: int
    crc: int


class DropManifest(Operation, frozen=True, tag=10):
    cid: bytes
    publisher: bytes


class Close(Operation, frozen=True, tag=11):
    """The store was closed in good order: all before is durable."""


Op = Union[Put, PutFile, Stage, Unstage, Encoding, Hold, Release, Purge, Manifest, DropManifest, Close]  # noqa: UP007

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[list[Op]] = msgspec.msgpack.Decoder(list[Op])


def encode_ops(operations: list[Op]) -> bytes:
    return _encoder.encode(operations)


def decode_ops(raw: bytes) -> list[Op]:
    """Parse a record's operations.

    Raises:
        FormatError
    """
    try:
        return _decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise FormatError(f"not a journal record: {error}") from None


def blob_faults(operations: list[Op], read: Callable[[int, int], bytes]) -> Iterator[tuple[Op, str]]:
    """The operations whose blob fails its checksum; `read` is (length, offset within the body) -> bytes."""
    for op in operations:
        match op:
            case Put():
                fault = _image_fault(op, read)
            case Encoding() | Manifest():
                raw = read(op.length, op.at)
                fault = None if len(raw) == op.length and crc32(raw) == op.crc else "fails its checksum"
            case _:
                fault = None
        if fault is not None:
            yield op, fault


def _image_fault(op: Put, read: Callable[[int, int], bytes]) -> str | None:
    try:
        image.verify(lambda length, at: read(length, op.at + at), FragmentRoot(op.root), op.size, deep=False)
    except CorruptError as error:
        return error.message
    return None

"""UnixFS Data: the small protobuf inside a dag-pb node that says what the node is.

Decides its exact bytes and refuses what no writer of this format produces. `mode` and `mtime` of other writers are checked
for shape and dropped; they are never written, because two copies of the same bytes must have the same ContentID.
Source: UnixFS specification (specs.ipfs.tech/unixfs), protobuf wire format; `blocksizes` is unpacked.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from dds.content.dagpb import NODE_LINKS_MAX
from dds.primitives.errors import FormatError
from dds.primitives.units import BLOCK_BYTES_MAX
from dds.primitives.varint import decode_varint, encode_varint

MURMUR3_X64_64: Final = 0x22  # multihash code of the only hash that sharded directories use
FANOUT_MAX: Final = 1024
SYMLINK_TARGET_BYTES_MAX: Final = 4096  # PATH_MAX where symbolic links live
_MTIME_BYTES_MAX = 32

_TYPE, _DATA, _FILESIZE, _BLOCKSIZE, _HASHTYPE, _FANOUT, _MODE, _MTIME = 0x08, 0x12, 0x18, 0x20, 0x28, 0x30, 0x38, 0x42
_VARINT_FIELDS = {_TYPE, _FILESIZE, _BLOCKSIZE, _HASHTYPE, _FANOUT, _MODE}


class DataType(IntEnum):
    RAW = 0
    DIRECTORY = 1
    FILE = 2
    METADATA = 3
    SYMLINK = 4
    HAMT_SHARD = 5


@dataclass(frozen=True, slots=True)
class UnixFSData:
    """`data`: inline file bytes, symlink target or shard bitfield. Sizes in bytes of file content; None or empty: absent."""

    type: DataType
    data: bytes | None = None
    filesize: int | None = None
    blocksizes: tuple[int, ...] = ()
    hash_type: int | None = None
    fanout: int | None = None


DIRECTORY_DATA: Final = b"\x08\x01"


def encode_unixfs(value: UnixFSData) -> bytes:
    """The bytes that stand in a node's Data field."""
    parts = [b"\x08" + encode_varint(value.type)]
    if value.data is not None:
        parts.append(b"\x12" + encode_varint(len(value.data)) + value.data)
    if value.filesize is not None:
        parts.append(b"\x18" + encode_varint(value.filesize))
    parts.extend(b"\x20" + encode_varint(size) for size in value.blocksizes)
    if value.hash_type is not None:
        parts.append(b"\x28" + encode_varint(value.hash_type))
    if value.fanout is not None:
        parts.append(b"\x30" + encode_varint(value.fanout))
    return b"".join(parts)


def decode_unixfs(raw: bytes) -> UnixFSData:
    """Decode the Data field of a foreign node.

    Raises:
        FormatError: fields unknown, repeated, out of order, or packed; a type without a meaning; a limit exceeded.
    """
    if len(raw) > BLOCK_BYTES_MAX:
        raise FormatError(f"UnixFS data of {len(raw)} bytes exceeds the limit of {BLOCK_BYTES_MAX}")
    scalars: dict[int, int] = {}
    data: bytes | None = None
    sizes: list[int] = []
    at = previous = 0
    while at < len(raw):
        tag = raw[at]
        if tag < previous or (tag == previous and tag != _BLOCKSIZE):
            raise FormatError("repeated or misplaced field in UnixFS data")
        previous = tag
        if tag in _VARINT_FIELDS:
            number, at = decode_varint(raw, at + 1)
            if tag == _BLOCKSIZE:
                sizes.append(number)
            else:
                scalars[tag] = number
        elif tag == _DATA:
            data, at = _bytes_field(raw, at)
        elif tag == _MTIME:
            mtime, at = _bytes_field(raw, at)
            _check_mtime(mtime)
        else:
            raise FormatError(f"unknown field {tag:#04x} in UnixFS data")
    if len(sizes) > NODE_LINKS_MAX:
        raise FormatError(f"UnixFS data with more than {NODE_LINKS_MAX} block sizes")
    return UnixFSData(
        _data_type(scalars), data, scalars.get(_FILESIZE), tuple(sizes), scalars.get(_HASHTYPE), scalars.get(_FANOUT)
    )


def _data_type(scalars: dict[int, int]) -> DataType:
    try:
        return DataType(scalars[_TYPE])
    except KeyError:
        raise FormatError("UnixFS data without a type") from None
    except ValueError:
        raise FormatError(f"UnixFS type {scalars[_TYPE]} has no meaning") from None


def _bytes_field(raw: bytes, at: int) -> tuple[bytes, int]:
    length, start = decode_varint(raw, at + 1)
    if start + length > len(raw):
        raise FormatError("a UnixFS field runs past its end")
    return raw[start : start + length], start + length


def _check_mtime(raw: bytes) -> None:
    """UnixTime {int64 Seconds = 1; fixed32 FractionalNanoseconds = 2}. Negative seconds are ten-byte varints, so the shape is
    checked without reading the number."""
    bad = FormatError("malformed mtime in UnixFS data")
    if not 2 <= len(raw) <= _MTIME_BYTES_MAX or raw[0] != 0x08:
        raise bad
    end = next((at for at in range(1, len(raw)) if raw[at] < 0x80), None)
    if end is None or end > 10:
        raise bad
    rest = raw[end + 1 :]
    if rest and (len(rest) != 5 or rest[0] != 0x15):
        raise bad
    if rest and not 1 <= int.from_bytes(rest[1:], "little") <= 999_999_999:
        raise bad

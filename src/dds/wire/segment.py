"""Segments on the wire: index, fragment records, encoding record, segment root (docs/spec/segments.md).

A segment's *data space* is its stored blocks laid end to end, then the bytes of its own index, cut into stripes of
k x slot bytes. Because the index lies in the data space, whoever can read a segment can learn what is in it.

    segment index    b"DDSI" | version 1 | flags 0 | rows u32 | rows
      row            CID 36 | offset u64 | stored bytes u32 | raw bytes u32 | codec u8        (big endian, 53 bytes)
    segment id       SHA-256(segment index)
    fragment record  root 32 | size u64 | index u16 | leaf count u32                          (big endian, 46 bytes)
    segment root     Merkle root (leaf 00, node 01) over all fragment records, stripe by stripe, index by index
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from dds.primitives.cid import CID, cid_from_bytes
from dds.primitives.errors import FormatError, UnsupportedVersion
from dds.primitives.hashing import sha256
from dds.primitives.ids import ID_BYTES, FragmentRoot, SegmentID, SegmentRoot
from dds.primitives.merkle import leaf_hash, root_of
from dds.primitives.units import (
    BLOCK_BYTES_MAX,
    K_MAX,
    LEAF_BYTES,
    N_MAX,
    RECORD_BYTES_MAX,
    SECTION_BYTES_MAX,
    SEGMENT_ENTRIES_MAX,
    SLOT_BYTES_MAX,
    STRIPES_PER_SEGMENT_MAX,
)
from dds.wire.codec import Message, decode, encode

CODEC_PLAIN = 0  # the stored bytes are the block's bytes
CODEC_ZSTD = 1  # the stored bytes are one zstd frame of the block's bytes

_INDEX_MAGIC = b"DDSI\x01\x00"
_INDEX_HEAD = struct.Struct(">6sI")
_ROW = struct.Struct(">36sQIIB")
_FRAGMENT = struct.Struct(">32sQHI")
FRAGMENT_RECORD_BYTES = _FRAGMENT.size
INDEX_ROW_BYTES = _ROW.size
INDEX_HEAD_BYTES = _INDEX_HEAD.size

ENCODING_VERSION = 1
ENCODING_TAG = b"dds/encoding/v1"


class Entry(NamedTuple):
    """One block of a segment: where its stored bytes lie in the data space, and how to get the block back from them."""

    cid: CID
    offset: int
    stored_bytes: int
    raw_bytes: int
    codec: int


def encode_index(entries: list[Entry]) -> bytes:
    assert len(entries) <= SEGMENT_ENTRIES_MAX
    return _INDEX_HEAD.pack(_INDEX_MAGIC, len(entries)) + b"".join(_ROW.pack(*entry) for entry in entries)


def decode_index(raw: bytes) -> list[Entry]:
    """Parse and check a segment index: rows lie end to end from offset 0.

    Raises:
        FormatError: malformed, too many rows, overlapping or gapped rows, impossible sizes.
    """
    if len(raw) < INDEX_HEAD_BYTES or len(raw) > SECTION_BYTES_MAX:
        raise FormatError(f"a segment index of {len(raw)} bytes")
    magic, count = _INDEX_HEAD.unpack_from(raw)
    if magic[:4] != _INDEX_MAGIC[:4]:
        raise FormatError("not a segment index")
    if magic != _INDEX_MAGIC:
        raise UnsupportedVersion(f"segment index version {magic[4]} is not known", hint="upgrade dds")
    if count > SEGMENT_ENTRIES_MAX or len(raw) != INDEX_HEAD_BYTES + count * INDEX_ROW_BYTES:
        raise FormatError("a segment index whose length does not fit its row count")
    entries: list[Entry] = []
    expected = 0
    for cid, offset, stored, size, codec in _ROW.iter_unpack(raw[INDEX_HEAD_BYTES:]):
        plain_ok = codec == CODEC_PLAIN and stored == size
        zstd_ok = codec == CODEC_ZSTD and 0 < stored < size
        if offset != expected or size > BLOCK_BYTES_MAX or not (plain_ok or zstd_ok):
            raise FormatError(f"segment index row {len(entries)} is impossible")
        entries.append(Entry(cid_from_bytes(cid), offset, stored, size, codec))
        expected = offset + stored
    return entries


def segment_id_of(index: bytes) -> SegmentID:
    return SegmentID(sha256(index))


@dataclass(frozen=True, slots=True)
class FragmentRecord:
    """What is needed to verify one fragment alone."""

    root: FragmentRoot
    size: int  # bytes
    index: int  # 0..n-1 within its stripe; below k it is the slot itself
    leaf_count: int

    def pack(self) -> bytes:
        return _FRAGMENT.pack(self.root, self.size, self.index, self.leaf_count)


def leaf_count_of(size: int) -> int:
    """Leaves of a fragment of `size` bytes."""
    return -(-size // LEAF_BYTES)


class StripeShape(Message, frozen=True):
    """One stripe's geometry. k = 1 means verbatim copies; else every fragment has exactly `slot_bytes` bytes."""

    k: int
    m: int
    slot_bytes: int
    data_bytes: int  # of the segment's data space in this stripe; the rest of the k slots is zero padding


class _EncodingPayload(Message, frozen=True):
    version: int
    segment_id: bytes
    class_name: str
    index_offset: int
    index_bytes: int
    stripes: list[StripeShape]
    records: bytes


@dataclass(frozen=True, slots=True)
class EncodingRecord:
    """How a segment is encoded now: geometry and every fragment's record. Replaced when content changes class."""

    segment_id: SegmentID
    class_name: str  # "standard", "hot", "archive", "custom"
    index_offset: int  # of the index in the data space
    index_bytes: int
    stripes: tuple[StripeShape, ...]
    records: tuple[tuple[FragmentRecord, ...], ...]  # [stripe][index]

    @property
    def data_bytes(self) -> int:
        """Length of the data space, the index included."""
        return self.index_offset + self.index_bytes

    @property
    def width(self) -> int:
        """n: how many nodes hold this segment."""
        return max(shape.k + shape.m for shape in self.stripes)

    @property
    def loss_tolerance(self) -> int:
        """How many of the nodes may be lost without losing a byte."""
        return min(shape.m for shape in self.stripes)

    def fragments_of(self, index: int) -> list[tuple[int, FragmentRecord]]:
        """(stripe, record) of everything that the holder of `index` keeps."""
        return [(at, row[index]) for at, row in enumerate(self.records) if index < len(row)]

    def root(self) -> SegmentRoot:
        return SegmentRoot(root_of([leaf_hash(record.pack()) for row in self.records for record in row]))

    def encode(self) -> bytes:
        packed = b"".join(record.pack() for row in self.records for record in row)
        return encode(
            _EncodingPayload(
                ENCODING_VERSION,
                self.segment_id,
                self.class_name,
                self.index_offset,
                self.index_bytes,
                list(self.stripes),
                packed,
            )
        )


CLASS_NAME_CHARS_MAX = 32


def decode_encoding(raw: bytes) -> EncodingRecord:
    """Parse an encoding record's payload (its signature is checked by `open_signed` with ENCODING_TAG).

    Raises:
        FormatError: malformed, or shapes, sizes and counts that contradict each other.
        UnsupportedVersion: made by a newer release.
    """
    p = decode(raw, _EncodingPayload, max_bytes=RECORD_BYTES_MAX)
    if p.version != ENCODING_VERSION:
        raise UnsupportedVersion(f"encoding record version {p.version} is not known", hint="upgrade dds")
    if len(p.segment_id) != ID_BYTES or not 0 < len(p.class_name) <= CLASS_NAME_CHARS_MAX:
        raise FormatError("an encoding record with a bad segment id or class")
    if not 0 < len(p.stripes) <= STRIPES_PER_SEGMENT_MAX:
        raise FormatError(f"an encoding record with {len(p.stripes)} stripes")
    for shape in p.stripes:
        _check_shape(shape)
    total = sum(shape.data_bytes for shape in p.stripes)
    if (
        not INDEX_HEAD_BYTES <= p.index_bytes <= SECTION_BYTES_MAX
        or p.index_offset < 0
        or p.index_offset + p.index_bytes != total
    ):
        raise FormatError("an encoding record whose index is not the end of its data")
    return EncodingRecord(
        SegmentID(p.segment_id), p.class_name, p.index_offset, p.index_bytes, tuple(p.stripes), _unpack_records(p)
    )


def _check_shape(shape: StripeShape) -> None:
    whole = shape.k * shape.slot_bytes
    ok = 1 <= shape.k <= K_MAX and shape.m >= 0 and shape.k + shape.m <= N_MAX
    if not ok or not 0 < shape.slot_bytes <= SLOT_BYTES_MAX or not 0 < shape.data_bytes <= whole:
        raise FormatError(f"an impossible stripe: {shape}")
    if shape.k == 1 and shape.data_bytes != shape.slot_bytes:
        raise FormatError("copies (k=1) carry no padding")


def _unpack_records(p: _EncodingPayload) -> tuple[tuple[FragmentRecord, ...], ...]:
    if len(p.records) != FRAGMENT_RECORD_BYTES * sum(shape.k + shape.m for shape in p.stripes):
        raise FormatError("an encoding record with a wrong number of fragment records")
    rows: list[tuple[FragmentRecord, ...]] = []
    records = _FRAGMENT.iter_unpack(p.records)
    for shape in p.stripes:
        row: list[FragmentRecord] = []
        for index in range(shape.k + shape.m):
            root, size, at, leaves = next(records)
            if at != index or size != shape.slot_bytes or leaves != leaf_count_of(size):
                raise FormatError(f"fragment record {index} does not fit its stripe")
            row.append(FragmentRecord(FragmentRoot(root), size, at, leaves))
        rows.append(tuple(row))
    return tuple(rows)

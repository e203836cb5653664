"""Compression of blocks below the CID: zstd where it pays, the raw bytes where it does not.

A block's CID is of its raw bytes, so compression may differ between releases of zstd without changing any ContentID; what
was chosen is written in the segment index (codec, stored and raw length). Decompression trusts nothing: the frame must state
exactly the length that the index states, and gets no more memory than that.
Source: RFC 8878; docs/spec/segments.md, "Blocks".
"""

from __future__ import annotations

from typing import Final, NamedTuple

import zstandard

from dds.primitives.cid import CID
from dds.primitives.errors import FormatError, IntegrityError
from dds.primitives.hashing import Buffer
from dds.primitives.units import BLOCK_BYTES_MAX, KIB
from dds.wire.segment import CODEC_PLAIN, CODEC_ZSTD

LEVEL: Final = 3
STORED_PERCENT_MAX: Final = 97  # of the raw length; a smaller gain is not worth a decompression at every read
_PROBE_LEVEL: Final = 1
_PROBE_SAMPLES: Final = 16
_PROBE_SAMPLE_BYTES: Final = 2 * KIB
_PROBE_FROM_BYTES: Final = 128 * KIB  # smaller blocks are simply compressed
_PROBE_PERCENT_MAX: Final = 99  # more lenient than the verdict: samples see no long matches

_Pool = list[zstandard.ZstdCompressor]
_idle: _Pool = []
_idle_probes: _Pool = []


class StoredBlock(NamedTuple):
    """A block as it will lie in a segment."""

    cid: CID
    raw_bytes: int
    codec: int
    stored: Buffer


def store_block(cid: CID, block: Buffer) -> StoredBlock:
    codec, stored = compress(block)
    return StoredBlock(cid, len(block), codec, stored)


def compress(block: Buffer) -> tuple[int, Buffer]:
    """(codec, stored bytes): CODEC_ZSTD with a frame at least 3 % smaller, or CODEC_PLAIN with `block` itself."""
    if len(block) >= _PROBE_FROM_BYTES and not _looks_compressible(block):
        return CODEC_PLAIN, block
    frame = _compress_with(_idle, LEVEL, block)
    if len(frame) * 100 <= len(block) * STORED_PERCENT_MAX:
        return CODEC_ZSTD, frame
    return CODEC_PLAIN, block


def decompress(codec: int, stored: Buffer, raw_bytes: int) -> Buffer:
    """The block behind `stored`, which must have exactly `raw_bytes` bytes (codec and lengths as the segment index says).

    Raises:
        FormatError: an unknown codec, an impossible length, or not one whole zstd frame.
        IntegrityError: a frame of another length than the index says.
    """
    if not 0 <= raw_bytes <= BLOCK_BYTES_MAX:
        raise FormatError(f"a block of {raw_bytes} bytes", actual=raw_bytes, expected=BLOCK_BYTES_MAX)
    if codec == CODEC_PLAIN:
        block = stored
    elif codec == CODEC_ZSTD:
        block = _decompress_frame(stored, raw_bytes)
    else:
        raise FormatError(f"block codec {codec} is not known", hint="upgrade dds")
    if len(block) != raw_bytes:
        raise IntegrityError("a stored block of another length than its index says", actual=len(block), expected=raw_bytes)
    return block


def _decompress_frame(frame: Buffer, raw_bytes: int) -> bytes:
    try:
        stated = zstandard.get_frame_parameters(frame).content_size
        if stated != raw_bytes:
            raise IntegrityError("a zstd frame of another length than its index says", actual=stated, expected=raw_bytes)
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=raw_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"not a zstd frame: {error}") from None


def _looks_compressible(block: Buffer) -> bool:
    """Compress a few samples, spread evenly from the first byte to the last."""
    view = memoryview(block)
    step = (len(block) - _PROBE_SAMPLE_BYTES) // (_PROBE_SAMPLES - 1)
    starts = range(0, step * _PROBE_SAMPLES, step)
    sample = b"".join([view[at : at + _PROBE_SAMPLE_BYTES] for at in starts])
    return len(_compress_with(_idle_probes, _PROBE_LEVEL, sample)) * 100 <= len(sample) * _PROBE_PERCENT_MAX


def _compress_with(idle: _Pool, level: int, data: Buffer) -> bytes:
    """Borrow a compressor that no other thread uses (`pop` and `append` are atomic), as many as ever ran at once."""
    try:
        compressor = idle.pop()
    except IndexError:
        compressor = zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True, write_dict_id=False)
    try:
        return compressor.compress(data)
    finally:
        idle.append(compressor)

"""Compression: only where it pays, and no frame can take more than its index allows."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard

from dds.erasure.compression import compress, decompress, store_block
from dds.primitives.cid import cid_of
from dds.primitives.errors import FormatError, IntegrityError
from dds.primitives.units import BLOCK_BYTES_MAX, KIB, MIB
from dds.wire.segment import CODEC_PLAIN, CODEC_ZSTD

NOISE = random.Random(1).randbytes(MIB)
TEXT = b"".join(b"line %d of a text that repeats itself, somewhat\n" % number for number in range(24_000))[:MIB]


@pytest.mark.parametrize("size", [0, 1, 100, 4 * KIB, 128 * KIB, MIB])
def test_noise_stays_raw_and_is_not_copied(size: int) -> None:
    block = NOISE[:size]
    codec, stored = compress(block)
    assert codec == CODEC_PLAIN
    assert stored is block


@pytest.mark.parametrize("size", [200, 4 * KIB, 128 * KIB, MIB])
def test_text_is_compressed_and_comes_back(size: int) -> None:
    codec, stored = compress(TEXT[:size])
    assert codec == CODEC_ZSTD
    assert len(stored) <= size * 0.97
    assert decompress(codec, stored, size) == TEXT[:size]


def test_a_gain_under_three_percent_keeps_the_raw_bytes() -> None:
    gains = {share: compress(bytes(share * 1000) + NOISE[: 100_000 - share * 1000])[0] for share in (1, 2, 4, 8)}
    assert gains == {1: CODEC_PLAIN, 2: CODEC_PLAIN, 4: CODEC_ZSTD, 8: CODEC_ZSTD}


def test_a_block_that_is_only_partly_compressible_is_compressed() -> None:
    assert compress(NOISE[: 800 * KIB] + TEXT[: 224 * KIB])[0] == CODEC_ZSTD


def test_the_same_block_always_gives_the_same_bytes() -> None:
    with ThreadPoolExecutor(4) as pool:
        results = set(pool.map(lambda _: compress(TEXT), range(16)))
    assert len(results) == 1


def test_frames_state_their_length_and_carry_no_checksum_or_dictionary() -> None:
    frame = zstandard.get_frame_parameters(compress(TEXT)[1])
    assert (frame.content_size, frame.has_checksum, frame.dict_id) == (len(TEXT), False, 0)


def test_views_are_compressed_like_bytes() -> None:
    codec, stored = compress(memoryview(TEXT))
    assert (codec, stored) == compress(TEXT)
    assert decompress(codec, memoryview(stored), len(TEXT)) == TEXT


def test_stored_blocks_remember_what_they_were() -> None:
    block = store_block(cid_of(TEXT), TEXT)
    assert (block.cid, block.raw_bytes, block.codec) == (cid_of(TEXT), len(TEXT), CODEC_ZSTD)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(64 * MIB))
    with pytest.raises(IntegrityError):
        decompress(CODEC_ZSTD, bomb, MIB)
    with pytest.raises(FormatError):
        decompress(CODEC_ZSTD, bomb, 64 * MIB)


def test_a_frame_that_understates_its_length_is_refused() -> None:
    raw = bytes(MIB)
    frame = bytearray(zstandard.ZstdCompressor(level=3, write_checksum=False).compress(raw))
    at = frame.index((MIB).to_bytes(4, "little"))
    frame[at : at + 4] = (KIB).to_bytes(4, "little")
    with pytest.raises(FormatError):
        decompress(CODEC_ZSTD, frame, KIB)


def test_wrong_lengths_codecs_and_bytes_are_refused() -> None:
    _, frame = compress(TEXT)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    for stored, size in ((frame, len(TEXT) - 1), (frame, len(TEXT) + 1), (unsized, len(TEXT)), (skippable, 4)):
        with pytest.raises(FormatError):
            decompress(CODEC_ZSTD, stored, size)
    for stored in (frame[:-1], bytes(frame) + b"x", bytes(frame) + bytes(frame), b"", b"not zstd at all"):
        with pytest.raises(FormatError):
            decompress(CODEC_ZSTD, stored, len(TEXT))
    with pytest.raises(IntegrityError):
        decompress(CODEC_PLAIN, b"abc", 4)
    with pytest.raises(FormatError):
        decompress(7, b"abc", 3)
    with pytest.raises(FormatError):
        decompress(CODEC_PLAIN, b"", -1)
    with pytest.raises(FormatError):
        decompress(CODEC_PLAIN, b"", BLOCK_BYTES_MAX + 1)

"""Units and the protocol-wide limits that more than one room needs. Every limit names its unit last."""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

# Content (docs/spec/content.md)
CHUNK_BYTES: Final = MIB  # fixed chunker, and the largest leaf of any chunker
BLOCK_BYTES_MAX: Final = 2 * MIB  # no block of any codec is larger (the bound other IPFS software uses too)
CID_BYTES: Final = 36  # CIDv1, one-byte codec, sha2-256

# Erasure coding
K_MAX: Final = 64
N_MAX: Final = 128
SLOT_BYTES_MAX: Final = MIB
SLOT_BYTES_MIN: Final = 4 * KIB
STRIPES_PER_SEGMENT_MAX: Final = 64
SEGMENT_ENTRIES_MAX: Final = 4096
LEAF_BYTES: Final = 3968  # 128 elements of 31 bytes, the unit of every proof

# Metadata
SECTION_BYTES_MAX: Final = 256 * KIB  # a manifest section, a segment index
RECORD_BYTES_MAX: Final = MIB  # an encoding record: at most 64 x 128 fragment records of 46 bytes

# Tiering (docs/spec/tiering.md)
ARCHIVE_AFTER_DAYS_MAX: Final = 120  # a count of reads has faded to nothing a little later: more could not be told apart


def human_bytes(count: int) -> str:
    """`1536` -> `1.5 KiB`: for people; machines get the integer."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")

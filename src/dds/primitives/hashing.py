"""SHA-256 and domain-separated (tagged) hashes.

A tag keeps a hash made for one purpose from ever being taken for another's: tagged(tag, parts) = SHA-256(len(tag) || tag ||
parts...), with the parts' lengths fixed by the tag's definition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from dds.primitives.units import KIB

Buffer = bytes | bytearray | memoryview
XOF_BLOCK_BYTES = 4 * KIB


def sha256(data: Buffer) -> bytes:
    return hashlib.sha256(data).digest()


def tagged_hash(tag: bytes, *parts: Buffer) -> bytes:
    """SHA-256 under a tag of at most 255 bytes, for example b"dds/candidates/v1"."""
    assert 0 < len(tag) < 256
    h = hashlib.sha256(bytes((len(tag),)) + tag)
    for part in parts:
        h.update(part)
    return h.digest()


def xof_integers(seed: bytes, bound: int) -> Iterator[int]:
    """An endless, unbiased stream of integers in [0, bound): SHA-256 in counter mode, 64-bit words, rejection sampling."""
    assert 0 < bound <= 1 << 64
    limit = (1 << 64) // bound * bound
    counter = 0
    while True:
        block = hashlib.sha256(seed + counter.to_bytes(8, "big")).digest()
        counter += 1
        for at in range(0, 32, 8):
            word = int.from_bytes(block[at : at + 8], "big")
            if word < limit:
                yield word % bound

"""The Merkle Tree Hash as RFC 9162 section 2.1.1 defines it, by recursion; shares nothing with the code under test."""

from __future__ import annotations

import hashlib


def merkle_tree_hash(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    left, right = merkle_tree_hash(leaves[:split]), merkle_tree_hash(leaves[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


def padded_leaves(data: bytes, leaf_bytes: int) -> list[bytes]:
    return [data[at : at + leaf_bytes].ljust(leaf_bytes, b"\x00") for at in range(0, len(data), leaf_bytes)]

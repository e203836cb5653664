"""File trees described as data, for the frozen vectors: the same description gives the same bytes everywhere.

A node is {"text": str}, {"stream": seed, "size": bytes}, {"symlink": target}, {"dir": {name: node}} or {"many": count, "name":
format, "of": node}: a directory of `count` entries. A stream is the ChaCha20 keystream under key SHA-256(seed), zero nonce.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

Node = dict[str, Any]


def keystream(seed: str, size: int) -> bytes:
    return b"".join(keystream_slices(seed, size))


def keystream_slices(seed: str, size: int, slice_bytes: int = 1 << 20) -> Iterator[bytes]:
    """The same in slices, for what should not lie in memory as a whole."""
    encryptor = Cipher(algorithms.ChaCha20(hashlib.sha256(seed.encode()).digest(), bytes(16)), None).encryptor()
    zeros = bytes(slice_bytes)
    for at in range(0, size, slice_bytes):
        yield encryptor.update(zeros[: size - at])


def kubo_names(count: int, length: int, last_length: int, seed: str) -> list[bytes]:
    """The file names that Kubo's own tests of the profile derive from a seed."""
    alphabet = b"abcdefghijklmnopqrstuvwxyz01234567890-_"
    stream = keystream(seed, 1 << 20)
    starts = [at * length for at in range(count)]
    ends = [*starts[1:], starts[-1] + last_length]
    return [bytes(alphabet[byte % len(alphabet)] for byte in stream[a:b]) for a, b in zip(starts, ends, strict=True)]


def file_bytes(node: Node) -> bytes:
    return node["text"].encode() if "text" in node else keystream(node["stream"], node["size"])


def children(node: Node) -> dict[str, Node]:
    if "many" in node:
        return {node["name"] % at: node["of"] for at in range(node["many"])}
    result: dict[str, Node] = node["dir"]
    return result


def materialize(node: Node, path: Path) -> None:
    """Write the tree to disk."""
    if "symlink" in node:
        os.symlink(node["symlink"], path)
    elif "dir" in node or "many" in node:
        path.mkdir()
        for name, child in children(node).items():
            materialize(child, path / name)
    else:
        path.write_bytes(file_bytes(node))

"""Typed identifiers and their text forms.

All are 32-byte values unless said: a NodeID is an Ed25519 public key, the others are SHA-256 digests. Text form: lower-case
RFC 4648 base32 without padding (52 characters), which also fits a DNS label.
"""

from __future__ import annotations

import base64
from typing import NewType

from dds.primitives.errors import InputError

NodeID = NewType("NodeID", bytes)  # Ed25519 public key of a node
PublisherID = NewType("PublisherID", bytes)  # Ed25519 public key of a creator
SegmentID = NewType("SegmentID", bytes)  # SHA-256 of the canonical segment index
SegmentRoot = NewType("SegmentRoot", bytes)  # Merkle root over a segment's fragment records
FragmentRoot = NewType("FragmentRoot", bytes)  # Merkle root over a fragment's leaves
UploadID = NewType("UploadID", bytes)  # 16 random bytes, chosen by the uploader

ID_BYTES = 32
UPLOAD_ID_BYTES = 16
ID_TEXT_CHARS = 52


def id_text(value: bytes) -> str:
    """Text form of a 32-byte identifier."""
    return base64.b32encode(value).decode().rstrip("=").lower()


def parse_id(text: str, what: str = "identifier") -> bytes:
    """Parse the text form of a 32-byte identifier; only the one canonical spelling is accepted.

    Raises:
        InputError: wrong length, alphabet or non-zero trailing bits.
    """
    bad = InputError(f"not a valid {what}: {text[:64]!r}", hint=f"a {what} has {ID_TEXT_CHARS} characters a-z2-7")
    if len(text) != ID_TEXT_CHARS:
        raise bad
    try:
        value = base64.b32decode(text.upper() + "====")
    except ValueError:
        raise bad from None
    if id_text(value) != text:
        raise bad
    return value

"""CIDv1 with sha2-256: the identifiers of blocks and of content.

Source: the multiformats CID specification. Only what DDS makes is accepted: version 1, a codec of one byte, sha2-256. That
makes the binary form exactly 36 bytes (01 | codec | 12 20 | digest). A CID is kept as those bytes everywhere inside; text is
multibase base32 lower case ("b..."). Text in other bases or CIDv0 is refused with a hint, never silently converted.
"""

from __future__ import annotations

import base64
import hashlib
from typing import NewType

from dds.primitives.errors import FormatError, InputError
from dds.primitives.hashing import Buffer
from dds.primitives.units import CID_BYTES

CID = NewType("CID", bytes)

RAW = 0x55
DAG_PB = 0x70
DAG_CBOR = 0x71
CODEC_NAMES = {RAW: "raw", DAG_PB: "dag-pb", DAG_CBOR: "dag-cbor"}

_TEXT_CHARS = 59  # 'b' and the base32 of 36 bytes
_MH_SHA256 = b"\x12\x20"
_PREFIX = {codec: b"\x01" + bytes((codec,)) + _MH_SHA256 for codec in CODEC_NAMES}


def cid_of(data: Buffer, codec: int = RAW) -> CID:
    """The CID of a block's bytes."""
    return CID(_PREFIX[codec] + hashlib.sha256(data).digest())


def cid_from_digest(digest: bytes, codec: int) -> CID:
    assert len(digest) == 32
    return CID(_PREFIX[codec] + digest)


def codec_of(cid: CID) -> int:
    return cid[1]


def digest_of(cid: CID) -> bytes:
    return cid[4:]


def matches(cid: CID, data: Buffer) -> bool:
    """Whether `data` is the block that `cid` names."""
    return cid[4:] == hashlib.sha256(data).digest()


def cid_from_bytes(raw: bytes) -> CID:
    """Check foreign bytes.

    Raises:
        FormatError: not a CIDv1 with a known codec and sha2-256.
    """
    if len(raw) != CID_BYTES or raw[0] != 1 or raw[1] not in CODEC_NAMES or raw[2:4] != _MH_SHA256:
        raise FormatError(f"not a CID that DDS knows: {raw[:CID_BYTES].hex()}")
    return CID(bytes(raw))


def cid_text(cid: CID) -> str:
    return "b" + base64.b32encode(cid).decode().rstrip("=").lower()


def parse_cid(text: str) -> CID:
    """Parse the text form; `/ipfs/` and `ipfs://` in front are tolerated.

    Raises:
        InputError: malformed, another base or version, another codec or hash; the hint says which.
    """
    bare = text.strip().removeprefix("ipfs://").removeprefix("/ipfs/")
    shown = bare[:80]
    if len(bare) == 46 and bare.startswith("Qm"):
        raise InputError(f"{shown} is a CIDv0; DDS uses CIDv1", hint="convert it: ipfs cid base32 " + shown)
    if not bare.startswith("b"):
        raise InputError(f"not a ContentID: {shown!r}", hint="a ContentID starts with 'baf' and is lower-case base32")
    body = bare[1:]
    try:
        raw = base64.b32decode(body.upper() + "=" * (-len(body) % 8))
    except ValueError:
        raise InputError(f"not a ContentID: {shown!r} is not base32") from None
    if len(bare) == _TEXT_CHARS and body != body.lower():
        raise InputError(f"not a ContentID: {shown!r} must be lower case")
    try:
        cid = cid_from_bytes(raw)
    except FormatError:
        raise InputError(
            f"not a ContentID that DDS knows: {shown}", hint="CIDv1 with codec raw, dag-pb or dag-cbor and sha2-256"
        ) from None
    if cid_text(cid) != bare:
        raise InputError(f"not a ContentID: {shown!r} is not in canonical form")
    return cid

"""dag-pb: the two-field protobuf envelope of every directory and of every inner node of a file.

Decides the exact bytes of a node and refuses every other spelling of it, so that decode and encode are inverses and one node
has one CID. Does not know what Data means (unixfs.py) nor which links make sense (nodes.py).
Source: IPLD "DAG-PB" codec specification: Links before Data, fields of a link in the order Hash, Name, Tsize, absent fields
kept apart from empty ones, minimal varints, no unknown fields.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from dds.primitives.cid import CID, cid_from_bytes
from dds.primitives.errors import FormatError
from dds.primitives.units import BLOCK_BYTES_MAX, CID_BYTES, KIB
from dds.primitives.varint import decode_varint, encode_varint

NODE_LINKS_MAX: Final = 32 * KIB  # the widest basic directory that other software makes is well below
LINK_NAME_BYTES_MAX: Final = KIB

_NODE_DATA, _NODE_LINK = 0x0A, 0x12  # PBNode: Data = 1, Links = 2
_LINK_HASH, _LINK_NAME, _LINK_TSIZE = 0x0A, 0x12, 0x18
_HASH_FIELD = bytes((_LINK_HASH, CID_BYTES))
_HASH_FIELD_BYTES = len(_HASH_FIELD) + CID_BYTES


class PBLink(NamedTuple):
    """One link. `name` are raw bytes (None: field absent, which is not the empty name); `tsize` counts the serialized
    bytes of every block below, repeats included (None: absent)."""

    cid: CID
    name: bytes | None
    tsize: int | None


class PBNode(NamedTuple):
    """A decoded node: links in stored order, Data as raw bytes (None: absent)."""

    links: tuple[PBLink, ...]
    data: bytes | None


def varint_bytes(value: int) -> int:
    """How many bytes the varint of a non-negative integer takes."""
    return max(1, (value.bit_length() + 6) // 7)


def link_bytes(name_bytes: int, tsize: int) -> int:
    """Bytes that a link with a name of `name_bytes` takes inside its node."""
    body = _HASH_FIELD_BYTES + 1 + varint_bytes(name_bytes) + name_bytes + 1 + varint_bytes(tsize)
    return 1 + varint_bytes(body) + body


def encode_link(link: PBLink) -> bytes:
    """A link as it stands inside its node, outer tag and length included."""
    body = _HASH_FIELD + link.cid
    if link.name is not None:
        body += b"\x12" + encode_varint(len(link.name)) + link.name
    if link.tsize is not None:
        body += b"\x18" + encode_varint(link.tsize)
    return b"\x12" + encode_varint(len(body)) + body


def encode_node(node: PBNode) -> bytes:
    """The canonical block bytes."""
    parts = [encode_link(link) for link in node.links]
    if node.data is not None:
        parts.append(b"\x0a" + encode_varint(len(node.data)) + node.data)
    return b"".join(parts)


def decode_node(block: bytes) -> PBNode:
    """Decode foreign block bytes.

    Raises:
        FormatError: not the canonical encoding of a node, or beyond a limit (block bytes, links, name bytes).
    """
    if len(block) > BLOCK_BYTES_MAX:
        raise FormatError(f"a block of {len(block)} bytes exceeds the limit of {BLOCK_BYTES_MAX}")
    links: list[PBLink] = []
    at = 0
    while at < len(block) and block[at] == _NODE_LINK:
        if len(links) == NODE_LINKS_MAX:
            raise FormatError(f"a dag-pb node has more than {NODE_LINKS_MAX} links")
        start, at = _field(block, at, len(block))
        links.append(_decode_link(block, start, at))
    data = None
    if at < len(block):
        if block[at] != _NODE_DATA:
            raise FormatError(f"unexpected field {block[at]:#04x} in a dag-pb node")
        start, at = _field(block, at, len(block))
        data = block[start:at]
    if at != len(block):
        raise FormatError("bytes behind the Data field of a dag-pb node")
    return PBNode(tuple(links), data)


def _field(block: bytes, at: int, stop: int) -> tuple[int, int]:
    """Bounds of the length-delimited field whose tag is at `at`; it must end at or before `stop`."""
    length, start = decode_varint(block, at + 1)
    if start + length > stop:
        raise FormatError("a dag-pb field runs past its end")
    return start, start + length


def _decode_link(block: bytes, at: int, stop: int) -> PBLink:
    if at >= stop or block[at] != _LINK_HASH:
        raise FormatError("a dag-pb link without a hash in front")
    start, at = _field(block, at, stop)
    cid = cid_from_bytes(block[start:at])
    name: bytes | None = None
    tsize: int | None = None
    if at < stop and block[at] == _LINK_NAME:
        start, at = _field(block, at, stop)
        name = block[start:at]
        if len(name) > LINK_NAME_BYTES_MAX:
            raise FormatError(f"a link name of {len(name)} bytes exceeds the limit of {LINK_NAME_BYTES_MAX}")
    if at < stop and block[at] == _LINK_TSIZE:
        tsize, at = decode_varint(block, at + 1)
    if at != stop:
        raise FormatError("unknown, repeated or misplaced field in a dag-pb link")
    return PBLink(cid, name, tsize)

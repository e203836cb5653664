"""Manifests: what a ContentID is rebuilt from (docs/spec/manifest.md).

The root section is dag-cbor in a signed envelope (tag "dds/manifest/v1", signed by the publisher). It names the content, its
sizes and class, and either holds the *body* itself or lists sections (dag-cbor blocks of at most 256 KiB with CIDs of their
own) that hold parts of it; those sections are stored like any data, in the segments of `meta`.

A body is a table of segments (id and last-known holders: hints, never authority) and of *runs*: (segment number, first entry,
entry count, position). `position` is the place of the run's first block in the post-order walk of the DAG, in bytes
(docs/spec/content-id.md), so a reader of a range loads only the indexes that it needs.

A manifest is not bound by the ContentID: anyone may publish one, and a wrong one is found out by the blocks' CIDs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dds.primitives.cid import CID, DAG_CBOR, cid_from_bytes, cid_of
from dds.primitives.errors import FormatError, UnsupportedVersion
from dds.primitives.ids import ID_BYTES, NodeID, PublisherID, SegmentID
from dds.primitives.keys import SigningKey
from dds.primitives.units import N_MAX, SECTION_BYTES_MAX, SEGMENT_ENTRIES_MAX
from dds.wire.dagcbor import decode_dag_cbor, encode_dag_cbor
from dds.wire.signed import ENVELOPE_BYTES_MAX, open_signed, sign

MANIFEST_VERSION = 1
MANIFEST_TAG = b"dds/manifest/v1"
MANIFEST_BYTES_MAX = SECTION_BYTES_MAX
SIGNED_MANIFEST_BYTES_MAX = MANIFEST_BYTES_MAX + ENVELOPE_BYTES_MAX
INLINE_BODY_BYTES_MAX = 64 << 10  # a larger body goes into sections: the root section is kept in m+1 whole copies
SECTIONS_MAX = 4096
TEXT_CHARS_MAX = 64
_SIZE_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class SegmentRow:
    segment_id: SegmentID
    holders: tuple[NodeID, ...]  # by fragment index; hints


@dataclass(frozen=True, slots=True)
class Run:
    segment: int  # row in the same body's `segments`
    first: int  # first entry of that segment's index
    count: int
    position: int


@dataclass(frozen=True, slots=True)
class Body:
    segments: tuple[SegmentRow, ...] = ()
    runs: tuple[Run, ...] = ()

    def to_plain(self) -> dict[str, Any]:
        return {
            "r": [[run.segment, run.first, run.count, run.position] for run in self.runs],
            "s": [[row.segment_id, b"".join(row.holders)] for row in self.segments],
        }


@dataclass(frozen=True, slots=True)
class Section:
    cid: CID
    position: int  # of its first run


@dataclass(frozen=True, slots=True)
class Manifest:
    """The root section. Sizes in bytes."""

    content: CID
    publisher: PublisherID
    kind: str  # "file", "directory", "symlink"
    class_name: str
    chunker: str
    content_bytes: int  # of the user's data
    dag_bytes: int  # Tsize of the root: all blocks, repeats counted
    unique_bytes: int  # of the distinct blocks
    stored_bytes: int  # of the distinct blocks after compression
    created_ms: int  # publisher's clock; the newest of a publisher's manifests wins
    body: Body = field(default_factory=Body)
    sections: tuple[Section, ...] = ()
    meta: Body = field(default_factory=Body)

    def encode(self) -> bytes:
        return encode_dag_cbor(
            {
                "body": self.body.to_plain(),
                "chunker": self.chunker,
                "class": self.class_name,
                "content": self.content,
                "content_bytes": self.content_bytes,
                "created_ms": self.created_ms,
                "dag_bytes": self.dag_bytes,
                "kind": self.kind,
                "meta": self.meta.to_plain(),
                "publisher": self.publisher,
                "sections": [[section.cid, section.position] for section in self.sections],
                "stored_bytes": self.stored_bytes,
                "unique_bytes": self.unique_bytes,
                "version": MANIFEST_VERSION,
            }
        )

    def sign(self, key: SigningKey, network: str) -> bytes:
        assert key.public == self.publisher
        return sign(key, MANIFEST_TAG, network, self.encode())


def open_manifest(raw: bytes, network: str) -> Manifest:
    """Parse a signed root section.

    Raises:
        FormatError, IntegrityError, UnsupportedVersion.
    """
    envelope = open_signed(raw, MANIFEST_TAG, network, max_bytes=MANIFEST_BYTES_MAX)
    manifest = decode_manifest(envelope.payload)
    if manifest.publisher != envelope.key:
        raise FormatError("a manifest that its publisher did not sign")
    return manifest


_ROOT_KEYS = {
    *("body", "chunker", "class", "content", "content_bytes", "created_ms", "dag_bytes", "kind", "meta", "publisher"),
    *("sections", "stored_bytes", "unique_bytes", "version"),
}


def decode_manifest(payload: bytes) -> Manifest:
    """Parse a root section's dag-cbor."""
    plain = decode_dag_cbor(payload, max_bytes=MANIFEST_BYTES_MAX)
    if type(plain) is not dict or type(plain.get("version")) is not int:
        raise FormatError("not a manifest")
    if plain["version"] != MANIFEST_VERSION:
        raise UnsupportedVersion(f"manifest version {plain['version']} is not known", hint="upgrade dds")
    if plain.keys() != _ROOT_KEYS:
        raise FormatError("a manifest with missing or unknown fields")
    return Manifest(
        content=cid_from_bytes(_bytes(plain["content"])),
        publisher=PublisherID(_bytes(plain["publisher"], ID_BYTES)),
        kind=_text(plain["kind"]),
        class_name=_text(plain["class"]),
        chunker=_text(plain["chunker"]),
        content_bytes=_int(plain["content_bytes"]),
        dag_bytes=_int(plain["dag_bytes"]),
        unique_bytes=_int(plain["unique_bytes"]),
        stored_bytes=_int(plain["stored_bytes"]),
        created_ms=_int(plain["created_ms"]),
        body=_body(plain["body"]),
        sections=tuple(_section(row) for row in _list(plain["sections"], SECTIONS_MAX)),
        meta=_body(plain["meta"]),
    )


def encode_body(body: Body) -> bytes:
    """A body's bytes. Those of a section are its block (`section_cid`), and then have at most SECTION_BYTES_MAX."""
    return encode_dag_cbor(body.to_plain())


def section_cid(raw: bytes) -> CID:
    return cid_of(raw, DAG_CBOR)


def decode_section(raw: bytes) -> Body:
    return _body(decode_dag_cbor(raw, max_bytes=SECTION_BYTES_MAX))


def _body(plain: Any) -> Body:
    if not isinstance(plain, dict) or plain.keys() != {"r", "s"}:
        raise FormatError("not a manifest body")
    segments = tuple(_segment_row(row) for row in _list(plain["s"], SECTION_BYTES_MAX))
    runs = tuple(_run(row, len(segments)) for row in _list(plain["r"], SECTION_BYTES_MAX))
    return Body(segments, runs)


def _segment_row(plain: Any) -> SegmentRow:
    row = _list(plain, 2, exact=True)
    holders = _bytes(row[1])
    if len(holders) % ID_BYTES or len(holders) > N_MAX * ID_BYTES:
        raise FormatError("a manifest with a malformed holder list")
    nodes = tuple(NodeID(holders[at : at + ID_BYTES]) for at in range(0, len(holders), ID_BYTES))
    return SegmentRow(SegmentID(_bytes(row[0], ID_BYTES)), nodes)


def _run(plain: Any, segments: int) -> Run:
    row = [_int(value) for value in _list(plain, 4, exact=True)]
    run = Run(*row)
    if run.segment >= segments or not 0 < run.count <= SEGMENT_ENTRIES_MAX or run.first + run.count > SEGMENT_ENTRIES_MAX:
        raise FormatError("a manifest run that points nowhere")
    return run


def _section(plain: Any) -> Section:
    row = _list(plain, 2, exact=True)
    return Section(cid_from_bytes(_bytes(row[0])), _int(row[1]))


def _int(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _SIZE_MAX:
        raise FormatError("a manifest number out of bounds")
    return value


def _bytes(value: Any, length: int | None = None) -> bytes:
    if type(value) is not bytes or (length is not None and len(value) != length):
        raise FormatError("a manifest field is not the bytes it should be")
    return value


def _text(value: Any) -> str:
    if type(value) is not str or not 0 < len(value) <= TEXT_CHARS_MAX:
        raise FormatError("a manifest text field is missing or too long")
    return value


def _list(value: Any, limit: int, *, exact: bool = False) -> list[Any]:
    if type(value) is not list or len(value) > limit or (exact and len(value) != limit):
        raise FormatError("a manifest list of the wrong length")
    return value

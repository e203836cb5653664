"""The peer-to-peer HTTP interface, version 1: paths, messages and their limits (docs/spec/wire.md).

    GET  /v1/node                          a signed node record
    GET  /v1/peers                         PeersReply
    PUT  /v1/uploads/{upload}/{root}       raw fragment bytes, staged durably under (upload id, fragment root)
    POST /v1/uploads/{upload}              many small fragments in one frame list -> StageManyReply
    GET  /v1/uploads/{upload}              StagedReply: what a broken put need not send again
    DELETE /v1/uploads/{upload}            forget what is staged
    POST /v1/commit                        CommitRequest -> CommitReply (the receipt)
    POST /v1/commit/paid                   PaidCommitRequest -> CommitReply
    POST /v1/manifests                     ManifestRequest -> ManifestReply
    GET  /v1/content/{cid}                 ContentReply: manifests, and for small content everything else too
    GET  /v1/segments/{segment}            SegmentReply: encoding records and the indices held
    POST /v1/segments                      HoldingRequest -> HoldingReply: which of these segments are held, by index
    GET  /v1/fragments/{root}              raw bytes, `Range: bytes=a-b` honoured
    POST /v1/read                          ReadRequest -> frame list
    POST /v1/leaves                        LeavesRequest -> LeavesReply: leaves with their paths, for finding a liar
    GET  /v1/blocks/{cid}                  one raw block (an origin, later an edge cache)
    /v1/origin/jobs                        see wire/origin.py

{upload} and {root} are hex; {segment} is an identifier's text form; {cid} a CID's. Only authenticated peers may write.
A frame list is: count u32, then for each frame its length u32 (0xffffffff: absent), then the frames' bytes end to end.
"""

from __future__ import annotations

import struct

from dds.primitives.errors import FormatError
from dds.primitives.units import KIB, MIB, RECORD_BYTES_MAX, SLOT_BYTES_MAX
from dds.wire.codec import Message
from dds.wire.manifest import SIGNED_MANIFEST_BYTES_MAX
from dds.wire.signed import ENVELOPE_BYTES_MAX

FRAGMENT_BODY_BYTES_MAX = SLOT_BYTES_MAX
FRAMES_MAX = 1024
FRAME_BODY_BYTES_MAX = 4 * MIB
INLINE_BYTES_MAX = 64 * KIB  # fragments that ride in a commit or content reply, together
COMMIT_BYTES_MAX = RECORD_BYTES_MAX + SIGNED_MANIFEST_BYTES_MAX + INLINE_BYTES_MAX + 64 * KIB
MANIFESTS_PER_CONTENT_MAX = 4
ENCODINGS_PER_SEGMENT_MAX = 4
CONTENT_REPLY_BYTES_MAX = MANIFESTS_PER_CONTENT_MAX * (SIGNED_MANIFEST_BYTES_MAX + RECORD_BYTES_MAX) + INLINE_BYTES_MAX
SEGMENT_REPLY_BYTES_MAX = ENCODINGS_PER_SEGMENT_MAX * (RECORD_BYTES_MAX + ENVELOPE_BYTES_MAX) + 4 * KIB
SEGMENTS_PER_QUERY_MAX = 256
LEAVES_MAX = 300  # a whole 1 MiB fragment has 265
PEERS_MAX = 256
PEERS_REPLY_BYTES_MAX = 512 * KIB
SMALL_REQUEST_BYTES_MAX = 64 * KIB


class ErrorReply(Message, frozen=True):
    code: str
    message: str
    hint: str | None = None


class PeersReply(Message, frozen=True):
    records: list[bytes]  # signed node records


class StageManyReply(Message, frozen=True):
    roots: list[bytes]


class StagedReply(Message, frozen=True):
    roots: list[bytes]


class CommitRequest(Message, frozen=True):
    """Make the fragments of `index` permanent: those staged under `upload`, and those carried here."""

    upload: bytes
    index: int
    encoding: bytes  # Signed EncodingRecord payload
    inline: list[bytes]  # fragments that were not staged; matched to the records by their root
    manifest: bytes | None  # Signed manifest root section, kept beside the segment
    contract: bytes = b""


class PaidCommitRequest(Message, frozen=True):
    """A commit under a contract of the ledger."""

    commit: CommitRequest
    ticket: bytes  # the reservation's entry, proven: wire/ledger_api.py EntriesReply


class CommitReply(Message, frozen=True):
    receipt: bytes


class ManifestRequest(Message, frozen=True):
    manifest: bytes


class ManifestReply(Message, frozen=True):
    kept: bool  # False: a newer one of the same publisher, or those of enough others, are held already


class InlineFragment(Message, frozen=True):
    root: bytes
    data: bytes


class ContentReply(Message, frozen=True):
    manifests: list[bytes]
    encodings: list[bytes]  # of the segments held here that the manifests name, small ones only
    inline: list[InlineFragment]


class SegmentReply(Message, frozen=True):
    encodings: list[bytes]
    indices: list[int]


class HoldingRequest(Message, frozen=True):
    segments: list[bytes]


class HoldingReply(Message, frozen=True):
    indices: list[list[int]]  # per segment of the request; empty: not held


class ReadItem(Message, frozen=True):
    root: bytes
    offset: int
    length: int


class ReadRequest(Message, frozen=True):
    items: list[ReadItem]


class LeavesRequest(Message, frozen=True):
    root: bytes
    first: int
    count: int


class LeavesReply(Message, frozen=True):
    size: int
    leaves: list[bytes]  # as stored, the fragment's last one unpadded
    paths: list[list[bytes]]


_COUNT = struct.Struct(">I")
_ABSENT = 0xFFFFFFFF


def encode_frames(frames: list[bytes | memoryview | None]) -> bytes:
    """A frame list."""
    assert len(frames) <= FRAMES_MAX
    lengths = [_ABSENT if frame is None else len(frame) for frame in frames]
    head = struct.pack(f">{len(lengths) + 1}I", len(frames), *lengths)
    return b"".join((head, *(frame for frame in frames if frame is not None)))


def decode_frames(raw: bytes, *, max_frame_bytes: int = FRAGMENT_BODY_BYTES_MAX) -> list[memoryview | None]:
    """Parse a frame list without copying.

    Raises:
        FormatError: counts or lengths that do not fit the bytes.
    """
    if len(raw) < 4:
        raise FormatError("a frame list without its count")
    (count,) = _COUNT.unpack_from(raw)
    if count > FRAMES_MAX or len(raw) < 4 * (count + 1):
        raise FormatError(f"a frame list of {count} frames in {len(raw)} bytes")
    view, at = memoryview(raw), 4 * (count + 1)
    frames: list[memoryview | None] = []
    for length in struct.unpack_from(f">{count}I", raw, 4):
        if length == _ABSENT:
            frames.append(None)
            continue
        if length > max_frame_bytes or at + length > len(raw):
            raise FormatError("a frame longer than its list")
        frames.append(view[at : at + length])
        at += length
    if at != len(raw):
        raise FormatError("bytes behind the last frame")
    return frames

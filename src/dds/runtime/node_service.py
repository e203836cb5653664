"""What a storage node does with what it is asked, apart from HTTP: checks, then the fragment store, then a signature.

Decides what a commit, a manifest or a read must satisfy, and what goes into a reply. Does not know sockets, quotas of peers or
the event loop: every method here may block on the disk and is called from a worker thread. Nothing is promised before it is
durable: `commit` signs the receipt after the store's own fsync.

Source: docs/spec/wire.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dds.primitives.cid import CID, cid_text
from dds.primitives.errors import CorruptError, FormatError, InputError, LimitError, NotFoundError, PaymentRequired
from dds.primitives.ids import ID_BYTES, UPLOAD_ID_BYTES, FragmentRoot, NodeID, SegmentID, UploadID, id_text
from dds.primitives.keys import SigningKey
from dds.primitives.units import RECORD_BYTES_MAX, STRIPES_PER_SEGMENT_MAX
from dds.runtime.staging import Staged
from dds.storage.commit import Committed, ManifestNote
from dds.storage.fragment_store import FragmentStore
from dds.transport.routes import Span
from dds.wire.api import (
    FRAME_BODY_BYTES_MAX,
    FRAMES_MAX,
    INLINE_BYTES_MAX,
    LEAVES_MAX,
    MANIFESTS_PER_CONTENT_MAX,
    CommitRequest,
    ContentReply,
    InlineFragment,
    LeavesReply,
    LeavesRequest,
    ReadRequest,
    SegmentReply,
)
from dds.wire.codec import decode
from dds.wire.ledger import stripe_runs, stripes_hash
from dds.wire.manifest import SIGNED_MANIFEST_BYTES_MAX, Manifest, decode_manifest, open_manifest
from dds.wire.receipts import CONTRACT_BYTES_MAX, RECEIPT_VERSION, Receipt, sign_receipt
from dds.wire.segment import ENCODING_TAG, EncodingRecord, decode_encoding
from dds.wire.signed import ENVELOPE_BYTES_MAX, Signed, open_signed

SMALL_SEGMENTS_MAX = 4  # content in more segments than this is not small: its reply names manifests only
ENCODINGS_BYTES_MAX = RECORD_BYTES_MAX  # together in one content reply


@dataclass(frozen=True, slots=True)
class Receipted:
    """What came of a commit."""

    receipt: bytes  # signed
    encoding: EncodingRecord
    index: int
    manifest: Manifest | None  # that came with it
    left: Staged  # still staged under the upload


class NodeService:
    """A node's store and key behind the wire's messages. Safe to call from several threads, as the store is."""

    def __init__(self, store: FragmentStore, key: SigningKey, network: str) -> None:
        self._store = store
        self._key = key
        self._network = network
        self.node_id = NodeID(key.public)

    # ---- writing

    def stage(self, owner: NodeID, upload: UploadID, root: FragmentRoot, data: bytes) -> None:
        """Keep a fragment durably until its upload commits.

        Raises:
            IntegrityError: the bytes do not give `root`.
            DiskFullError, StorageError
        """
        self._store.stage(upload, owner, data, root=root)

    def stage_many(self, owner: NodeID, upload: UploadID, fragments: list[bytes]) -> list[FragmentRoot]:
        """Keep fragments durably, all or none; their roots in order."""
        return self._store.stage_many(upload, owner, fragments)

    def staged(self, owner: NodeID, upload: UploadID) -> list[FragmentRoot]:
        return self._store.staged(upload, owner)

    def left(self, owner: NodeID, upload: UploadID) -> Staged:
        """How much the store has staged under an upload."""
        roots = self.staged(owner, upload)
        found = (self._store.find(root) for root in roots)
        return Staged(sum(fragment[0] for fragment in found if fragment is not None), len(roots))

    def discard(self, owner: NodeID, upload: UploadID) -> Staged:
        """Forget what is staged under an upload; what is left of it, for a request may have crossed this one."""
        self._store.abort(upload, owner)
        return self.left(owner, upload)

    def commit(self, owner: NodeID, request: CommitRequest, bytes_max: int | None = None) -> Receipted:
        """Make a share of a segment permanent; the same request again gives a receipt for the same.

        Raises:
            PaymentRequired: more than the `bytes_max` that are paid for.
            FormatError, IntegrityError: a record that does not hold.
            InputError: no such index, a fragment or a manifest that does not belong to the segment.
            NotFoundError: not everything that the index holds was staged or sent along.
            DiskFullError, StorageError
        """
        _check_commit_shape(request)
        envelope = open_signed(request.encoding, ENCODING_TAG, self._network, max_bytes=RECORD_BYTES_MAX)
        encoding = decode_encoding(envelope.payload)
        if request.index >= encoding.width:
            raise InputError(f"index {request.index} of a segment with {encoding.width} fragments a stripe")
        if bytes_max is not None:
            _check_paid_for(encoding, request, bytes_max)
        manifest = None if request.manifest is None else self._manifest_naming(request.manifest, encoding.segment_id)
        note = _note(manifest, request.manifest) if manifest is not None and request.manifest is not None else None
        upload = UploadID(request.upload)
        held = self._store.commit(upload, owner, encoding, request.encoding, request.index, request.inline, note)
        receipt = self._receipt(encoding, request.index, held, request.contract)
        return Receipted(receipt, encoding, request.index, manifest, self.left(owner, upload))

    def keep_manifest(self, raw: bytes) -> tuple[Manifest, bool]:
        """Keep a manifest of content whose segments, or some of them, are held here.

        Returns:
            the manifest, and False when a newer one of the same publisher, or enough of other publishers, are held.

        Raises:
            FormatError, IntegrityError: not a manifest, or not its publisher's.
            InputError: no segment that it names is held here.
        """
        manifest = open_manifest(raw, self._network)
        if not any(self._store.holding(named_segments(manifest))):
            raise InputError("no segment that this manifest names is held here", hint="send it to the segments' holders")
        return manifest, self._store.put_manifest(_note(manifest, raw))

    # ---- reading

    def content(self, cid: CID) -> ContentReply:
        """Everything known about a content: the newest manifest of each publisher, and small segments themselves.

        Raises:
            NotFoundError: nothing is known.
        """
        manifests = self._store.manifests(cid)[:MANIFESTS_PER_CONTENT_MAX]
        if not manifests:
            raise NotFoundError(f"no manifest of {cid_text(cid)} is held here")
        segments = list(dict.fromkeys(segment for raw in manifests for segment in named_segments(_own_manifest(raw))))
        if len(segments) > SMALL_SEGMENTS_MAX:
            return ContentReply(manifests, [], [])
        return ContentReply(manifests, *self._small_parts(segments))

    def segment(self, segment: SegmentID) -> SegmentReply:
        """
        Raises:
            NotFoundError: nothing of it is held.
        """
        held = self._store.segment(segment)
        if not held:
            raise NotFoundError(f"nothing of segment {id_text(segment)} is held here")
        indices = {index for _, at in held for index in at}
        return SegmentReply([raw for raw, _ in held], sorted(indices))

    def holding(self, segments: list[bytes]) -> list[list[int]]:
        if any(len(segment) != ID_BYTES for segment in segments):
            raise FormatError("a segment identifier of the wrong length")
        return self._store.holding([SegmentID(segment) for segment in segments])

    def read_asked(self, root: FragmentRoot, span_of: Callable[[int], Span | None]) -> tuple[int, bytes]:
        """A fragment's size and the part of it that `span_of(size)` asks for; no bytes where that is None.

        Raises:
            NotFoundError: the fragment is not held.
            CorruptError: it is damaged.
        """
        found = self._store.find(root)
        if found is None:
            raise NotFoundError(f"fragment {root.hex()} is not held here")
        span = span_of(found[0])
        return found[0], b"" if span is None else self._store.read(root, span.start, span.stop - span.start)

    def read_many(self, request: ReadRequest) -> list[bytes | memoryview | None]:
        """The asked ranges in order; None where the fragment is not held, or damaged.

        Raises:
            FormatError, LimitError: more than a frame list carries.
            InputError: a range outside its fragment.
        """
        check_read_request(request)
        return [self._read_item(FragmentRoot(item.root), item.offset, item.length) for item in request.items]

    def leaves(self, request: LeavesRequest) -> LeavesReply:
        """
        Raises:
            NotFoundError: the fragment is not held.
            InputError: leaves that it does not have.
        """
        if len(request.root) != ID_BYTES or not 0 < request.count <= LEAVES_MAX or not 0 <= request.first < 1 << 32:
            raise FormatError(f"leaves are asked for 1 to {LEAVES_MAX} at a time")
        return LeavesReply(*self._store.read_leaves(FragmentRoot(request.root), request.first, request.count))

    # ---- parts

    def _read_item(self, root: FragmentRoot, offset: int, length: int) -> bytes | None:
        try:
            return self._store.read(root, offset, length)
        except (CorruptError, NotFoundError):
            return None

    def _manifest_naming(self, raw: bytes, segment: SegmentID) -> Manifest:
        manifest = open_manifest(raw, self._network)
        if segment not in named_segments(manifest):
            raise InputError("the manifest does not name the segment that it came with")
        return manifest

    def _receipt(self, encoding: EncodingRecord, index: int, held: Committed, contract: bytes) -> bytes:
        receipt = Receipt(
            version=RECEIPT_VERSION,
            network=self._network,
            contract=contract,
            segment_id=encoding.segment_id,
            segment_root=encoding.root(),
            index=index,
            node_id=self.node_id,
            fragment_bytes=held.fragment_bytes,
            leaf_count=held.leaf_count,
            expires_ms=0,
        )
        return sign_receipt(self._key, receipt)

    def _small_parts(self, segments: list[SegmentID]) -> tuple[list[bytes], list[InlineFragment]]:
        """Encoding records of `segments`, and the fragments held of them, as far as they are small together."""
        encodings: list[bytes] = []
        wanted: dict[FragmentRoot, int] = {}
        for segment in segments:
            for raw, indices in self._store.segment(segment):
                encodings.append(raw)
                record = _own_encoding(raw)
                wanted.update((f.root, f.size) for index in indices for _, f in record.fragments_of(index))
        if sum(map(len, encodings)) > ENCODINGS_BYTES_MAX:
            return [], []
        if sum(wanted.values()) > INLINE_BYTES_MAX:
            return encodings, []
        parts = [(root, self._read_item(root, 0, size)) for root, size in wanted.items()]
        return encodings, [InlineFragment(root, data) for root, data in parts if data is not None]


def check_read_request(request: ReadRequest) -> None:
    """
    Raises:
        FormatError, LimitError
    """
    if len(request.items) > FRAMES_MAX:
        raise LimitError(f"at most {FRAMES_MAX} ranges in one request")
    if any(len(item.root) != ID_BYTES or item.offset < 0 or item.length <= 0 for item in request.items):
        raise FormatError("a malformed range")
    if sum(item.length for item in request.items) > FRAME_BODY_BYTES_MAX:
        raise LimitError(f"at most {FRAME_BODY_BYTES_MAX} bytes in one request")


def named_segments(manifest: Manifest) -> list[SegmentID]:
    """The segments that a root section names itself, data first."""
    return [row.segment_id for body in (manifest.body, manifest.meta) for row in body.segments]


def _check_paid_for(encoding: EncodingRecord, request: CommitRequest, bytes_max: int) -> None:
    size = sum(record.size for _, record in encoding.fragments_of(request.index))
    if size > bytes_max:
        raise PaymentRequired(f"index {request.index} of the segment has {size} bytes, and {bytes_max} are reserved")
    if request.contract[ID_BYTES:] != stripes_hash(stripe_runs(encoding.stripes)):
        raise PaymentRequired("the contract does not name the segment's stripes: its audits could ask for what it has not")


def _check_commit_shape(request: CommitRequest) -> None:
    if len(request.upload) != UPLOAD_ID_BYTES or len(request.contract) > CONTRACT_BYTES_MAX or request.index < 0:
        raise FormatError("a commit with malformed fields")
    if len(request.inline) > STRIPES_PER_SEGMENT_MAX or sum(map(len, request.inline)) > INLINE_BYTES_MAX:
        raise LimitError(f"at most {INLINE_BYTES_MAX} bytes of fragments ride in a commit", hint="stage larger ones first")


def _note(manifest: Manifest, raw: bytes) -> ManifestNote:
    return ManifestNote(manifest.content, manifest.publisher, manifest.created_ms, raw)


def _own_manifest(raw: bytes) -> Manifest:
    """A manifest from our own store: its signature was checked when it came, its checksum when it was read."""
    return decode_manifest(decode(raw, Signed, max_bytes=SIGNED_MANIFEST_BYTES_MAX).payload)


def _own_encoding(raw: bytes) -> EncodingRecord:
    return decode_encoding(decode(raw, Signed, max_bytes=RECORD_BYTES_MAX + ENVELOPE_BYTES_MAX).payload)

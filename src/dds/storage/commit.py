"""What a commit or a manifest writes to the journal: requests as functions of the index.

Everything is validated against the index before anything is drafted; the draft is one record of the journal, so that a commit
is there whole or not at all. The encoding record and the manifest are the caller's word; their signatures are checked before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from dds.primitives.cid import CID
from dds.primitives.errors import InputError, IntegrityError, LimitError, NotFoundError
from dds.primitives.ids import FragmentRoot, PublisherID, SegmentID, SegmentRoot
from dds.primitives.units import MIB
from dds.storage.checksum import crc32
from dds.storage.image import Image
from dds.storage.index import Index
from dds.storage.journal import Encoding, Hold, Manifest
from dds.storage.writer import Draft
from dds.wire.api import ENCODINGS_PER_SEGMENT_MAX, MANIFESTS_PER_CONTENT_MAX
from dds.wire.segment import FragmentRecord

T = TypeVar("T")
INLINE_IMAGES_BYTES_MAX = 16 * MIB


@dataclass(frozen=True, slots=True)
class Committed:
    """What a receipt says: sums over the segment's stripes."""

    fragment_bytes: int
    leaf_count: int


@dataclass(frozen=True, slots=True)
class ManifestNote:
    """A signed manifest to be kept beside a segment."""

    cid: CID
    publisher: PublisherID
    created_ms: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """Fragments that came in, against what was here when they were compared."""

    images: dict[FragmentRoot, Image]
    present: frozenset[FragmentRoot]  # the very bytes can be read back here already

    @property
    def fresh(self) -> list[Image]:
        return [image for root, image in self.images.items() if root not in self.present]

    def still_holds(self, rows: Index) -> bool:
        """Whether what is present still is, and nothing fresh would replace a longer fragment of the same root."""
        for root, image in self.images.items():
            place = rows.place_of(root)
            if root in self.present:
                if place is None or place.size < len(image.data):
                    return False
            elif place is not None and place.size > len(image.data):
                return False
        return True


@dataclass(frozen=True, slots=True)
class CommitPlan:
    """One commit, ready to be checked against the index and turned into operations."""

    upload: bytes
    owner: bytes
    segment: SegmentID
    segment_root: SegmentRoot
    index: int
    records: list[FragmentRecord]
    carried: Wanted
    encoding_raw: bytes
    manifest: ManifestNote | None

    def prepare(self, rows: Index) -> Draft[bool]:
        """Check that every fragment is there, then say what to write: nothing at all where everything is held already.

        The result is False when what was carried must be compared again with what is here.
        """
        if not self.carried.still_holds(rows):
            return Draft(False)
        self._check_present(rows)
        draft = Draft(True)
        hold = rows.hold_of(self.segment, self.segment_root, self.index)
        fresh = self.carried.fresh
        if hold is None or hold[2] is not None or fresh or rows.staged(self.upload, self.owner):
            draft.add_images(fresh)
            if rows.encoding_of(self.segment, self.segment_root) is None:
                self._add_encoding(rows, draft)
            packed = b"".join(dict.fromkeys(record.root for record in self.records))
            draft.operations.append(Hold(self.segment, self.segment_root, self.index, packed, self.upload, self.owner))
        if self.manifest is not None:
            manifest_ops(rows, self.manifest, draft)
        return draft

    def _check_present(self, rows: Index) -> None:
        missing = []
        for record in self.records:
            image = self.carried.images.get(record.root)
            size = len(image.data) if image is not None else self._kept_size(rows, record.root)
            if size is None:
                missing.append(record.root.hex())
            elif size < record.size:
                raise IntegrityError("a fragment is shorter than its record says", expected=record.size, actual=size)
        if missing:
            raise NotFoundError(
                f"{len(missing)} of {len(self.records)} fragments of segment {self.segment.hex()[:16]} are not staged here",
                missing=missing,
            )

    def _kept_size(self, rows: Index, root: FragmentRoot) -> int | None:
        """Bytes of a sound fragment that this upload has staged, or that the segment holds already."""
        place = rows.place_of(root)
        if place is None or place.bad:
            return None
        mine = rows.staged_at(self.upload, self.owner, root) is not None or rows.held_by_segment(root, self.segment)
        return place.size if mine else None

    def _add_encoding(self, rows: Index, draft: Draft[bool]) -> None:
        roots = {row[0] for row in rows.holds_of(self.segment)}
        if self.segment_root not in roots and len(roots) >= ENCODINGS_PER_SEGMENT_MAX:
            raise LimitError(f"segment {self.segment.hex()[:16]} has {len(roots)} encodings here already")
        at = draft.add_blob(self.encoding_raw)
        crc = crc32(self.encoding_raw)
        draft.operations.append(Encoding(self.segment, self.segment_root, at, len(self.encoding_raw), crc))


def manifest_ops(index: Index, manifest: ManifestNote, draft: Draft[T]) -> bool:
    """Add what keeps a manifest, if it is to be kept; whether it is held afterwards.

    Nobody's manifest makes room for another publisher's: anyone may name any content and date what he signs, and could have
    every honest manifest of it forgotten.
    """
    rows = index.manifest_rows(manifest.cid)
    crc = crc32(manifest.raw)
    for publisher, created_ms, blob in rows:
        if publisher == manifest.publisher and created_ms >= manifest.created_ms:
            return created_ms == manifest.created_ms and (blob.crc, blob.length) == (crc, len(manifest.raw))
    if len(rows) >= MANIFESTS_PER_CONTENT_MAX and manifest.publisher not in {row[0] for row in rows}:
        return False
    at = draft.add_blob(manifest.raw)
    op = Manifest(manifest.cid, manifest.publisher, manifest.created_ms, at, len(manifest.raw), crc)
    draft.operations.append(op)
    return True


def check_inline(records: list[FragmentRecord], carried: list[Image]) -> None:
    """Every fragment carried in a commit is one of its records, at its size.

    Raises:
        InputError, IntegrityError, LimitError.
    """
    if sum(image.length for image in carried) > INLINE_IMAGES_BYTES_MAX:
        raise LimitError("too many inline bytes in one commit")
    for image in carried:
        sizes = {record.size for record in records if record.root == image.root}
        if not sizes:
            raise InputError(f"inline fragment {image.root.hex()[:16]} is not in the encoding record")
        if len(image.data) not in sizes:
            raise IntegrityError("a fragment's size is not its record's", expected=max(sizes), actual=len(image.data))

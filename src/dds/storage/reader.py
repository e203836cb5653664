"""The reading half of a fragment store: lookups, ranges, leaves with their paths, encoding records, manifests.

Every byte is checked before it is returned. Readers never wait for writers: they see the index as of the last durable write,
and look a fragment up again when compaction or a replacement has moved it in between. It decides and changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from dds.primitives.cid import CID
from dds.primitives.errors import CorruptError, InputError, NotFoundError
from dds.primitives.ids import FragmentRoot, SegmentID, SegmentRoot
from dds.primitives.units import LEAF_BYTES
from dds.storage import image as images
from dds.storage.checksum import crc32
from dds.storage.fileops import FileOps, disk_errors
from dds.storage.fragment_files import FragmentFiles
from dds.storage.image import ReadAt
from dds.storage.index import OWN_FILE, Blob, Index, Place, State
from dds.storage.packs import PackLog

T = TypeVar("T")
_ATTEMPTS = 3  # to read what compaction or a replacement moves at the same time


class HoldKey(NamedTuple):
    """One share: everything that an index of one encoding of a segment keeps."""

    segment: SegmentID
    root: SegmentRoot
    place: int  # the fragment index


class FragmentReader:
    """Safe to call from any thread."""

    def __init__(self, ops: FileOps, index: Index, log: PackLog, files: FragmentFiles) -> None:
        self.ops, self.log, self.files = ops, log, files
        self._reader, self._read_lock = index, threading.Lock()

    def read(self, root: FragmentRoot, offset: int = 0, length: int | None = None, *, fresh: bool = False) -> bytes:
        """Bytes [offset, offset + length) of a fragment, to its end by default, checked block by block.

        `fresh` makes the bytes come from the disk, not from memory.

        Raises:
            NotFoundError: not held.
            InputError: the range is not within the fragment.
            CorruptError: the disk gave other bytes than were written; names the fragment.
        """

        def take(place: Place) -> bytes:
            span = place.size - offset if length is None else length
            if offset < 0 or span < 0 or offset + span > place.size:
                raise InputError(f"range {offset}+{span} is not within a fragment of {place.size} bytes")
            return self._read_at(root, place, offset, span, fresh=fresh)

        return self._at_its_place(root, take)

    def read_leaves(
        self, root: FragmentRoot, first: int, count: int, *, fresh: bool = True
    ) -> tuple[int, list[bytes], list[list[bytes]]]:
        """(fragment's bytes, leaves as stored, their Merkle paths), read from the disk itself unless `fresh` is off.

        Raises:
            NotFoundError, CorruptError.
            InputError: the fragment has no such leaves.
        """

        def take(place: Place) -> tuple[int, list[bytes], list[list[bytes]]]:
            if first < 0 or count < 1 or first + count > -(-place.size // LEAF_BYTES):
                raise InputError(f"leaves {first}+{count} are not within a fragment of {place.size} bytes")
            with self._reading(place, fresh=fresh) as read:
                return place.size, *images.read_leaves(read, root, place.size, first, count)

        return self._at_its_place(root, take)

    def check(self, root: FragmentRoot, *, deep: bool = False) -> None:
        """Read a whole fragment from the disk and check it; `deep` also recomputes its root. One that is not held is no error.

        Raises:
            CorruptError
        """

        def take(place: Place) -> None:
            with self._reading(place, fresh=True) as read:
                images.verify(read, root, place.size, deep=deep)

        try:
            self._at_its_place(root, take)
        except NotFoundError:
            return

    def find(self, root: FragmentRoot) -> tuple[int, State] | None:
        """(bytes, why it is kept) of a fragment, or None."""
        with disk_errors("looking up a fragment"), self._read_lock:
            place = self._reader.place_of(root)
        return None if place is None else (place.size, place.state)

    def users(self, root: FragmentRoot) -> list[tuple[SegmentID, SegmentRoot, int]]:
        """(segment, segment root, index) of everything that a fragment is held for."""
        with disk_errors("looking up a fragment"), self._read_lock:
            return [(SegmentID(s), SegmentRoot(r), index) for s, r, index in self._reader.users_of(root)]

    def segment(self, segment_id: SegmentID) -> list[tuple[bytes, list[int]]]:
        """(signed encoding record, indices held) for each encoding of a segment held here.

        Raises:
            CorruptError: an encoding record fails its checksum.
        """

        def look() -> list[tuple[Blob, list[int]]]:
            held: dict[bytes, list[int]] = {}
            for root, index, released in self._reader.holds_of(segment_id):
                if released is None:
                    held.setdefault(root, []).append(index)
            blobs = [(self._reader.encoding_of(segment_id, root), indices) for root, indices in held.items()]
            return [(blob, indices) for blob, indices in blobs if blob is not None]

        def take() -> list[tuple[bytes, list[int]]]:
            with self._read_lock:
                found = look()
            return [(self._blob(blob, f"encoding record of segment {segment_id.hex()}"), at) for blob, at in found]

        with disk_errors("reading an encoding record"):
            return _again_when_moved(take)

    def holds(self, segment_ids: Sequence[SegmentID]) -> list[HoldKey]:
        """Every share of these segments that is held and not in the trash."""
        with disk_errors("looking up segments"), self._read_lock:
            return [
                HoldKey(segment, SegmentRoot(root), index)
                for segment in segment_ids
                for root, index, released in self._reader.holds_of(segment)
                if released is None
            ]

    def trash_before(self, released_ms: int, limit: int) -> list[HoldKey]:
        """Shares that went into the trash at or before `released_ms` of the store's time, the oldest first."""
        query = "SELECT segment, segment_root, idx FROM holds WHERE released_ms <= ? ORDER BY released_ms LIMIT ?"
        with disk_errors("listing the trash"), self._read_lock:
            rows = self._reader.db.execute(query, (released_ms, limit)).fetchall()
        return [HoldKey(SegmentID(segment), SegmentRoot(root), index) for segment, root, index in rows]

    def share_of(self, root: FragmentRoot) -> tuple[SegmentID, int] | None:
        """Which segment a fragment is held for, and the bytes of the share that it is part of; of several the first."""
        query = (
            "SELECT h.segment, (SELECT sum(size) FROM refs r JOIN fragments f ON f.root = r.root WHERE r.hid = h.hid) "
            "FROM refs JOIN holds h USING(hid) WHERE refs.root = ? ORDER BY h.segment, h.hid LIMIT 1"
        )
        with disk_errors("looking up a fragment"), self._read_lock:
            row = self._reader.db.execute(query, (root,)).fetchone()
        return None if row is None else (SegmentID(row[0]), int(row[1]))

    def share_bytes(self, holds: Sequence[HoldKey]) -> int:
        """Bytes of these shares together, as far as they are kept; what two of them have in common counts twice."""
        query = (
            "SELECT total(size) FROM holds JOIN refs USING(hid) JOIN fragments ON fragments.root = refs.root "
            "WHERE segment = ? AND segment_root = ? AND idx = ?"
        )
        with disk_errors("looking up segments"), self._read_lock:
            return sum(int(self._reader.db.execute(query, hold).fetchone()[0]) for hold in holds)

    def holding(self, segment_ids: Sequence[SegmentID]) -> list[list[int]]:
        """For each segment the indices held, of any encoding; empty where none is."""
        with disk_errors("looking up segments"), self._read_lock:
            return [
                sorted({index for _, index, released in self._reader.holds_of(segment) if released is None})
                for segment in segment_ids
            ]

    def segments_after(self, segment_id: bytes, limit: int) -> list[tuple[SegmentID, list[int]]]:
        """Up to `limit` segments held, with their indices, in order, behind `segment_id`; b"" to begin."""
        query = "SELECT DISTINCT segment FROM holds WHERE segment > ? AND released_ms IS NULL ORDER BY segment LIMIT ?"
        with disk_errors("listing segments"), self._read_lock:
            segments = [SegmentID(row[0]) for row in self._reader.db.execute(query, (segment_id, limit)).fetchall()]
        return list(zip(segments, self.holding(segments), strict=True))

    def contents_after(self, cid: bytes, limit: int) -> list[CID]:
        """Up to `limit` contents of which a manifest is held, in order, behind `cid`; b"" to begin."""
        query = "SELECT DISTINCT cid FROM manifests WHERE cid > ? ORDER BY cid LIMIT ?"
        with disk_errors("listing manifests"), self._read_lock:
            return [CID(row[0]) for row in self._reader.db.execute(query, (cid, limit)).fetchall()]

    def has_manifest(self, cid: CID) -> bool:
        """Whether a manifest of this content is held."""
        with disk_errors("looking up a manifest"), self._read_lock:
            return bool(self._reader.manifest_rows(cid))

    def _at_its_place(self, root: FragmentRoot, take: Callable[[Place], T]) -> T:
        def attempt() -> T:
            with self._read_lock:
                place = self._reader.place_of(root)
            if place is None:
                raise NotFoundError(f"fragment {root.hex()[:16]} is not held here", root=root)
            return take(place)

        with disk_errors(f"reading fragment {root.hex()[:16]}"):
            try:
                return _again_when_moved(attempt)
            except FileNotFoundError:
                raise images.corrupt(root, "its file is gone") from None

    def _read_at(self, root: FragmentRoot, place: Place, offset: int, length: int, *, fresh: bool) -> bytes:
        with self._reading(place, fresh=fresh) as read:
            return images.read_range(read, root, place.size, offset, length)

    @contextmanager
    def _reading(self, place: Place, *, fresh: bool) -> Iterator[ReadAt]:
        """A function that reads within a fragment's image."""
        own = place.home == OWN_FILE
        start = 0 if own else place.place
        fd = self.ops.open(self.files.path(place.place) if own else self.log.path(place.home))

        def read(length: int, at: int) -> bytes:
            length = max(0, min(length, place.length - at))
            if fresh:
                self.ops.forget_cached(fd, length, start + at)
            return self.ops.read(fd, length, start + at)

        try:
            yield read
        finally:
            self.ops.close(fd)

    def _read_blobs(self, look: Callable[[], list[Blob]], what: str) -> list[bytes]:
        def take() -> list[bytes]:
            with self._read_lock:
                blobs = look()
            good, bad = [], None
            for blob in blobs:
                try:
                    good.append(self._blob(blob, what))
                except CorruptError as error:
                    bad = error
            if bad is not None and not good:
                raise bad
            return good

        return _again_when_moved(take)

    def _blob(self, blob: Blob, what: str) -> bytes:
        raw = self.log.read(blob.pack, blob.length, blob.at)
        if len(raw) != blob.length or crc32(raw) != blob.crc:
            raise CorruptError(f"{what} is damaged at rest", pack=blob.pack, offset=blob.at)
        return raw

    def staged(self, upload_id: bytes, owner: bytes) -> list[FragmentRoot]:
        """Roots staged under this upload by this owner, in order of root."""
        with disk_errors("listing an upload"), self._read_lock:
            return self._reader.staged(upload_id, owner)

    def manifests(self, cid: CID) -> list[bytes]:
        """Signed manifests of a content: the newest of each publisher, newest first.

        Raises:
            CorruptError: one fails its checksum and no other is left.
        """

        def look() -> list[Blob]:
            return [row[2] for row in self._reader.manifest_rows(cid)]

        with disk_errors("reading manifests"):
            return self._read_blobs(look, f"manifests of {cid.hex()}")


def _again_when_moved(attempt: Callable[[], T]) -> T:
    """Compaction moves a fragment and then removes its old pack: look it up again and read it there."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return attempt()
        except FileNotFoundError:
            continue
    return attempt()

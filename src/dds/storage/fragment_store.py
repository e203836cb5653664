"""The fragment store of a node: stage, commit, read, release (docs/spec/fragment-store.md, docs/adr/0005-fragment-store.md).

What it promises: whatever a call acknowledged is on the disk, files and directories synced, and is there again after a kill or
a power loss at any instant; a commit is there whole or not at all; no byte is returned that fails its checksum; used space is
committed + staged + trash + labelled overhead, to the byte.

What it does not decide: who may upload, what a segment is worth, when to release. It believes encoding records and manifests
that its caller has checked. All methods block on the disk and are safe to call from several threads; concurrent writers share
one sync of the journal. Periodic work (expiry, purge, compaction, scrub) is in `maintenance`, done in small steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dds.primitives.cid import CID
from dds.primitives.errors import CorruptError, DiskFullError, InputError, IntegrityError, LimitError, StorageError
from dds.primitives.hashing import Buffer
from dds.primitives.ids import UPLOAD_ID_BYTES, FragmentRoot, PublisherID, SegmentID, SegmentRoot
from dds.primitives.units import KIB, MIB
from dds.storage.commit import CommitPlan, Committed, ManifestNote, Wanted, check_inline, manifest_ops
from dds.storage.fileops import FileOps, disk_errors
from dds.storage.fragment_files import FragmentFiles
from dds.storage.image import Image, build_image
from dds.storage.index import Index, Place
from dds.storage.journal import Close, DropManifest, Hold, Op, PutFile, Release, Stage, Unstage
from dds.storage.packs import PACK_BYTES, PackLog
from dds.storage.reader import FragmentReader, HoldKey
from dds.storage.recovery import Recovery, open_index, quarantine, remove_leftovers, replay, settle_tail
from dds.storage.store_home import StoreHome
from dds.storage.storetime import StoreTime
from dds.storage.writer import Draft, GroupWriter
from dds.wire.segment import EncodingRecord

PACKED_BYTES_MAX = 128 * KIB  # smaller fragments go into packs, larger ones into files of their own
STAGED_TTL_MS = 24 * 3600 * 1000
TRASH_WINDOW_MS = 7 * 24 * 3600 * 1000
OWNER_BYTES_MAX = 64
STAGE_MANY_BYTES_MAX = 16 * MIB  # of small fragments in one request
_HEADROOM_BYTES = 64 * KIB  # of journal and index for one request, beside its blobs


@dataclass(frozen=True, slots=True)
class StoreConfig:
    capacity_bytes: int  # everything on disk together, overhead included
    staged_ttl_ms: int = STAGED_TTL_MS
    trash_window_ms: int = TRASH_WINDOW_MS
    packed_bytes_max: int = PACKED_BYTES_MAX
    pack_bytes: int = PACK_BYTES
    device_reserve_bytes: int = 16 * MIB  # left free on the device, so that giving back space always works


@dataclass(frozen=True, slots=True)
class Stats:
    """Sizes in bytes. used = committed + staged + trash + every overhead; capacity bounds used."""

    capacity_bytes: int
    committed_bytes: int
    staged_bytes: int
    trash_bytes: int
    table_bytes: int  # overhead: leaf hashes and checksums of fragments
    journal_bytes: int  # overhead: packs without the fragments in them
    condemned_bytes: int  # overhead: files that are gone from the index and wait to be unlinked
    index_bytes: int  # overhead
    other_bytes: int  # overhead: format, lock, quarantine
    committed_count: int
    staged_count: int
    trash_count: int
    hold_count: int

    @property
    def overhead_bytes(self) -> int:
        return self.table_bytes + self.journal_bytes + self.condemned_bytes + self.index_bytes + self.other_bytes

    @property
    def used_bytes(self) -> int:
        return self.committed_bytes + self.staged_bytes + self.trash_bytes + self.overhead_bytes

    @property
    def free_bytes(self) -> int:
        return max(0, self.capacity_bytes - self.used_bytes)


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class FragmentStore(FragmentReader):
    """One store directory, locked by this process until `close`. The reading methods are `FragmentReader`'s."""

    def __init__(
        self,
        path: Path,
        config: StoreConfig,
        *,
        clock: Callable[[], int] = wall_clock_ms,
        ops: FileOps | None = None,
    ) -> None:
        """Open, making the directory first where there is none, and recover from whatever happened before.

        `clock` gives milliseconds since the epoch; it may jump.

        Raises:
            ConfigError: in use by another process, not ours, open to others, or not a store.
            UnsupportedVersion: made by a newer release.
            StorageError: the disk failed.
        """
        self.config, self.ops = config, ops or FileOps()
        self.recovery = Recovery()
        self._reserve_lock = threading.Lock()
        self._reserved = 0
        with disk_errors(f"opening the store {path}"):
            self.home = StoreHome(path, self.ops)
            try:
                self._open(clock)
            except BaseException:
                self.home.close()
                raise

    def _open(self, clock: Callable[[], int]) -> None:
        log = PackLog(self.ops, self.home.packs, self.home.salt, self.config.pack_bytes)
        files = FragmentFiles(self.ops, self.home.frags)
        index = open_index(self.home, log, self.recovery)
        try:
            torn = replay(index, log, self.recovery)
            quarantine(self.home, self.ops, log, self.recovery)
            settle_tail(log, torn, self.recovery)
            remove_leftovers(index, files, self.recovery)
            super().__init__(self.ops, Index(self.home.index, read_only=True), log, files)
        except BaseException:
            index.close()
            log.close()
            raise
        self.index = index
        self.writer = GroupWriter(index, log)
        self.time = StoreTime(clock, index.newest_ms(), index.get("wall_ms"))

    def close(self) -> None:
        """Note in the journal that all is durable, and let go of the directory. Calling it twice is harmless."""
        if self.writer.closed:
            return
        try:
            with disk_errors("closing the store"):
                self.writer.submit(self._closing)
        except StorageError:
            pass  # nothing acknowledged depends on it
        finally:
            self.writer.shut()
            with self._read_lock:
                self._reader.close()
            self.index.close()
            self.log.close()
            self.home.close()

    def _closing(self, index: Index) -> Draft[None]:
        index.note_time(self.time)
        return Draft(None, [Close()])

    def __enter__(self) -> FragmentStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Staging

    def stage(self, upload_id: bytes, owner: bytes, data: Buffer, *, root: FragmentRoot | None = None) -> FragmentRoot:
        """Keep a fragment durably under (upload, owner); the same one twice is kept once. Returns its root.

        Raises:
            IntegrityError: the bytes do not give `root`; nothing is kept.
            DiskFullError: the quota or the device is full.
            StorageError
        """
        return self.stage_many(upload_id, owner, [data], roots=[root] if root else None)[0]

    def stage_many(
        self, upload_id: bytes, owner: bytes, items: Sequence[Buffer], *, roots: Sequence[FragmentRoot] | None = None
    ) -> list[FragmentRoot]:
        """Stage several fragments, all or none, with one sync of the journal. Returns their roots in order.

        Raises:
            IntegrityError: the bytes do not give `roots`.
            DiskFullError, StorageError.
            LimitError: more than 16 MiB of small fragments together.
        """
        _check_upload(upload_id, owner)
        staged = [build_image(item) for item in items]
        if roots is not None and [image.root for image in staged] != list(roots):
            raise IntegrityError("a fragment does not give the root under which it was sent")
        if sum(image.length for image in staged if not self._is_large(image)) > STAGE_MANY_BYTES_MAX:
            raise LimitError("too many bytes of small fragments in one request")
        with disk_errors("staging a fragment"), self._reserving(staged):
            while not self._stage_once(upload_id, owner, self._compare(staged)):
                continue  # what was there has changed meanwhile: look again
        return [image.root for image in staged]

    def _stage_once(self, upload: bytes, owner: bytes, wanted: Wanted) -> bool:
        files = self._write_files(wanted.fresh)
        at_ms = self.time.now_ms()

        def prepare(index: Index) -> Draft[bool]:
            if not wanted.still_holds(index):
                return Draft(False)
            operations, blobs = _put_ops(wanted.fresh, files)
            known = set(index.staged(upload, owner))
            operations += [Stage(upload, owner, root, at_ms) for root in wanted.images if root not in known]
            return Draft(True, operations, blobs, self._directories(files))

        return self._submit_with_files(prepare, files)

    def _compare(self, incoming: list[Image]) -> Wanted:
        """Set what comes in against what is here.

        A root does not bind the zero bytes that pad its last leaf, so fragments that differ in trailing zeros share one root.
        They are one fragment, kept at the longest length seen; each record's own size says how much of it is meant.
        """
        images: dict[FragmentRoot, Image] = {}
        for image in sorted(incoming, key=lambda image: len(image.data)):
            images[image.root] = image
        present = set()
        for root, image in images.items():
            with self._read_lock:
                place = self._reader.place_of(root)
            if place is None:
                continue
            if self._is_there(image, place):
                present.add(root)
            elif place.size > len(image.data):
                images[root] = build_image(image.data.ljust(place.size, b"\0"))
        return Wanted(images, frozenset(present))

    def _is_there(self, image: Image, place: Place) -> bool:
        """Whether these very bytes can be read back; a damaged copy is none, and is then replaced."""
        if place.size < len(image.data):
            return False
        try:
            return self._read_at(image.root, place, 0, place.size, fresh=False) == image.data.ljust(place.size, b"\0")
        except (CorruptError, OSError):
            return False

    def _is_large(self, image: Image) -> bool:
        return len(image.data) >= self.config.packed_bytes_max

    def _write_files(self, fresh: list[Image]) -> dict[FragmentRoot, int]:
        files: dict[FragmentRoot, int] = {}
        try:
            for image in fresh:
                if self._is_large(image):
                    files[image.root] = self.files.write(image)
        except OSError:
            self._discard_files(files)
            raise
        return files

    def _directories(self, files: dict[FragmentRoot, int]) -> set[Path]:
        return {self.files.directory_of(number) for number in files.values()}

    def _submit_with_files(self, prepare: Callable[[Index], Draft[bool]], files: dict[FragmentRoot, int]) -> bool:
        """Submit; files that the journal then does not name are removed again. In doubt they stay until the next start."""
        try:
            outcome = self.writer.submit(prepare)
        except StorageError:
            raise
        except BaseException:
            self._discard_files(files)
            raise
        if not outcome:
            self._discard_files(files)
        return outcome

    def _discard_files(self, files: dict[FragmentRoot, int]) -> None:
        for number in files.values():
            try:
                self.ops.unlink(self.files.path(number))
            except OSError:
                return  # the next start removes it

    def abort(self, upload_id: bytes, owner: bytes) -> int:
        """Forget what this owner staged under an upload; returns how many fragments."""
        _check_upload(upload_id, owner)

        def prepare(index: Index) -> Draft[int]:
            count = len(index.staged(upload_id, owner))
            return Draft(count, [Unstage(upload_id, owner)] if count else [])

        with disk_errors("forgetting an upload"):
            return self.writer.submit(prepare)

    # Committing

    def commit(
        self,
        upload_id: bytes,
        owner: bytes,
        encoding: EncodingRecord,
        encoding_raw: bytes,
        index: int,
        inline: Sequence[Buffer] = (),
        manifest: ManifestNote | None = None,
    ) -> Committed:
        """Make all fragments of `index` permanent, together with the encoding record and a manifest: all or nothing, durable.

        Each must be staged under (upload, owner), carried in `inline`, or be held for this segment already - even in the
        trash, from which a commit restores. `encoding_raw` is `encoding` as signed, kept as it is. Twice is harmless.

        Raises:
            InputError: the segment has no such index, or an inline fragment belongs to none of its records.
            NotFoundError: fragments are missing; field `missing` lists their roots in hex.
            IntegrityError: a fragment's size is not its record's.
            LimitError: more encodings of one segment, or inline bytes, than are kept.
            DiskFullError, StorageError.
        """
        _check_upload(upload_id, owner)
        records = [record for _, record in encoding.fragments_of(index)]
        if index < 0 or not records:
            raise InputError(f"segment {encoding.segment_id.hex()[:16]} has no fragment index {index}")
        carried = [build_image(item) for item in inline]
        check_inline(records, carried)
        extra = len(encoding_raw) + (len(manifest.raw) if manifest else 0)
        key = (encoding.segment_id, encoding.root(), index)
        with disk_errors("committing a segment"), self._reserving(carried, extra):
            while True:
                plan = CommitPlan(upload_id, owner, *key, records, self._compare(carried), encoding_raw, manifest)
                if self.writer.submit(plan.prepare):
                    break
        return Committed(sum(record.size for record in records), sum(record.leaf_count for record in records))

    def release(self, segment_id: SegmentID, index: int, segment_root: SegmentRoot | None = None) -> int:
        """Move what is held for an index (of one encoding, or of all) to the trash; returns how many holds. Idempotent.

        The trash keeps it for the window of the configuration; a commit within it restores, after it `sweep` purges.
        """

        def prepare(rows: Index) -> Draft[int]:
            found = [
                Release(segment_id, root, index, now_ms)
                for root, at, released in rows.holds_of(segment_id)
                if at == index and released is None and segment_root in (None, root)
            ]
            return Draft(len(found), list(found))

        now_ms = self.time.now_ms()
        with disk_errors("releasing a segment"):
            return self.writer.submit(prepare)

    def restore(self, hold: HoldKey) -> bool:
        """Take a share out of the trash again; whether it was there."""

        def prepare(rows: Index) -> Draft[bool]:
            found = rows.hold_of(*hold)
            if found is None or found[2] is None:
                return Draft(False)
            return Draft(True, [Hold(*hold, found[1])])

        with disk_errors("restoring a segment"):
            return self.writer.submit(prepare)

    # Manifests

    def put_manifest(self, manifest: ManifestNote) -> bool:
        """Keep a manifest durably; False when a newer one of the same publisher, or those of enough others, are held.

        Raises:
            DiskFullError, StorageError.
        """

        def prepare(index: Index) -> Draft[bool]:
            draft: Draft[bool] = Draft(False)
            draft.result = manifest_ops(index, manifest, draft)
            return draft

        with disk_errors("keeping a manifest"), self._reserving([], len(manifest.raw)):
            return self.writer.submit(prepare)

    def drop_manifests(self, cid: CID, publisher: PublisherID | None = None) -> int:
        """Forget a content's manifests, of one publisher or all; returns how many."""

        def prepare(index: Index) -> Draft[int]:
            rows = [row[0] for row in index.manifest_rows(cid) if publisher in (None, row[0])]
            return Draft(len(rows), [DropManifest(cid, row) for row in rows])

        with disk_errors("dropping a manifest"):
            return self.writer.submit(prepare)

    # Space

    def stats(self) -> Stats:
        """What is used for what, exact to the byte at an instant without writers."""
        with self.writer.quiet():
            totals = dict(self.index.totals)
            packs = self.log.bytes_total
            index_bytes, other = self.home.index_bytes(), self.home.other_bytes()
        return Stats(
            self.config.capacity_bytes,
            totals["committed_bytes"],
            totals["staged_bytes"],
            totals["trash_bytes"],
            totals["table_bytes"],
            packs - totals["packed_bytes"],
            totals["doomed_bytes"],
            index_bytes,
            other,
            totals["committed_count"],
            totals["staged_count"],
            totals["trash_count"],
            totals["hold_count"],
        )

    def _used_estimate(self) -> int:
        """`used` without holding writers off."""
        t = self.index.totals
        own_files = t["committed_bytes"] + t["staged_bytes"] + t["trash_bytes"] + t["table_bytes"] - t["packed_bytes"]
        return own_files + t["doomed_bytes"] + self.log.bytes_total + self.home.index_bytes()

    @contextmanager
    def _reserving(self, incoming: list[Image], extra: int = 0) -> Iterator[None]:
        """Claim room under the quota before anything is written."""
        wanted = sum(image.length for image in incoming) + extra + _HEADROOM_BYTES
        room = self.ops.free_bytes(self.home.path) - self.config.device_reserve_bytes
        with self._reserve_lock:
            used = self._used_estimate() + self._reserved
            if used + wanted > self.config.capacity_bytes:
                raise DiskFullError(
                    f"this node's quota of {self.config.capacity_bytes} bytes is full",
                    hint="raise the node's capacity, or wait for the trash to be purged",
                    used=used,
                    wanted=wanted,
                )
            if wanted + self._reserved > room:
                raise DiskFullError("the device is nearly full", hint="free space on it", free=room, wanted=wanted)
            self._reserved += wanted
        try:
            yield
        finally:
            with self._reserve_lock:
                self._reserved -= wanted


def _put_ops(fresh: list[Image], files: dict[FragmentRoot, int]) -> tuple[list[Op], list[Buffer]]:
    draft: Draft[None] = Draft(None)
    draft.add_images([image for image in fresh if image.root not in files])
    named = (image for image in fresh if image.root in files)
    draft.operations += [PutFile(image.root, len(image.data), files[image.root], image.length) for image in named]
    return draft.operations, draft.blobs


def _check_upload(upload_id: bytes, owner: bytes) -> None:
    if len(upload_id) != UPLOAD_ID_BYTES or not 0 < len(owner) <= OWNER_BYTES_MAX:
        raise InputError(f"an upload id has {UPLOAD_ID_BYTES} bytes, and an owner 1 to {OWNER_BYTES_MAX}")

"""A store's periodic work, in small steps that never hold up a reader and a writer only for one of them.

`sweep_step` expires staged fragments, purges the trash after its window and unlinks files; `compact_step` gives back what dead
records occupy; `scrub_step` reads everything again in turn and reports what has rotted. How far each has come is kept in the
index, so a restart goes on where it was. When to call them, and how often, is the host's to decide.

Compaction takes the oldest pack only, writes the *current* state of every key that the pack mentions to the end of the journal,
and drops the pack. So a record that revokes another is never dropped before what it revokes (docs/spec/fragment-store.md).
Source: the cleaner of Rosenblum and Ousterhout's log-structured file system (1992), in its circular form.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dds.primitives.errors import CorruptError
from dds.primitives.ids import FragmentRoot, SegmentID, SegmentRoot
from dds.primitives.units import MIB
from dds.storage import image as images
from dds.storage.checksum import crc32
from dds.storage.fileops import disk_errors
from dds.storage.fragment_store import FragmentStore
from dds.storage.index import OWN_FILE, Blob, Index
from dds.storage.journal import Encoding, Hold, Manifest, Op, Purge, Put, PutFile, Release, Stage, Unstage
from dds.storage.packs import Damage, Record, Torn
from dds.storage.reader import HoldKey
from dds.storage.recovery import Recovery, forget_files, quarantine
from dds.storage.writer import Draft

SWEEP_ITEMS = 64
COMPACT_BUDGET_BYTES = MIB
SCRUB_BUDGET_BYTES = 8 * MIB
_LIVE_RECORD_BYTES = 160  # what a live fragment or hold occupies in the journal beside its blobs, about


@dataclass(frozen=True, slots=True)
class Swept:
    expired: int  # staged fragments
    purged: int  # holds
    unlinked: int  # files
    more: bool  # another step would find work at once


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that rotted. `users`: the (segment, segment root, index) that a fragment is held for."""

    kind: str  # "fragment", "encoding", "manifest"
    key: bytes  # fragment root; segment id and root; CID and publisher
    why: str
    users: tuple[tuple[SegmentID, SegmentRoot, int], ...] = ()


class Upkeep:
    """For one thread at a time."""

    def __init__(self, store: FragmentStore) -> None:
        self._store = store

    # Expiry

    def due(self, items: int = SWEEP_ITEMS) -> list[HoldKey]:
        """What the next `sweep_step` would purge."""
        store = self._store
        return store.trash_before(store.time.now_ms() - store.config.trash_window_ms, items)

    def sweep_step(self, items: int = SWEEP_ITEMS, approved: Collection[HoldKey] | None = None) -> Swept:
        """Expire, purge and unlink up to `items` each. `approved`: purge nothing but these.

        Raises:
            StorageError
        """
        store = self._store
        now_ms = store.time.now_ms()
        with disk_errors("sweeping the store"):
            expired = store.writer.submit(lambda index: self._expire(index, now_ms, items))
            purged = store.writer.submit(lambda index: self._purge(index, now_ms, items, approved))
            unlinked = self._unlink(items)
        return Swept(expired, purged, unlinked, items in (expired, purged, unlinked))

    def _expire(self, index: Index, now_ms: int, items: int) -> Draft[int]:
        index.note_time(self._store.time)
        query = "SELECT upload, owner, root FROM staged WHERE at_ms <= ? ORDER BY at_ms LIMIT ?"
        rows = index.db.execute(query, (now_ms - self._store.config.staged_ttl_ms, items)).fetchall()
        by_upload: dict[tuple[bytes, bytes], list[bytes]] = {}
        for upload, owner, root in rows:
            by_upload.setdefault((upload, owner), []).append(root)
        return Draft(len(rows), [Unstage(*key, roots) for key, roots in by_upload.items()], noted=True)

    def _purge(self, index: Index, now_ms: int, items: int, approved: Collection[HoldKey] | None) -> Draft[int]:
        """Within the writer's turn: what was restored a moment ago is not released any more, and stays."""
        query = "SELECT segment, segment_root, idx FROM holds WHERE released_ms <= ? ORDER BY released_ms LIMIT ?"
        rows = index.db.execute(query, (now_ms - self._store.config.trash_window_ms, items)).fetchall()
        purged = [Purge(*row) for row in rows if approved is None or row in approved]
        return Draft(len(purged), list(purged))

    def _unlink(self, items: int) -> int:
        """Unlink doomed files, then strike them off: a crash in between repeats the unlink, nothing else."""
        store = self._store

        def note(index: Index) -> Draft[None]:
            forget_files(index, numbers)
            return Draft(None, noted=True)

        with store.writer.quiet():
            rows = store.index.db.execute("SELECT id FROM files WHERE doomed LIMIT ?", (items,)).fetchall()
        numbers = [number for (number,) in rows]
        if numbers:
            store.files.unlink(numbers)
            store.writer.submit(note)
        return len(numbers)

    # Compaction

    def compact_step(self, budget_bytes: int = COMPACT_BUDGET_BYTES) -> bool:
        """Move on by about `budget_bytes` of the oldest pack; False when there is nothing worth doing.

        Raises:
            StorageError
        """
        with disk_errors("compacting the store"):
            at_work, at_end = self._store.writer.submit(lambda index: self._compact(index, budget_bytes))
            if at_end:
                self._drop_pack()
        return at_work

    def garbage_bytes(self) -> int:
        """About how many bytes of the journal nothing needs any more."""
        totals = self._store.index.totals
        named = totals["hold_count"] + totals["committed_count"] + totals["staged_count"] + totals["trash_count"]
        live = totals["packed_bytes"] + totals["blob_bytes"] + named * _LIVE_RECORD_BYTES
        return max(0, self._store.log.bytes_total - live)

    def _compact(self, index: Index, budget_bytes: int) -> Draft[tuple[bool, bool]]:
        """One step: what the next part of the pack says and is still so, said again. Result: (at work, at the pack's end)."""
        log, pack, at = self._store.log, index.get("compact_pack"), index.get("compact_at")
        if pack not in log.sizes:
            if len(log.sizes) < 2 or 2 * self.garbage_bytes() < log.bytes_total:
                return Draft((False, False))
            pack, at = log.numbers[0], 0
        draft = Draft((True, False), noted=True)
        stop = at + budget_bytes
        for item in log.scan(pack, at, log.sizes[pack]):
            assert not isinstance(item, Torn)
            if isinstance(item, Damage):
                self._keep_damage(index, item)
            else:
                self._say_again(index, item, draft)
            at = item.end
            if at >= stop:
                break
        index.set("compact_pack", pack)
        index.set("compact_at", at)
        draft.result = (True, at >= log.sizes[pack])
        return draft

    def _keep_damage(self, index: Index, damage: Damage) -> None:
        found = Recovery(damage=[damage])
        quarantine(self._store.home, self._store.ops, self._store.log, found)
        index.set("damaged", 1)

    def _say_again(self, index: Index, record: Record, draft: Draft[tuple[bool, bool]]) -> None:
        for op in record.operations:
            if isinstance(op, Put | PutFile):
                self._put_again(index, op.root, record.pack, draft)
            else:
                self._name_again(index, op, record.pack, draft)

    def _put_again(self, index: Index, root: bytes, pack: int, draft: Draft[tuple[bool, bool]]) -> None:
        place = index.place_of(root)
        if place is None or place.home not in (OWN_FILE, pack):
            return
        if place.home == OWN_FILE:
            draft.operations.append(PutFile(root, place.size, place.place, place.length))
        else:
            at = draft.add_blob(self._store.log.read(pack, place.length, place.place))
            draft.operations.append(Put(root, place.size, at, place.length))

    def _name_again(self, index: Index, op: Op, pack: int, draft: Draft[tuple[bool, bool]]) -> None:
        match op:
            case Stage():
                at_ms = index.staged_at(op.upload, op.owner, op.root)
                if at_ms is not None:
                    draft.operations.append(Stage(op.upload, op.owner, op.root, at_ms))
            case Hold() | Release():
                hold = index.hold_of(op.segment, op.segment_root, op.index)
                if hold is not None:
                    key = (op.segment, op.segment_root, op.index)
                    draft.operations.append(Hold(*key, hold[1], released_ms=hold[2]))
            case Encoding():
                blob = index.encoding_of(op.segment, op.segment_root)
                if blob is not None and blob.pack == pack:
                    at = draft.add_blob(self._store.log.read(pack, blob.length, blob.at))
                    draft.operations.append(Encoding(op.segment, op.segment_root, at, blob.length, blob.crc))
            case Manifest():
                for publisher, created_ms, blob in index.manifest_rows(op.cid):
                    if publisher == op.publisher and blob.pack == pack:
                        at = draft.add_blob(self._store.log.read(pack, blob.length, blob.at))
                        draft.operations.append(Manifest(op.cid, publisher, created_ms, at, blob.length, blob.crc))
            case _:
                pass

    def _drop_pack(self) -> None:
        def note(index: Index) -> Draft[None]:
            self._store.log.drop_oldest()
            index.set("compact_pack", 0)
            return Draft(None, noted=True)

        self._store.writer.submit(note)

    # Scrubbing

    def scrub_step(self, budget_bytes: int = SCRUB_BUDGET_BYTES) -> list[Problem]:
        """Read about `budget_bytes` more from the disk, check them, and go round and round. Returns what was found rotten.

        A rotten fragment is remembered: it no longer counts as held when a segment is committed again.

        Raises:
            StorageError: the disk failed in another way.
        """
        problems: list[Problem] = []
        left, rounds = budget_bytes, 0
        with disk_errors("scrubbing the store"):
            with self._store.writer.quiet():
                cursor = self._store.index.get_bytes("scrub_cursor") or bytes(1)
            while left > 0 and rounds < len(_SCRUBBED):
                checked = self._scrub_next(cursor)
                if checked is None:
                    cursor, rounds = bytes([(cursor[0] + 1) % len(_SCRUBBED)]), rounds + 1
                    continue
                key, size, problem = checked
                cursor, left = cursor[:1] + key, left - size
                problems += [problem] if problem else []
            self._store.writer.submit(lambda index: self._note_scrub(index, cursor, problems))
        return problems

    def scrub_position(self) -> float:
        """How far the present round has come, 0 to 1: roots are spread evenly, and nearly all that is read is fragments."""
        with self._store.writer.quiet():
            cursor = self._store.index.get_bytes("scrub_cursor")
        if not cursor or cursor[0]:
            return 1.0 if cursor else 0.0
        return int.from_bytes(cursor[1:3].ljust(2, b"\0"), "big") / 65536

    def _note_scrub(self, index: Index, cursor: bytes, problems: list[Problem]) -> Draft[None]:
        index.set("scrub_cursor", cursor)
        for problem in problems:
            if problem.kind == "fragment":
                index.db.execute("UPDATE fragments SET bad = 1 WHERE root = ?", (problem.key,))
        return Draft(None, noted=True)

    def _scrub_next(self, cursor: bytes) -> tuple[bytes, int, Problem | None] | None:
        """(key, bytes read, problem) of what comes behind the cursor in its table; None at the table's end."""
        kind, query, cuts = _SCRUBBED[cursor[0]]
        key_parts = [cursor[1 + start : 1 + stop] for start, stop in zip((0, *cuts), cuts, strict=False)]
        with self._store.writer.quiet():
            row = self._store.index.db.execute(query, key_parts).fetchone()
        if row is None:
            return None
        if kind == "fragment":
            return self._scrub_fragment(FragmentRoot(row[0]), row[1])
        key, blob = row[0] + row[1], Blob(*row[2:])
        try:
            raw = self._store.log.read(blob.pack, blob.length, blob.at)
        except FileNotFoundError:  # compaction moved it: it was read a moment ago
            return key, blob.length, None
        sound = len(raw) == blob.length and crc32(raw) == blob.crc
        return key, blob.length, None if sound else Problem(kind, key, "fails its checksum")

    def _scrub_fragment(self, root: FragmentRoot, size: int) -> tuple[bytes, int, Problem | None]:
        try:
            self._store.check(root)
        except CorruptError as error:
            return root, size, Problem("fragment", root, error.message, tuple(self._store.users(root)))
        return root, size + images.HEAD_BYTES, None


_SCRUBBED: tuple[tuple[str, str, tuple[int, ...]], ...] = (  # what, the next one behind a key, where the key's parts end
    ("fragment", "SELECT root, size FROM fragments WHERE root > ? ORDER BY root LIMIT 1", (32,)),
    (
        "encoding",
        "SELECT segment, segment_root, pack, at, length, crc FROM encodings "
        "WHERE (segment, segment_root) > (?, ?) ORDER BY 1, 2 LIMIT 1",
        (32, 64),
    ),
    (
        "manifest",
        "SELECT cid, publisher, pack, at, length, crc FROM manifests WHERE (cid, publisher) > (?, ?) ORDER BY 1, 2 LIMIT 1",
        (36, 68),
    ),
)

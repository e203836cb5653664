"""The index of a store: where every fragment lies and who names it, in SQLite (docs/spec/fragment-store.md).

It is only an index. All of it follows from applying the journal's operations in order (`apply`), it notes in the same
transaction how far it has come, and it can be thrown away. So it runs with synchronous=NORMAL: after a power loss it may be
behind, never wrong, and the rest is replayed.

A fragment's state follows from what names it: an unreleased hold makes it committed, else a stage staged, else a released hold
trash; what nothing names is gone, and its file doomed to be unlinked. Totals are counted in the same transaction, to the byte.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, assert_never

from dds.primitives.ids import FragmentRoot
from dds.storage.journal import (
    Close,
    DropManifest,
    Encoding,
    Hold,
    Manifest,
    Op,
    Purge,
    Put,
    PutFile,
    Release,
    Stage,
    Unstage,
)
from dds.storage.storetime import StoreTime

OWN_FILE = 0  # `home` of a fragment that is not in a pack
CACHE_KIB = 2048  # of SQLite's page cache, per connection
_ROOT = 32

_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE fragments(root BLOB PRIMARY KEY, size INT, home INT, place INT, length INT, state INT, bad INT) WITHOUT ROWID;
CREATE INDEX fragments_unnamed ON fragments(state) WHERE state = 3;
CREATE TABLE files(id INTEGER PRIMARY KEY, length INT, doomed INT);
CREATE INDEX files_doomed ON files(id) WHERE doomed;
CREATE TABLE staged(upload BLOB, owner BLOB, root BLOB, at_ms INT, PRIMARY KEY(upload, owner, root)) WITHOUT ROWID;
CREATE INDEX staged_root ON staged(root);
CREATE INDEX staged_at ON staged(at_ms);
CREATE TABLE holds(hid INTEGER PRIMARY KEY, segment BLOB, segment_root BLOB, idx INT, roots BLOB, released_ms INT,
                   UNIQUE(segment, segment_root, idx));
CREATE INDEX holds_released ON holds(released_ms) WHERE released_ms IS NOT NULL;
CREATE TABLE refs(root BLOB, hid INT, PRIMARY KEY(root, hid)) WITHOUT ROWID;
CREATE TABLE encodings(segment BLOB, segment_root BLOB, pack INT, at INT, length INT, crc INT,
                       PRIMARY KEY(segment, segment_root)) WITHOUT ROWID;
CREATE TABLE unheld(segment BLOB, segment_root BLOB, PRIMARY KEY(segment, segment_root)) WITHOUT ROWID;
CREATE TABLE manifests(cid BLOB, publisher BLOB, created_ms INT, pack INT, at INT, length INT, crc INT,
                       PRIMARY KEY(cid, publisher)) WITHOUT ROWID;
"""

# Every table's content without the numbers that only this file knows (hid) and what is not in the journal (bad).
CONTENTS = {
    "fragments": "SELECT root, size, home, place, length, state FROM fragments ORDER BY root",
    "files": "SELECT id, length FROM files WHERE NOT doomed ORDER BY id",
    "staged": "SELECT upload, owner, root, at_ms FROM staged ORDER BY 1, 2, 3",
    "holds": "SELECT segment, segment_root, idx, roots, released_ms FROM holds ORDER BY 1, 2, 3",
    "refs": "SELECT segment, segment_root, idx, root FROM refs JOIN holds USING(hid) ORDER BY 1, 2, 3, 4",
    "encodings": "SELECT segment, segment_root, pack, at, length, crc FROM encodings ORDER BY 1, 2",
    "manifests": "SELECT cid, publisher, created_ms, pack, at, length, crc FROM manifests ORDER BY 1, 2",
}


class State(IntEnum):
    """Why a fragment is kept. The order is that of precedence."""

    COMMITTED = 0
    STAGED = 1
    TRASH = 2
    UNNAMED = 3  # within a replay only: what names it may come later in the journal


class Place(NamedTuple):
    """Where a fragment's image lies: in pack `home` at offset `place`, or (home 0) in file number `place`."""

    size: int
    home: int
    place: int
    length: int  # of the image
    state: State
    bad: bool = False  # known to fail its checksum


class Blob(NamedTuple):
    pack: int
    at: int
    length: int
    crc: int


_TOTALS = (
    *("committed_bytes", "staged_bytes", "trash_bytes", "committed_count", "staged_count", "trash_count"),
    *("table_bytes", "packed_bytes", "blob_bytes", "doomed_bytes", "hold_count", "file_count"),
)
_TOTALS_ROW = struct.Struct(f">{len(_TOTALS)}q")
_BYTES_OF = {State.COMMITTED: "committed_bytes", State.STAGED: "staged_bytes", State.TRASH: "trash_bytes"}
_COUNT_OF = {State.COMMITTED: "committed_count", State.STAGED: "staged_count", State.TRASH: "trash_count"}


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    db.execute("PRAGMA temp_store = MEMORY")
    if read_only:
        db.execute("PRAGMA query_only = ON")
    return db


class Index:
    """One connection to the index. The writer's has all methods; a reader only looks things up."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path = path
        self.db = connect(path, read_only=read_only)
        self._replaying = False
        if not read_only:
            self._prepare()
        self.totals = self._load_totals()

    def _prepare(self) -> None:
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("PRAGMA synchronous = NORMAL")
        self.db.execute("PRAGMA journal_size_limit = 4194304")
        if self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            self.db.executescript("BEGIN;" + _SCHEMA + "COMMIT;")

    def _load_totals(self) -> dict[str, int]:
        row = self.db.execute("SELECT value FROM meta WHERE key = 'totals'").fetchone()
        return dict(zip(_TOTALS, _TOTALS_ROW.unpack(row[0]) if row else (0,) * len(_TOTALS), strict=True))

    def close(self) -> None:
        self.db.close()

    # Transactions

    def begin(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self.set("totals", _TOTALS_ROW.pack(*self.totals.values()))
        self.db.execute("COMMIT")

    def rollback(self) -> None:
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")
        self.totals = self._load_totals()

    def get(self, key: str, default: int = 0) -> int:
        row = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else row[0]

    def get_bytes(self, key: str) -> bytes:
        row = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return b"" if row is None else row[0]

    def set(self, key: str, value: int | bytes) -> None:
        self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    @property
    def applied(self) -> tuple[int, int]:
        """(pack, offset) of the journal up to which this index has applied it."""
        return self.get("applied_pack"), self.get("applied_offset")

    def set_applied(self, pack: int, offset: int) -> None:
        self.set("applied_pack", pack)
        self.set("applied_offset", offset)

    def newest_ms(self) -> int:
        """The latest moment of the store's time that is known here."""
        query = (
            "SELECT max((SELECT ifnull(max(at_ms), 0) FROM staged), "
            "(SELECT ifnull(max(released_ms), 0) FROM holds WHERE released_ms IS NOT NULL))"
        )
        newest: int = self.db.execute(query).fetchone()[0]
        return max(self.get("time_ms"), newest)

    def note_time(self, time: StoreTime) -> None:
        self.set("time_ms", time.now_ms())
        self.set("wall_ms", time.wall_ms)

    # Applying the journal

    def apply(self, operations: list[Op], pack: int, body_at: int) -> None:
        """Apply one record whose body begins at `body_at` of `pack`."""
        touched: dict[bytes, None] = {}
        for op in operations:
            self._apply_one(op, pack, body_at, touched)
        for root in touched:
            self._settle(root)

    def begin_replay(self) -> None:
        """From here on nothing is dropped for want of a name: compaction may have moved the name further down the journal."""
        self._replaying = True

    def end_replay(self) -> None:
        """The journal is at its end: what nothing names or holds now is gone."""
        self._replaying = False
        for (root,) in self.db.execute("SELECT root FROM fragments WHERE state = 3").fetchall():
            self._settle(root)
        for key in self.db.execute("SELECT segment, segment_root FROM unheld").fetchall():
            self._drop_unheld(*key)
        self.db.execute("DELETE FROM unheld")

    def _apply_one(self, op: Op, pack: int, body_at: int, touched: dict[bytes, None]) -> None:
        match op:
            case Put():
                self._place(op.root, Place(op.size, pack, body_at + op.at, op.length, State.UNNAMED), touched)
            case PutFile():
                self._add_file(op)
                self._place(op.root, Place(op.size, OWN_FILE, op.file, op.length, State.UNNAMED), touched)
            case Stage():
                row = (op.upload, op.owner, op.root, op.at_ms)
                self.db.execute("INSERT OR REPLACE INTO staged VALUES (?, ?, ?, ?)", row)
                touched[op.root] = None
            case Unstage():
                self._unstage(op, touched)
            case Encoding():
                self._put_encoding(op, pack, body_at)
            case Hold():
                self._hold(op, touched)
            case Release():
                self._release(op, touched)
            case Purge():
                self._purge(op, touched)
            case Manifest():
                self._put_manifest(op, pack, body_at)
            case DropManifest():
                self._drop_manifest(op.cid, op.publisher)
            case Close():
                pass
            case _:
                assert_never(op)

    def _place(self, root: bytes, place: Place, touched: dict[bytes, None]) -> None:
        """A fragment's image lies here now, wherever it lay before."""
        old = self.place_of(root)
        if old is not None:
            self._count(old, -1)
            self._leave(old, place)
            place = place._replace(state=old.state)
        row = (root, place.size, place.home, place.place, place.length, place.state)
        self.db.execute("INSERT OR REPLACE INTO fragments VALUES (?, ?, ?, ?, ?, ?, 0)", row)
        self._count(place, 1)
        touched[root] = None

    def _add_file(self, op: PutFile) -> None:
        known = self.db.execute("SELECT doomed FROM files WHERE id = ?", (op.file,)).fetchone()
        if known is None:
            self.totals["file_count"] += 1
        elif known[0]:
            self.totals["doomed_bytes"] -= op.length
        self.db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, 0)", (op.file, op.length))
        if op.file >= self.get("next_file"):
            self.set("next_file", op.file + 1)

    def _leave(self, old: Place, new: Place | None) -> None:
        if old.home == OWN_FILE and (new is None or (new.home, new.place) != (old.home, old.place)):
            self.db.execute("UPDATE files SET doomed = 1 WHERE id = ?", (old.place,))
            self.totals["doomed_bytes"] += old.length

    def _count(self, place: Place, sign: int) -> None:
        totals = self.totals
        if place.state == State.UNNAMED:
            return
        totals[_BYTES_OF[place.state]] += sign * place.size
        totals[_COUNT_OF[place.state]] += sign
        totals["table_bytes"] += sign * (place.length - place.size)
        if place.home != OWN_FILE:
            totals["packed_bytes"] += sign * place.length

    def _settle(self, root: bytes) -> None:
        """Give a fragment the state that follows from what names it now."""
        place = self.place_of(root)
        if place is None:
            return
        state = self._state_of(root)
        if state is None:
            self._count(place, -1)
            self._leave(place, None)
            self.db.execute("DELETE FROM fragments WHERE root = ?", (root,))
        elif state != place.state:
            self._count(place, -1)
            self._count(place._replace(state=state), 1)
            self.db.execute("UPDATE fragments SET state = ? WHERE root = ?", (state, root))

    def _state_of(self, root: bytes) -> State | None:
        query = "SELECT max(released_ms IS NULL) FROM refs JOIN holds USING(hid) WHERE root = ?"
        held = self.db.execute(query, (root,)).fetchone()[0]
        if held:
            return State.COMMITTED
        if self.db.execute("SELECT 1 FROM staged WHERE root = ? LIMIT 1", (root,)).fetchone():
            return State.STAGED
        if held is not None:
            return State.TRASH
        return State.UNNAMED if self._replaying else None

    def _unstage(self, op: Unstage, touched: dict[bytes, None]) -> None:
        roots = self.staged(op.upload, op.owner) if op.roots is None else op.roots
        rows = [(op.upload, op.owner, root) for root in roots]
        self.db.executemany("DELETE FROM staged WHERE upload = ? AND owner = ? AND root = ?", rows)
        touched.update(dict.fromkeys(roots))

    def _hold(self, op: Hold, touched: dict[bytes, None]) -> None:
        found = self.hold_of(op.segment, op.segment_root, op.index)
        if found is None:
            row = (op.segment, op.segment_root, op.index, op.roots, op.released_ms)
            insert = "INSERT INTO holds(segment, segment_root, idx, roots, released_ms) VALUES (?, ?, ?, ?, ?)"
            hid = self.db.execute(insert, row).lastrowid
            self.totals["hold_count"] += 1
        else:
            hid = found[0]
            self.db.execute("UPDATE holds SET released_ms = ? WHERE hid = ?", (op.released_ms, hid))
        roots = split_roots(op.roots)
        self.db.executemany("INSERT OR IGNORE INTO refs VALUES (?, ?)", [(root, hid) for root in roots])
        if op.upload:
            self._unstage(Unstage(op.upload, op.owner, list(roots)), touched)
        touched.update(dict.fromkeys(roots))

    def _release(self, op: Release, touched: dict[bytes, None]) -> None:
        found = self.hold_of(op.segment, op.segment_root, op.index)
        if found is not None:
            self.db.execute("UPDATE holds SET released_ms = ? WHERE hid = ?", (op.at_ms, found[0]))
            touched.update(dict.fromkeys(split_roots(found[1])))

    def _purge(self, op: Purge, touched: dict[bytes, None]) -> None:
        found = self.hold_of(op.segment, op.segment_root, op.index)
        if found is None:
            return
        roots = split_roots(found[1])
        self.db.executemany("DELETE FROM refs WHERE root = ? AND hid = ?", [(root, found[0]) for root in roots])
        self.db.execute("DELETE FROM holds WHERE hid = ?", (found[0],))
        self.totals["hold_count"] -= 1
        touched.update(dict.fromkeys(roots))
        self._drop_unheld(op.segment, op.segment_root)

    def _drop_unheld(self, segment: bytes, segment_root: bytes) -> None:
        """Drop an encoding record when no hold is left, or remember to do so at the end of a replay."""
        key = (segment, segment_root)
        if self.db.execute("SELECT 1 FROM holds WHERE segment = ? AND segment_root = ? LIMIT 1", key).fetchone():
            return
        if self._replaying:
            self.db.execute("INSERT OR IGNORE INTO unheld VALUES (?, ?)", key)
        else:
            self._drop_encoding(*key)

    def _put_encoding(self, op: Encoding, pack: int, body_at: int) -> None:
        self._drop_encoding(op.segment, op.segment_root)
        row = (op.segment, op.segment_root, pack, body_at + op.at, op.length, op.crc)
        self.db.execute("INSERT INTO encodings VALUES (?, ?, ?, ?, ?, ?)", row)
        self.totals["blob_bytes"] += op.length
        if self._replaying:
            self._drop_unheld(op.segment, op.segment_root)

    def _drop_encoding(self, segment: bytes, segment_root: bytes) -> None:
        delete = "DELETE FROM encodings WHERE segment = ? AND segment_root = ? RETURNING length"
        for (length,) in self.db.execute(delete, (segment, segment_root)).fetchall():
            self.totals["blob_bytes"] -= length

    def _put_manifest(self, op: Manifest, pack: int, body_at: int) -> None:
        self._drop_manifest(op.cid, op.publisher)
        row = (op.cid, op.publisher, op.created_ms, pack, body_at + op.at, op.length, op.crc)
        self.db.execute("INSERT INTO manifests VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self.totals["blob_bytes"] += op.length

    def _drop_manifest(self, cid: bytes, publisher: bytes) -> None:
        delete = "DELETE FROM manifests WHERE cid = ? AND publisher = ? RETURNING length"
        for (length,) in self.db.execute(delete, (cid, publisher)).fetchall():
            self.totals["blob_bytes"] -= length

    # Looking things up

    def place_of(self, root: bytes) -> Place | None:
        query = "SELECT size, home, place, length, state, bad FROM fragments WHERE root = ?"
        row = self.db.execute(query, (root,)).fetchone()
        return None if row is None else Place(row[0], row[1], row[2], row[3], State(row[4]), bool(row[5]))

    def hold_of(self, segment: bytes, segment_root: bytes, index: int) -> tuple[int, bytes, int | None] | None:
        """(hid, roots, released_ms)"""
        query = "SELECT hid, roots, released_ms FROM holds WHERE segment = ? AND segment_root = ? AND idx = ?"
        row: tuple[int, bytes, int | None] | None = self.db.execute(query, (segment, segment_root, index)).fetchone()
        return row

    def staged(self, upload: bytes, owner: bytes) -> list[FragmentRoot]:
        query = "SELECT root FROM staged WHERE upload = ? AND owner = ? ORDER BY root"
        return [FragmentRoot(row[0]) for row in self.db.execute(query, (upload, owner)).fetchall()]

    def staged_at(self, upload: bytes, owner: bytes, root: bytes) -> int | None:
        query = "SELECT at_ms FROM staged WHERE upload = ? AND owner = ? AND root = ?"
        row = self.db.execute(query, (upload, owner, root)).fetchone()
        return None if row is None else row[0]

    def held_by_segment(self, root: bytes, segment: bytes) -> bool:
        """Whether a hold of this segment, in the trash or not, names the fragment."""
        query = "SELECT 1 FROM refs JOIN holds USING(hid) WHERE root = ? AND segment = ? LIMIT 1"
        return self.db.execute(query, (root, segment)).fetchone() is not None

    def holds_of(self, segment: bytes) -> list[tuple[bytes, int, int | None]]:
        """(segment root, index, released_ms), in order."""
        query = "SELECT segment_root, idx, released_ms FROM holds WHERE segment = ? ORDER BY segment_root, idx"
        return self.db.execute(query, (segment,)).fetchall()

    def users_of(self, root: bytes) -> list[tuple[bytes, bytes, int]]:
        """(segment, segment root, index) of the unreleased holds that name a fragment."""
        query = (
            "SELECT segment, segment_root, idx FROM refs JOIN holds USING(hid) "
            "WHERE root = ? AND released_ms IS NULL ORDER BY 1, 2, 3"
        )
        return self.db.execute(query, (root,)).fetchall()

    def encoding_of(self, segment: bytes, segment_root: bytes) -> Blob | None:
        query = "SELECT pack, at, length, crc FROM encodings WHERE segment = ? AND segment_root = ?"
        row = self.db.execute(query, (segment, segment_root)).fetchone()
        return None if row is None else Blob(*row)

    def manifest_rows(self, cid: bytes) -> list[tuple[bytes, int, Blob]]:
        """(publisher, created_ms, blob), newest first."""
        query = (
            "SELECT publisher, created_ms, pack, at, length, crc FROM manifests WHERE cid = ? "
            "ORDER BY created_ms DESC, publisher"
        )
        return [(row[0], row[1], Blob(*row[2:])) for row in self.db.execute(query, (cid,)).fetchall()]

    def contents(self, table: str) -> Iterator[tuple[object, ...]]:
        """All rows of one of CONTENTS, in key order: two indexes of one journal give the same."""
        yield from self.db.execute(CONTENTS[table])


def split_roots(packed: bytes) -> tuple[bytes, ...]:
    return tuple(packed[at : at + _ROOT] for at in range(0, len(packed), _ROOT))

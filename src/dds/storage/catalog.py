"""What a client's home remembers: where its chunks are, which uploads are under way, what it has published (SQLite).

Three memories in one file. The *chunk catalog* maps a CID to the segment and entry that hold it, for deduplication of later
puts. The *put journal* notes every fragment that a node has acknowledged, so that a repeated `dds put` sends nothing twice. The
*contents* are what `dds ls` shows. It is a memory, never an authority: a lost or stale catalog costs time, not content.

Any number of processes may use one catalog at once: WAL, a long busy timeout, short transactions, and a retry where SQLite
still says "locked". Acknowledgements are synced only when the operating system pleases: after a power loss a fragment may be
sent twice, which a node keeps once.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from dds.primitives.cid import CID
from dds.primitives.errors import ConfigError, StorageError
from dds.primitives.ids import ID_BYTES, FragmentRoot, NodeID, SegmentID, UploadID
from dds.protocol.tiering import Tier
from dds.storage.fileops import disk_errors
from dds.wire.segment import decode_index

T = TypeVar("T")
CATALOG_VERSION = 1
BUSY_TIMEOUT_S = 30.0
_RETRIES = 20
_RETRY_S = 0.05
_CIDS_PER_QUERY = 500

_SCHEMA = """
CREATE TABLE segments(id INTEGER PRIMARY KEY, segment BLOB UNIQUE, holders BLOB, encoding BLOB, entries BLOB);
CREATE TABLE chunks(cid BLOB PRIMARY KEY, segment INT, entry INT) WITHOUT ROWID;
CREATE INDEX chunks_segment ON chunks(segment);
CREATE TABLE uploads(upload BLOB PRIMARY KEY, source BLOB, number INT, nodes BLOB, UNIQUE(source, number)) WITHOUT ROWID;
CREATE TABLE acks(upload BLOB, root BLOB, node BLOB, PRIMARY KEY(upload, root, node)) WITHOUT ROWID;
CREATE TABLE contents(cid BLOB PRIMARY KEY, name TEXT, size INT, class TEXT, kind TEXT, put_ms INT, holders BLOB)
WITHOUT ROWID;
"""
_MOVES = "CREATE TABLE IF NOT EXISTS moves(cid BLOB PRIMARY KEY, class TEXT, moved_ms INT) WITHOUT ROWID"
_TIERS = """
CREATE TABLE IF NOT EXISTS tiers(
    cid BLOB PRIMARY KEY, k INT, m INT, archive_after_days INT, before_class TEXT, before_k INT, before_m INT
) WITHOUT ROWID
"""


class Location(NamedTuple):
    segment_id: SegmentID
    entry: int  # row of the segment's index


@dataclass(frozen=True, slots=True)
class CachedSegment:
    """What is needed to use a segment again without asking anyone: checked when it was put here, hints afterwards."""

    segment_id: SegmentID
    holders: tuple[NodeID, ...]  # by fragment index
    encoding_raw: bytes  # the signed encoding record
    index_raw: bytes  # the segment index


@dataclass(frozen=True, slots=True)
class UploadNote:
    """One segment of one put that is under way."""

    upload_id: UploadID
    nodes: tuple[NodeID, ...]  # by fragment index


@dataclass(frozen=True, slots=True)
class ContentNote:
    cid: CID
    name: str
    size_bytes: int
    class_name: str
    kind: str  # "file", "directory", "symlink"
    put_ms: int
    holders: tuple[NodeID, ...] = ()  # of the manifest, when it was put: asked first


@dataclass(frozen=True, slots=True)
class MoveNote:
    """That a content was moved to another class from this home."""

    class_name: str
    moved_ms: int


@dataclass(frozen=True, slots=True)
class TierNote:
    """What tiering must know of a content beside its class."""

    k: int | None = None  # where the class does not say it
    m: int | None = None
    archive_after_days: int | None = None  # of the class policy's rule by which it was put; None: no rule says so
    before: Tier | None = None  # what it was before it moved to its present class


class Catalog:
    """Safe to use from several threads, and from several processes at once."""

    def __init__(self, path: Path) -> None:
        """Open the catalog file, making it (mode 0600) and its directory where there is none.

        Raises:
            ConfigError: it is not a catalog, or of a newer release.
            StorageError
        """
        self.path = path
        self._lock = threading.Lock()
        with disk_errors(f"opening the catalog {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
            try:
                self._run(self._prepare)
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{self.path} is not a catalog: {error}", hint="move it away; a new one is made") from None
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("PRAGMA cache_size = -4096")
        version = self._version()
        if version == 0:
            self._in_transaction(self._create)
        elif version != CATALOG_VERSION:
            raise ConfigError(f"{self.path} is of catalog version {version}", hint="upgrade dds")
        self._db.execute(_MOVES)  # older releases leave both alone
        self._db.execute(_TIERS)

    def _create(self) -> None:
        if self._version() == 0:  # another process may have been first
            for statement in _SCHEMA.split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {CATALOG_VERSION}")

    def _version(self) -> int:
        version: int = self._db.execute("PRAGMA user_version").fetchone()[0]
        return version

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Chunks

    def lookup(self, cids: Sequence[CID]) -> dict[CID, Location]:
        """Where those of `cids` that are known lie."""

        def look() -> dict[CID, Location]:
            found: dict[CID, Location] = {}
            for at in range(0, len(cids), _CIDS_PER_QUERY):
                some = cids[at : at + _CIDS_PER_QUERY]
                marks = ", ".join("?" * len(some))
                query = f"SELECT cid, s.segment, entry FROM chunks c JOIN segments s ON s.id = c.segment WHERE cid IN ({marks})"  # noqa: S608
                for cid, segment, entry in self._db.execute(query, some):
                    found[CID(cid)] = Location(SegmentID(segment), entry)
            return found

        return self._do("looking up chunks", look)

    def add_segment(
        self,
        segment_id: SegmentID,
        holders: Sequence[NodeID],
        encoding_raw: bytes,
        index_raw: bytes,
        only: Collection[CID] | None = None,
    ) -> None:
        """Remember a segment and the chunks of its index; one that is known gets the new holders and record.

        A chunk that is known in another segment stays there. `only`: the chunks that may be relied on (all where it is None).

        Raises:
            FormatError: `index_raw` is not a segment index.
        """
        entries = decode_index(index_raw)

        def add() -> None:
            row = (segment_id, b"".join(holders), encoding_raw, index_raw)
            self._db.execute(
                "INSERT INTO segments(segment, holders, encoding, entries) VALUES (?, ?, ?, ?) ON CONFLICT(segment) "
                "DO UPDATE SET holders = excluded.holders, encoding = excluded.encoding, entries = excluded.entries",
                row,
            )
            (at,) = self._db.execute("SELECT id FROM segments WHERE segment = ?", (segment_id,)).fetchone()
            rows = ((entry.cid, at, number) for number, entry in enumerate(entries) if only is None or entry.cid in only)
            self._db.executemany("INSERT OR IGNORE INTO chunks VALUES (?, ?, ?)", rows)

        self._do("remembering a segment", lambda: self._in_transaction(add))

    def segment(self, segment_id: SegmentID) -> CachedSegment | None:
        def look() -> CachedSegment | None:
            query = "SELECT holders, encoding, entries FROM segments WHERE segment = ?"
            row = self._db.execute(query, (segment_id,)).fetchone()
            return None if row is None else CachedSegment(segment_id, _nodes(row[0]), row[1], row[2])

        return self._do("looking up a segment", look)

    def forget_segment(self, segment_id: SegmentID) -> None:
        """Forget a segment and its chunks: it is gone, or cannot be read back."""

        def forget() -> None:
            for (at,) in self._db.execute("DELETE FROM segments WHERE segment = ? RETURNING id", (segment_id,)).fetchall():
                self._db.execute("DELETE FROM chunks WHERE segment = ?", (at,))

        self._do("forgetting a segment", lambda: self._in_transaction(forget))

    # Uploads under way

    def open_upload(self, source_key: bytes, segment_number: int) -> UploadNote | None:
        """The upload of a source's segment that an earlier run began and did not finish.

        `source_key` identifies what is being put, how it is cut and its class: the same key must mean the same segments.
        """

        def look() -> UploadNote | None:
            query = "SELECT upload, nodes FROM uploads WHERE source = ? AND number = ?"
            row = self._db.execute(query, (source_key, segment_number)).fetchone()
            return None if row is None else UploadNote(UploadID(row[0]), _nodes(row[1]))

        return self._do("looking up an upload", look)

    def note_upload(self, source_key: bytes, segment_number: int, upload_id: UploadID, nodes: Sequence[NodeID]) -> UploadNote:
        """Note an upload's nodes by fragment index; returns what is noted.

        Where another process began the same segment first, its upload id wins and is returned; nodes are replaced only by
        the upload that is noted.
        """

        def note() -> UploadNote:
            row = (upload_id, source_key, segment_number, b"".join(nodes))
            self._db.execute("INSERT OR IGNORE INTO uploads VALUES (?, ?, ?, ?)", row)
            self._db.execute("UPDATE uploads SET nodes = ? WHERE upload = ?", (row[3], upload_id))
            query = "SELECT upload, nodes FROM uploads WHERE source = ? AND number = ?"
            kept = self._db.execute(query, (source_key, segment_number)).fetchone()
            return UploadNote(UploadID(kept[0]), _nodes(kept[1]))

        return self._do("noting an upload", lambda: self._in_transaction(note))

    def note_staged(self, upload_id: UploadID, root: FragmentRoot, node: NodeID) -> None:
        """A node acknowledged that it has staged a fragment."""
        self.note_staged_many(upload_id, [(root, node)])

    def note_staged_many(self, upload_id: UploadID, pairs: Iterable[tuple[FragmentRoot, NodeID]]) -> None:
        """The same for several (root, node) in one transaction."""
        rows = [(upload_id, root, node) for root, node in pairs]

        def note() -> None:
            self._db.executemany("INSERT OR IGNORE INTO acks VALUES (?, ?, ?)", rows)

        self._do("noting staged fragments", lambda: self._in_transaction(note))

    def staged(self, upload_id: UploadID) -> dict[FragmentRoot, frozenset[NodeID]]:
        """Which nodes acknowledged which fragments of an upload."""

        def look() -> dict[FragmentRoot, frozenset[NodeID]]:
            found: dict[FragmentRoot, set[NodeID]] = {}
            for root, node in self._db.execute("SELECT root, node FROM acks WHERE upload = ?", (upload_id,)):
                found.setdefault(FragmentRoot(root), set()).add(NodeID(node))
            return {root: frozenset(nodes) for root, nodes in found.items()}

        return self._do("looking up an upload", look)

    def close_upload(self, upload_id: UploadID) -> None:
        """The segment has its receipts, or was given up: forget the upload."""

        def close() -> None:
            self._db.execute("DELETE FROM acks WHERE upload = ?", (upload_id,))
            self._db.execute("DELETE FROM uploads WHERE upload = ?", (upload_id,))

        self._do("closing an upload", lambda: self._in_transaction(close))

    # Contents

    def add_content(self, note: ContentNote, tier: TierNote | None = None) -> None:
        """Remember what was put from this home; a second put of the same content renews it."""
        row = (note.cid, note.name, note.size_bytes, note.class_name, note.kind, note.put_ms, b"".join(note.holders))

        def add() -> None:
            self._db.execute("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            self._put_tier(note.cid, tier or TierNote())

        self._do("remembering a content", lambda: self._in_transaction(add))

    def content(self, cid: CID) -> ContentNote | None:
        rows = self._contents("WHERE cid = ?", (cid,))
        return rows[0] if rows else None

    def contents(self, *, after: ContentNote | None = None, limit: int = 1000) -> list[ContentNote]:
        """Newest first, at most `limit`; go on with `after` = the last one of the page before. Nothing is skipped."""
        if after is None:
            return self._contents("ORDER BY put_ms DESC, cid LIMIT ?", (limit,))
        where = "WHERE (-put_ms, cid) > (?, ?) ORDER BY put_ms DESC, cid LIMIT ?"
        return self._contents(where, (-after.put_ms, after.cid, limit))

    def note_move(self, cid: CID, to: Tier, moved_ms: int, holders: Sequence[NodeID]) -> None:
        """The content is of another class from now on, and its manifest lies with other nodes."""

        def note() -> None:
            was = self._db.execute("SELECT class FROM contents WHERE cid = ?", (cid,)).fetchone()
            tier = self._tier(cid)
            before = tier.before if was is None or was[0] == to.class_name else Tier(was[0], tier.k, tier.m)
            self._put_tier(cid, TierNote(to.k, to.m, tier.archive_after_days, before))
            self._db.execute("INSERT OR REPLACE INTO moves VALUES (?, ?, ?)", (cid, to.class_name, moved_ms))
            update = "UPDATE contents SET class = ?, holders = ? WHERE cid = ?"
            self._db.execute(update, (to.class_name, b"".join(holders), cid))

        self._do("noting a move", lambda: self._in_transaction(note))

    def last_move(self, cid: CID) -> MoveNote | None:
        def look() -> MoveNote | None:
            row = self._db.execute("SELECT class, moved_ms FROM moves WHERE cid = ?", (cid,)).fetchone()
            return None if row is None else MoveNote(row[0], row[1])

        return self._do("looking up a move", look)

    def tier(self, cid: CID) -> TierNote:
        """Empty where an older release put the content."""
        return self._do("looking up a content's class", lambda: self._tier(cid))

    def _tier(self, cid: CID) -> TierNote:
        query = "SELECT k, m, archive_after_days, before_class, before_k, before_m FROM tiers WHERE cid = ?"
        row = self._db.execute(query, (cid,)).fetchone()
        if row is None:
            return TierNote()
        k, m, archive_after_days, *before = row
        return TierNote(k, m, archive_after_days, None if before[0] is None else Tier(*before))

    def _put_tier(self, cid: CID, tier: TierNote) -> None:
        before = (None, None, None) if tier.before is None else (tier.before.class_name, tier.before.k, tier.before.m)
        row = (cid, tier.k, tier.m, tier.archive_after_days, *before)
        self._db.execute("INSERT OR REPLACE INTO tiers VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def forget_content(self, cid: CID) -> None:
        def forget() -> None:
            self._db.execute("DELETE FROM contents WHERE cid = ?", (cid,))
            self._db.execute("DELETE FROM tiers WHERE cid = ?", (cid,))

        self._do("forgetting a content", lambda: self._in_transaction(forget))

    def _contents(self, where: str, values: tuple[object, ...]) -> list[ContentNote]:
        query = "SELECT cid, name, size, class, kind, put_ms, holders FROM contents " + where  # noqa: S608 - only the texts below

        def look() -> list[ContentNote]:
            rows = self._db.execute(query, values)
            return [ContentNote(CID(row[0]), row[1], row[2], row[3], row[4], row[5], _nodes(row[6])) for row in rows]

        return self._do("listing contents", look)

    # SQLite

    def _do(self, doing: str, action: Callable[[], T]) -> T:
        with disk_errors(doing), self._lock:
            return self._run(action)

    def _run(self, action: Callable[[], T]) -> T:
        """SQLite may say "locked" at once, without its busy timeout, when waiting could not help (a change of journal mode,
        a recovery by another process). Everything here can be repeated whole."""
        for _ in range(_RETRIES):
            try:
                return action()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) and "busy" not in str(error):
                    raise
                time.sleep(_RETRY_S)
        raise StorageError(f"the catalog {self.path} stays in use by another process", hint="try again when it has finished")

    def _in_transaction(self, action: Callable[[], T]) -> T:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            result = action()
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return result


def _nodes(packed: bytes) -> tuple[NodeID, ...]:
    return tuple(NodeID(packed[at : at + ID_BYTES]) for at in range(0, len(packed), ID_BYTES))

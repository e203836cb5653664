"""The client's memory in its home: which blocks the network already has from us, and which puts were broken off.

A cache: everything in it can be lost without losing content. SQLite in WAL mode with a busy timeout, short transactions and
one connection a thread, so that two `dds` processes of a home can work at once. Sizes: about 60 bytes a block.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from dds.primitives.cid import CID, codec_of, digest_of
from dds.primitives.errors import ConfigError, StorageError
from dds.primitives.ids import ID_BYTES, NodeID, SegmentID, UploadID
from dds.wire.segment import decode_index

T = TypeVar("T")

SCHEMA_VERSION: Final = 1
BUSY_TIMEOUT_S: Final = 30.0
UPLOAD_AGE_S_MAX: Final = 20 * 3600  # nodes forget what is staged after 24 h

_SCHEMA = """
CREATE TABLE IF NOT EXISTS segment (
    number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, holders BLOB NOT NULL, encoding BLOB NOT NULL, idx BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS block (
    digest BLOB NOT NULL, codec INTEGER NOT NULL, segment INTEGER NOT NULL, entry INTEGER NOT NULL,
    PRIMARY KEY (digest, codec)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS block_segment ON block (segment);
CREATE TABLE IF NOT EXISTS upload (
    source BLOB NOT NULL, segment INTEGER NOT NULL, id BLOB NOT NULL, nodes TEXT NOT NULL, started REAL NOT NULL,
    PRIMARY KEY (source, segment)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS content (
    cid BLOB PRIMARY KEY, name TEXT NOT NULL, holders BLOB NOT NULL, bytes INTEGER NOT NULL, stored REAL NOT NULL
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Location:
    segment_id: SegmentID
    entry: int


@dataclass(frozen=True, slots=True)
class CachedSegment:
    holders: list[NodeID]  # by fragment index
    encoding: bytes  # the signed encoding record
    index: bytes


@dataclass(frozen=True, slots=True)
class UploadNote:
    """One segment of a put that is under way or was broken off."""

    source: bytes  # what is being put, and how: 32 bytes
    segment: int
    upload_id: bytes
    chosen: list[bytes]  # NodeIDs by fragment index
    spares: list[bytes]


class Catalog:
    """See the module's text. Methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._open: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._connection()

    def close(self) -> None:
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()

    # -- blocks -----------------------------------------------------------------------------------------------------------

    def lookup(self, cids: Iterable[CID]) -> dict[CID, Location]:
        """Where each of these blocks lies, for those that are known."""
        found: dict[CID, Location] = {}
        for cid in cids:
            row = self._read(
                "SELECT s.id, b.entry FROM block b JOIN segment s ON s.number = b.segment WHERE b.digest = ? AND b.codec = ?",
                (digest_of(cid), codec_of(cid)),
            )
            if row is not None:
                found[cid] = Location(SegmentID(row[0]), row[1])
        return found

    def add_segment(self, segment_id: SegmentID, holders: list[NodeID], encoding: bytes, index: bytes) -> None:
        """Remember a segment that is durably on the network, and every block in it."""
        blocks = [(digest_of(entry.cid), codec_of(entry.cid), at) for at, entry in enumerate(decode_index(index))]
        with self._write() as connection:
            connection.execute(
                "INSERT INTO segment (id, holders, encoding, idx) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
                "holders = excluded.holders, encoding = excluded.encoding",
                (segment_id, b"".join(holders), encoding, index),
            )
            (number,) = connection.execute("SELECT number FROM segment WHERE id = ?", (segment_id,)).fetchone()
            connection.executemany(
                "INSERT OR REPLACE INTO block (digest, codec, segment, entry) VALUES (?, ?, ?, ?)",
                [(digest, codec, number, at) for digest, codec, at in blocks],
            )

    def segment(self, segment_id: SegmentID) -> CachedSegment | None:
        row = self._read("SELECT holders, encoding, idx FROM segment WHERE id = ?", (segment_id,))
        return None if row is None else CachedSegment(_split(row[0]), row[1], row[2])

    def forget_segment(self, segment_id: SegmentID) -> None:
        """The network lost it, or too much of it: its blocks are sent anew next time."""
        with self._write() as connection:
            connection.execute("DELETE FROM block WHERE segment = (SELECT number FROM segment WHERE id = ?)", (segment_id,))
            connection.execute("DELETE FROM segment WHERE id = ?", (segment_id,))

    # -- puts under way ---------------------------------------------------------------------------------------------------

    def open_upload(self, source: bytes, segment: int) -> UploadNote | None:
        """What a broken put of the same source noted for this segment, if nodes may still have it."""
        row = self._read(
            "SELECT id, nodes FROM upload WHERE source = ? AND segment = ? AND started > ?",
            (source, segment, time.time() - UPLOAD_AGE_S_MAX),
        )
        if row is None:
            return None
        chosen, spares = ([bytes.fromhex(node) for node in nodes] for nodes in json.loads(row[1]))
        return UploadNote(source, segment, row[0], chosen, spares)

    def note_upload(self, note: UploadNote) -> None:
        nodes = json.dumps([[node.hex() for node in note.chosen], [node.hex() for node in note.spares]])
        with self._write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO upload (source, segment, id, nodes, started) VALUES (?, ?, ?, ?, ?)",
                (note.source, note.segment, note.upload_id, nodes, time.time()),
            )

    def close_uploads(self, source: bytes) -> list[UploadID]:
        """The put is done: forget its notes, and all that are too old."""
        with self._write() as connection:
            rows = connection.execute("SELECT id FROM upload WHERE source = ?", (source,)).fetchall()
            connection.execute("DELETE FROM upload WHERE source = ? OR started < ?", (source, time.time() - UPLOAD_AGE_S_MAX))
        return [UploadID(row[0]) for row in rows]

    # -- contents ---------------------------------------------------------------------------------------------------------

    def add_content(self, cid: CID, name: str, holders: list[NodeID], content_bytes: int) -> None:
        """Remember what was put from here, and who holds its manifest."""
        with self._write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO content (cid, name, holders, bytes, stored) VALUES (?, ?, ?, ?, ?)",
                (cid, name, b"".join(holders), content_bytes, time.time()),
            )

    def content_holders(self, cid: CID) -> list[NodeID]:
        row = self._read("SELECT holders FROM content WHERE cid = ?", (cid,))
        return [] if row is None else _split(row[0])

    # -- SQLite -----------------------------------------------------------------------------------------------------------

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._connect()
            self._local.connection = connection
            with self._lock:
                self._open.append(connection)
        return connection

    def _connect(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise ConfigError(f"{self._path} was made by a newer release of dds", hint="upgrade dds")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            if version == 0:
                connection.executescript(_SCHEMA)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except sqlite3.Error as error:
            raise ConfigError(
                f"cannot open the catalog {self._path}: {error}", hint="it is only a cache: it may be moved away"
            ) from None
        return connection

    def _read(self, query: str, arguments: tuple[object, ...]) -> Any:
        return self._translated(lambda: self._connection().execute(query, arguments).fetchone())

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        self._translated(lambda: connection.execute("BEGIN IMMEDIATE"))
        try:
            yield connection
        except sqlite3.Error as error:
            connection.execute("ROLLBACK")
            raise StorageError(f"the catalog {self._path} cannot be written: {error}") from None
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        self._translated(lambda: connection.execute("COMMIT"))

    def _translated(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except sqlite3.Error as error:
            hint = "another dds process of this home is busy: try again" if "locked" in str(error) else "it is only a cache"
            raise StorageError(f"the catalog {self._path} cannot be used: {error}", hint=hint) from None


def _split(nodes: bytes) -> list[NodeID]:
    return [NodeID(nodes[at : at + ID_BYTES]) for at in range(0, len(nodes), ID_BYTES)]

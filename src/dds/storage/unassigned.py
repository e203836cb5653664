"""What a node remembers while it finds out which of its shares the ledger no longer assigns to it (SQLite).

Three memories in one file. *Commits*: shares that were committed for a reservation, until that one is known to be closed: they
are not on the ledger yet, and must not be taken for forgotten ones. *Unassigned*: shares that the ledger gave to nobody or to
somebody else, and the epoch in which that was first seen. *Ours*: shares of which there is evidence that they were this
ledger's, by a commit for one of its reservations or because it was seen to assign them here; no other is its to take away. A
lost file costs time and space, never data: all is then seen for the first time.

Beside them, *whose word that is*: the ledger that all this was read on, and the latest epoch that it has said. Epochs of
another ledger, or of one that was set back, are not to be counted on from these.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from dds.primitives.ids import SegmentID, SegmentRoot
from dds.storage.fileops import disk_errors
from dds.storage.reader import HoldKey

VERSION: Final = 1
COMMITS_MAX: Final = 1 << 20  # rows; beyond them the oldest go: their reservations have long expired

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS commits(at INTEGER PRIMARY KEY, segment BLOB, root BLOB, place INT, reservation BLOB,
  UNIQUE(segment, root, place, reservation));
CREATE TABLE IF NOT EXISTS unassigned(segment BLOB, root BLOB, place INT, since INT, PRIMARY KEY(segment, root, place))
  WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ours(segment BLOB, root BLOB, place INT, PRIMARY KEY(segment, root, place)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ledger(one INTEGER PRIMARY KEY CHECK (one = 1), identity BLOB, epoch INT);
CREATE TABLE IF NOT EXISTS cursor(one INTEGER PRIMARY KEY CHECK (one = 1), segment BLOB);
"""


class UnassignedLog:
    """Safe to use from several threads. All methods block on the disk."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            StorageError
        """
        self._lock = threading.Lock()
        with disk_errors(f"opening {path}"):
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def committed(self, hold: HoldKey, reservation: bytes) -> None:
        """A share became durable for a reservation: whatever was thought of it before no longer holds. It is evidence only once
        the ledger has said which one it is: the node may be given another one before that."""
        with disk_errors("noting a commit"), self._lock:
            self._db.execute(
                "INSERT OR REPLACE INTO commits(segment, root, place, reservation) VALUES (?, ?, ?, ?)", (*hold, reservation)
            )
            self._db.execute("DELETE FROM unassigned WHERE segment = ? AND root = ? AND place = ?", hold)
            self._db.execute("INSERT OR IGNORE INTO ours SELECT ?, ?, ? FROM ledger", hold)
            self._db.execute("DELETE FROM commits WHERE at <= (SELECT max(at) FROM commits) - ?", (COMMITS_MAX,))

    def reservations(self, segments: Sequence[SegmentID]) -> dict[HoldKey, set[bytes]]:
        """The reservations that shares of these segments were committed for, as far as they are not closed."""
        found: dict[HoldKey, set[bytes]] = {}
        with disk_errors("looking up commits"), self._lock:
            for segment in segments:
                query = "SELECT root, place, reservation FROM commits WHERE segment = ?"
                for root, place, reservation in self._db.execute(query, (segment,)):
                    found.setdefault(HoldKey(segment, SegmentRoot(root), place), set()).add(reservation)
        return found

    def closed(self, reservations: Iterable[bytes]) -> None:
        """These reservations will not be registered any more, or were."""
        with disk_errors("noting reservations"), self._lock:
            for reservation in reservations:
                self._db.execute("DELETE FROM commits WHERE reservation = ?", (reservation,))

    def seen(self, assigned: Iterable[HoldKey], unassigned: Iterable[HoldKey], epoch: int) -> dict[HoldKey, int]:
        """Note what the ledger said in `epoch`; since when each of the unassigned is so, without a break. One that there is no
        evidence of that it was ever this ledger's is not among them."""
        is_ours = "SELECT 1 FROM ours WHERE segment = ? AND root = ? AND place = ?"
        since: dict[HoldKey, int] = {}
        with disk_errors("noting assignments"), self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for hold in assigned:
                    self._db.execute("INSERT OR IGNORE INTO ours VALUES (?, ?, ?)", hold)
                    self._db.execute("DELETE FROM unassigned WHERE segment = ? AND root = ? AND place = ?", hold)
                for hold in unassigned:
                    if self._db.execute(is_ours, hold).fetchone() is None:
                        continue
                    self._db.execute("INSERT OR IGNORE INTO unassigned VALUES (?, ?, ?, ?)", (*hold, epoch))
                    query = "SELECT since FROM unassigned WHERE segment = ? AND root = ? AND place = ?"
                    (since[hold],) = self._db.execute(query, hold).fetchone()
            finally:
                self._db.execute("COMMIT")
        return since

    def is_unassigned(self, hold: HoldKey) -> bool:
        """Whether that is what was seen last, and no commit came since."""
        query = "SELECT 1 FROM unassigned WHERE segment = ? AND root = ? AND place = ?"
        with disk_errors("looking up assignments"), self._lock:
            return self._db.execute(query, hold).fetchone() is not None

    def meet(self, identity: bytes, epoch: int) -> tuple[bytes, int]:
        """A ledger says which one it is, and its epoch. What was known before: (identity, latest epoch), the same where nothing
        was. An epoch that is later is noted, another ledger is not."""
        with disk_errors("noting the ledger"), self._lock:
            row = self._db.execute("SELECT identity, epoch FROM ledger").fetchone()
            known = (identity, epoch) if row is None else (bytes(row[0]), int(row[1]))
            if row is None or (known[0] == identity and epoch > known[1]):
                self._db.execute("INSERT OR REPLACE INTO ledger VALUES (1, ?, ?)", (identity, epoch))
        return known

    def forget(self, hold: HoldKey) -> None:
        """The share is gone."""
        with disk_errors("noting assignments"), self._lock:
            self._db.execute("DELETE FROM unassigned WHERE segment = ? AND root = ? AND place = ?", hold)
            self._db.execute("DELETE FROM commits WHERE segment = ? AND root = ? AND place = ?", hold)
            self._db.execute("DELETE FROM ours WHERE segment = ? AND root = ? AND place = ?", hold)

    def cursor(self) -> bytes:
        """The last segment that was looked at; b"" to begin."""
        with disk_errors("reading a cursor"), self._lock:
            row = self._db.execute("SELECT segment FROM cursor").fetchone()
        return b"" if row is None else bytes(row[0])

    def set_cursor(self, segment: bytes) -> None:
        with disk_errors("noting a cursor"), self._lock:
            self._db.execute("INSERT OR REPLACE INTO cursor VALUES (1, ?)", (segment,))

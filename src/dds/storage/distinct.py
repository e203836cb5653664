"""A set of CIDs that may be larger than memory: which blocks have been counted already.

Kept in a temporary database that SQLite holds in memory while it is small, spills to a nameless file when it grows, and that
is gone when it is closed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from dds.primitives.cid import CID
from dds.storage.fileops import disk_errors

CACHE_KIB: Final = 8192


class DistinctBlocks:
    """One caller at a time, from any thread."""

    def __init__(self) -> None:
        """
        Raises:
            StorageError
        """
        with disk_errors("opening a temporary set of blocks"):
            self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            self._db.execute("PRAGMA journal_mode = OFF")
            self._db.execute("CREATE TABLE blocks(cid BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, cids: Sequence[CID]) -> list[bool]:
        """For each whether it is new, to the set and among those before it; now all are in.

        Raises:
            StorageError: the disk is full.
        """
        with disk_errors("counting blocks"):
            self._db.execute("BEGIN")
            new = [self._db.execute("INSERT OR IGNORE INTO blocks VALUES (?)", (cid,)).rowcount == 1 for cid in cids]
            self._db.execute("COMMIT")
        return new

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> DistinctBlocks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""What a home has read from each node and promised it, in the home's catalog file (SQLite); two processes at once are safe.

    reading_tabs     one row a (network, payer, node): the cumulative promise, and the bytes read that none was made for
    reading_cover    one row a (network, payer): the money of its deposit that no promise counts on, and the ledger's last epoch

A promise is made in one transaction that reads what other processes have promised meanwhile, and is on its way to the disk
before the voucher is signed: cumulative amounts never go down. Decides no amounts (protocol/reading_purse.py).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from dds.primitives.errors import StorageError
from dds.protocol.reading_purse import Step, Tab
from dds.storage.fileops import disk_errors

T = TypeVar("T")
BUSY_TIMEOUT_S: Final = 30.0
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS reading_tabs(network TEXT, payer BLOB, node BLOB, promised INT, bytes INT, "
    "PRIMARY KEY(network, payer, node)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS reading_cover(network TEXT, payer BLOB, cover INT, epoch INT, "
    "PRIMARY KEY(network, payer)) WITHOUT ROWID",
)


class PurseBook:
    """`payer`: an account, followed by a grant's name where its sponsor pays. Safe to use from several threads."""

    def __init__(self, path: Path, network: str, payer: bytes) -> None:
        """
        Raises:
            StorageError
        """
        self._network, self._payer = network, payer
        self._lock = threading.Lock()
        with disk_errors(f"opening the purse in {path}"):
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
            try:
                for statement in _TABLES:
                    self._db.execute(statement)
            except sqlite3.Error as error:
                self._db.close()
                raise StorageError(f"{error} while opening the purse in {path}") from None

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def tab(self, node: bytes) -> Tab:
        """Of this payer at this node."""
        return self._do("looking at the purse", lambda: self._tab(node))

    def tabs(self) -> dict[bytes, Tab]:
        """By node."""
        query = "SELECT node, promised, bytes FROM reading_tabs WHERE network = ? AND payer = ? ORDER BY node"
        rows = self._do("looking at the purse", lambda: self._db.execute(query, (self._network, self._payer)).fetchall())
        return {node: Tab(promised, count) for node, promised, count in rows}

    def add_bytes(self, read: Mapping[bytes, int]) -> None:
        """So many more bytes were read from these nodes."""
        statement = "INSERT INTO reading_tabs VALUES (?, ?, ?, 0, ?) ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes"
        rows = [(self._network, self._payer, node, count) for node, count in sorted(read.items())]
        self._do("noting what was read", lambda: self._in_transaction(lambda: self._db.executemany(statement, rows)))

    def promise(self, node: bytes, decide: Callable[[Tab, int, int], Step]) -> Step:
        """Make a promise: `decide(tab, money at hand, what other payers promised this node)` says which.

        Raises:
            what `decide` raises; then nothing has changed.
        """

        def act() -> Step:
            step = decide(self._tab(node), self._cover()[0], self._others(node))
            self._db.execute(
                "INSERT OR REPLACE INTO reading_tabs VALUES (?, ?, ?, ?, ?)",
                (self._network, self._payer, node, step.tab.promised, step.tab.bytes),
            )
            self._db.execute(
                "UPDATE reading_cover SET cover = cover - ? WHERE network = ? AND payer = ?",
                (step.amount, self._network, self._payer),
            )
            return step

        return self._do("making a promise", lambda: self._in_transaction(act))

    def cover(self) -> tuple[int, int]:
        """Money that no promise counts on, as far as is known here; the ledger's epoch when it was last asked."""
        return self._do("looking at the purse", self._cover)

    def set_cover(self, available: int, epoch: int, paid: Mapping[bytes, int]) -> int:
        """`available`: the deposit as it is on the ledger; `paid`: cumulative, by node, as it is there. A node that was paid
        more than this file remembers was promised it by a file that is lost. Returns what no promise counts on."""

        def act() -> int:
            for node, amount in sorted(paid.items()):
                self._db.execute(
                    "INSERT INTO reading_tabs VALUES (?, ?, ?, ?, 0) "
                    "ON CONFLICT DO UPDATE SET promised = max(promised, excluded.promised)",
                    (self._network, self._payer, node, amount),
                )
            query = "SELECT node, promised FROM reading_tabs WHERE network = ? AND payer = ?"
            rows = self._db.execute(query, (self._network, self._payer)).fetchall()
            open_promises: int = sum(promised - paid.get(node, 0) for node, promised in rows)
            cover = max(0, available - open_promises)
            row = (self._network, self._payer, cover, epoch)
            self._db.execute("INSERT OR REPLACE INTO reading_cover VALUES (?, ?, ?, ?)", row)
            return cover

        return self._do("counting the deposit", lambda: self._in_transaction(act))

    def _tab(self, node: bytes) -> Tab:
        query = "SELECT promised, bytes FROM reading_tabs WHERE network = ? AND payer = ? AND node = ?"
        row = self._db.execute(query, (self._network, self._payer, node)).fetchone()
        return Tab() if row is None else Tab(*row)

    def _cover(self) -> tuple[int, int]:
        query = "SELECT cover, epoch FROM reading_cover WHERE network = ? AND payer = ?"
        row = self._db.execute(query, (self._network, self._payer)).fetchone()
        return (0, 0) if row is None else (row[0], row[1])

    def _others(self, node: bytes) -> int:
        query = "SELECT coalesce(sum(promised), 0) FROM reading_tabs WHERE network = ? AND payer != ? AND node = ?"
        total: int = self._db.execute(query, (self._network, self._payer, node)).fetchone()[0]
        return total

    def _do(self, doing: str, action: Callable[[], T]) -> T:
        with disk_errors(doing), self._lock:
            try:
                return action()
            except sqlite3.Error as error:
                raise StorageError(f"{error} while {doing}", hint="does another process hold the catalog?") from None

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

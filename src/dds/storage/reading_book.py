"""What a node keeps of its readers over a restart (SQLite): their accounts, and the vouchers that it holds.

    accounts   one row a reader: what it read, owes and may still read for nothing; written in batches, a second or so behind
    vouchers   the best voucher of each (reader, payer): durable before it is acknowledged; stays when it is redeemed, since
               what it was good for is part of the account

Decides nothing about money (protocol/reading_account.py). Another process may read the file while the node writes it.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from dds.primitives.errors import ConfigError, StorageError
from dds.protocol.reading_account import Promise, ReaderAccount
from dds.storage.fileops import disk_errors

T = TypeVar("T")
BOOK_VERSION: Final = 1
BUSY_TIMEOUT_S: Final = 30.0
PARTS_BYTES: Final = 16  # bytes x price outgrows SQLite's integers

_SCHEMA: Final = """
CREATE TABLE accounts(reader BLOB PRIMARY KEY, at_ms INT, free_bytes INT, rest INT, read_bytes INT, owed BLOB) WITHOUT ROWID;
CREATE TABLE vouchers(reader BLOB, payer BLOB, cumulative INT, base INT, covered INT, redeemed INT, voucher BLOB,
grant_file BLOB, PRIMARY KEY(reader, payer)) WITHOUT ROWID;
"""
_PUT_ACCOUNT: Final = "INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class HeldVoucher:
    """`payer`: its account, followed by the grant's name where there is one. Amounts are cumulative, in base units."""

    reader: bytes
    payer: bytes
    cumulative: int
    base: int
    covered: int
    redeemed: int  # paid on the ledger
    voucher: bytes
    grant: bytes = b""


@dataclass(frozen=True, slots=True)
class Earnings:
    """All accounts together. Money in base units."""

    readers: int
    read_bytes: int
    owed: int  # by reads beyond the free ones, in the time that the accounts remember
    promised: int  # by the vouchers held
    redeemed: int  # of it, on the ledger
    covered: int  # of what is not redeemed, with money behind it when the ledger was last asked


def _account_row(reader: bytes, account: ReaderAccount) -> tuple[bytes, int, int, int, int, bytes]:
    owed = account.owed_parts.to_bytes(PARTS_BYTES, "big")
    return reader, account.at_ms, account.free_bytes, account.rest, account.read_bytes, owed


class ReadingBook:
    """Safe to use from several threads; one process writes."""

    def __init__(self, path: Path) -> None:
        """Open the file, making it (mode 0600) where there is none.

        Raises:
            ConfigError: it is no such file, or of a newer release.
            StorageError
        """
        self.path = path
        self._lock = threading.Lock()
        with disk_errors(f"opening the readers' accounts {path}"):
            path.touch(mode=0o600)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> None:
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{self.path} does not hold readers' accounts: {error}", hint="move it away") from None
        if version == 0:
            self._db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {BOOK_VERSION};COMMIT;")
        elif version != BOOK_VERSION:
            raise ConfigError(f"{self.path} is of version {version}", hint="upgrade dds")

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # ---- accounts

    def accounts(self) -> list[tuple[bytes, ReaderAccount]]:
        """All, with their promises; the reader that was longest away first."""
        promises: dict[bytes, dict[bytes, Promise]] = {}
        for held in self.vouchers():
            promises.setdefault(held.reader, {})[held.payer] = Promise(held.cumulative, held.base, held.covered)
        query = "SELECT reader, at_ms, free_bytes, rest, read_bytes, owed FROM accounts ORDER BY at_ms, reader"
        return [
            (reader, ReaderAccount(at, free, rest, read, int.from_bytes(owed, "big"), promises.get(reader, {})))
            for reader, at, free, rest, read, owed in self._do("reading accounts", lambda: self._db.execute(query).fetchall())
        ]

    def save(self, changed: Iterable[tuple[bytes, ReaderAccount]], forgotten: Sequence[bytes]) -> None:
        """Durable when this returns. Who is forgotten leaves its vouchers here until they are redeemed.

        Raises:
            StorageError
        """
        rows = [_account_row(reader, account) for reader, account in changed]

        def write() -> None:
            self._db.executemany("DELETE FROM accounts WHERE reader = ?", [(reader,) for reader in forgotten])
            self._db.executemany(
                "DELETE FROM vouchers WHERE reader = ? AND redeemed >= min(cumulative, covered)",
                [(reader,) for reader in forgotten],
            )
            self._db.executemany(_PUT_ACCOUNT, rows)

        self._do("saving accounts", lambda: self._in_transaction(write))

    # ---- vouchers

    def keep_voucher(self, held: HeldVoucher, account: ReaderAccount) -> None:
        """The best of its reader and payer, in place of the one before, with the account; durable when this returns.

        Raises:
            StorageError
        """
        row = (held.reader, held.payer, held.cumulative, held.base, held.covered, held.redeemed, held.voucher, held.grant)
        account_row = _account_row(held.reader, account)
        statement = (
            "INSERT INTO vouchers VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(reader, payer) DO UPDATE SET "
            "cumulative = excluded.cumulative, covered = excluded.covered, redeemed = max(redeemed, excluded.redeemed), "
            "voucher = excluded.voucher, grant_file = excluded.grant_file WHERE excluded.cumulative >= cumulative"
        )

        def keep() -> None:
            self._db.execute(_PUT_ACCOUNT, account_row)
            self._db.execute(statement, row)

        self._do("keeping a voucher", lambda: self._in_transaction(keep))

    def note_ledger(self, rows: Sequence[tuple[bytes, bytes, int, int]]) -> None:
        """(reader, payer, covered, redeemed) as the ledger has it now. Done vouchers of forgotten readers go.

        Raises:
            StorageError
        """
        values = [(covered, redeemed, reader, payer) for reader, payer, covered, redeemed in rows]

        def note() -> None:
            self._db.executemany("UPDATE vouchers SET covered = ?, redeemed = ? WHERE reader = ? AND payer = ?", values)
            self._db.execute(
                "DELETE FROM vouchers WHERE redeemed >= cumulative AND reader NOT IN (SELECT reader FROM accounts)"
            )

        self._do("noting what was paid", lambda: self._in_transaction(note))

    def vouchers(self) -> list[HeldVoucher]:
        query = "SELECT reader, payer, cumulative, base, covered, redeemed, voucher, grant_file FROM vouchers"
        rows = self._do("reading vouchers", lambda: self._db.execute(query + " ORDER BY reader, payer").fetchall())
        return [HeldVoucher(*row) for row in rows]

    def earnings(self) -> Earnings:
        """
        Raises:
            StorageError
        """
        accounts, held = self.accounts(), self.vouchers()
        return Earnings(
            readers=len(accounts),
            read_bytes=sum(account.read_bytes for _, account in accounts),
            owed=sum(account.owed - account.bases for _, account in accounts),
            promised=sum(each.cumulative for each in held),
            redeemed=sum(each.redeemed for each in held),
            covered=sum(max(0, min(each.cumulative, each.covered) - each.redeemed) for each in held),
        )

    # ---- SQLite

    def _do(self, doing: str, action: Callable[[], T]) -> T:
        with disk_errors(doing), self._lock:
            try:
                return action()
            except sqlite3.Error as error:
                raise StorageError(f"{error} while {doing} in {self.path}") from None

    def _in_transaction(self, action: Callable[[], object]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            action()
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

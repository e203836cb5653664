"""One ledger on disk: its state, blocks and events in SQLite, changed by one transaction a block.

    head     one row: height, time, root, and which genesis all of it began with
    state    (bucket, key) -> value      the committed entries (ledger/tree.py says which bucket a key is in)
    leaves   bucket -> its leaf          so that opening reads 2^16 short rows and not the state
    blocks   height -> the transactions as they came, and what became of each
    txs      transaction id -> where it is, and its events: only those that used their nonce up
    events   in the order they happened; found by account, node, contract and segment

Decides that a block is there whole or not at all: after `kill -9`, or a power loss (WAL, synchronous=FULL), height, state and
root belong together. Knows no rule and does not compute what it keeps. One process at a time uses a ledger.
Source: docs/spec/ledger.md, "State"; https://www.sqlite.org/wal.html.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from dds.ledger.tree import bucket_of
from dds.primitives.errors import ConfigError
from dds.storage.fileops import FILE_MODE, disk_errors
from dds.wire.codec import Message, decode, encode

FORMAT_VERSION: Final = 1
CACHE_KIB: Final = 32_768
BLOCK_RECORD_BYTES_MAX: Final = 256 << 20  # other engines make larger blocks than ours does
_APPLICATION_ID: Final = 0x4444534C  # "DDSL"

_SCHEMA: Final = """
CREATE TABLE head(id INTEGER PRIMARY KEY CHECK(id = 0), height INT, time_ms INT, root BLOB, genesis BLOB);
CREATE TABLE state(bucket INT, key BLOB, value BLOB, PRIMARY KEY(bucket, key)) WITHOUT ROWID;
CREATE TABLE leaves(bucket INTEGER PRIMARY KEY, leaf BLOB);
CREATE TABLE blocks(height INTEGER PRIMARY KEY, record BLOB);
CREATE TABLE txs(tx_id BLOB PRIMARY KEY, height INT, position INT, first_seq INT, events INT) WITHOUT ROWID;
CREATE TABLE events(seq INTEGER PRIMARY KEY, height INT, tx_id BLOB, tx_name TEXT, account BLOB, node INT, contract BLOB,
    segment BLOB, event BLOB);
CREATE INDEX events_account ON events(account, seq) WHERE account IS NOT NULL;
CREATE INDEX events_node ON events(node, seq) WHERE node IS NOT NULL;
CREATE INDEX events_contract ON events(contract, seq) WHERE contract IS NOT NULL;
CREATE INDEX events_segment ON events(segment, seq) WHERE segment IS NOT NULL;
"""


@dataclass(frozen=True, slots=True)
class StoredHead:
    height: int
    time_ms: int
    root: bytes
    genesis_hash: bytes


class BlockRecord(Message, frozen=True):
    """A block as it is kept: what came in, and each transaction's code and message."""

    time_ms: int
    root: bytes
    txs: tuple[bytes, ...]
    codes: tuple[str, ...]
    messages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EventEntry:
    """An event and what it is found by; None: not by that."""

    event: bytes
    account: bytes | None
    node: int | None
    contract: bytes | None
    segment: bytes | None


@dataclass(frozen=True, slots=True)
class TxEntry:
    """What a transaction left behind; `tx_id` is empty for an epoch's change. `used`: it used its nonce up."""

    tx_id: bytes
    name: str
    position: int
    used: bool
    events: Sequence[EventEntry]


@dataclass(frozen=True, slots=True)
class StoredEvent:
    seq: int
    height: int
    tx_id: bytes
    tx_name: str
    event: bytes


@dataclass(frozen=True, slots=True)
class TxPlace:
    height: int
    position: int
    first_seq: int
    events: int


class LedgerStore:
    """Safe for threads; `commit` is for one of them."""

    def __init__(self, path: Path, *, factory: type[sqlite3.Connection] = sqlite3.Connection) -> None:
        """Open the file, making it (mode 0600) where there is none. `factory` makes the connection that writes.

        Raises:
            ConfigError: not a ledger, of another release, or in use by another process.
            StorageError: the disk failed.
        """
        self.path = path
        self._lock = threading.Lock()  # of the connection that reads
        with disk_errors(f"opening the ledger {path}"):
            self._guard = _lock_file(path.with_name(path.name + ".lock"))
            try:
                path.touch(mode=FILE_MODE)
                self._writer = _connect(path, factory)
                _prepare(self._writer, path)
                self._reader = _connect(path, sqlite3.Connection)
            except BaseException:
                self._guard.close()
                raise
        self._seq = int(self._row("SELECT coalesce(max(seq), 0) FROM events")[0])

    def close(self) -> None:
        with self._lock:
            self._reader.close()
            self._writer.close()
            self._guard.close()

    # ---- what is there

    def head(self) -> StoredHead | None:
        """None: nothing was ever committed."""
        row = self._row("SELECT height, time_ms, root, genesis FROM head")
        return None if row is None else StoredHead(*row)

    def bucket(self, number: int) -> list[tuple[bytes, bytes]]:
        """A bucket's (key, value), ascending by key."""
        return self._rows("SELECT key, value FROM state WHERE bucket = ? ORDER BY key", number)

    def leaves(self) -> list[tuple[int, bytes]]:
        return self._rows("SELECT bucket, leaf FROM leaves")

    def entries(self) -> Iterator[tuple[bytes, bytes]]:
        """The whole state by bucket and key, from a snapshot of its own: for whoever recomputes the root."""
        with disk_errors(f"reading the ledger {self.path}"):
            snapshot = _connect(self.path, sqlite3.Connection)
            try:
                yield from snapshot.execute("SELECT key, value FROM state ORDER BY bucket, key")
            finally:
                snapshot.close()

    def block(self, height: int) -> BlockRecord | None:
        row = self._row("SELECT record FROM blocks WHERE height = ?", height)
        return None if row is None else decode(row[0], BlockRecord, max_bytes=BLOCK_RECORD_BYTES_MAX)

    def place_of(self, tx_id: bytes) -> TxPlace | None:
        """Where a transaction is that used its nonce up."""
        row = self._row("SELECT height, position, first_seq, events FROM txs WHERE tx_id = ?", tx_id)
        return None if row is None else TxPlace(*row)

    def events(self, filters: Mapping[str, Any], after: int, limit: int) -> list[StoredEvent]:
        """Events behind the cursor `after`, oldest first, at most `limit`.

        `filters`: any of account, node, contract, segment, tx_id; all must hold.
        """
        assert filters.keys() <= {"account", "node", "contract", "segment", "tx_id"}
        first, last = after + 1, self._seq
        wanted = dict(filters)
        tx_id = wanted.pop("tx_id", None)
        if tx_id is not None:
            place = self.place_of(tx_id) or TxPlace(0, 0, 1, 0)
            first, last = max(first, place.first_seq), place.first_seq + place.events - 1
        where = "".join(f" AND {name} = ?" for name in wanted)
        query = f"SELECT seq, height, tx_id, tx_name, event FROM events WHERE seq BETWEEN ? AND ?{where} ORDER BY seq LIMIT ?"  # noqa: S608 - names from the set above
        rows = self._rows(query, first, last, *wanted.values(), limit)
        return [StoredEvent(seq, height, tx_id or b"", name, event) for seq, height, tx_id, name, event in rows]

    # ---- one block

    def commit(
        self,
        head: StoredHead,
        changes: Mapping[bytes, bytes | None],
        leaves: Iterable[tuple[int, bytes]],
        record: BlockRecord | None,
        txs: Sequence[TxEntry],
    ) -> None:
        """Make a block durable: all of this or nothing. `record` is None for the genesis.

        Raises:
            StorageError, DiskFullError: nothing was changed.
        """
        seq = self._seq
        with disk_errors(f"writing block {head.height} of the ledger {self.path}"), self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", _upserts(changes))
            db.executemany("DELETE FROM state WHERE bucket = ? AND key = ?", _deletes(changes))
            db.executemany("INSERT OR REPLACE INTO leaves VALUES (?, ?)", leaves)
            if record is not None:
                db.execute("INSERT INTO blocks VALUES (?, ?)", (head.height, encode(record)))
            events: list[tuple[Any, ...]] = []
            places: list[tuple[Any, ...]] = []
            for tx in txs:
                if tx.used:
                    places.append((tx.tx_id, head.height, tx.position, seq + len(events) + 1, len(tx.events)))
                for number, entry in enumerate(tx.events, seq + len(events) + 1):
                    events.append((number, head.height, tx.tx_id or None, tx.name, *_columns(entry)))
            db.executemany("INSERT INTO txs VALUES (?, ?, ?, ?, ?)", places)
            db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", events)
            row = (head.height, head.time_ms, head.root, head.genesis_hash)
            db.execute("INSERT OR REPLACE INTO head VALUES (0, ?, ?, ?, ?)", row)
        self._seq = seq + len(events)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield self._writer
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise

    def _row(self, query: str, *values: Any) -> Any:
        with disk_errors(f"reading the ledger {self.path}"), self._lock:
            return self._reader.execute(query, values).fetchone()

    def _rows(self, query: str, *values: Any) -> list[Any]:
        with disk_errors(f"reading the ledger {self.path}"), self._lock:
            return self._reader.execute(query, values).fetchall()


def _upserts(changes: Mapping[bytes, bytes | None]) -> Iterator[tuple[int, bytes, bytes]]:
    return ((bucket_of(key), key, value) for key, value in changes.items() if value is not None)


def _deletes(changes: Mapping[bytes, bytes | None]) -> Iterator[tuple[int, bytes]]:
    return ((bucket_of(key), key) for key, value in changes.items() if value is None)


def _columns(entry: EventEntry) -> tuple[Any, ...]:
    return entry.account, entry.node, entry.contract, entry.segment, entry.event


def _connect(path: Path, factory: type[sqlite3.Connection]) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, factory=factory)
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    try:
        db.execute("PRAGMA journal_mode = WAL")
    except sqlite3.DatabaseError as error:
        raise ConfigError(f"{path} is not a ledger: {error}", hint="the file is damaged or another program's") from None
    db.execute("PRAGMA synchronous = FULL")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == FORMAT_VERSION and db.execute("PRAGMA application_id").fetchone()[0] == _APPLICATION_ID:
        return
    if version or db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise ConfigError(f"{path} is not a ledger of format {FORMAT_VERSION} (it says {version})", hint="upgrade dds")
    marks = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {FORMAT_VERSION};"
    db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} {marks} COMMIT")


def _lock_file(path: Path) -> BinaryIO:
    """Held until it is closed, or its process ends."""
    file = open(path, "ab", opener=_open_private)  # noqa: SIM115 - the store closes it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(
            f"the ledger {path.with_suffix('')} is in use by another process", hint="stop that process first"
        ) from None
    except BaseException:
        file.close()
        raise
    return file


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)

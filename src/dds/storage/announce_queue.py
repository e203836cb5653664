"""The announce queue on disk: what a node keeps announced, in the order in which it is due (SQLite, WAL).

Decides how the queue is kept: memory does not grow with it, and a process that is killed loses nothing that was due: an
announcement stays in its place until `reschedule` is told what came of it. Does not decide when something is due
(protocol/announce.py). What was added or rescheduled in the last moments before a power loss may be as before; then it is
said once more, or offered again by the store at the start.

The file that releases before it wrote, announce.state, held the whole queue; it is read once and removed (`take_over`).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from dds.primitives.errors import ConfigError, FormatError, LimitError
from dds.protocol.announce import ANNOUNCEMENTS_MAX, REPEAT_MS, Announcement, Lane, Turn
from dds.storage.fileops import FILE_MODE, disk_errors
from dds.wire.codec import Message, decode
from dds.wire.discovery import SIGNED_RECORD_BYTES_MAX

QUEUE_VERSION: Final = 1
CACHE_KIB: Final = 2048
RENEW_ROWS: Final = 5000  # of one transaction of `renew_step`
OLD_STATE_VERSION: Final = 1
OLD_STATE_BYTES_MAX: Final = 256 << 20
TAKE_OVER_ROWS: Final = 2000

_SCHEMA = """
CREATE TABLE queue(
  id INTEGER PRIMARY KEY AUTOINCREMENT, code INT NOT NULL, subject BLOB NOT NULL, detail TEXT NOT NULL,
  lane INT NOT NULL, due_ms INT NOT NULL, failures INT NOT NULL, signed BLOB NOT NULL, until_ms INT NOT NULL,
  UNIQUE(subject, code, detail));
CREATE INDEX queue_due ON queue(lane, due_ms);
"""
_ADD = (
    "INSERT INTO queue(code, subject, detail, lane, due_ms, failures, signed, until_ms) VALUES(?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT(subject, code, detail) DO UPDATE SET lane = excluded.lane, due_ms = excluded.due_ms, failures = 0, "
    "signed = excluded.signed, until_ms = excluded.until_ms WHERE signed != excluded.signed OR until_ms != excluded.until_ms"
)


@dataclass(frozen=True, slots=True)
class Queued:
    """An announcement in its place. `id` is never used again for another."""

    id: int
    announcement: Announcement
    turn: Turn


class _OldEntry(Message, frozen=True):
    announcement: Announcement
    due_ms: int
    failures: int


class _OldState(Message, frozen=True):
    version: int
    entries: list[_OldEntry]


class AnnounceQueue:
    """For one process; its threads take turns. Every method may block on the disk."""

    def __init__(self, path: Path) -> None:
        """Open the queue, making its file where there is none.

        Raises:
            ConfigError: not a queue, or a newer release's.
            StorageError
        """
        self._path = path
        self._lock = threading.Lock()
        with disk_errors(f"opening the announce queue {path}"):
            path.touch(mode=FILE_MODE)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            try:
                self._count = self._prepare()
            except BaseException:
                self._db.close()
                raise

    def _prepare(self) -> int:
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            hint = "move it away: a new one is made from what the store holds"
            raise ConfigError(f"{self._path} is not an announce queue: {error}", hint=hint) from None
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {QUEUE_VERSION}; COMMIT;")
        elif version != QUEUE_VERSION:
            raise ConfigError(f"{self._path} is an announce queue of version {version}", hint="upgrade dds")
        return int(self._db.execute("SELECT count(*) FROM queue").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __len__(self) -> int:
        return self._count

    def add(self, wanted: Sequence[tuple[Announcement, Turn]]) -> int:
        """Announce from now on. How many are new; what is kept already keeps its turn, unless its record changed.

        Raises:
            LimitError: ANNOUNCEMENTS_MAX are kept already; those that fitted are in.
        """
        fitting = wanted[: max(0, ANNOUNCEMENTS_MAX - self._count)]
        with self._writing("adding announcements"):
            before, known = self._db.total_changes, self._last_id()
            self._db.executemany(_ADD, [_row(announcement, turn) for announcement, turn in fitting])
            changed = self._db.total_changes - before
            query = "SELECT count(*) FROM queue WHERE id > ?"
            self._count += int(self._db.execute(query, (known,)).fetchone()[0])
        if len(fitting) < len(wanted):
            raise LimitError(f"more than {ANNOUNCEMENTS_MAX} announcements", hint="the node goes on with those it has")
        return changed

    def _last_id(self) -> int:
        return int(self._db.execute("SELECT ifnull(max(id), 0) FROM queue").fetchone()[0])

    def remove(self, unwanted: Iterable[Announcement]) -> int:
        """Stop announcing; what lies in the DHT expires by itself. How many there were."""
        query = "DELETE FROM queue WHERE code = ? AND subject = ? AND detail = ?"
        with self._writing("withdrawing announcements"):
            before = self._db.total_changes
            self._db.executemany(query, [each.identity for each in unwanted])
            removed = self._db.total_changes - before
            self._count -= removed
        return removed

    def subjects(self, code: int, detail: str, limit: int) -> list[bytes]:
        """What announcements of this kind and detail are about, the oldest first, at most `limit`."""
        query = "SELECT subject FROM queue WHERE code = ? AND detail = ? ORDER BY id LIMIT ?"
        with disk_errors("reading the announce queue"), self._lock:
            return [bytes(subject) for (subject,) in self._db.execute(query, (code, detail, limit))]

    def due(self, now_ms: int, limit: int) -> list[Queued]:
        """Up to `limit` whose time has come, the first lane first. They stay in their places until they are rescheduled."""
        query = (
            "SELECT id, code, subject, detail, lane, due_ms, failures, signed, until_ms FROM queue "
            "WHERE lane = ? AND due_ms <= ? ORDER BY due_ms LIMIT ?"
        )
        found: list[Queued] = []
        with disk_errors("reading the announce queue"), self._lock:
            for lane in Lane:
                rows = self._db.execute(query, (int(lane), now_ms, limit - len(found))).fetchall()
                found += [
                    Queued(number, Announcement(code, subject, detail, signed, until_ms), Turn(lane, due_ms, failures))
                    for number, code, subject, detail, _, due_ms, failures, signed, until_ms in rows
                ]
        return found

    def reschedule(self, turns: Sequence[tuple[Queued, Turn]]) -> None:
        """Give announcements that `due` gave their next turns; what was withdrawn or changed meanwhile stays so."""
        with self._writing("rescheduling announcements"):
            self._db.executemany(
                "UPDATE queue SET lane = ?, due_ms = ?, failures = ? WHERE id = ? AND lane = ? AND due_ms = ?",
                [
                    (int(turn.lane), turn.due_ms, turn.failures, said.id, int(said.turn.lane), said.turn.due_ms)
                    for said, turn in turns
                ],
            )

    def next_due_ms(self) -> int | None:
        """When `due` next has something; None if nothing waits."""
        query = "SELECT min(due_ms) FROM queue WHERE lane = ?"
        with disk_errors("reading the announce queue"), self._lock:
            times = [self._db.execute(query, (int(lane),)).fetchone()[0] for lane in Lane]
        return min((int(time) for time in times if time is not None), default=None)

    def renew_step(self, after: int, now_ms: int) -> int | None:
        """Make some of our own due now, those behind the id `after`; the id to go on behind, None at the end."""
        with self._writing("renewing announcements"):
            query = "SELECT max(id) FROM (SELECT id FROM queue WHERE id > ? ORDER BY id LIMIT ?)"
            last = self._db.execute(query, (after, RENEW_ROWS)).fetchone()[0]
            if last is None:
                return None
            change = "UPDATE queue SET due_ms = ? WHERE id > ? AND id <= ? AND length(signed) = 0 AND due_ms > ?"
            self._db.execute(change, (now_ms, after, last, now_ms))
        return int(last)

    def bring_forward(self, latest_ms: int) -> None:
        """No turn later than this: a clock that was far ahead must not silence the node."""
        with self._writing("checking the announce queue"):
            for lane in Lane:
                self._db.execute("UPDATE queue SET due_ms = ? WHERE lane = ? AND due_ms > ?", (latest_ms, int(lane), latest_ms))

    def take_over(self, state_file: Path, now_ms: int) -> int:
        """Move the queue of an older release here, with its turns, and remove its file. How many; 0 where there is none.

        A crash in between repeats it, which changes nothing.

        Raises:
            FormatError: not a state that a release wrote; it is left as it is.
        """
        with disk_errors(f"reading {state_file}"):
            if not state_file.exists():
                return 0
            old = decode(state_file.read_bytes(), _OldState, max_bytes=OLD_STATE_BYTES_MAX)
        if old.version != OLD_STATE_VERSION:
            raise FormatError(f"an announcement queue of version {old.version}")
        taken, entries = 0, _old_entries(old.entries, now_ms + REPEAT_MS)
        while batch := list(islice(entries, TAKE_OVER_ROWS)):
            taken += self.add(batch)
        with disk_errors(f"removing {state_file}"), self._lock:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # durable before the old file goes
            state_file.unlink()
        return taken

    @contextmanager
    def _writing(self, doing: str) -> Iterator[None]:
        """One transaction, in this thread's turn."""
        with disk_errors(doing), self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def _row(announcement: Announcement, turn: Turn) -> tuple[object, ...]:
    code, subject, detail = announcement.identity
    signed, until_ms = announcement.signed, announcement.until_ms
    return code, subject, detail, int(turn.lane), turn.due_ms, turn.failures, signed, until_ms


def _old_entries(entries: Iterable[_OldEntry], latest_ms: int) -> Iterator[tuple[Announcement, Turn]]:
    for entry in entries:
        if len(entry.announcement.signed) > SIGNED_RECORD_BYTES_MAX:
            raise FormatError("an announcement with an oversized record")
        yield entry.announcement, Turn(Lane.REPEATED, min(entry.due_ms, latest_ms), max(entry.failures, 0))

"""What a node tells the DHT, and when it says it again.

Decides: the order and times of announcements (at half of a record's life, with jitter; with growing pauses after a failure)
and their bounds. Does not sign, seal or put anything (runtime/announce.py). Source: docs/spec/discovery.md, "Announcing".

The queue names what is to be said, not the record: addresses and times are filled in when it is said. The exception is a
publisher's own record, which a node without the publisher's key repeats as it is until it expires. Records lie in the DHT
for a day, so restarting a node with 200,000 announcements must not repeat them: due times are part of the saved state.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from dds.primitives.errors import FormatError, LimitError
from dds.primitives.hashing import tagged_hash
from dds.wire.codec import Message, decode, encode
from dds.wire.discovery import PROVIDER_LIFETIME_MS, SIGNED_RECORD_BYTES_MAX

ANNOUNCEMENTS_MAX: Final = 200_000  # at 20 a second, repeating all takes 3 hours of every 12
REPEAT_MS: Final = PROVIDER_LIFETIME_MS // 2
JITTER_FRACTION: Final = 8  # a repetition comes up to 1/8 earlier
RETRY_MS_MIN: Final = 10_000
RETRY_MS_MAX: Final = 30 * 60_000
STATE_VERSION: Final = 1
STATE_BYTES_MAX: Final = 256 << 20


class Announcement(Message, frozen=True):
    """One thing to keep announced. (code, subject, detail) is its identity."""

    code: int  # wire.discovery Kind.code
    subject: bytes  # ContentID or segment id
    detail: str = ""  # a content provider's kind, or a segment's fragment index in decimal
    signed: bytes = b""  # a record signed by someone else, repeated as it is
    until_ms: int = 0  # with `signed`: when it expires; 0 means until withdrawn

    @property
    def identity(self) -> tuple[int, bytes, str]:
        return self.code, self.subject, self.detail


class _Saved(Message, frozen=True):
    announcement: Announcement
    due_ms: int
    failures: int


class _State(Message, frozen=True):
    version: int
    entries: list[_Saved]


@dataclass(frozen=True)
class _Entry:
    announcement: Announcement
    due_ms: int
    failures: int = 0
    taken: bool = False  # handed out, the outcome not known yet
    turn: int = 0  # changes with each rescheduling, so that old heap items are recognised


class AnnounceQueue:
    """A pure queue: times come in, announcements go out.

    Args:
        seed: decides the jitter; a node uses a secret of its own, so that nodes do not repeat in step.
    """

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._entries: dict[tuple[int, bytes, str], _Entry] = {}
        self._heap: list[tuple[int, int, tuple[int, bytes, str]]] = []
        self._turns = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, announcement: Announcement) -> bool:
        return announcement.identity in self._entries

    def add(self, announcement: Announcement, now_ms: int) -> bool:
        """Announce from now on. Whether that is new: what is announced already keeps its time, unless its record changed.

        Raises:
            LimitError: ANNOUNCEMENTS_MAX are kept already.
        """
        known = self._entries.get(announcement.identity)
        if known is not None and known.announcement == announcement:
            return False
        if known is None and len(self._entries) >= ANNOUNCEMENTS_MAX:
            raise LimitError(f"more than {ANNOUNCEMENTS_MAX} announcements")
        self._schedule(_Entry(announcement, now_ms))
        return True

    def withdraw(self, announcement: Announcement) -> None:
        """Stop announcing; what lies in the DHT expires by itself."""
        self._entries.pop(announcement.identity, None)

    def renew_all(self, now_ms: int) -> None:
        """Say everything again soon: our addresses have changed."""
        for entry in list(self._entries.values()):
            if not entry.announcement.signed:
                self._schedule(replace(entry, due_ms=now_ms, taken=False))

    def due(self, now_ms: int, limit: int) -> list[Announcement]:
        """Up to `limit` announcements whose time has come; each is out until `done` is told its outcome."""
        batch: list[Announcement] = []
        while self._heap and len(batch) < limit and self._heap[0][0] <= now_ms:
            _, turn, identity = heapq.heappop(self._heap)
            entry = self._entries.get(identity)
            if entry is None or entry.turn != turn:
                continue
            if 0 < entry.announcement.until_ms <= now_ms:
                del self._entries[identity]
                continue
            self._entries[identity] = replace(entry, taken=True)
            batch.append(entry.announcement)
        return batch

    def done(self, announcement: Announcement, ok: bool, now_ms: int) -> None:
        """The outcome of one that `due` gave."""
        entry = self._entries.get(announcement.identity)
        if entry is None or not entry.taken or entry.announcement != announcement:
            return
        failures = 0 if ok else entry.failures + 1
        pause = REPEAT_MS if ok else min(RETRY_MS_MIN << min(failures - 1, 16), RETRY_MS_MAX)
        self._schedule(_Entry(announcement, now_ms + pause - self._jitter(announcement, now_ms, pause), failures))

    def next_due_ms(self) -> int | None:
        """When `due` next has something; None if nothing waits."""
        while self._heap:
            due_ms, turn, identity = self._heap[0]
            entry = self._entries.get(identity)
            if entry is not None and entry.turn == turn:
                return due_ms
            heapq.heappop(self._heap)
        return None

    def to_state(self) -> bytes:
        """Everything but the seed."""
        entries = [_Saved(entry.announcement, entry.due_ms, entry.failures) for entry in self._entries.values()]
        return encode(_State(STATE_VERSION, entries))

    def restore(self, state: bytes, now_ms: int) -> None:
        """Take over a saved state; what was out when it was saved is due at its old time, so at once.

        Raises:
            FormatError: not a state that this release wrote.
        """
        saved = decode(state, _State, max_bytes=STATE_BYTES_MAX)
        if saved.version != STATE_VERSION or len(saved.entries) > ANNOUNCEMENTS_MAX:
            raise FormatError(f"an announcement queue of version {saved.version} with {len(saved.entries)} entries")
        self._restore(saved.entries, now_ms + REPEAT_MS)

    def _restore(self, entries: Iterable[_Saved], latest_ms: int) -> None:
        for entry in entries:
            if len(entry.announcement.signed) > SIGNED_RECORD_BYTES_MAX:
                raise FormatError("an announcement with an oversized record")
            # A clock that was wrong when the state was saved must not silence the node for longer than one period.
            self._schedule(_Entry(entry.announcement, min(entry.due_ms, latest_ms), max(entry.failures, 0)))

    def _schedule(self, entry: _Entry) -> None:
        self._turns += 1
        identity = entry.announcement.identity
        self._entries[identity] = replace(entry, turn=self._turns)
        heapq.heappush(self._heap, (entry.due_ms, self._turns, identity))
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [(e.due_ms, e.turn, i) for i, e in self._entries.items() if not e.taken]
            heapq.heapify(self._heap)

    def _jitter(self, announcement: Announcement, now_ms: int, pause_ms: int) -> int:
        subject, detail = announcement.subject, announcement.detail.encode()
        drawn = tagged_hash(b"dds/announce-jitter/v1", self._seed, now_ms.to_bytes(8, "big"), subject, detail)
        return int.from_bytes(drawn[:8], "big") % (pause_ms // JITTER_FRACTION + 1)

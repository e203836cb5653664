"""What a node tells the DHT, and when it says it again.

Decides the order and times of announcements: what comes first, how often each is repeated (as often as the allowed rate
permits, with jitter), the growing pauses after a failure, how long a record is good for, and how fast puts may follow each
other. Keeps no queue (storage/announce_queue.py does, on disk) and signs or puts nothing (runtime/announce.py).
Source: docs/spec/discovery.md, "Announcing"; the numbers: docs/adr/0027-announcing-at-scale.md.

An announcement names what is to be said, not the record: addresses and times are filled in when it is said. The exception is
a publisher's own record, which a node without the publisher's key repeats as it is until it expires.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from dds.primitives.hashing import tagged_hash
from dds.wire.codec import Message
from dds.wire.discovery import PROVIDER_LIFETIME_MS, PROVIDER_LIFETIME_MS_MAX

ANNOUNCEMENTS_MAX: Final = 4_000_000  # kept by one node: some 600 MB of disk, and no memory
REPEAT_MS: Final = PROVIDER_LIFETIME_MS // 2
REPEAT_MS_MAX: Final = PROVIDER_LIFETIME_MS_MAX // 2
JITTER_FRACTION: Final = 8  # a repetition comes up to 1/8 earlier
USED_PERCENT: Final = 80  # of the rate that repetitions are planned for; the rest is for retries and what is new
RETRY_MS_MIN: Final = 10_000
RETRY_MS_MAX: Final = 30 * 60_000


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


class Lane(IntEnum):
    """What goes first among all that is due: something new must not wait behind hours of repetitions."""

    NEW = 0
    REPEATED = 1
    HINTED = 2  # a manifest names us as the holder already: found without the DHT as long as we stay where we are


@dataclass(frozen=True, slots=True)
class Turn:
    """When an announcement is next said, and in which lane."""

    lane: Lane
    due_ms: int
    failures: int = 0


class Schedule:
    """Times of announcements, a pure function of what is passed in.

    Args:
        seed: decides the jitter; a node uses a secret of its own, so that nodes do not repeat in step.
        puts_per_s: what may be put in the long run.
    """

    def __init__(self, seed: bytes, puts_per_s: float) -> None:
        assert puts_per_s > 0
        self._seed = seed
        self._puts_per_s = puts_per_s

    def first(self, now_ms: int, *, delay_ms: int = 0, hinted: bool = False) -> Turn:
        """Something new: due after the delay."""
        return Turn(Lane.HINTED if hinted else Lane.NEW, now_ms + delay_ms)

    def after(self, announcement: Announcement, turn: Turn, ok: bool, now_ms: int, count: int) -> Turn:
        """The turn that follows one with this outcome; `count`: all that this node keeps announced."""
        failures = 0 if ok else turn.failures + 1
        pause_ms = self.period_ms(turn.lane, count) if ok else min(RETRY_MS_MIN << min(failures - 1, 16), RETRY_MS_MAX)
        lane = Lane.REPEATED if ok and turn.lane is Lane.NEW else turn.lane
        return Turn(lane, now_ms + pause_ms - self._jitter(announcement, now_ms, pause_ms), failures)

    def period_ms(self, lane: Lane, count: int) -> int:
        """Between two repetitions, at the most: half a day, or as long as `count` of them take, up to REPEAT_MS_MAX."""
        if lane is Lane.HINTED:
            return REPEAT_MS_MAX
        round_ms = int(count * 1000 * 100 / (self._puts_per_s * USED_PERCENT))
        return min(max(REPEAT_MS, round_ms), REPEAT_MS_MAX)

    def lifetime_ms(self, lane: Lane, count: int) -> int:
        """How long a record that is made now is good for: two periods, so that one that fails is not missed."""
        return 2 * self.period_ms(lane, count)

    def _jitter(self, announcement: Announcement, now_ms: int, pause_ms: int) -> int:
        subject, detail = announcement.subject, announcement.detail.encode()
        drawn = tagged_hash(b"dds/announce-jitter/v1", self._seed, now_ms.to_bytes(8, "big"), subject, detail)
        return int.from_bytes(drawn[:8], "big") % (pause_ms // JITTER_FRACTION + 1)


class Pacer:
    """How many puts may begin now: `puts_per_s` in the long run, and a reserve of `burst` for what is new.

    The reserve makes a single put or an idle node's upload known at once; it is all that a restart can spend.
    """

    def __init__(self, puts_per_s: float, burst: int, now_s: float) -> None:
        self._puts_per_s, self._burst = puts_per_s, burst
        self._left, self._as_of_s = float(burst), now_s

    def take(self, now_s: float, most: int) -> int:
        """Up to `most`; 0 when none may begin yet."""
        self._left = min(self._burst, self._left + max(0.0, now_s - self._as_of_s) * self._puts_per_s)
        self._as_of_s = now_s
        taken = min(most, int(self._left))
        self._left -= taken
        return taken

    def give_back(self, count: int) -> None:
        """Of what `take` gave, so many were not needed."""
        self._left = min(self._burst, self._left + count)

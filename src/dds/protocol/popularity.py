"""How often content is read, counted so that it fades: what a node counts, and what a publisher makes of many nodes' counts.

A storing node counts thousandths of a read by segment, an edge bytes by content: it has no other measure of a whole.
Decides the decay, what is forgotten when there is too much, and how the answers of holders and edges become one number.
Does not decide what is done about it (protocol/tiering.py), nor when a read is counted (runtime/popularity.py).

A count halves every HALF_LIFE_MS. It is kept in integers, so that everybody who counts the same reads has the same number: a
half-life has TICKS parts, and a part's factor is a product of the ten roots 2^(-1/2), 2^(-1/4), ... in 64-bit fixed point.

Counts are nodes' words, and reads are free to make: a publisher, or anybody, can wash-trade popularity. It moves no money by
itself. Source: docs/spec/tiering.md, "Popularity".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isqrt
from typing import Final

from dds.wire.codec import Message, decode, encode

DAY_MS: Final = 86_400_000
HALF_LIFE_MS: Final = 14 * DAY_MS
READ: Final = 1000  # one whole read, in thousandths
SEGMENTS_MAX: Final = 1 << 16  # that a node counts: 5 MB at most
CONTENTS_MAX: Final = 1 << 14  # that an edge counts
VOICE_MAX: Final = 2 * READ  # of all edges of one operator: too little to bring content back from the archive
STATE_BYTES_MAX: Final = 8 << 20
STATE_VERSION: Final = 1

_BITS: Final = 10
TICKS: Final = 1 << _BITS  # of a half-life: 20 minutes each
_ONE: Final = 1 << 64
_SCALE: Final = 1 << 16  # a count's own unit is this part of a thousandth, so that frequent rounding does not eat it
_COUNT_MAX: Final = 1 << 62
_FADED_HALVES: Final = 80  # after so many nothing is left of any count


def _roots() -> tuple[int, ...]:
    """2^(-1/2), 2^(-1/4), ..., 2^(-1/1024), as parts of 2^64."""
    roots = [isqrt((_ONE // 2) << 64)]
    while len(roots) < _BITS:
        roots.append(isqrt(roots[-1] << 64))
    return tuple(roots)


_ROOTS: Final = _roots()


def faded(count: int, ticks: int) -> int:
    """What is left of `count` after `ticks`, rounded down; never more than before."""
    halves, part = divmod(max(0, ticks), TICKS)
    if halves > _FADED_HALVES:
        return 0
    factor = _ONE
    for bit, root in enumerate(_ROOTS):
        if part >> (_BITS - 1 - bit) & 1:
            factor = factor * root >> 64
    return count * factor >> 64 + halves  # rounded once, so that later is never more


class _Row(Message, frozen=True):
    key: bytes
    count: int
    tick: int


class _State(Message, frozen=True):
    version: int
    rows: list[_Row]


class Popularity:
    """One node's counts, by SegmentID or ContentID; the unit (a thousandth of a read, a byte) is the caller's.

    Time comes in as milliseconds since the epoch; one that goes backwards counts as standing still.
    """

    def __init__(self, keys_max: int = SEGMENTS_MAX) -> None:
        self._keys_max = keys_max
        self._rows: dict[bytes, tuple[int, int]] = {}  # key -> (count, as of this tick)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, key: bytes, amount: int, now_ms: int) -> None:
        """So much was served."""
        tick = _tick(now_ms)
        count, at = self._rows.get(key, (0, tick))
        at_now = max(at, tick)
        self._rows[key] = min(_COUNT_MAX, faded(count, at_now - at) + max(0, amount) * _SCALE), at_now
        if len(self._rows) > self._keys_max:
            self._forget_least(tick)

    def reads(self, key: bytes, now_ms: int) -> int:
        """What was served, faded; 0 where nothing is known."""
        count, at = self._rows.get(key, (0, 0))
        return faded(count, _tick(now_ms) - at) // _SCALE

    def forget(self, key: bytes) -> None:
        self._rows.pop(key, None)

    def _forget_least(self, tick: int) -> None:
        """An eighth at once, the least read first, so that it costs little a read."""
        order = sorted(self._rows, key=lambda each: (faded(self._rows[each][0], tick - self._rows[each][1]), each))
        for key in order[: max(1, self._keys_max // 8)]:
            del self._rows[key]

    def to_state(self) -> bytes:
        return encode(_State(STATE_VERSION, [_Row(key, *row) for key, row in sorted(self._rows.items())]))

    @classmethod
    def from_state(cls, raw: bytes, keys_max: int = SEGMENTS_MAX) -> Popularity:
        """
        Raises:
            FormatError: not such a state.
        """
        made = cls(keys_max)
        for row in decode(raw, _State, max_bytes=STATE_BYTES_MAX).rows[:keys_max]:
            made._rows[row.key] = (min(max(0, row.count), _COUNT_MAX), max(0, row.tick))
        return made


def _tick(now_ms: int) -> int:
    return max(0, now_ms) * TICKS // HALF_LIFE_MS


# -- what a publisher makes of it -------------------------------------------------------------------------------------------


def segment_reads(k: int, by_index: Mapping[int, int]) -> int | None:
    """Thousandths of reads of a segment, from what its holders say by fragment index; None where nobody said anything.

    A reader takes the k data fragments where it can, so each of their holders counts every read: their lower median is the
    answer, and fewer than half of them can lie as they like. Verbatim copies (k = 1) share the reads: the sum of all but the
    highest, so that one liar is left out.
    """
    if k > 1:
        data = sorted(reads for index, reads in by_index.items() if index < k)
        return data[(len(data) - 1) // 2] if data else None
    copies = sorted(by_index.values())
    return sum(copies[:-1]) + (copies[-1] if len(copies) == 1 else 0) if copies else None


def content_reads(segments: Iterable[int | None]) -> int | None:
    """Of a content: its most-read segment; None where nothing is known of any."""
    return max((reads for reads in segments if reads is not None), default=None)


def edge_reads(size_bytes: int, said: Iterable[tuple[str, int]]) -> int:
    """Thousandths of reads that edges answered, from (operator, bytes served) as each edge says.

    They add up, for a reader asks one edge of its region. An edge can say what it likes, and an operator can run many: all of
    one operator's together are one voice of at most VOICE_MAX.
    """
    voices: dict[str, int] = {}
    for operator, served_bytes in said:
        reads = max(0, served_bytes) * READ // max(1, size_bytes)
        voices[operator] = min(VOICE_MAX, voices.get(operator, 0) + reads)
    return sum(voices.values())


def idle_ms_min(reads: int) -> int:
    """How long ago the last whole read was, at least, when a fading count stands at `reads` thousandths.

    One whole read alone would have left more for so long. Exact to a tick of 20 minutes; an endless 0 reads as the time in
    which one read fades to nothing, 139 days.
    """
    lo, hi = 0, (READ.bit_length()) * TICKS
    if reads >= READ:
        return 0
    while lo < hi:  # the most ticks after which a single read still leaves more than `reads`
        middle = (lo + hi + 1) // 2
        if faded(READ * _SCALE, middle) // _SCALE > reads:
            lo = middle
        else:
            hi = middle - 1
    return lo * HALF_LIFE_MS // TICKS

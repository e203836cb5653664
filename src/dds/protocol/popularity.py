"""How often segments are read, counted so that it fades: what a node counts, and what a publisher makes of many nodes' counts.

Decides the decay, what is forgotten when there is too much, and how the answers of a segment's holders become one number.
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

from dds.primitives.ids import SegmentID
from dds.wire.codec import Message, decode, encode

DAY_MS: Final = 86_400_000
HALF_LIFE_MS: Final = 14 * DAY_MS
READ: Final = 1000  # one whole read, in thousandths
SEGMENTS_MAX: Final = 1 << 16  # that a node counts: 5 MB at most
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
    segment: bytes
    count: int
    tick: int


class _State(Message, frozen=True):
    version: int
    rows: list[_Row]


class Popularity:
    """One node's counts. Time comes in as milliseconds since the epoch; one that goes backwards counts as standing still."""

    def __init__(self, segments_max: int = SEGMENTS_MAX) -> None:
        self._segments_max = segments_max
        self._rows: dict[SegmentID, tuple[int, int]] = {}  # segment -> (count, as of this tick)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, segment: SegmentID, reads: int, now_ms: int) -> None:
        """So many thousandths of a read were served."""
        tick = _tick(now_ms)
        count, at = self._rows.get(segment, (0, tick))
        at_now = max(at, tick)
        self._rows[segment] = min(_COUNT_MAX, faded(count, at_now - at) + max(0, reads) * _SCALE), at_now
        if len(self._rows) > self._segments_max:
            self._forget_least(tick)

    def reads(self, segment: SegmentID, now_ms: int) -> int:
        """Thousandths of reads, faded; 0 where none is known."""
        count, at = self._rows.get(segment, (0, 0))
        return faded(count, _tick(now_ms) - at) // _SCALE

    def forget(self, segment: SegmentID) -> None:
        self._rows.pop(segment, None)

    def _forget_least(self, tick: int) -> None:
        """An eighth at once, the least read first, so that it costs little a read."""
        order = sorted(self._rows, key=lambda each: (faded(self._rows[each][0], tick - self._rows[each][1]), each))
        for segment in order[: max(1, self._segments_max // 8)]:
            del self._rows[segment]

    def to_state(self) -> bytes:
        return encode(_State(STATE_VERSION, [_Row(segment, *row) for segment, row in sorted(self._rows.items())]))

    @classmethod
    def from_state(cls, raw: bytes, segments_max: int = SEGMENTS_MAX) -> Popularity:
        """
        Raises:
            FormatError: not such a state.
        """
        made = cls(segments_max)
        for row in decode(raw, _State, max_bytes=STATE_BYTES_MAX).rows[:segments_max]:
            made._rows[SegmentID(row.segment)] = (min(max(0, row.count), _COUNT_MAX), max(0, row.tick))
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

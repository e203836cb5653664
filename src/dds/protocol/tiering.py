"""Which class a content should be in now, and why.

Decides by age and demand alone. Does not move anything (runtime/tiering.py), nor ask anybody. Content goes to the archive only
where its home has opted in, and back when it is read again. Source: docs/spec/tiering.md, "Recommendations".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dds.erasure.geometry import ARCHIVE, ARCHIVE_CLASS
from dds.primitives.units import SLOT_BYTES_MIN
from dds.protocol.popularity import DAY_MS, READ, idle_ms_min

STANDARD_CLASS: Final = "standard"
ARCHIVE_AFTER_DAYS_MAX: Final = 120  # a count has faded to nothing a little later: more could not be told apart
BACK_READS: Final = 3 * READ  # whole reads, faded, that bring content back from the archive
ARCHIVED_BYTES_MIN: Final = ARCHIVE.k * SLOT_BYTES_MIN  # smaller data would be kept as 17 whole copies


@dataclass(frozen=True, slots=True)
class Recommendation:
    """`to` is the present class where nothing is to be done."""

    to: str
    reason: str


def idle_days(reads: int | None, since_ms: int, now_ms: int) -> int:
    """Whole days since the last whole read, at least; since `since_ms` (put or moved) where that is later, or none is known."""
    known_ms = max(0, now_ms - since_ms)
    return min(known_ms, known_ms if reads is None else idle_ms_min(reads)) // DAY_MS


def recommend(class_name: str, size_bytes: int, reads: int | None, idle: int, archive_after_days: int) -> Recommendation:
    """
    Args:
        reads: thousandths of reads, faded; None: nobody could be asked.
        idle: days, as `idle_days` says.
        archive_after_days: 0: the home has not opted in.
    """
    if reads is None:
        return Recommendation(class_name, "no holder says how often it is read")
    if class_name == ARCHIVE_CLASS:
        if reads >= BACK_READS:
            return Recommendation(STANDARD_CLASS, f"read again: {_times(reads)}")
        return Recommendation(class_name, f"archived, and read {_times(reads)}: it comes back at {_times(BACK_READS)}")
    if not archive_after_days:
        return Recommendation(class_name, "this home archives nothing by itself (archive_after_days in config.toml)")
    if size_bytes < ARCHIVED_BYTES_MIN:
        return Recommendation(class_name, "too small: the archive would keep whole copies of it")
    if idle >= archive_after_days:
        return Recommendation(ARCHIVE_CLASS, f"not read for {idle} days")
    return Recommendation(class_name, f"not read for {idle} days, of {archive_after_days}: it may be read again")


def _times(reads: int) -> str:
    return f"{reads / READ:.1f} times in the last weeks"

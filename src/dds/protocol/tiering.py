"""Which class a content should be in now, and why.

Decides by age and demand alone. Does not move anything (runtime/tiering.py), nor ask anybody. Content goes to the archive only
where its home, or the rule that gave it its class, says so, and back to what it was when it is read again.
Source: docs/spec/tiering.md, "Recommendations".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dds.erasure.geometry import ARCHIVE, ARCHIVE_CLASS
from dds.primitives.units import SLOT_BYTES_MIN
from dds.protocol.popularity import DAY_MS, READ, idle_ms_min

BACK_READS: Final = 3 * READ  # whole reads, faded, that bring content back from the archive
ARCHIVED_BYTES_MIN: Final = ARCHIVE.k * SLOT_BYTES_MIN  # smaller data would be kept as 17 whole copies


@dataclass(frozen=True, slots=True)
class Tier:
    """A class, and where its name does not say it, the geometry."""

    class_name: str
    k: int | None = None
    m: int | None = None

    def __str__(self) -> str:
        return self.class_name if self.k is None else f"{self.class_name} {self.k}+{self.m}"


STANDARD: Final = Tier("standard")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long content may lie unread before it goes to the archive."""

    days: int  # 0: for ever
    by: str  # whose word that is


def patience(rule_days: int | None, home_days: int) -> Patience:
    """A rule of the class policy knows the content, so its word comes before the home's."""
    if rule_days is not None:
        return Patience(rule_days, "the rule by which it was put")
    return Patience(home_days, "config.toml")


@dataclass(frozen=True, slots=True)
class Recommendation:
    """`to` is the present class where nothing is to be done; `k` and `m` where its name does not say them."""

    to: str
    reason: str
    k: int | None = None
    m: int | None = None


def idle_days(reads: int | None, since_ms: int, now_ms: int) -> int:
    """Whole days since the last whole read, at least; since `since_ms` (put or moved) where that is later, or none is known."""
    known_ms = max(0, now_ms - since_ms)
    return min(known_ms, known_ms if reads is None else idle_ms_min(reads)) // DAY_MS


def recommend(
    class_name: str, size_bytes: int, reads: int | None, idle: int, wait: Patience, before: Tier | None = None
) -> Recommendation:
    """
    Args:
        reads: thousandths of reads, faded; None: nobody could be asked.
        idle: days, as `idle_days` says.
        before: what archived content was before; None: not known, or it was put there.
    """
    if reads is None:
        return Recommendation(class_name, "no holder says how often it is read")
    if class_name == ARCHIVE_CLASS:
        return _archived(reads, before)
    if not wait.days:
        return Recommendation(class_name, "this home archives nothing by itself (archive_after_days in config.toml)")
    if size_bytes < ARCHIVED_BYTES_MIN:
        return Recommendation(class_name, "too small: the archive would keep whole copies of it")
    if idle >= wait.days:
        return Recommendation(ARCHIVE_CLASS, f"not read for {idle} days; {wait.days} are enough, says {wait.by}")
    return Recommendation(class_name, f"not read for {idle} days, of {wait.days} by {wait.by}: it may be read again")


def _archived(reads: int, before: Tier | None) -> Recommendation:
    if reads < BACK_READS:
        return Recommendation(ARCHIVE_CLASS, f"archived, and read {_times(reads)}: it comes back at {_times(BACK_READS)}")
    if before is None or before.class_name == ARCHIVE_CLASS:
        return Recommendation(STANDARD.class_name, f"read again: {_times(reads)}")
    return Recommendation(before.class_name, f"read again: {_times(reads)}; it was {before} before", before.k, before.m)


def _times(reads: int) -> str:
    return f"{reads / READ:.1f} times in the last weeks"

"""One line of a benchmark: a measured value, what it is held against in the same run, and the aim."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """`ratio` is value / baseline (or the other way round, as `name` says), so that results compare across machines."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    target: float | None = None

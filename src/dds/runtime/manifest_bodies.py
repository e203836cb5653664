"""From what a packer placed to what a manifest says: runs with numbered segments, cut into sections that fit their bound.

Pure. Where a segment's row comes from (sent, reused, about to be sent) is the put's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dds.primitives.ids import ID_BYTES, SegmentID
from dds.primitives.units import SECTION_BYTES_MAX
from dds.runtime.packer import PlacedRun
from dds.storage.source import BuiltTree
from dds.wire.manifest import Body, Run, SegmentRow

RUN_BYTES_MAX: Final = 40  # of a run in a section, encoded
SECTION_HEAD_BYTES: Final = 16  # the map, its keys and the heads of its lists
ROW_BYTES_MAX: Final = 40  # of a segment row, its holders not counted


def body_of(runs: list[PlacedRun], row_of: Callable[[int | SegmentID], SegmentRow]) -> Body:
    """A body with the rows of the segments that `runs` name, numbered in the order of first use."""
    rows: list[SegmentRow] = []
    numbers: dict[int | SegmentID, int] = {}
    out: list[Run] = []
    for run in runs:
        if run.segment not in numbers:
            numbers[run.segment] = len(rows)
            rows.append(row_of(run.segment))
        out.append(Run(numbers[run.segment], run.first, run.count, run.position))
    return Body(tuple(rows), tuple(out))


def split_runs(runs: list[PlacedRun], width: int) -> list[list[PlacedRun]]:
    """Runs in groups whose bodies fit a section, when no segment has more than `width` holders."""
    parts: list[list[PlacedRun]] = []
    segments: set[int | SegmentID] = set()
    room = 0
    for run in runs:
        row_bytes = ROW_BYTES_MAX + width * ID_BYTES
        cost = RUN_BYTES_MAX + (0 if run.segment in segments else row_bytes)
        if cost > room:
            parts.append([])
            segments, room, cost = set(), SECTION_BYTES_MAX - SECTION_HEAD_BYTES, RUN_BYTES_MAX + row_bytes
        parts[-1].append(run)
        segments.add(run.segment)
        room -= cost
    return parts


def kind_of(built: BuiltTree) -> str:
    if built.directories:
        return "directory"
    return "file" if built.files else "symlink"

"""Hooks: the few blocks of a segment that are announced, so that whoever puts similar content finds all of it.

Decides which blocks are hooks and which blocks a put looks up. Does not ask or announce (runtime/hooks.py) and trusts nothing
(runtime/dedup.py). Source: docs/spec/deduplication.md; Lillibridge et al., "Sparse Indexing", FAST 2009: blocks that repeat
come in runs, so one sampled block that is found leads to a segment whose index has its neighbours.

Sampling goes by the digest, so both sides choose the same blocks without knowing each other. Three more blocks act as hooks
for what sampling misses: the first of a segment, which the same content begins with, and the two with the smallest digests of
its opening blocks (two sets with a share J in common have the same minimum with probability J: Broder 1997).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from dds.primitives.cid import CID, digest_of
from dds.primitives.units import MIB

HOOK_ZERO_BITS: Final = 5  # a digest that starts with so many zero bits is sampled: one in 32
OPENING_BYTES: Final = 32 * MIB  # raw bytes at the start of a segment, or of a content
OPENING_HOOKS: Final = 2  # smallest digests of an opening that are hooks
HOOKS_FREE: Final = 8  # of a segment, or lookups of a content; beyond these,
BYTES_PER_HOOK: Final = 4 * MIB  # one for so many raw bytes: where blocks are small, sampling them all costs more than it saves
HOOKS_PER_SEGMENT_MAX: Final = 128
HOOKED_BYTES_MIN: Final = MIB  # raw bytes; less is sent sooner than found


def is_sampled(block: CID) -> bool:
    return digest_of(block)[0] >> (8 - HOOK_ZERO_BITS) == 0


@dataclass(slots=True)
class Opening:
    """The first blocks of a segment or content, as they come."""

    first: CID | None = None
    smallest: tuple[CID, ...] = ()
    seen_bytes: int = 0

    @property
    def is_full(self) -> bool:
        return self.seen_bytes >= OPENING_BYTES

    def add(self, block: CID, raw_bytes: int) -> None:
        if not self.is_full:
            self.first = self.first or block
            self.smallest = tuple(sorted({*self.smallest, block}, key=digest_of)[:OPENING_HOOKS])
            self.seen_bytes += raw_bytes


def hooks_of(blocks: Sequence[tuple[CID, int]]) -> list[CID]:
    """Which blocks of a segment are announced, the most useful first; none of a segment under HOOKED_BYTES_MIN.

    Args:
        blocks: (CID, raw bytes) of the whole segment, in order of its index.
    """
    raw_bytes = sum(size for _, size in blocks)
    if raw_bytes < HOOKED_BYTES_MIN:
        return []
    opening = Opening()
    for block, size in blocks:
        opening.add(block, size)
    sampled = sorted((block for block, _ in blocks if is_sampled(block)), key=digest_of)
    chosen = (opening.first, *opening.smallest, *sampled)
    most = min(HOOKS_FREE + raw_bytes // BYTES_PER_HOOK, HOOKS_PER_SEGMENT_MAX)
    return list(dict.fromkeys(block for block in chosen if block is not None))[:most]


class Lookups:
    """Which blocks of a content a put looks up, batch by batch as it is read."""

    def __init__(self) -> None:
        self._opening: Opening | None = Opening()  # None: past it
        self._allowed = float(HOOKS_FREE)
        self._is_small = False

    def of(self, blocks: Mapping[CID, int], *, is_last: bool) -> list[CID]:
        """
        Args:
            blocks: the next ones, with their raw bytes.
            is_last: there are no more.
        """
        chosen = [*self._of_opening(blocks, is_last), *sorted(filter(is_sampled, blocks), key=digest_of)]
        self._allowed += sum(blocks.values()) / BYTES_PER_HOOK
        if self._is_small:
            return []
        chosen = list(dict.fromkeys(chosen))[: int(self._allowed)]
        self._allowed -= len(chosen)
        return chosen

    def _of_opening(self, blocks: Mapping[CID, int], is_last: bool) -> list[CID]:
        """The content's first block at once, the smallest of its opening when that has been seen."""
        opening = self._opening
        if opening is None:
            return []
        chosen = [] if opening.first is not None else list(islice(blocks, 1))
        for block, size in blocks.items():
            opening.add(block, size)
        if is_last or opening.is_full:
            self._opening = None
            self._is_small = opening.seen_bytes < HOOKED_BYTES_MIN
            chosen += opening.smallest
        return chosen

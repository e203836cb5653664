"""Hooks: the few blocks of a segment that are announced, so that whoever puts similar content finds all of it.

Decides which blocks are hooks and which blocks a put looks up. Does not ask or announce (runtime/hooks.py) and trusts nothing
(runtime/dedup.py). Source: docs/spec/deduplication.md; Lillibridge et al., "Sparse Indexing", FAST 2009: blocks that repeat
come in runs, so one sampled block that is found leads to a segment whose index has its neighbours.

Sampling goes by the digest, so both sides choose the same blocks without knowing each other. Three more blocks act as hooks
for what sampling misses: the first of a segment, which the same content begins with, and the two with the smallest digests of
its opening blocks (two sets with a share J in common have the same minimum with probability J: Broder 1997).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dds.primitives.cid import CID, digest_of
from dds.primitives.units import MIB

HOOK_ZERO_BITS: Final = 5  # a digest that starts with so many zero bits is sampled: one in 32
OPENING_BYTES: Final = 32 * MIB  # raw bytes at the start of a segment, or of a content
OPENING_HOOKS: Final = 2  # smallest digests of an opening that are hooks
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
    if sum(size for _, size in blocks) < HOOKED_BYTES_MIN:
        return []
    opening = Opening()
    for block, size in blocks:
        opening.add(block, size)
    sampled = sorted((block for block, _ in blocks if is_sampled(block)), key=digest_of)
    chosen = (opening.first, *opening.smallest, *sampled)
    return list(dict.fromkeys(block for block in chosen if block is not None))[:HOOKS_PER_SEGMENT_MAX]

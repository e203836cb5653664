"""Which leaves an epoch asks of a node: a function of public inputs that nobody knows before the epoch's beacon does.

Decides the seed, the numbers drawn from it, and which fragment and leaf a number within an assignment stands for. Does not
decide what the beacon is, nor what a node's inventory holds: the ledger does (ledger/facts.py puts them together).

    seed        tagged("dds/challenge/v1", "audit" || beacon 32 || node id 32 || inventory root 32)
    numbers     the first `audit_leaves` of the seed's stream of integers below total_leaves; one drawn twice is asked once
    extra leaf  of a newly active assignment: the first integer below its leaves from
                tagged("dds/challenge-new/v1", seed 32 || segment id 32 || index u16)

Drawing with repetition keeps the draws independent: the chance to miss a lost share f is exactly (1 - f)^draws.
Source: docs/spec/proofs.md, "Challenges".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from dds.primitives.hashing import tagged_hash, xof_integers
from dds.primitives.ids import FragmentRoot
from dds.wire.ledger import StripeRun
from dds.wire.segment import FragmentRecord, leaf_count_of


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """One leaf that is asked for."""

    segment_id: bytes
    index: int
    stripe: int
    leaf: int  # within the fragment


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """What the ledger says of a segment."""

    segment_root: bytes
    stripes: tuple[StripeRun, ...]
    since_epoch: int  # when root and stripes became what they are


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a fragment's record stands among all records of its segment, and what it must say but for the root."""

    position: int
    records: int
    size: int  # bytes of the fragment
    index: int

    def record(self, root: bytes) -> FragmentRecord:
        return FragmentRecord(FragmentRoot(root), self.size, self.index, leaf_count_of(self.size))


def audit_seed(beacon: bytes, node_id: bytes, inventory_root: bytes) -> bytes:
    return tagged_hash(b"dds/challenge/v1", b"audit", beacon, node_id, inventory_root)


def drawn_leaves(seed: bytes, total_leaves: int, draws: int) -> tuple[int, ...]:
    """Distinct leaf numbers of the inventory, ascending; none where there is nothing to ask."""
    if total_leaves == 0:
        return ()
    return tuple(sorted(set(islice(xof_integers(seed, total_leaves), draws))))


def extra_leaf(seed: bytes, segment_id: bytes, index: int, leaves: int) -> int:
    """The leaf, numbered within the assignment, that is asked of one that is new in its inventory; `leaves` > 0."""
    own = tagged_hash(b"dds/challenge-new/v1", seed, segment_id, index.to_bytes(2, "big"))
    return next(xof_integers(own, leaves))


def target_of(stripes: Sequence[StripeRun], segment_id: bytes, index: int, leaf: int, released: int) -> Target | None:
    """Leaf number `leaf` of the holder of `index`: stripe by stripe, released ones (bit s) left out; None: none such."""
    for stripe, run in _shapes(stripes):
        if index >= run.k + run.m or released >> stripe & 1:
            continue
        count = leaf_count_of(run.slot_bytes)
        if leaf < count:
            return Target(segment_id, index, stripe, leaf)
        leaf -= count
    return None


def spot_of(stripes: Sequence[StripeRun], stripe: int, index: int) -> Spot | None:
    """Where the record of fragment `index` of `stripe` stands; None: there is no such fragment."""
    position, records, size = -1, 0, 0
    for number, run in _shapes(stripes):
        if number == stripe and index < run.k + run.m:
            position, size = records + index, run.slot_bytes
        records += run.k + run.m
    return None if position < 0 else Spot(position, records, size, index)


def _shapes(stripes: Sequence[StripeRun]) -> Iterator[tuple[int, StripeRun]]:
    """(stripe number, shape); the ledger bounds their number."""
    number = 0
    for run in stripes:
        for _ in range(run.count):
            yield number, run
            number += 1

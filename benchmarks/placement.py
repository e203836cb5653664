"""Drawing a segment's nodes among ten thousand candidates, held against sorting and hashing those ten thousand.

Times are of this process alone (CPU): a draw does no I/O. The network has 8 regions, 3,000 operators and 9,000 subnets with
weights of every size; `tight` is one in which the rules cannot be kept: seven operators share all nodes. In `lopsided` one
operator has half of the weight in six regions and the others are in two of them; in `claimed` all labels are made up to be in
each other's way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from random import Random
from statistics import median
from time import process_time
from typing import Final

from benchmarks.rows import Row
from dds.placement.draw import WEIGHT_MAX, Candidate, Rules, draw
from dds.placement.explain import Drawing, explain
from dds.primitives.ids import NodeID

CANDIDATES: Final = 10_000
RUNS: Final = 15
TARGET_MS: Final = 20.0
RULES: Final = Rules.for_loss_tolerance(6)


def run() -> Iterator[Row]:
    wide, tight = _network(operators=3_000), _network(operators=7)
    baseline = _ms(lambda _: _sort_and_hash(wide))
    took = _ms(lambda seed: draw(wide, 16, RULES, seed))
    yield Row(f"placement: draw 16 of {CANDIDATES:,} / {TARGET_MS:g} ms", took, "ms", TARGET_MS, took / TARGET_MS, 1.0)
    yield Row("placement: the same / sort and hash the candidates", took, "ms", baseline, took / baseline)
    bent = _ms(lambda seed: draw(tight, 16, RULES, seed))
    yield Row("placement: the same where operators must bend", bent, "ms", baseline, bent / baseline)
    for name, network in (("one operator is needed everywhere", _lopsided()), ("labels are made up", _claimed())):
        ms = _ms(lambda seed, pool=network: draw(pool, 16, RULES, seed))  # type: ignore[misc]
        yield Row(f"placement: the same where {name} / where nothing is in the way", ms, "ms", took, ms / took)
    found = draw(wide, 16, RULES, b"explained")
    drawing = Drawing(tuple(wide), (), 16, 6, b"explained", found)
    told = _ms(lambda _: explain(drawing))
    yield Row("placement: explain every one of them", told, "ms", baseline, told / baseline)


def _network(*, operators: int) -> list[Candidate]:
    rng = Random(3)
    return [
        Candidate(
            _node(number),
            f"region {rng.randrange(8)}",
            f"operator {rng.randrange(operators)}",
            f"subnet {rng.randrange(9_000)}",
            rng.randrange(1, WEIGHT_MAX),
        )
        for number in range(CANDIDATES)
    ]


def _lopsided() -> list[Candidate]:
    rng = Random(3)
    labels = ((6, "big") if number % 2 else (2, f"operator {number}") for number in range(CANDIDATES))
    return [
        Candidate(_node(number), f"region {rng.randrange(regions)}", operator, f"subnet {number}", 1000)
        for number, (regions, operator) in enumerate(labels)
    ]


def _claimed() -> list[Candidate]:
    """Sixteen in one region, the others in one subnet: each rule alone can be kept, and they exclude each other."""
    return [
        Candidate(
            _node(number),
            f"region {max(15, number)}",
            f"operator {number}",
            f"subnet {min(16, number)}",
            1 + number % 7,
        )
        for number in range(CANDIDATES)
    ]


def _node(number: int) -> NodeID:
    return NodeID(hashlib.sha256(b"node %d" % number).digest())


def _sort_and_hash(network: list[Candidate]) -> None:
    for each in sorted(network, key=lambda c: c.node_id):
        hashlib.sha256(each.node_id).digest()


def _ms(work: Callable[[bytes], object]) -> float:
    """The median CPU time of one run."""
    took = []
    for number in range(RUNS):
        began = process_time()
        work(b"%d" % number)
        took.append((process_time() - began) * 1000)
    return median(took)

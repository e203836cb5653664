"""Drawing a segment's nodes among ten thousand candidates, held against sorting and hashing those ten thousand.

Times are of this process alone (CPU): a draw does no I/O. The network has 8 regions, 3,000 operators and 9,000 subnets with
weights of every size; `tight` is one in which the rules cannot be kept: seven operators share all nodes.
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
    found = draw(wide, 16, RULES, b"explained")
    drawing = Drawing(tuple(wide), (), 16, 6, b"explained", found)
    told = _ms(lambda _: explain(drawing))
    yield Row("placement: explain every one of them", told, "ms", baseline, told / baseline)


def _network(*, operators: int) -> list[Candidate]:
    rng = Random(3)
    return [
        Candidate(
            NodeID(hashlib.sha256(b"node %d" % number).digest()),
            f"region {rng.randrange(8)}",
            f"operator {rng.randrange(operators)}",
            f"subnet {rng.randrange(9_000)}",
            rng.randrange(1, WEIGHT_MAX),
        )
        for number in range(CANDIDATES)
    ]


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

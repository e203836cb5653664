"""Frozen draws: anybody who draws again from the same inputs must get these, in any release."""

from __future__ import annotations

import hashlib

import pytest

from dds.placement.draw import Candidate, Rules, draw
from dds.primitives.ids import NodeID


def network(count: int) -> list[Candidate]:
    return [
        Candidate(NodeID(hashlib.sha256(b"%d" % i).digest()), f"r{i % 5}", f"o{i % 13}", f"s{i % 37}", 1 + i % 7)
        for i in range(count)
    ]


def fingerprint(count: int, n: int, m: int) -> str:
    drawn = draw(network(count), n, Rules.for_loss_tolerance(m), b"frozen")
    return hashlib.sha256(b"".join([*drawn.chosen, b"|", *drawn.spares])).hexdigest()[:16]


@pytest.mark.parametrize(
    ("count", "n", "m", "expected"),
    [
        (16, 16, 6, "d8966cb5a83bdcb2"),
        (24, 16, 6, "6f0457343c8f2950"),
        (60, 16, 6, "4c750dabfbee936a"),
        (60, 7, 6, "960ff8fbd85ea2f4"),
        (500, 32, 16, "decb2db2c6b40ecc"),
    ],
)
def test_draws_are_frozen(count: int, n: int, m: int, expected: str) -> None:
    assert fingerprint(count, n, m) == expected

"""Layout: which slot ranges hold a range of the data space."""

from __future__ import annotations

import pytest

from dds.erasure.layout import Layout, SlotRange, assemble, verbatim_indices
from dds.primitives.errors import FormatError
from dds.wire.segment import StripeShape

SHAPES = [StripeShape(2, 1, 100, 200), StripeShape(2, 1, 100, 200), StripeShape(2, 1, 64, 90), StripeShape(1, 1, 7, 7)]


@pytest.mark.parametrize(
    ("lo", "hi", "ranges"),
    [
        (0, 0, []),
        (0, 100, [(0, 0, 0, 100)]),
        (99, 101, [(0, 0, 99, 100), (0, 1, 0, 1)]),
        (150, 310, [(0, 1, 50, 100), (1, 0, 0, 100), (1, 1, 0, 10)]),
        (400, 497, [(2, 0, 0, 64), (2, 1, 0, 26), (3, 0, 0, 7)]),
        (490, 491, [(3, 0, 0, 1)]),
        (497, 497, []),
    ],
)
def test_ranges_are_cut_at_slots_and_stripes(lo: int, hi: int, ranges: list[tuple[int, int, int, int]]) -> None:
    assert Layout(SHAPES).locate(lo, hi) == ranges


@pytest.mark.parametrize(("lo", "hi"), [(-1, 5), (5, 4), (0, 498), (498, 498)])
def test_ranges_outside_the_data_space_are_refused(lo: int, hi: int) -> None:
    with pytest.raises(FormatError):
        Layout(SHAPES).locate(lo, hi)


def test_stripes_know_their_part_of_the_data_space() -> None:
    assert [Layout(SHAPES).stripe_range(at) for at in range(4)] == [(0, 200), (200, 400), (400, 490), (490, 497)]
    assert Layout(SHAPES).data_bytes == 497


def test_every_copy_serves_but_a_slot_has_one_holder() -> None:
    assert list(verbatim_indices(SHAPES[0], 1)) == [1]
    assert list(verbatim_indices(StripeShape(1, 6, 7, 7), 0)) == [0, 1, 2, 3, 4, 5, 6]


def test_parts_must_have_the_lengths_that_were_asked_for() -> None:
    ranges = [SlotRange(0, 0, 99, 100), SlotRange(0, 1, 0, 2)]
    assert assemble(ranges, [b"a", memoryview(b"bc")]) == b"abc"
    for wrong in ([b"a"], [b"ab", b"c"], [b"a", b"bc", b""]):
        with pytest.raises(FormatError):
            assemble(ranges, wrong)

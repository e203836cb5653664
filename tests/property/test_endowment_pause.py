"""A pause spends what stepping through it would have, never more, and hardly less."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dds.ledger.rules.endowments import YEAR_PPM, spendable

pools = st.integers(0, 1 << 63) | st.integers(0, 1 << 30)
costs = st.integers(0, 1 << 40) | st.integers(0, 1 << 63)
shares = st.sampled_from([0, 1, 5_000, 15_000, 3_000_000, YEAR_PPM // 2, YEAR_PPM - 1, YEAR_PPM, 10**18])
AT_THE_TURN = 1_000 * YEAR_PPM // 15_000 + 20_000  # the share falls below the cost some twenty epochs later


def stepped(pool: int, cost: int, epochs: int, share: int) -> int:
    left = pool
    for _ in range(epochs):
        left -= min(cost, min(share, YEAR_PPM) * left // YEAR_PPM)
    return pool - left


@settings(deadline=None, max_examples=300)
@given(pool=pools, cost=costs, epochs=st.integers(0, 300), share=shares)
@example(pool=AT_THE_TURN, cost=1_000, epochs=50, share=15_000)
def test_a_pause_spends_at_most_what_stepping_spends(pool: int, cost: int, epochs: int, share: int) -> None:
    exact, closed = stepped(pool, cost, epochs, share), spendable(pool, cost, epochs, share)
    assert max(0, exact - epochs - 2) <= closed <= exact <= pool


@settings(deadline=None)
@given(pool=pools, cost=costs, first=st.integers(0, 1 << 20), second=st.integers(0, 1 << 20), share=shares)
def test_asking_more_often_spends_the_same_but_for_rounding(pool: int, cost: int, first: int, second: int, share: int) -> None:
    once = spendable(pool, cost, first + second, share)
    part = spendable(pool, cost, first, share)
    twice = part + spendable(pool - part, cost, second, share)
    assert abs(once - twice) <= first + second + 4


@given(pool=pools, cost=costs, share=shares)
def test_the_longest_pause_is_computed_at_once_and_stays_within_the_pool(pool: int, cost: int, share: int) -> None:
    assert 0 <= spendable(pool, cost, 1 << 40, share) <= pool

"""What a reader remembers of its nodes."""

from __future__ import annotations

import pytest

from dds.primitives.ids import NodeID
from dds.protocol.ranking import (
    COOL_DOWN_S_MAX,
    COOL_DOWN_S_MIN,
    FAR_S,
    HEDGE_FACTOR,
    HEDGE_S_MAX,
    HEDGE_S_MIN,
    HEDGE_S_UNKNOWN,
    NODES_MAX,
    NodeRanking,
)

NODE = NodeID(bytes(32))


def other(number: int) -> NodeID:
    return NodeID(number.to_bytes(32, "big"))


def pause_after(ranking: NodeRanking, now: float) -> float:
    """Seconds from `now` until the node is asked again, to 0.1 s."""
    return next(tenths / 10 for tenths in range(2000) if not ranking.avoided(NODE, now + tenths / 10))


def test_each_strike_in_a_row_doubles_the_cool_down_up_to_its_maximum() -> None:
    ranking, now, pauses = NodeRanking(), 0.0, []
    for _ in range(7):
        ranking.struck(NODE, now)
        pauses.append(pause_after(ranking, now))
        now += pauses[-1]
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, COOL_DOWN_S_MAX, COOL_DOWN_S_MAX]


def test_a_node_that_was_struck_for_years_does_not_overflow() -> None:
    """Two to the number of strikes, as a float, raised OverflowError at the 1,025th."""
    ranking = NodeRanking()
    for times in range(3000):
        ranking.struck(NODE, times * 1000.0)
    assert pause_after(ranking, 2999_000.0) == COOL_DOWN_S_MAX


def test_one_hang_with_many_requests_in_flight_is_one_strike() -> None:
    ranking = NodeRanking()
    for _ in range(16):
        ranking.struck(NODE, 1.0)
    assert pause_after(ranking, 1.0) == COOL_DOWN_S_MIN


def test_success_ends_the_cool_down_and_forgets_the_strikes() -> None:
    ranking = NodeRanking()
    ranking.struck(NODE, 0.0)
    ranking.succeeded(NODE, 0.1)
    assert not ranking.avoided(NODE, 0.0)
    ranking.struck(NODE, 0.0)
    assert pause_after(ranking, 0.0) == COOL_DOWN_S_MIN


def test_a_liar_is_avoided_for_good() -> None:
    ranking = NodeRanking()
    ranking.lied(NODE)
    ranking.succeeded(NODE, 0.1)
    assert ranking.avoided(NODE, 1e9)
    assert ranking.is_liar(NODE)


def test_a_flood_of_nodes_neither_grows_the_memory_nor_washes_out_a_liar() -> None:
    ranking = NodeRanking()
    ranking.lied(NODE)
    for number in range(1, NODES_MAX + 100):
        ranking.succeeded(other(number), 0.1)
    assert ranking.is_liar(NODE)
    assert ranking.expected_s(other(1)) == 0.0
    assert len(ranking._nodes) == NODES_MAX


@pytest.mark.parametrize(("seconds", "hedge_s"), [(0.001, HEDGE_S_MIN), (0.2, HEDGE_FACTOR * 0.2), (3.0, 7.5), (60.0, 150.0)])
def test_the_hedge_follows_the_slowest_of_recent_answers_within_bounds(seconds: float, hedge_s: float) -> None:
    ranking = NodeRanking()
    assert ranking.hedge_s() == HEDGE_S_UNKNOWN
    for number in range(20):
        ranking.succeeded(other(number), seconds)
    assert ranking.hedge_s() == pytest.approx(hedge_s)


def test_a_few_very_slow_answers_do_not_raise_the_hedge_beyond_its_maximum() -> None:
    ranking = NodeRanking()
    for number in range(50):
        ranking.succeeded(other(number), 20.0 if number % 4 == 0 else 0.1)
    assert ranking.hedge_s() == HEDGE_S_MAX


def test_latency_is_smoothed_and_unknown_nodes_count_as_fast() -> None:
    ranking = NodeRanking()
    assert ranking.expected_s(NODE) == 0.0
    ranking.succeeded(NODE, 1.0)
    ranking.succeeded(NODE, 2.0)
    assert ranking.expected_s(NODE) == pytest.approx(1.2)


def test_nodes_of_the_own_region_come_first_while_nothing_is_known() -> None:
    ranking = NodeRanking(lambda node: node == NODE)
    assert sorted([other(1), NODE], key=ranking.expected_s) == [NODE, other(1)]
    ranking.succeeded(NODE, 0.01)  # asked once, and still the nearer one
    assert sorted([other(1), NODE], key=ranking.expected_s) == [NODE, other(1)]
    ranking.succeeded(NODE, 2.0)  # slow: others get their turn, wherever they are
    assert ranking.expected_s(other(1)) == FAR_S
    assert sorted([other(1), NODE], key=ranking.expected_s) == [other(1), NODE]


def test_of_two_equally_fast_nodes_the_one_that_fails_less_is_chosen() -> None:
    ranking = NodeRanking()
    for round_number in range(20):
        ranking.succeeded(NODE, 0.1)
        ranking.succeeded(other(1), 0.1)
        if round_number % 2:
            ranking.struck(other(1), float(round_number))
    assert ranking.expected_s(NODE) < ranking.expected_s(other(1))
    for _ in range(50):
        ranking.succeeded(other(1), 0.1)
    assert ranking.expected_s(other(1)) == pytest.approx(0.1, rel=0.01)  # it is forgiven

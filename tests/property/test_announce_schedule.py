"""The schedule of announcements: nothing falls silent, nothing exceeds the rate, whatever the outcomes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dds.protocol.announce import (
    ANNOUNCEMENTS_MAX,
    JITTER_FRACTION,
    REPEAT_MS,
    REPEAT_MS_MAX,
    RETRY_MS_MAX,
    RETRY_MS_MIN,
    Announcement,
    Lane,
    Pacer,
    Schedule,
    Turn,
)
from dds.wire.discovery import PROVIDER_LIFETIME_MS, PROVIDER_LIFETIME_MS_MAX
from tests.discovery_samples import NOW_MS

RATE = 4.0
SCHEDULE = Schedule(b"s" * 32, RATE)
ONE = Announcement(4, b"s" * 32, "3")
COUNTS = st.integers(0, ANNOUNCEMENTS_MAX)


@given(st.sampled_from(Lane), COUNTS)
def test_record_lives_until_its_repetition_may_have_failed_and_never_longer_than_readers_allow(lane: Lane, count: int) -> None:
    assert 2 * SCHEDULE.period_ms(lane, count) <= SCHEDULE.lifetime_ms(lane, count) <= PROVIDER_LIFETIME_MS_MAX
    assert SCHEDULE.lifetime_ms(lane, count) >= PROVIDER_LIFETIME_MS


@given(st.sampled_from((Lane.NEW, Lane.REPEATED)), COUNTS)
def test_repetitions_of_all_stay_within_the_rate_as_far_as_lifetimes_allow(lane: Lane, count: int) -> None:
    period_ms = SCHEDULE.period_ms(lane, count)
    earliest_s = period_ms * (1 - 1 / JITTER_FRACTION) / 1000
    assert REPEAT_MS <= period_ms <= REPEAT_MS_MAX
    assert count / earliest_s <= RATE or period_ms == REPEAT_MS_MAX
    assert count > 10**5 or period_ms == REPEAT_MS


@given(st.lists(st.booleans(), min_size=1, max_size=30), COUNTS, st.sampled_from(Lane))
def test_whatever_comes_of_it_the_next_turn_comes_later_but_within_a_period(
    outcomes: list[bool], count: int, lane: Lane
) -> None:
    turn, now_ms, failures = Turn(lane, NOW_MS), NOW_MS, 0
    for ok in outcomes:
        failures = 0 if ok else failures + 1
        most_ms = SCHEDULE.period_ms(turn.lane, count) if ok else min(RETRY_MS_MIN * 2 ** (failures - 1), RETRY_MS_MAX)
        turn = SCHEDULE.after(ONE, turn, ok, now_ms, count)
        assert most_ms * (JITTER_FRACTION - 1) // JITTER_FRACTION <= turn.due_ms - now_ms <= most_ms
        assert turn.failures == failures
        now_ms = turn.due_ms
    assert (turn.lane is Lane.HINTED) == (lane is Lane.HINTED)
    assert turn.lane is not Lane.NEW or not any(outcomes)


@given(st.integers(0, 2**32))
def test_nodes_of_different_seeds_do_not_repeat_in_step(number: int) -> None:
    subject = Announcement(4, number.to_bytes(32, "big"), "3")
    turns = {
        Schedule(bytes((seed,)) * 32, RATE).after(subject, Turn(Lane.NEW, NOW_MS), True, NOW_MS, 1).due_ms for seed in range(8)
    }
    assert len(turns) >= 7


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50), st.integers(0, 50)), max_size=60), st.integers(1, 100))
def test_pacer_never_exceeds_its_rate_and_reserve(steps: list[tuple[float, int, int]], burst: int) -> None:
    pacer, now_s, put = Pacer(RATE, burst, 0.0), 0.0, 0
    for pause_s, most, used in steps:
        now_s += pause_s
        taken = pacer.take(now_s, most)
        assert taken <= most
        pacer.give_back(taken - min(taken, used))
        put += min(taken, used)
        assert put <= burst + now_s * RATE + 1e-6


def test_pacer_that_was_idle_gives_its_whole_reserve_and_no_more() -> None:
    pacer = Pacer(RATE, 10, 0.0)
    assert pacer.take(0.0, 50) == 10
    assert pacer.take(0.1, 50) == 0
    assert pacer.take(1.1, 50) == 4
    assert pacer.take(1e6, 50) == 10

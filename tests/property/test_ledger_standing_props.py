"""Standings against a plain model: a list of verdicts, and sums over it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dds.ledger.records import RUNS_MAX, Node, Standing
from dds.ledger.rules.standing import is_suspended, is_vetted, passes_in, record_miss, record_pass, score_ppm
from tests.ledger_committee import Ledger, small_params

NUMBER = 0
Verdict = tuple[int, bool, int]  # epoch, passed, scale in ppm


@st.composite
def verdicts(draw: st.DrawFn, most: int = 60) -> list[Verdict]:
    epoch, found = 0, []
    for _ in range(draw(st.integers(0, most))):
        epoch += draw(st.sampled_from((1, 1, 1, 2, 5, 30)))
        found.append((epoch, draw(st.booleans()), draw(st.sampled_from((1_000_000, 1_000_000, 400_000, 0)))))
    return found


def judged(history: list[Verdict]) -> tuple[Ledger, Standing]:
    ledger = Ledger(witnesses=1, storers=0, params=small_params(down_epochs=1000))
    for epoch, passed, scale in history:
        if passed:
            record_pass(ledger.state, NUMBER, epoch, scale)
        else:
            record_miss(ledger.state, NUMBER, epoch)
    ledger.state.keep()
    ledger.commit()
    return ledger, ledger.standing(NUMBER)


@settings(max_examples=60, deadline=None)
@given(verdicts(), st.integers(0, 200), st.integers(0, 200))
def test_passes_in_a_range_are_those_that_were_recorded(history: list[Verdict], first: int, end: int) -> None:
    _, standing = judged(history)
    scales = [scale for epoch, passed, scale in history if passed and first <= epoch < end]
    assert passes_in(standing, first, end) == (len(scales), sum(scales))


@settings(max_examples=60, deadline=None)
@given(verdicts(), st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_passes_of_adjoining_ranges_add_up(history: list[Verdict], a: int, b: int, c: int) -> None:
    _, standing = judged(history)
    low, middle, high = sorted((a, b, c))
    parts = zip(passes_in(standing, low, middle), passes_in(standing, middle, high), strict=True)
    assert tuple(one + two for one, two in parts) == passes_in(standing, low, high)


@settings(max_examples=60, deadline=None)
@given(verdicts())
def test_the_score_lies_between_nothing_and_all_and_a_verdict_moves_it_its_way(history: list[Verdict]) -> None:
    ledger, standing = judged(history)
    before, epoch = score_ppm(standing, ledger.params), history[-1][0] + 1 if history else 1
    assert 0 <= before <= 1_000_000
    record_miss(ledger.state, NUMBER, epoch)
    worse = score_ppm(ledger.standing(NUMBER), ledger.params)
    record_pass(ledger.state, NUMBER, epoch + 1, 0)
    better = score_ppm(ledger.standing(NUMBER), ledger.params)
    assert worse <= before and better >= worse


@settings(max_examples=60, deadline=None)
@given(verdicts(), st.integers(0, 1000))
def test_a_node_is_suspended_exactly_when_too_few_of_the_windows_with_a_verdict_had_a_pass(
    history: list[Verdict], later: int
) -> None:
    ledger, standing = judged(history)
    params, now = ledger.params, (history[-1][0] if history else 0) + later
    length, window = params.downtime_window_epochs, now // params.downtime_window_epochs
    seen = {epoch // length for epoch, _, _ in history if window - params.downtime_windows <= epoch // length < window}
    up = {epoch // length for epoch, passed, _ in history if passed} & seen
    assert is_suspended(standing, params, now) == (len(up) * 1_000_000 < len(seen) * params.downtime_suspend_ppm)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from((1, 2)), min_size=RUNS_MAX, max_size=RUNS_MAX + 60))
def test_memory_is_bounded_and_never_pays_more_than_was_passed(gaps: list[int]) -> None:
    history = ever_changing(gaps)
    _, standing = judged(history)
    passed, scaled = passes_in(standing, 0, history[-1][0] + 1)
    assert len(standing.runs) <= RUNS_MAX and standing.passed == len(history)
    assert passed <= len(history) and scaled <= sum(scale for _, _, scale in history)


def test_beyond_its_bound_memory_joins_what_touches_and_loses_no_epoch() -> None:
    _, standing = judged(ever_changing([1] * (RUNS_MAX + 50)))
    assert passes_in(standing, 0, 1000)[0] == RUNS_MAX + 50
    assert standing.runs[0].scale_ppm == 1_000  # the lower of those joined


def test_beyond_its_bound_memory_forgets_the_oldest_where_nothing_touches() -> None:
    history = ever_changing([2] * (RUNS_MAX + 50))
    _, standing = judged(history)
    assert [run.first for run in standing.runs] == [epoch for epoch, _, _ in history[50:]]


def ever_changing(gaps: list[int]) -> list[Verdict]:
    """Every pass at another scale than the one before: a run each."""
    return [(sum(gaps[: at + 1]), True, 1_000 + at % 2) for at in range(len(gaps))]


def test_41_failures_in_a_row_take_a_perfect_score_below_96_percent() -> None:
    for failures, above in ((40, True), (41, False)):
        ledger, standing = judged([(epoch, False, 0) for epoch in range(1, failures + 1)])
        assert (score_ppm(standing, ledger.params) >= 960_000) is above


def test_vetting_takes_both_audits_and_time_but_for_the_first_nodes() -> None:
    params = small_params()
    node = Node(0, b"", b"", b"", (), "", "", 5, 0)
    long_enough, often_enough = 5 + params.vetted_epochs, Standing(passed=params.vetted_audits)
    assert is_vetted(node, often_enough, params, long_enough)
    assert not is_vetted(node, often_enough, params, long_enough - 1)
    assert not is_vetted(node, Standing(passed=params.vetted_audits - 1), params, long_enough)
    assert is_vetted(Node(0, b"", b"", b"", (), "", "", 5, 0, genesis=True), Standing(), params, 5)

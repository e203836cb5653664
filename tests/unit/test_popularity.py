"""Popularity: it fades by a half in a half-life, is bounded, the same for whoever counts the same, and survives a restart."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dds.primitives.cid import cid_of
from dds.primitives.ids import SegmentID
from dds.protocol.popularity import (
    DAY_MS,
    HALF_LIFE_MS,
    READ,
    TICKS,
    VOICE_MAX,
    Popularity,
    content_reads,
    edge_reads,
    faded,
    idle_ms_min,
    segment_reads,
)
from dds.protocol.tiering import ARCHIVED_BYTES_MIN, BACK_READS, Tier, idle_days, patience, recommend
from dds.runtime.popularity import ContentCounter

NOW_MS = 1_700_000_000_000
ONE, TWO = SegmentID(b"1" * 32), SegmentID(b"2" * 32)
counts = st.integers(0, 1 << 62)
ticks = st.integers(0, 100 * TICKS)
reads_of_any = st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.integers(0, 10**6)), max_size=20)


@given(counts, ticks)
def test_a_count_halves_in_every_half_life(count: int, more: int) -> None:
    assert faded(count, more + TICKS) in range(faded(count, more) // 2 - 10, faded(count, more) // 2 + 11)


@given(counts, ticks, ticks)
def test_a_count_only_ever_fades(count: int, first: int, more: int) -> None:
    assert 0 <= faded(count, first + more) <= faded(count, first) <= count


@given(st.lists(st.tuples(st.sampled_from([ONE, TWO]), st.integers(0, 10**6), st.integers(0, 60 * DAY_MS)), max_size=30))
def test_never_more_is_counted_than_was_read(reads: list[tuple[SegmentID, int, int]]) -> None:
    counter = Popularity()
    for segment, count, after_ms in sorted(reads, key=lambda each: each[2]):
        counter.add(segment, count, NOW_MS + after_ms)
    for segment in (ONE, TWO):
        assert counter.reads(segment, NOW_MS + 60 * DAY_MS) <= sum(count for each, count, _ in reads if each == segment)


@given(st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.integers(1, 10**6)), max_size=60))
def test_the_number_of_segments_is_bounded_and_the_most_read_stays(reads: list[tuple[bytes, int]]) -> None:
    counter = Popularity(keys_max=16)
    counter.add(ONE, 10**9, NOW_MS)
    for segment, count in reads:
        counter.add(SegmentID(segment), count, NOW_MS)
        assert len(counter) <= 16
    assert counter.reads(ONE, NOW_MS) >= 10**9


@given(reads_of_any, st.integers(0, 99 * DAY_MS))
def test_a_restart_changes_no_count(reads: list[tuple[bytes, int]], later_ms: int) -> None:
    counter = Popularity()
    for segment, count in reads:
        counter.add(SegmentID(segment), count, NOW_MS)
    again = Popularity.from_state(counter.to_state())
    for segment, _ in reads:
        assert again.reads(SegmentID(segment), NOW_MS + later_ms) == counter.reads(SegmentID(segment), NOW_MS + later_ms)


def test_a_clock_that_jumps_back_makes_nothing_popular() -> None:
    counter = Popularity()
    counter.add(ONE, READ, NOW_MS)
    counter.add(ONE, READ, NOW_MS - 300 * DAY_MS)
    assert counter.reads(ONE, NOW_MS) == 2 * READ


def test_frequent_small_reads_add_up_to_what_one_large_read_counts() -> None:
    often, once = Popularity(), Popularity()
    for at in range(1000):
        often.add(ONE, 1, NOW_MS + at * HALF_LIFE_MS // 1000)
    once.add(ONE, 721, NOW_MS + HALF_LIFE_MS)  # 1000 x (1 - 1/2) / ln 2
    assert abs(often.reads(ONE, NOW_MS + HALF_LIFE_MS) - once.reads(ONE, NOW_MS + HALF_LIFE_MS)) <= 3


@given(st.lists(st.integers(0, 10**6), min_size=10, max_size=10), st.integers(0, 9), st.integers(0, 1 << 60))
def test_one_liar_among_the_holders_does_not_matter(honest: list[int], liar: int, lie: int) -> None:
    said = dict(enumerate(honest))
    told = segment_reads(10, {**said, liar: lie})
    assert told is not None
    assert min(honest) <= told <= max(honest)


@given(st.lists(st.integers(0, 10**6), min_size=3, max_size=7), st.integers(0, 1 << 60))
def test_one_liar_among_the_keepers_of_copies_adds_at_most_the_most_honest_count(honest: list[int], lie: int) -> None:
    told = segment_reads(1, dict(enumerate([*honest, lie])))
    assert told is not None
    assert told <= sum(honest)


def test_parity_holders_do_not_hide_that_a_segment_is_read() -> None:
    assert segment_reads(16, {index: 2 * READ if index < 16 else 0 for index in range(32)}) == 2 * READ


def test_nothing_is_known_where_nobody_answers() -> None:
    assert segment_reads(10, {}) is None
    assert content_reads([None, None]) is None
    assert content_reads([None, 5, 7]) == 7


@given(st.integers(READ, 5 * READ), st.integers(0, 130 * DAY_MS))
def test_content_is_never_said_to_be_idle_for_longer_than_it_is(reads: int, idle_ms: int) -> None:
    counter = Popularity()
    counter.add(ONE, reads, NOW_MS)
    left = counter.reads(ONE, NOW_MS + idle_ms)
    assert idle_ms_min(left) <= idle_ms + HALF_LIFE_MS // TICKS


def test_unread_content_goes_to_the_archive_only_where_its_home_wants_it() -> None:
    large, never, later = ARCHIVED_BYTES_MIN, patience(None, 0), patience(None, 30)
    assert recommend("standard", large, 0, 60, never).to == "standard"
    assert recommend("standard", large, 0, 60, later).to == "archive"
    assert recommend("standard", large, 0, 29, later).to == "standard"
    assert recommend("standard", large - 1, 0, 60, later).to == "standard"
    assert recommend("standard", large, None, 60, later).to == "standard"


def test_the_rule_that_gave_content_its_class_comes_before_the_home() -> None:
    large = ARCHIVED_BYTES_MIN
    sooner, slower = (
        recommend("standard", large, 0, 20, patience(10, 30)),
        recommend("standard", large, 0, 40, patience(90, 30)),
    )
    assert (sooner.to, slower.to) == ("archive", "standard")
    assert "10 are enough, says the rule" in sooner.reason
    assert "of 90 by the rule" in slower.reason
    assert "config.toml" in recommend("standard", large, 0, 40, patience(None, 30)).reason


def test_archived_content_that_is_read_again_goes_back_to_what_it_was() -> None:
    wait = patience(None, 30)
    assert recommend("archive", 1 << 20, BACK_READS, 0, wait).to == "standard"
    assert recommend("archive", 1 << 20, BACK_READS - 1, 0, wait, Tier("hot")).to == "archive"
    assert recommend("archive", 1 << 20, BACK_READS, 0, wait, Tier("hot")).to == "hot"
    assert recommend("archive", 1 << 20, BACK_READS, 0, wait, Tier("archive", 6, 6)).to == "standard"
    back = recommend("archive", 1 << 20, BACK_READS, 0, wait, Tier("custom", 4, 2))
    assert (back.to, back.k, back.m) == ("custom", 4, 2)


voices = st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 1 << 60)), max_size=12)


@given(st.integers(0, 1 << 40), voices)
def test_what_edges_say_adds_up_and_no_operator_is_heard_louder_than_its_voice(size: int, said: list[tuple[str, int]]) -> None:
    told = edge_reads(size, said)
    operators = {who for who, _ in said}
    assert told <= VOICE_MAX * len(operators)
    assert told == sum(edge_reads(size, [each for each in said if each[0] == who]) for who in operators)


def test_one_operator_keeps_content_out_of_the_archive_and_brings_none_back() -> None:
    loud = edge_reads(1 << 20, [("a", 1 << 50)] * 9)
    wait = patience(None, 30)
    assert idle_days(loud, NOW_MS - 60 * DAY_MS, NOW_MS) == 0
    assert recommend("archive", 1 << 20, loud, 0, wait).to == "archive"
    both = edge_reads(1 << 20, [("a", 1 << 50), ("b", 3 << 19)])
    assert recommend("archive", 1 << 20, both, 0, wait).to == "standard"


def test_half_a_content_served_is_half_a_read() -> None:
    assert edge_reads(1 << 20, [("a", 1 << 19)]) == READ // 2
    assert edge_reads(0, [("a", 0)]) == 0


async def test_an_edge_counts_over_a_restart_and_begins_anew_with_a_damaged_file(tmp_path: Path) -> None:
    content, other = cid_of(b"one"), cid_of(b"two")
    counter = ContentCounter(tmp_path, lambda: NOW_MS)
    counter.served(content, 5000)
    await counter.save()
    again = ContentCounter(tmp_path, lambda: NOW_MS + HALF_LIFE_MS)
    assert again.served_bytes([other, content]) == [0, 2500]
    (tmp_path / "popularity.state").write_bytes(b"rotten")
    assert ContentCounter(tmp_path, lambda: NOW_MS).served_bytes([content]) == [0]


def test_what_was_moved_a_moment_ago_is_not_idle() -> None:
    assert idle_days(0, NOW_MS - DAY_MS, NOW_MS) == 1
    assert idle_days(0, NOW_MS - 400 * DAY_MS, NOW_MS) == 139
    assert idle_days(2 * READ, NOW_MS - 400 * DAY_MS, NOW_MS) == 0

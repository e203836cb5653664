"""The announce queue: repeats at half a record's life, survives restarts, never floods."""

from __future__ import annotations

import pytest

from dds.primitives.errors import FormatError
from dds.protocol.announce import JITTER_FRACTION, REPEAT_MS, RETRY_MS_MAX, RETRY_MS_MIN, Announcement, AnnounceQueue
from dds.wire.discovery import CONTENT_PROVIDER, PROVIDER_LIFETIME_MS, SEGMENT_PROVIDER
from tests.discovery_samples import NOW_MS

SEED = b"s" * 32


def announcement(number: int) -> Announcement:
    return Announcement(SEGMENT_PROVIDER.code, number.to_bytes(32, "big"), "3")


def filled(count: int) -> AnnounceQueue:
    queue = AnnounceQueue(SEED)
    for number in range(count):
        assert queue.add(announcement(number), NOW_MS)
    return queue


def announce_all(queue: AnnounceQueue, now_ms: int, *, ok: bool = True) -> int:
    total = 0
    while batch := queue.due(now_ms, 7):
        assert len(batch) <= 7
        for each in batch:
            queue.done(each, ok, now_ms)
        total += len(batch)
    return total


def test_new_announcement_is_due_at_once_and_again_at_half_its_life() -> None:
    queue = filled(20)
    assert announce_all(queue, NOW_MS) == 20
    assert queue.due(NOW_MS + REPEAT_MS - REPEAT_MS // JITTER_FRACTION - 1, 100) == []
    assert announce_all(queue, NOW_MS + REPEAT_MS) == 20
    assert 2 * REPEAT_MS <= PROVIDER_LIFETIME_MS


def test_repetitions_are_spread_by_the_seed() -> None:
    queue = filled(200)
    announce_all(queue, NOW_MS)
    early = NOW_MS + REPEAT_MS - REPEAT_MS // JITTER_FRACTION // 2
    assert 60 < len(queue.due(early, 1000)) < 140


def test_announcing_the_same_again_changes_nothing() -> None:
    queue = filled(1)
    announce_all(queue, NOW_MS)
    assert not queue.add(announcement(0), NOW_MS + 5)
    assert announce_all(queue, NOW_MS + 5) == 0


def test_one_that_is_out_is_not_handed_out_twice() -> None:
    queue = filled(1)
    assert queue.due(NOW_MS, 10) == [announcement(0)]
    assert queue.due(NOW_MS + 3_600_000, 10) == []


def test_failure_is_retried_with_growing_pauses() -> None:
    queue, now_ms, pauses = filled(1), NOW_MS, []
    for _ in range(14):
        assert announce_all(queue, now_ms, ok=False) == 1
        due_ms = queue.next_due_ms()
        assert due_ms is not None
        pauses.append(due_ms - now_ms)
        now_ms = due_ms
    assert RETRY_MS_MIN * 7 // 8 <= pauses[0] <= RETRY_MS_MIN
    assert RETRY_MS_MAX * 7 // 8 <= pauses[-1] <= RETRY_MS_MAX
    assert announce_all(queue, now_ms) == 1
    assert announce_all(queue, now_ms + RETRY_MS_MAX) == 0


def test_withdrawn_is_never_announced_again_even_when_it_was_out() -> None:
    queue = filled(2)
    out = queue.due(NOW_MS, 1)[0]
    queue.withdraw(out)
    queue.done(out, True, NOW_MS)
    assert out not in queue
    assert announce_all(queue, NOW_MS + PROVIDER_LIFETIME_MS) == 1


def test_foreign_record_is_repeated_until_it_expires_and_then_dropped() -> None:
    queue = AnnounceQueue(SEED)
    queue.add(Announcement(CONTENT_PROVIDER.code, b"c", "x", b"signed", NOW_MS + REPEAT_MS + 1), NOW_MS)
    assert announce_all(queue, NOW_MS) == 1
    assert announce_all(queue, NOW_MS + REPEAT_MS) == 1
    assert announce_all(queue, NOW_MS + 3 * REPEAT_MS) == 0
    assert len(queue) == 0


def test_new_addresses_are_said_soon_but_foreign_records_keep_their_time() -> None:
    queue = filled(3)
    queue.add(Announcement(CONTENT_PROVIDER.code, b"c", "x", b"signed", NOW_MS + REPEAT_MS), NOW_MS)
    announce_all(queue, NOW_MS)
    queue.renew_all(NOW_MS + 10)
    assert announce_all(queue, NOW_MS + 10) == 3


def test_restart_repeats_nothing_early_and_loses_nothing() -> None:
    queue = filled(50)
    for each in queue.due(NOW_MS, 30):
        queue.done(each, True, NOW_MS)
    queue.due(NOW_MS, 5)  # out when the process dies
    restored = AnnounceQueue(b"another seed")
    restored.restore(queue.to_state(), NOW_MS + 1000)
    assert len(restored) == 50
    assert announce_all(restored, NOW_MS + 1000) == 20
    assert announce_all(restored, NOW_MS + REPEAT_MS * 3 // 4) == 0
    assert announce_all(restored, NOW_MS + REPEAT_MS + 1000) == 50


def test_clock_that_was_far_ahead_silences_nobody_for_longer_than_a_period() -> None:
    queue = AnnounceQueue(SEED)
    queue.add(announcement(1), NOW_MS + 10 * PROVIDER_LIFETIME_MS)
    restored = AnnounceQueue(SEED)
    restored.restore(queue.to_state(), NOW_MS)
    assert announce_all(restored, NOW_MS + REPEAT_MS) == 1


@pytest.mark.parametrize("state", [b"", b"\x92\x02\x90", b"\xc1", b"\x92\x01\x91\x93\x90\x00\x00"])
def test_state_that_is_not_ours_is_refused(state: bytes) -> None:
    with pytest.raises(FormatError):
        AnnounceQueue(SEED).restore(state, NOW_MS)


def test_rescheduling_for_ever_does_not_grow_the_queue() -> None:
    queue = filled(10)
    for turn in range(1000):
        queue.renew_all(NOW_MS + turn)
    assert len(queue._heap) <= 2 * 10 + 65
    assert announce_all(queue, NOW_MS + 1000) == 10

"""The announce queue on disk: keeps turns over restarts, gives what is due in order, loses nothing, reads little."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from dds.primitives.errors import ConfigError, FormatError, LimitError
from dds.protocol.announce import REPEAT_MS, Announcement, Lane, Turn
from dds.runtime.node_announce import open_announce_queue
from dds.storage import announce_queue
from dds.storage.announce_queue import AnnounceQueue
from dds.wire.codec import Message, encode
from dds.wire.discovery import CONTENT_PROVIDER, SEGMENT_PROVIDER
from tests.discovery_samples import NOW_MS


def announcement(number: int) -> Announcement:
    return Announcement(SEGMENT_PROVIDER.code, number.to_bytes(32, "big"), "3")


def filled(path: Path, count: int, *, lane: Lane = Lane.NEW) -> AnnounceQueue:
    queue = AnnounceQueue(path / "queue")
    assert queue.add([(announcement(number), Turn(lane, NOW_MS)) for number in range(count)]) == count
    return queue


def repeat_all(queue: AnnounceQueue, now_ms: int) -> int:
    total = 0
    while batch := queue.due(now_ms, 7):
        assert len(batch) <= 7
        queue.reschedule([(each, Turn(Lane.REPEATED, now_ms + REPEAT_MS)) for each in batch])
        total += len(batch)
    return total


def test_announcing_the_same_again_keeps_its_turn(tmp_path: Path) -> None:
    queue = filled(tmp_path, 3)
    assert repeat_all(queue, NOW_MS) == 3
    assert queue.add([(announcement(0), Turn(Lane.NEW, NOW_MS + 5)), (announcement(9), Turn(Lane.NEW, NOW_MS + 5))]) == 1
    assert [each.announcement for each in queue.due(NOW_MS + 5, 10)] == [announcement(9)]
    assert len(queue) == 4
    queue.close()


def test_something_new_does_not_wait_behind_repetitions_nor_those_behind_what_manifests_tell(tmp_path: Path) -> None:
    queue = AnnounceQueue(tmp_path / "queue")
    turns = [Turn(Lane.HINTED, 1), Turn(Lane.REPEATED, 5), Turn(Lane.REPEATED, 4), Turn(Lane.NEW, 9), Turn(Lane.NEW, 8)]
    queue.add([(announcement(number), turn) for number, turn in enumerate(turns)])
    assert [each.turn for each in queue.due(10, 10)] == [turns[4], turns[3], turns[2], turns[1], turns[0]]
    assert [each.turn for each in queue.due(10, 3)] == [turns[4], turns[3], turns[2]]
    assert queue.next_due_ms() == 1
    queue.close()


def test_withdrawn_is_never_announced_again_even_when_it_was_out(tmp_path: Path) -> None:
    queue = filled(tmp_path, 2)
    out = queue.due(NOW_MS, 1)
    assert queue.remove([out[0].announcement]) == 1
    queue.reschedule([(out[0], Turn(Lane.REPEATED, NOW_MS))])
    assert [each.announcement for each in queue.due(NOW_MS + REPEAT_MS, 9)] == [announcement(1)]
    assert len(queue) == 1
    queue.close()


def test_record_that_changed_while_it_was_out_is_said_at_its_own_time(tmp_path: Path) -> None:
    queue = AnnounceQueue(tmp_path / "queue")
    old, new = (Announcement(CONTENT_PROVIDER.code, b"c", "x", signed, NOW_MS * 2) for signed in (b"old", b"new"))
    queue.add([(old, Turn(Lane.NEW, NOW_MS))])
    out = queue.due(NOW_MS, 1)
    assert queue.add([(new, Turn(Lane.NEW, NOW_MS + 1))]) == 1
    queue.reschedule([(out[0], Turn(Lane.REPEATED, NOW_MS + REPEAT_MS))])
    assert [each.announcement for each in queue.due(NOW_MS + 1, 5)] == [new]
    queue.close()


def test_restart_repeats_nothing_early_and_loses_nothing(tmp_path: Path) -> None:
    queue = filled(tmp_path, 50)
    said = queue.due(NOW_MS, 30)
    queue.reschedule([(each, Turn(Lane.REPEATED, NOW_MS + REPEAT_MS)) for each in said])
    queue.due(NOW_MS, 5)  # out when the process dies
    queue.close()
    again = AnnounceQueue(tmp_path / "queue")
    assert len(again) == 50
    assert repeat_all(again, NOW_MS + 1000) == 20
    assert repeat_all(again, NOW_MS + REPEAT_MS) == 30
    again.close()


def test_new_addresses_are_said_soon_in_steps_but_foreign_records_keep_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce_queue, "RENEW_ROWS", 2)
    queue = filled(tmp_path, 5)
    foreign = Announcement(CONTENT_PROVIDER.code, b"c", "x", b"signed", NOW_MS + REPEAT_MS)
    queue.add([(foreign, Turn(Lane.NEW, NOW_MS))])
    repeat_all(queue, NOW_MS)
    steps, at = 0, queue.renew_step(0, NOW_MS + 10)
    while at is not None:
        steps, at = steps + 1, queue.renew_step(at, NOW_MS + 10)
    assert steps == 3
    assert {each.announcement for each in queue.due(NOW_MS + 10, 9)} == {announcement(number) for number in range(5)}
    queue.close()


def test_clock_that_was_far_ahead_silences_nobody_for_longer_than_a_period(tmp_path: Path) -> None:
    queue = AnnounceQueue(tmp_path / "queue")
    queue.add([(announcement(1), Turn(Lane.REPEATED, NOW_MS * 2)), (announcement(2), Turn(Lane.NEW, NOW_MS))])
    queue.bring_forward(NOW_MS + REPEAT_MS)
    assert [each.turn.due_ms for each in queue.due(NOW_MS + REPEAT_MS, 5)] == [NOW_MS, NOW_MS + REPEAT_MS]
    queue.close()


def test_full_queue_keeps_what_it_has_and_says_that_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announce_queue, "ANNOUNCEMENTS_MAX", 3)
    queue = filled(tmp_path, 2)
    with pytest.raises(LimitError):
        queue.add([(announcement(number), Turn(Lane.NEW, NOW_MS)) for number in range(2, 6)])
    assert len(queue) == 3
    queue.remove([announcement(0)])
    assert queue.add([(announcement(7), Turn(Lane.NEW, NOW_MS))]) == 1
    queue.close()


def test_due_and_next_due_are_read_from_the_index_not_by_a_scan(tmp_path: Path) -> None:
    filled(tmp_path, 1).close()
    with sqlite3.connect(tmp_path / "queue") as db:
        for query in ("SELECT * FROM queue WHERE lane = 1 AND due_ms <= 5 ORDER BY due_ms LIMIT 7",
                      "SELECT min(due_ms) FROM queue WHERE lane = 1"):  # fmt: skip
            plan = " ".join(str(row[3]) for row in db.execute(f"EXPLAIN QUERY PLAN {query}"))
            assert "queue_due" in plan
            assert "TEMP B-TREE" not in plan
    db.close()


def test_file_that_is_no_queue_is_refused_and_left_alone(tmp_path: Path) -> None:
    content = b"no database at all, but long enough to be looked at" * 40
    (tmp_path / "queue").write_bytes(content)
    with pytest.raises(ConfigError):
        AnnounceQueue(tmp_path / "queue")
    assert (tmp_path / "queue").read_bytes() == content


class _OldEntry(Message, frozen=True):
    announcement: Announcement
    due_ms: int
    failures: int


class _OldState(Message, frozen=True):
    version: int
    entries: list[_OldEntry]


def test_queue_of_an_older_release_is_taken_over_with_its_times(tmp_path: Path) -> None:
    far_ms = 1 << 50
    old = [_OldEntry(announcement(at), at, 2) for at in range(5000)] + [_OldEntry(announcement(5000), far_ms, 0)]
    (tmp_path / "announce.state").write_bytes(encode(_OldState(1, old)))
    queue = open_announce_queue(tmp_path)
    assert len(queue) == 5001
    assert not (tmp_path / "announce.state").exists()
    assert [(each.announcement, each.turn) for each in queue.due(1, 9)] == [
        (announcement(at), Turn(Lane.REPEATED, at, 2)) for at in range(2)
    ]
    assert not [each for each in queue.due(far_ms - 1, 5001) if each.turn.due_ms == far_ms]
    queue.close()
    again = open_announce_queue(tmp_path)
    assert len(again) == 5001
    again.close()


@pytest.mark.parametrize("state", [b"", b"\x92\x02\x90", b"\xc1", b"\x92\x01\x91\x93\x90\x00\x00"])
def test_old_state_that_is_not_ours_is_put_aside(tmp_path: Path, state: bytes) -> None:
    (tmp_path / "announce.state").write_bytes(state)
    with pytest.raises(FormatError):
        filled(tmp_path, 0).take_over(tmp_path / "announce.state", NOW_MS)
    open_announce_queue(tmp_path).close()
    assert (tmp_path / "announce.unread").read_bytes() == state

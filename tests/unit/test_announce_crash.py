"""A node that is killed with -9 keeps its announcements: what was due is due still, what was said is not said again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from dds.protocol.announce import REPEAT_MS
from dds.storage.announce_queue import AnnounceQueue
from tests.discovery_samples import NOW_MS

ROUNDS = 5
BATCHES = 25
WRITER = """
import sys
from pathlib import Path
from dds.protocol.announce import Announcement, Lane, Turn
from dds.storage.announce_queue import AnnounceQueue
path, start, now_ms, later_ms = Path(sys.argv[1]), *map(int, sys.argv[2:])
queue = AnnounceQueue(path)
while True:
    numbers = range(start, start + 10)
    queue.add([(Announcement(4, number.to_bytes(32, "big"), "3"), Turn(Lane.NEW, now_ms)) for number in numbers])
    print("added", *numbers, flush=True)
    out = queue.due(now_ms, 4)
    queue.reschedule([(each, Turn(Lane.REPEATED, later_ms)) for each in out[:2]])
    print("said", *(int.from_bytes(each.announcement.subject, "big") for each in out[:2]), flush=True)
    start += 10
"""


def test_killed_node_loses_nothing_that_was_due_and_repeats_nothing_that_was_said(tmp_path: Path) -> None:
    path, later_ms = tmp_path / "queue", NOW_MS + REPEAT_MS
    added: set[int] = set()
    said: set[int] = set()
    for turn in range(ROUNDS):
        arguments = [str(path), str(turn * 1_000_000), str(NOW_MS), str(later_ms)]
        writer = subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(BATCHES + turn):
            word, *numbers = writer.stdout.readline().split()
            (added if word == "added" else said).update(map(int, numbers))
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().splitlines()
        writer.wait()
        for line in rest:
            word, *numbers = line.split()
            (added if word == "added" else said).update(int(number) for number in numbers)
        queue = AnnounceQueue(path)
        due = {int.from_bytes(each.announcement.subject, "big") for each in queue.due(NOW_MS, 10**9)}
        kept = {int.from_bytes(each.announcement.subject, "big") for each in queue.due(later_ms, 10**9)}
        queue.close()
        assert len(added) >= 10
        assert added <= kept
        assert said.isdisjoint(due)
        assert len(added - due - said) <= 2 * (turn + 1)  # rescheduled, but killed before it could say so

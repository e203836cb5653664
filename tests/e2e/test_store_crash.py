"""A writer is killed at random instants, hundreds of times: what it had acknowledged is there, and nothing is half there."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dds.storage.fragment_store import FragmentStore
from dds.storage.fsck import fsck
from dds.storage.upkeep import Upkeep
from tests.store_kit import OWNER, fast_directory, manifest_of, raw_of
from tests.store_writer import CONFIG, Change, Op, change_of, data_of, encoding_of, segment_id_of, upload_of

KILLS = 210
CHECKED_AGAIN = 20  # facts of earlier rounds looked at in each round
FSCK_EVERY = 12


class Writer:
    """The writer's process, and what it said."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-m", "tests.store_writer", str(path)]
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, text=True)

    def run_and_kill(self, seed: int, lines: int, after_s: float) -> tuple[list[Op], list[Op]]:
        """SIGKILL it a moment after it has said `lines` lines. Returns what was acknowledged, and what was under way."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{seed}\n")
        self.process.stdin.flush()
        word, pid = self.process.stdout.readline().split()
        assert word == "child"
        killer = threading.Timer(after_s, os.kill, (int(pid), signal.SIGKILL))
        if lines == 0:
            killer.start()
        done: list[Op] = []
        under_way: dict[int, Op] = {}
        for line in self.process.stdout:
            word, _, rest = line.strip().partition(" ")
            assert word != "failed", rest
            if word == "dead":
                break
            lines -= 1
            if lines == 0:
                killer.start()
            op = json.loads(rest)
            if word == "intent":
                under_way[op["thread"]] = op
            else:
                done.append(under_way.pop(op["thread"]))
        killer.join()
        return done, list(under_way.values())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    with fast_directory(tmp_path) as name:
        yield Path(name)


@pytest.fixture
def writer(fast_path: Path) -> Iterator[Writer]:
    started = Writer(fast_path / "store")
    yield started
    started.close()


def observed(store: FragmentStore, fact: str) -> object:
    """What the store says about a fact, read back and verified."""
    kind, *numbers = fact.split()
    number = int(numbers[-1])
    if kind == "staged":
        root = encoding_of(number // 2).records[number % 2][0].root
        if root not in store.staged(upload_of(int(numbers[0])), OWNER):
            return False
        assert store.read(root) == data_of(number)
        return True
    if kind == "held":
        if store.holding([segment_id_of(number)]) != [[0]]:
            return False
        encoding = encoding_of(number)
        assert store.segment(encoding.segment_id) == [(raw_of(encoding), [0])]
        for at, row in enumerate(encoding.records):
            assert store.read(row[0].root) == data_of(2 * number + at)
        return True
    raws = store.manifests(manifest_of(number).cid)
    known = {manifest_of(number, 0, created).raw: created for created in (5, 6)}
    return known[raws[0]] if raws else None


def check_under_way(store: FragmentStore, op: Op, known: Change) -> None:
    """An operation without acknowledgement happened whole or not at all (a plain `stage` of two: in order)."""
    change = change_of(op)
    missing = {fact: None if fact.startswith("manifest") else False for fact in change}
    before = [known.get(fact, missing[fact]) for fact in change]
    seen = [observed(store, fact) for fact in change]
    allowed = [before, list(change.values())]
    if op["op"] == "stage" and op["upload"] % 2 == 0:
        allowed.append([True, False])
    assert seen in allowed, f"{op}: {seen} is neither before nor after"
    known.update(zip(change, seen, strict=True))


def test_nothing_acknowledged_is_lost_when_the_writer_is_killed_hundreds_of_times(writer: Writer, fast_path: Path) -> None:
    path, rng = fast_path / "store", random.Random(7)
    known: Change = {}
    acknowledged = torn = 0
    for seed in range(KILLS):
        done, under_way = writer.run_and_kill(seed, rng.choice([0, *range(1, 40)]), rng.uniform(0, 0.003))
        earlier = rng.sample(sorted(known), min(CHECKED_AGAIN, len(known)))
        new: Change = {}
        for op in done:
            new |= change_of(op)
        known |= new
        if seed % FSCK_EVERY == 0 and path.exists() and (path / "FORMAT").exists():
            report = fsck(path)
            assert report.clean, report.problems
        with FragmentStore(path, CONFIG) as store:
            torn += store.recovery.torn_bytes > 0
            assert store.recovery.is_sound, store.recovery
            for op in under_way:
                check_under_way(store, op, known)
            for fact in {*new, *earlier}:
                assert observed(store, fact) == known[fact], f"round {seed}: {fact}"
            assert store.stats().used_bytes == sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        acknowledged += len(done)
    with FragmentStore(path, CONFIG) as store:
        for fact, value in known.items():
            assert observed(store, fact) == value, fact
        while Upkeep(store).sweep_step().more:
            pass
    report = fsck(path, deep=True)
    assert report.clean, report.problems
    assert report.notes == []
    assert acknowledged > 5 * KILLS, "the writers hardly wrote"

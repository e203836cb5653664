"""The power goes at every write, sync, rename and unlink: what is left opens as before or after the operation under way."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dds.primitives.ids import SegmentID
from dds.storage.fragment_store import FragmentStore, StoreConfig
from dds.storage.fsck import fsck
from dds.storage.image import build_image
from dds.storage.upkeep import Upkeep
from tests.recorded_disk import Disk, RecordingOps
from tests.store_kit import OWNER, Clock, content_of, fast_directory, let_pass, manifest_of, open_store, raw_of, segment_of

CONFIG = StoreConfig(capacity_bytes=1 << 30, packed_bytes_max=4000, pack_bytes=24_000, trash_window_ms=1000, staged_ttl_ms=5000)
UPLOADS = [bytes([number]) * 16 for number in range(4)]
SMALL, LARGE, INLINE = content_of("small", 1500), content_of("large", 9000), content_of("inline", 700)
MANY = [content_of(f"many {number}", 2000) for number in range(4)]
GARBAGE = [content_of(f"garbage {number}", 3900) for number in range(7)]
PAIR = segment_of([SMALL, LARGE], name="pair")
ALONE = segment_of([INLINE], name="alone")
EVERYTHING = [SMALL, LARGE, INLINE, *MANY, *GARBAGE]
View = tuple[object, ...]


def view(store: FragmentStore) -> View:
    """Everything a user can see, read back and verified."""
    segments: list[SegmentID] = [PAIR.segment_id, ALONE.segment_id]
    states = []
    for data in EVERYTHING:
        root = build_image(data).root
        found = store.find(root)
        assert found is None or store.read(root, 0, len(data)) == data
        states.append(found)
    return (
        [store.staged(upload, OWNER) for upload in UPLOADS],
        store.holding(segments),
        [store.segment(segment) for segment in segments],
        [store.manifests(manifest_of(number).cid) for number in range(2)],
        states,
    )


def steps(store: FragmentStore, clock: Clock) -> Iterator[Callable[[], object]]:
    """Operations, each of which is one step from one view to the next."""
    first, second, third, fourth = UPLOADS
    yield lambda: store.stage(first, OWNER, SMALL)
    yield lambda: store.stage(first, OWNER, LARGE)
    yield lambda: store.stage_many(second, OWNER, [*MANY, LARGE])
    yield lambda: store.commit(first, OWNER, PAIR, raw_of(PAIR), 0, (), manifest_of(0))
    yield lambda: store.commit(third, OWNER, ALONE, raw_of(ALONE), 1, [INLINE], manifest_of(1, 1, 10))
    yield lambda: store.put_manifest(manifest_of(1, 1, 11))
    yield lambda: store.put_manifest(manifest_of(1, 2, 12))
    yield lambda: store.abort(second, OWNER)
    yield lambda: store.stage_many(fourth, OWNER, GARBAGE)
    yield lambda: store.abort(fourth, OWNER)
    yield lambda: store.release(PAIR.segment_id, 0)
    yield lambda: store.commit(first, OWNER, PAIR, raw_of(PAIR), 0)
    yield lambda: store.release(ALONE.segment_id, 1)
    yield lambda: let_pass(store, clock, 1000)
    yield lambda: Upkeep(store).sweep_step()
    yield lambda: store.stage(third, OWNER, LARGE)
    for _ in range(16):
        yield lambda: Upkeep(store).compact_step(4000)
    yield lambda: store.stage_many(second, OWNER, MANY)
    yield lambda: let_pass(store, clock, 5000)
    yield lambda: Upkeep(store).sweep_step()
    yield store.close


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    with fast_directory(tmp_path) as name:
        yield Path(name)


def record(place: Path) -> tuple[RecordingOps, list[View], list[Path]]:
    """Run all steps; the events with ("done", n) marks between them, what could be seen after each, and the index then."""
    ops, clock = RecordingOps(), Clock()
    store = open_store(place / "store", config=CONFIG, clock=clock, ops=ops)
    views, indexes = [view(store)], [copy_index(store, place / "index-0.db")]
    ops.events.append(("done", 0))
    for number, step in enumerate(steps(store, clock), 1):
        step()
        views.append(views[-1] if store.writer.closed else view(store))
        indexes.append(indexes[-1] if store.writer.closed else copy_index(store, place / f"index-{number}.db"))
        ops.events.append(("done", number))
    assert store.log.numbers[0] > 1, "the steps must drop a pack"
    return ops, views, indexes


def copy_index(store: FragmentStore, target: Path) -> Path:
    with closing(sqlite3.connect(target)) as copy:
        store.index.db.backup(copy)
    return target


@pytest.mark.parametrize(("kept", "seed"), [(0.0, 1), (1.0, 2), (0.5, 3), (0.9, 4)])
def test_a_power_loss_at_any_moment_loses_nothing_acknowledged(place: Path, kept: float, seed: int) -> None:
    ops, views, indexes = record(place)
    rng, disk, done, target = random.Random(seed), Disk(place / "store"), -1, place / "after"
    for number, event in enumerate(ops.events):
        if event[0] == "done":
            done = event[1]
            continue
        disk.do(event)
        if kept == 0.5 and rng.random() < 0.5:
            continue
        target.mkdir(mode=0o700)
        disk.lose_power(target, rng, kept)
        if done >= 0 and rng.random() < 0.5:  # the index may be as of any earlier moment, or not be at all
            shutil.copy(indexes[rng.randrange(done + 1)], target / "index.db")
        with FragmentStore(target, CONFIG, clock=Clock()) as store:
            assert store.recovery.is_sound, (number, event, store.recovery)
            allowed = views[max(done, 0) : done + 2]
            assert view(store) in allowed, f"power lost after event {number} {event[:2]}, behind step {done}"
        if number % 10 == 0:
            report = fsck(target, deep=True)
            assert report.clean, (number, event[:2], report.problems)
        shutil.rmtree(target)

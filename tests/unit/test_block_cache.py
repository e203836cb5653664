"""An edge's blocks on a real disk: damage, restarts, a full disk, files that somebody else put there."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from dds.primitives.cid import CID, DAG_CBOR, cid_of, cid_text
from dds.primitives.errors import StorageError
from dds.primitives.units import BLOCK_BYTES_MAX
from dds.storage import block_cache
from dds.storage.block_cache import BlockCache
from dds.storage.fileops import FileOps

ROOM = 10_000
DAY_S = 86_400.0


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def block(number: int, size: int = 100) -> bytes:
    return random.Random(number).randbytes(size)


def cid(number: int, size: int = 100) -> CID:
    return cid_of(block(number, size))


def opened(root: Path, *, bytes_max: int = ROOM, clock: Clock | None = None, **more: Any) -> BlockCache:
    cache = BlockCache(root, bytes_max, DAY_S, bytes(32), clock=clock or Clock(), **more)
    cache.load()
    return cache


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_a_block_is_kept_read_and_counted(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    assert cache.get(cid(1)) is None
    assert cache.put(cid(1), block(1))
    assert cache.get(cid(1)) == block(1)
    assert (cache.counters.hits, cache.counters.misses, cache.counters.hit_bytes) == (1, 1, 100)
    assert (cache.size, cache.count) == (100, 1)
    assert files(tmp_path) == [tmp_path / f"{cid(1)[4]:02x}" / cid_text(cid(1))]


def test_only_what_matches_its_name_is_kept(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    assert not cache.put(cid(1), block(2))
    large = bytes(BLOCK_BYTES_MAX + 1)
    assert not cache.put(cid_of(large), large)
    assert (cache.count, files(tmp_path)) == (0, [])


@pytest.mark.parametrize("rotten", [b"", b"short", block(2), block(1) + b"x"])
def test_a_damaged_block_is_dropped_and_never_served(rotten: bytes, tmp_path: Path) -> None:
    gone: list[CID] = []
    cache = opened(tmp_path, on_gone=gone.extend)
    cache.put(cid(1), block(1))
    files(tmp_path)[0].write_bytes(rotten)
    assert cache.get(cid(1)) is None
    assert (cache.counters.damaged, cache.size, files(tmp_path), gone) == (1, 0, [], [cid(1)])
    assert cache.put(cid(1), block(1))
    assert cache.get(cid(1)) == block(1)


def test_a_block_that_somebody_removed_is_a_miss(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.put(cid(1), block(1))
    os.unlink(files(tmp_path)[0])
    assert cache.get(cid(1)) is None
    assert cid(1) not in cache


def test_the_bytes_on_disk_never_exceed_the_cap(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    source = random.Random(5)
    for _ in range(400):
        number = source.randrange(80)
        cache.get(cid(number, 200 + number))
        cache.put(cid(number, 200 + number), block(number, 200 + number))
        assert cache.size <= ROOM
        if number < 4:
            assert cache.size == sum(path.stat().st_size for path in files(tmp_path))
    assert cache.counters.evicted > 0


def test_a_restart_finds_what_was_kept_and_who_was_read_last(tmp_path: Path) -> None:
    clock = Clock()
    cache = opened(tmp_path, clock=clock)
    for number in range(5):
        clock.now += 10
        cache.put(cid(number), block(number))
        cache.get(cid(number))
    clock.now += 1
    again = BlockCache(tmp_path, ROOM, 25.0, bytes(32), clock=clock)
    assert again.load() == [cid(2), cid(3), cid(4)]  # the others were read too long ago
    assert len(files(tmp_path)) == 3
    assert again.get(cid(3)) == block(3)


def test_a_smaller_cap_keeps_what_was_read_last(tmp_path: Path) -> None:
    clock = Clock()
    cache = opened(tmp_path, clock=clock)
    for number in range(20):
        clock.now += 1
        cache.put(cid(number), block(number))
        cache.get(cid(number))
    small = opened(tmp_path, bytes_max=500, clock=clock)
    assert [number for number in range(20) if cid(number) in small] == [16, 17, 18, 19]
    assert sum(path.stat().st_size for path in files(tmp_path)) <= 500


def test_what_nobody_reads_goes_after_its_time(tmp_path: Path) -> None:
    clock = Clock()
    cache = opened(tmp_path, clock=clock)
    cache.put(cid(1), block(1))
    cache.put(cid(2), block(2))
    clock.now += DAY_S - 10
    cache.get(cid(2))
    clock.now += 20
    cache.expire()
    assert (cid(1) in cache, cid(2) in cache, cache.counters.expired) == (False, True, 1)
    assert len(files(tmp_path)) == 1


def test_files_that_are_no_blocks_of_ours_go_at_the_start(tmp_path: Path) -> None:
    opened(tmp_path).put(cid(1), block(1))
    wrong_place = tmp_path / f"{(cid(2)[4] + 1) % 256:02x}" / cid_text(cid(2))
    wrong_place.write_bytes(block(2))
    (tmp_path / "00" / "notes.txt").write_text("mine")
    (tmp_path / "00" / (cid_text(cid(3)) + ".new")).write_bytes(b"half")
    too_large = cid_of(bytes(BLOCK_BYTES_MAX + 1))
    (tmp_path / f"{too_large[4]:02x}" / cid_text(too_large)).write_bytes(bytes(BLOCK_BYTES_MAX + 1))
    assert BlockCache(tmp_path, ROOM, DAY_S, bytes(32)).load() == [cid(1)]
    assert len(files(tmp_path)) == 1


def test_a_time_in_the_future_is_no_longer_life(tmp_path: Path) -> None:
    clock = Clock()
    opened(tmp_path, clock=clock).put(cid(1), block(1))
    os.utime(files(tmp_path)[0], (clock.now + 10 * DAY_S,) * 2)
    cache = opened(tmp_path, clock=clock)
    clock.now += DAY_S + 1
    cache.expire()
    assert cid(1) not in cache


def test_starting_looks_at_a_bounded_number_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = opened(tmp_path)
    for number in range(10):
        cache.put(cid(number), block(number))
    monkeypatch.setattr(block_cache, "FILES_LOOKED_AT_MAX", 9)
    with pytest.raises(StorageError, match="more than 9 files"):
        opened(tmp_path)


class FullDisk(FileOps):
    """A device on which nothing more fits."""

    full = True

    def write(self, fd: int, parts: Any, at: int) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(fd, parts, at)


def test_a_full_disk_costs_the_block_and_nothing_else(tmp_path: Path) -> None:
    ops = FullDisk()
    ops.full = False
    cache = opened(tmp_path, ops=ops)
    cache.put(cid(1), block(1))
    ops.full = True
    assert not cache.put(cid(2), block(2))
    assert (cache.counters.failed, cache.size, len(files(tmp_path))) == (1, 100, 1)
    assert cache.get(cid(1)) == block(1)
    ops.full = False
    assert cache.put(cid(2), block(2))


def test_a_directory_removed_under_it_is_made_again(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    (tmp_path / f"{cid(1)[4]:02x}").rmdir()
    assert not cache.put(cid(1), block(1))
    assert cache.put(cid(1), block(1))
    assert cache.get(cid(1)) == block(1)


def test_threads_that_read_write_and_age_it_together_leave_it_in_order(tmp_path: Path) -> None:
    cache = opened(tmp_path, bytes_max=2000)
    wrong: list[int] = []

    def work(seed: int) -> None:
        source = random.Random(seed)
        for _ in range(150):
            number = source.randrange(60)
            got = cache.get(cid(number))
            if got not in (None, block(number)):
                wrong.append(number)
            cache.put(cid(number), block(number))
            cache.expire()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.size == sum(path.stat().st_size for path in files(tmp_path)) <= 2000
    assert cache.counters.damaged == 0


def test_a_block_of_any_codec_has_its_own_name(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    other = cid_of(block(1), DAG_CBOR)
    cache.put(other, block(1))
    assert cache.get(cid(1)) is None
    assert cache.get(other) == block(1)

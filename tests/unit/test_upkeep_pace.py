"""What a node does unasked: it finds damage, and it leaves a small store alone between rounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from dds.primitives.units import KIB
from dds.runtime.metrics import Registry
from dds.runtime.upkeep import Pace, StoreKeeper, pace_for
from dds.storage.fileops import FileOps
from dds.storage.fragment_store import FragmentStore, StoreConfig

UPLOAD, OWNER = b"u" * 16, b"o" * 32
EAGER = Pace(sweep_every_s=0.01, step_pause_s=0.0, compact_every_s=0.01, scrub_first_s=0.0, scrub_round_s=3600.0)


@asynccontextmanager
async def _keeping(store: FragmentStore, job: str, sweeps: Callable[[], None] = lambda: None) -> AsyncIterator[Registry]:
    async def on_sweep() -> None:
        sweeps()

    metrics = Registry()
    keeper = StoreKeeper(store, EAGER, metrics, on_sweep=on_sweep)
    task = asyncio.ensure_future(keeper.jobs()[job]())
    try:
        yield metrics
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        keeper.close()


async def _until(page: Callable[[], str], line: str) -> None:
    async with asyncio.timeout(5):
        while line not in page():
            await asyncio.sleep(0.005)


async def test_abandoned_uploads_are_swept_away(tmp_path: Path) -> None:
    clock = [1_000_000]
    with FragmentStore(tmp_path / "store", StoreConfig(1 << 26, staged_ttl_ms=1000), clock=lambda: clock[0]) as store:
        store.stage(UPLOAD, OWNER, b"abandoned")
        clock[0] += 2000
        async with _keeping(store, "sweep") as metrics:
            await _until(metrics.render, 'dds_swept_total{what="expired"} 1')
        assert store.staged(UPLOAD, OWNER) == []


async def test_the_scrub_finds_and_counts_what_has_rotted(tmp_path: Path) -> None:
    with FragmentStore(tmp_path / "store", StoreConfig(1 << 26)) as store:
        store.stage(UPLOAD, OWNER, bytes(range(256)) * 1024)
        (file,) = [path for path in (tmp_path / "store" / "frags").rglob("*") if path.is_file()]
        raw = bytearray(file.read_bytes())
        raw[-100 * KIB] ^= 1
        file.write_bytes(raw)
        async with _keeping(store, "scrub") as metrics:
            await _until(metrics.render, 'dds_scrub_problems_total{kind="fragment"} 1')


class CountingOps(FileOps):
    """Counts reads that are made to come from the disk itself, as only audits and scrubs do."""

    fresh_reads = 0

    def forget_cached(self, fd: int, length: int, at: int) -> None:
        self.fresh_reads += 1
        super().forget_cached(fd, length, at)


async def test_a_small_store_is_read_once_a_round_and_not_without_end(tmp_path: Path) -> None:
    ops = CountingOps()
    with FragmentStore(tmp_path / "store", StoreConfig(1 << 26), ops=ops) as store:
        store.stage(UPLOAD, OWNER, b"x" * 1000)
        async with _keeping(store, "scrub") as metrics:
            await _until(metrics.render, "\ndds_scrub_position_ratio ")
            once = ops.fresh_reads
            assert once > 0
            await asyncio.sleep(0.2)
        assert ops.fresh_reads == once


def test_a_short_trash_window_is_swept_in_time() -> None:
    assert pace_for(10).sweep_every_s == 2.5
    assert pace_for(0).sweep_every_s == 1.0
    assert pace_for(7 * 86_400).sweep_every_s == 60.0

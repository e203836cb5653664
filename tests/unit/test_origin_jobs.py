"""An origin's queue without a network: what it takes over it keeps, serves and takes up again, and nobody's file is needed."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from dds.content.block import Block
from dds.primitives.cid import CID
from dds.primitives.errors import InputError, LimitError
from dds.primitives.keys import SigningKey
from dds.runtime.origin import Origin, OriginParts
from dds.storage.home import Home, NodeConfig, private_directory
from dds.storage.origin_jobs import JobDirectory, SavedJob
from dds.storage.source import SourceOptions, build_dag
from dds.transport.bandwidth import Bandwidth
from dds.wire.origin import DONE, FAILED, ORIGIN_JOBS_MAX, WAITING, OriginJob, OriginPut
from tests.dht_network import dht_network

NODE_KEY = SigningKey(b"\x05" * 32)
NETWORK = "alone"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(private_directory(tmp_path / "home"))
    private_directory(made.node.root)
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(random.Random(2).randbytes(2_500_000))
    return path


@asynccontextmanager
async def an_origin(home: Home, *, keep_s: int = 3600, bytes_max: int = 1 << 30) -> AsyncIterator[Origin]:
    """The origin of a node that knows nobody: every try to send fails for want of nodes."""
    config = NodeConfig("node", NETWORK, roles=("origin",), origin_keep_s=keep_s, origin_bytes_max=bytes_max)
    async with dht_network(1, NETWORK) as (dht,):
        origin = Origin(home, config, OriginParts(NODE_KEY, dht, Bandwidth(), lambda: ["127.0.0.1:1"]))
        await origin.start()
        try:
            yield origin
        finally:
            await origin.stop()


def a_put(path: Path, **changes: object) -> OriginPut:
    put = OriginPut(os.fsencode(path), "standard", None, None, "fixed", False, False)
    return msgspec.structs.replace(put, **changes)


async def until(origin: Origin, job: str, holds: Callable[[OriginJob], bool]) -> OriginJob:
    """The job's report once it is so."""
    async with asyncio.timeout(20):
        while True:
            report = origin.job(job)
            assert report is not None
            if holds(report):
                return report
            await asyncio.sleep(0.01)


def blocks_of(path: Path) -> list[Block]:
    blocks: list[Block] = []
    build_dag(path, SourceOptions(), lambda block, position: blocks.append(block))
    return blocks


async def test_a_job_is_served_from_its_copy_while_there_is_nobody_to_send_it_to(home: Home, source: Path) -> None:
    blocks = blocks_of(source)
    async with an_origin(home) as origin:
        job = await origin.submit(a_put(source))
        report = await until(origin, job.id, lambda report: report.state == WAITING)
        source.unlink()
        assert (report.content, report.is_enough, report.error_code) == (blocks[-1].cid, False, "not-enough-nodes")
        assert report.copy_bytes > 2_500_000
        assert [await origin.block(block.cid) for block in blocks] == [block.data for block in blocks]
        assert await origin.block(CID(b"\x01\x55\x12\x20" + bytes(32))) is None
        assert origin.summary() == {"jobs": 1, "pending": 1, "copy_bytes": report.copy_bytes, "copy_bytes_max": 1 << 30}


async def test_a_restart_takes_up_what_was_copied_without_the_source(home: Home, source: Path) -> None:
    blocks = blocks_of(source)
    async with an_origin(home) as origin:
        job = await origin.submit(a_put(source))
        await until(origin, job.id, lambda report: report.state == WAITING)
    source.unlink()
    async with an_origin(home) as origin:
        report = await until(origin, job.id, lambda report: report.state == WAITING)
        assert report.content == blocks[-1].cid
        assert await origin.block(blocks[0].cid) == blocks[0].data


async def test_a_copy_that_was_whole_before_its_note_is_used(home: Home, source: Path) -> None:
    """Killed between the two, the daemon read the source again, which by then may be gone."""
    async with an_origin(home) as origin:
        job = await origin.submit(a_put(source))
        await until(origin, job.id, lambda report: report.state == WAITING)
    source.unlink()
    JobDirectory(home.node.origin_dir).save(job.id, SavedJob(a_put(source), 1))
    async with an_origin(home) as origin:
        await until(origin, job.id, lambda report: report.state == WAITING)


async def test_a_source_that_is_missing_fails_the_job_for_good_and_frees_its_space(home: Home, source: Path) -> None:
    async with an_origin(home) as origin:
        job = await origin.submit(a_put(source.with_name("missing")))
        report = await until(origin, job.id, lambda report: report.state == FAILED)
        assert (report.error_code, report.copy_bytes) == ("input", 0)
    async with an_origin(home) as origin:
        report = await until(origin, job.id, lambda report: True)
        assert (report.state, "missing" in report.error) == (FAILED, True)


async def test_copies_are_bounded_together(home: Home, source: Path) -> None:
    async with an_origin(home, bytes_max=4_000_000) as origin:
        first = await origin.submit(a_put(source))
        await until(origin, first.id, lambda report: report.state == WAITING)
        second = await origin.submit(a_put(source))
        report = await until(origin, second.id, lambda report: report.state == FAILED)
        assert (report.error_code, "origin_bytes_max" in report.hint) == ("limit", True)
        async with asyncio.timeout(20):  # the failure is noted first, then the copy goes
            while [path.name for path in (home.node.origin_dir / second.id).iterdir()] != ["job"]:
                await asyncio.sleep(0.01)


async def test_what_was_asked_is_checked_before_it_is_taken_over(home: Home, source: Path) -> None:
    async with an_origin(home) as origin:
        with pytest.raises(InputError):
            await origin.submit(a_put(source, class_name="none"))
        with pytest.raises(InputError):
            await origin.submit(a_put(source, class_name="custom", k=0, m=3))
        assert origin.jobs() == []
        assert list(home.node.origin_dir.iterdir()) == []


async def test_a_finished_job_is_dropped_when_its_time_is_over(home: Home, source: Path) -> None:
    async with an_origin(home) as origin:
        job = await origin.submit(a_put(source))
        await until(origin, job.id, lambda report: report.state == WAITING)
    directory = JobDirectory(home.node.origin_dir)
    ended_ms = time.time_ns() // 1_000_000 - 3_599_000
    directory.save(job.id, SavedJob(a_put(source), 1, DONE, is_enough=True, ended_ms=ended_ms))
    async with an_origin(home) as origin:
        first = blocks_of(source)[0]
        await until(origin, job.id, lambda report: report.content != b"")
        assert await origin.block(first.cid) == first.data
        async with asyncio.timeout(10):
            while origin.jobs():
                await asyncio.sleep(0.02)
        assert await origin.block(first.cid) is None
        async with asyncio.timeout(10):
            while list(home.node.origin_dir.iterdir()):
                await asyncio.sleep(0.02)


async def test_the_number_of_jobs_is_bounded(home: Home, source: Path) -> None:
    directory = JobDirectory(home.node.origin_dir)
    failed = SavedJob(a_put(source), 1, FAILED, ended_ms=time.time_ns() // 1_000_000)
    for _ in range(ORIGIN_JOBS_MAX):
        directory.create(failed)
    async with an_origin(home) as origin:
        assert len(origin.jobs()) == ORIGIN_JOBS_MAX
        with pytest.raises(LimitError):
            await origin.submit(a_put(source))


def test_jobs_come_back_oldest_first_and_the_unreadable_are_left_alone(home: Home) -> None:
    directory = JobDirectory(home.node.origin_dir)
    saved = [SavedJob(a_put(Path("/source")), created_ms) for created_ms in (3, 1, 2)]
    jobs = [directory.create(each) for each in saved]
    broken = directory.create(SavedJob(a_put(Path("/source")), 4))
    (directory.path(broken) / "job").write_bytes(b"not a job")
    directory.path("half-made").mkdir()
    assert [job for job, _ in directory.load()] == [jobs[1], jobs[2], jobs[0]]
    assert directory.path(broken).exists()
    assert not directory.path("half-made").exists()

"""Background work that fails is started again and never takes anything else with it."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from dds.runtime.supervisor import every, supervise


async def test_a_failing_task_runs_again_and_is_counted() -> None:
    failures: list[str] = []
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 4:
            raise OSError("disk")

    await supervise("sweep", work, on_failure=failures.append, delay_s_min=0.0)
    assert (runs, failures) == (4, ["sweep"] * 3)


async def test_the_delay_doubles_up_to_its_bound() -> None:
    loop = asyncio.get_running_loop()
    starts: list[float] = []

    async def work() -> None:
        starts.append(loop.time())
        if len(starts) < 5:
            raise ValueError

    await supervise("scrub", work, delay_s_min=0.01, delay_s_max=0.02)
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert gaps[0] >= 0.009
    assert min(gaps[1:]) >= 0.019


async def test_a_failing_task_leaves_its_siblings_alone() -> None:
    ticks = asyncio.Queue[int]()

    async def broken() -> None:
        raise RuntimeError

    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(supervise("broken", broken, delay_s_min=0.001)),
            group.create_task(every(0.001, lambda: ticks.put(1), first_s=0)),
        ]
        for _ in range(5):
            await ticks.get()
        for task in tasks:
            task.cancel()


async def test_cancellation_ends_a_supervised_task() -> None:
    task = asyncio.create_task(supervise("forever", lambda: asyncio.sleep(3600)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

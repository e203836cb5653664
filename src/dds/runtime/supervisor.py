"""Keeping background work alive: what fails is logged and started again, later each time.

Decides when a failed task runs again. Does not decide what the tasks do. A task that fails never takes the daemon or another
task with it, and never fails in silence: each failure is a log line and a count.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from dds.runtime.logs import event

RESTART_DELAY_S_MIN = 0.5
RESTART_DELAY_S_MAX = 60.0
STEADY_S = 120.0  # a task that ran this long before it failed starts over with the shortest delay

_log = logging.getLogger("dds.supervisor")


async def supervise(
    name: str,
    work: Callable[[], Awaitable[None]],
    *,
    on_failure: Callable[[str], None] | None = None,
    delay_s_min: float = RESTART_DELAY_S_MIN,
    delay_s_max: float = RESTART_DELAY_S_MAX,
) -> None:
    """Run `work` until it returns; start it again after a growing delay whenever it raises. Cancellation ends it."""
    loop = asyncio.get_running_loop()
    delay_s = delay_s_min
    while True:
        started = loop.time()
        try:
            await work()
        except Exception as error:
            if loop.time() - started >= STEADY_S:
                delay_s = delay_s_min
            event(_log, logging.ERROR, "background task failed", task=name, again_in_s=delay_s, error=error)
            if on_failure is not None:
                on_failure(name)
        else:
            return
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, delay_s_max)


async def every(interval_s: float, step: Callable[[], Awaitable[object]], *, first_s: float | None = None) -> None:
    """Run `step` for ever, `interval_s` after the end of the one before; the first after `first_s`."""
    await asyncio.sleep(interval_s if first_s is None else first_s)
    while True:
        await step()
        await asyncio.sleep(interval_s)

"""What a node does when nobody asks: expiring, purging, compacting, scrubbing its store.

Decides how often and at what pace. Does not decide what is expired or rotten (storage.upkeep does). Every step is small and
runs in a thread of its own, so requests wait for one step's turn at most; between steps of one job lies a pause that bounds
what it can cost.

Idle cost: one look at the store a minute, and a scrub that reads at most `scrub_bytes_per_s`, with hours between its rounds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from dds.primitives.ids import FragmentRoot, id_text
from dds.primitives.units import KIB, MIB
from dds.runtime.logs import event
from dds.runtime.metrics import Registry
from dds.storage.fragment_store import FragmentStore
from dds.storage.reader import HoldKey
from dds.storage.upkeep import SWEEP_ITEMS, Problem, Upkeep

T = TypeVar("T")
Recheck = Callable[[Sequence[HoldKey]], Awaitable[Collection[HoldKey]]]

_log: Final = logging.getLogger("dds.upkeep")


@dataclass(frozen=True, slots=True)
class Pace:
    """How often, and how much at once."""

    sweep_every_s: float = 60.0
    step_pause_s: float = 0.05  # between steps of a sweep or a compaction that has more to do
    compact_every_s: float = 300.0
    scrub_bytes_per_s: int = 512 * KIB  # 1 TB takes 24 days
    scrub_step_bytes: int = 4 * MIB
    scrub_first_s: float = 120.0
    scrub_round_s: float = 6 * 3600.0  # between rounds, so that a small store is not read without end


def pace_for(trash_window_s: int) -> Pace:
    """A short trash window (a devnet's) asks for a sweep that keeps up with it."""
    return Pace(sweep_every_s=min(60.0, max(1.0, trash_window_s / 4)))


class StoreKeeper:
    """Runs a store's periodic work, one step at a time."""

    def __init__(
        self,
        store: FragmentStore,
        pace: Pace,
        metrics: Registry,
        *,
        on_sweep: Callable[[], Awaitable[None]],
        recheck: Recheck | None = None,
    ) -> None:
        """`recheck`: says which of these shares of the trash may go now; without it all whose window is over."""
        self._upkeep, self._pace, self._on_sweep, self._recheck = Upkeep(store), pace, on_sweep, recheck
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upkeep")
        self._swept = metrics.counter("dds_swept_total", "Expired fragments, purged holds, unlinked files.", "what")
        self._scrub_position: float | None = None
        metrics.gauge("dds_scrub_position_ratio", "How far the scrub's present round has come.", lambda: self._scrub_position)
        self._rotten = metrics.counter("dds_scrub_problems_total", "What the scrub found damaged.", "kind")

    def jobs(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What is to be kept running, by name."""
        return {"sweep": self._sweep, "compact": self._compact, "scrub": self._scrub}

    def close(self) -> None:
        """Wait for the step under way; no other will begin."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def _sweep(self) -> None:
        while True:
            swept = await self._step(self._upkeep.sweep_step, SWEEP_ITEMS, await self._approved())
            for what, count in (("expired", swept.expired), ("purged", swept.purged), ("unlinked", swept.unlinked)):
                self._swept.add(count, what)
            await self._on_sweep()
            await asyncio.sleep(self._pace.step_pause_s if swept.more else self._pace.sweep_every_s)

    async def _approved(self) -> Collection[HoldKey] | None:
        if self._recheck is None:
            return None
        due = await self._step(self._upkeep.due)
        return await self._recheck(due) if due else []

    async def _compact(self) -> None:
        while True:
            more = await self._step(self._upkeep.compact_step)
            await asyncio.sleep(self._pace.step_pause_s if more else self._pace.compact_every_s)

    async def _scrub(self) -> None:
        pace = self._pace
        await asyncio.sleep(pace.scrub_first_s)
        while True:
            before = self._scrub_position or 0.0
            for problem in await self._step(self._upkeep.scrub_step, pace.scrub_step_bytes):
                self._report(problem)
            now = self._scrub_position = await self._step(self._upkeep.scrub_position)
            is_new_round = now < before or now == before < 1.0
            await asyncio.sleep(pace.scrub_round_s if is_new_round else pace.scrub_step_bytes / pace.scrub_bytes_per_s)

    def _report(self, problem: Problem) -> None:
        self._rotten.add(1, problem.kind)
        segments = [id_text(segment) for segment, _, _ in problem.users]
        key = FragmentRoot(problem.key)
        event(_log, logging.ERROR, "damaged at rest", kind=problem.kind, key=key, why=problem.why, segments=segments)

    async def _step(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *args))

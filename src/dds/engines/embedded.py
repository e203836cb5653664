"""The ledger of one trusted operator: a sequencer in this process, which makes a block of what has come.

Decides the order (of arrival), when a block is made and what time it has. A block holds what came within 1 ms of its first
transaction, at most BLOCK_TXS_MAX and BLOCK_BYTES_MAX; while one is applied the next gathers. At each epoch boundary there is a
block even when nobody sent anything, so that epochs end. What is no transaction at all is refused and never kept.

Whoever runs it can leave transactions out, order them as it likes and choose the time: that is what "trusted" means here.
Source: docs/spec/ledger.md, "Blocks"; docs/operate/ledger-embedded.md.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from dds.engines.port import Outcome
from dds.engines.replica import Replica, outcomes
from dds.primitives.errors import DDSError, FormatError, LimitError, UnavailableError
from dds.primitives.units import MIB
from dds.wire.ledger_api import BLOCK_BYTES_MAX, BLOCK_TXS_MAX, Head

GATHER_S: Final = 0.001  # a block waits so long for more after its first transaction
CLOCK_CHECK_S: Final = 1.0  # the longest wait without a look at the clock: it may be set, or the machine have slept
RETRY_S: Final = 1.0  # after the disk failed
QUEUE_TXS_MAX: Final = 20_000
QUEUE_BYTES_MAX: Final = 64 * MIB

_log: Final = logging.getLogger("dds.ledger.embedded")


def system_time_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class _Submission:
    """What one caller waits for."""

    raws: Sequence[bytes]
    done: asyncio.Future[None]
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    def settle(self, index: int, outcome: Outcome) -> None:
        self.outcomes[index] = outcome
        if len(self.outcomes) == len(self.raws) and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_exception(error)


_Item = tuple[_Submission, int]  # one transaction: whose, and which of theirs


class EmbeddedEngine:
    """An `Engine`; all but the applying of blocks, which has a thread of its own, happens in the event loop."""

    name = "embedded"

    def __init__(self, replica: Replica, *, now_ms: Callable[[], int] = system_time_ms) -> None:
        self._replica, self._now_ms = replica, now_ms
        self._queue: deque[_Item] = deque()
        self._queue_bytes = 0
        self._first_at_s = 0.0  # when the queue's first transaction came
        self._stopping = False

    @property
    def replica(self) -> Replica:
        return self._replica

    @property
    def waiting(self) -> int:
        """Transactions that are in no block yet."""
        return len(self._queue)

    def head(self) -> Head:
        return self._replica.head()

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake, self._full = asyncio.Event(), asyncio.Event()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._task = asyncio.create_task(self._sequence())

    async def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        self._full.set()
        await self._task
        await asyncio.to_thread(self._worker.shutdown)
        await asyncio.to_thread(self._replica.close)

    async def submit(self, raws: Sequence[bytes]) -> list[Outcome]:
        if self._stopping:
            raise UnavailableError("the ledger is stopping")
        size = sum(map(len, raws))
        if len(self._queue) + len(raws) > QUEUE_TXS_MAX or self._queue_bytes + size > QUEUE_BYTES_MAX:
            raise LimitError(f"{len(self._queue)} transactions wait already", hint="try again in a second")
        if not raws:
            return []
        if not self._queue:
            self._first_at_s = self._loop.time()
        submission = _Submission(raws, self._loop.create_future())
        self._queue.extend((submission, index) for index in range(len(raws)))
        self._queue_bytes += size
        self._wake.set()
        if len(self._queue) >= BLOCK_TXS_MAX:
            self._full.set()
        await submission.done
        return [submission.outcomes[index] for index in range(len(raws))]

    # ---- the sequencer

    async def _sequence(self) -> None:
        """Make blocks until all that came before the stop is answered."""
        while True:
            await self._work_to_do()
            await self._gather()
            batch = self._take()
            if not batch and self._stopping:
                return
            await self._make_block(batch)

    async def _work_to_do(self) -> None:
        while not self._queue and not self._stopping and not self._epoch_due_ms() <= 0:
            self._wake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), min(CLOCK_CHECK_S, self._epoch_due_ms() / 1000))

    def _epoch_due_ms(self) -> int:
        """Until the epoch of the last block is over; not positive where it is."""
        params = self._replica.params
        return params.genesis_ms + (self._replica.epoch + 1) * params.epoch_ms - self._now_ms()

    async def _gather(self) -> None:
        left_s = self._first_at_s + GATHER_S - self._loop.time()
        if self._queue and left_s > 0 and not self._stopping:
            self._full.clear()
            if len(self._queue) < BLOCK_TXS_MAX:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), left_s)

    def _take(self) -> list[_Item]:
        batch: list[_Item] = []
        size = 0
        while self._queue and len(batch) < BLOCK_TXS_MAX:
            submission, index = self._queue[0]
            size += len(submission.raws[index])
            if batch and size > BLOCK_BYTES_MAX:
                break
            self._queue_bytes -= len(submission.raws[index])
            batch.append(self._queue.popleft())
        return batch

    async def _make_block(self, batch: list[_Item]) -> None:
        raws = [submission.raws[index] for submission, index in batch]
        try:
            done = await self._loop.run_in_executor(self._worker, self._apply, self._now_ms(), raws)
        except DDSError as error:  # the disk: nothing was done
            _log.error("block %d could not be written: %s", self._replica.height + 1, error.message)
            for submission, _ in batch:
                submission.fail(error)
            if not batch:
                await asyncio.sleep(RETRY_S)
            return
        for (submission, index), outcome in zip(batch, done, strict=True):
            submission.settle(index, outcome)

    # ---- in the worker's thread

    def _apply(self, time_ms: int, raws: Sequence[bytes]) -> list[Outcome]:
        """One block of what are transactions among `raws`, or, where that meets a bug of ours, one block for each of them."""
        faults = self._replica.screen(raws)
        sound = [raw for raw, fault in zip(raws, faults, strict=True) if fault is None]
        try:
            done = iter(self._commit(time_ms, sound))
        except DDSError:
            raise
        except Exception:  # a bug of ours in one transaction must not cost the others their block
            _log.exception("unexpected error in block %d", self._replica.height + 1)
            done = iter([self._alone(time_ms, raw) for raw in sound])
        return [next(done) if fault is None else _malformed(fault) for fault in faults]

    def _commit(self, time_ms: int, raws: Sequence[bytes]) -> list[Outcome]:
        if not raws and self._replica.params.epoch_of(time_ms) <= self._replica.epoch:
            return []
        height = self._replica.height + 1
        result = self._replica.apply(height, time_ms, raws)
        try:
            self._replica.commit()
        except BaseException:
            self._replica.abandon()
            raise
        return outcomes(height, result.results)

    def _alone(self, time_ms: int, raw: bytes) -> Outcome:
        try:
            return self._commit(time_ms, [raw])[0]
        except DDSError:
            raise
        except Exception:  # nothing of it was committed; its sender is told, the sequencer goes on
            _log.exception("unexpected error in a transaction")
            return Outcome(0, "internal", "unexpected error; the ledger's log has it")


def _malformed(fault: FormatError) -> Outcome:
    return Outcome(0, fault.code, fault.message)

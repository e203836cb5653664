"""The ledger on many machines of one trust domain: blocks ordered by a NATS JetStream stream on three servers.

Decides who may put the next block into the log, and what becomes of one that lost. Every host follows the log and applies it,
entry by entry, to its own replica; any host may append the next block, behind a fence that names the last one it has applied.
Whose append is refused has been overtaken: it applies what came in between and proposes again. So there is no leader of ours,
and a host that slept can do no harm. Whether a block is in is read from the log alone: an answer that got lost decides nothing.

    height = sequence     entry h of the log is block h. An entry that is no block of a known host (bad bytes, a key that is not
                          configured, another height, a time far ahead of the log's own) is an empty block, for everyone alike
    parent                a block names the root before it; a host that has another root stops, and so never goes on beside
                          a log that was rewritten, or with rules of its own

Source: docs/operate/ledger-nats.md; docs/spec/ledger.md, "Blocks"; ADR 0018. The log itself is in nats_log.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from dds.engines.embedded import system_time_ms
from dds.engines.nats_log import RETRY_S, Entry, NatsLog
from dds.engines.port import Outcome
from dds.engines.replica import Replica, outcomes
from dds.ledger.machine import TxResult
from dds.primitives.errors import ConfigError, CorruptError, DDSError, FormatError, LimitError, UnavailableError
from dds.primitives.hashing import sha256
from dds.primitives.keys import SigningKey
from dds.wire.ledger_api import BLOCK_TXS_MAX, Head
from dds.wire.ledger_block import Block, block_room, open_block, sign_block

SUBMIT_S: Final = 30.0  # longer than a new leader's election takes
APPLY_S: Final = 2.0  # for an answered append to come back as an entry; then it is asked again
STOP_S: Final = 5.0
WAKE_S: Final = 60.0  # look at the clock at least this often: it may have been set
QUEUE_MAX: Final = 20_000  # transactions that wait for their block
CLOCK_AHEAD_MS_MAX: Final = 60_000  # of a block's time before the log's: a wrong clock must not end everybody's epochs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A transaction that somebody waits for."""

    raw: bytes
    answer: asyncio.Future[Outcome]


@dataclass(frozen=True, slots=True)
class _Proposal:
    """A block that this host wants to be the next. The digest is its entry's, empty before that is made."""

    digest: bytes
    txs: Sequence[_Waiting]


class NatsEngine:
    """An `Engine`: one ledger host."""

    name: Final = "nats"

    def __init__(
        self,
        replica: Replica,
        key: SigningKey,
        sequencers: Sequence[bytes],
        log: NatsLog,
        *,
        now_ms: Callable[[], int] = system_time_ms,
    ) -> None:
        """`key` signs this host's blocks; `sequencers` are the keys of all hosts, the same list on each.

        Raises:
            ConfigError: this host's key is not among them.
        """
        if key.public not in sequencers:
            raise ConfigError("this host's own key is not among the ledger's sequencers", hint="add it on every host first")
        self._replica, self._key, self._sequencers = replica, key, frozenset(sequencers)
        self._log, self._now_ms = log, now_ms
        self._queue: deque[_Waiting] = deque()
        self._proposal: _Proposal | None = None
        self._work = asyncio.Event()  # something waits for a block
        self._moved = asyncio.Event()  # replaced with every entry that was applied
        # Up to here waiters have been told. The replica is ahead of it while a block is durable and its thread not back yet.
        self._settled = replica.height
        self._tasks: list[asyncio.Task[None]] = []
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ledger")  # stop waits for it: no block is cut in two
        self._closing = False
        self.fault: DDSError | None = None  # why this host stopped following

    @property
    def replica(self) -> Replica:
        return self._replica

    def head(self) -> Head:
        return self._replica.head()

    # -- life ---------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when everything that was in the log at the start is applied.

        Raises:
            ConfigError: the stream is not as the ledger needs it.
            CorruptError: this host's ledger is not the log's.
            UnavailableError: no majority of the servers answers.
        """
        try:
            await self._log.open()
            self._tasks = [asyncio.create_task(self._guard(part)) for part in (self._follow(), self._sequence())]
            await self._catch_up(self._log.last)
        except BaseException:
            await self.stop()
            raise

    async def _catch_up(self, height: int) -> None:
        while self._settled < height:
            await self._beyond(self._settled, APPLY_S)
            if self.fault is not None:
                raise self.fault

    async def stop(self) -> None:
        """Have what waits ordered, for STOP_S at most; then leave. What is in the log is applied at the next start."""
        self._closing = True
        if self.fault is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    while self._queue or self._proposal is not None:
                        await self._moved.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._give_up("this ledger host is stopping")
        await self._log.close()
        await asyncio.to_thread(self._worker.shutdown)
        await asyncio.to_thread(self._replica.close)

    # -- submitting ---------------------------------------------------------------------------------------------------------

    async def submit(self, raws: Sequence[bytes]) -> list[Outcome]:
        """
        Raises:
            LimitError: too many transactions wait already.
            UnavailableError: what became of them is not known here; the same bytes may be submitted again, anywhere.
        """
        self._ensure_running()
        if len(self._queue) + len(raws) > QUEUE_MAX:
            raise LimitError(f"{len(self._queue)} transactions wait already, at most {QUEUE_MAX} may", hint="try again later")
        refusals = await asyncio.to_thread(self._replica.screen, raws)
        self._ensure_running()
        answers = [self._enqueue(raw, refusal) for raw, refusal in zip(raws, refusals, strict=True)]
        self._work.set()
        try:
            async with asyncio.timeout(SUBMIT_S):
                return list(await asyncio.gather(*answers))
        except TimeoutError:
            trouble = self._log.trouble or "the log does not answer"
            raise UnavailableError(f"not in the ledger's log after {SUBMIT_S:.0f} s: {trouble}") from None

    def _enqueue(self, raw: bytes, refusal: FormatError | None) -> asyncio.Future[Outcome]:
        """What is no transaction does not get into the log: it would stay there for good."""
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        if refusal is None:
            self._queue.append(_Waiting(raw, answer))
        else:
            answer.set_result(Outcome(0, refusal.code, refusal.message))
        return answer

    def _ensure_running(self) -> None:
        if self._closing or self.fault is not None:
            reason = "it is stopping" if self.fault is None else self.fault.message
            raise UnavailableError(f"this ledger host takes no transactions: {reason}")

    # -- proposing blocks ---------------------------------------------------------------------------------------------------

    async def _sequence(self) -> None:
        """One block after another, for as long as something waits or an epoch is over."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._epoch_left_s()):
                    await self._work.wait()
            txs = self._take()
            if txs or self._epoch_left_s() == 0:
                await self._propose(txs)

    def _epoch_left_s(self) -> float:
        """Until the epoch that the ledger is in has ended; WAKE_S at most."""
        params = self._replica.params
        end_ms = params.genesis_ms + (self._replica.epoch + 1) * params.epoch_ms
        return min(max(0, end_ms - self._now_ms()) / 1000, WAKE_S)

    def _take(self) -> list[_Waiting]:
        """The next block's transactions: the oldest, without those that nobody waits for any more."""
        waiting = [each for each in self._queue if not each.answer.done()]
        room = block_room([each.raw for each in waiting[:BLOCK_TXS_MAX]])
        self._queue = deque(waiting[room:])
        if not self._queue:
            self._work.clear()
        return waiting[:room]

    async def _propose(self, txs: list[_Waiting]) -> None:
        """Try to make these the next block, until there is a next block, ours or another's; `_settle` tells which."""
        self._proposal = proposal = _Proposal(b"", txs)  # whatever comes now is another's: then they go back into the queue
        await self._beyond(self._log.last - 1, APPLY_S)  # behind what is known, an append would only be refused
        base, time_ms = self._replica.height, max(self._now_ms(), self._replica.time_ms)
        raws = [each.raw for each in txs]
        count = await asyncio.get_running_loop().run_in_executor(self._worker, self._bearable, time_ms, raws)
        if self._proposal is not proposal:
            return
        self._proposal = None
        self._put_back(txs[max(1, count) :])
        if txs and not count:
            _answer(txs[0], Outcome(0, "internal", "unexpected error; the host's log has it"))
            return
        raw = sign_block(self._key, self._replica.network, base + 1, time_ms, self._replica.root, raws[:count])
        self._proposal = _Proposal(sha256(raw), txs[:count])
        await self._append(base, raw)

    async def _append(self, base: int, raw: bytes) -> None:
        while self._settled <= base:
            patience_s = APPLY_S
            try:
                await self._log.append(raw, after=base)
            except UnavailableError as error:
                self._log.trouble = error.message
                patience_s = RETRY_S
            await self._beyond(base, patience_s)

    def _bearable(self, time_ms: int, raws: list[bytes]) -> int:
        """How many of these, from the first on, can be applied: all, else one at a time, else none.

        In a thread. What meets a bug of ours must not get into the log: it would stop every host there, at every replay. A
        bug in an epoch's end is nobody's transaction: it is raised, and stops this host before the log has the block.
        """
        for count in (len(raws), 1):
            try:
                self._replica.simulate(time_ms, raws[:count])
                return min(count, len(raws))
            except Exception:  # a bug of ours: in the log it would stop every host
                logger.exception("unexpected error in %d transactions", count)
        self._replica.simulate(time_ms, [])
        return 0

    def _put_back(self, txs: Sequence[_Waiting]) -> None:
        """In front of the queue: they were there first."""
        self._queue.extendleft(reversed(txs))
        if self._queue:
            self._work.set()

    # -- following the log --------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        async with contextlib.aclosing(self._log.entries(self._replica.height)) as entries:
            async for entry in entries:
                block = self._block_of(entry)
                results = await loop.run_in_executor(self._worker, self._apply, entry.sequence, block)
                self._settle(entry, block, results)

    def _block_of(self, entry: Entry) -> Block | None:
        """The block in an entry; None where it holds none. The same for every host: nothing but the log and the ledger counts.

        Raises:
            CorruptError: it is a known host's block on another state than ours.
        """
        try:
            key, block = open_block(entry.payload, self._replica.network)
            problem = self._problem(entry, key, block)
        except FormatError as error:
            problem = error.message
        if problem:
            logger.warning("entry %d of the ledger's log counts as an empty block: %s", entry.sequence, problem)
            return None
        if block.parent != self._replica.root:
            raise CorruptError(
                f"block {block.height} of host {key.hex()[:16]} follows root {block.parent.hex()[:16]}, and this ledger has "
                f"{self._replica.root.hex()[:16]}: one of the two is damaged, or they run different rules",
                hint="compare the releases; then begin again from an empty directory: the log is replayed",
            )
        return block

    def _problem(self, entry: Entry, key: bytes, block: Block) -> str:
        """Why a signed block has no effect where it stands; empty where it has."""
        if key not in self._sequencers:
            return f"key {key.hex()[:16]} is none of the sequencers'"
        if block.height != entry.sequence:
            return f"it was meant to be block {block.height}"
        ahead_ms = block.time_ms - entry.stored_ms
        return f"its time is {ahead_ms} ms ahead of the log's" if ahead_ms > CLOCK_AHEAD_MS_MAX else ""

    def _apply(self, height: int, block: Block | None) -> tuple[TxResult, ...]:
        """In a thread: the disk is waited for."""
        time_ms, txs = (self._replica.time_ms, []) if block is None else (block.time_ms, block.txs)
        applied = self._replica.apply(height, time_ms, txs)
        self._replica.commit()
        return applied.results

    def _settle(self, entry: Entry, block: Block | None, results: tuple[TxResult, ...]) -> None:
        """Answer for the own block, or put its transactions back in front of the queue: the entry that came was another's.

        Raises:
            ConfigError: the own block had no effect, for its time.
        """
        proposal, self._proposal = self._proposal, None
        if proposal is not None and proposal.digest != sha256(entry.payload):
            self._put_back(proposal.txs)
        elif proposal is not None and block is None:
            self._proposal = proposal  # given up with the rest: proposing it again would only fill the log
            raise ConfigError("this ledger host's clock is far ahead of the log's", hint="set the clock, then start it again")
        elif proposal is not None:
            for waiting, outcome in zip(proposal.txs, outcomes(entry.sequence, results), strict=True):
                _answer(waiting, outcome)
        self._settled = entry.sequence
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _beyond(self, height: int, patience_s: float) -> None:
        """Wait until a block after `height` is applied and told of, `patience_s` at most; no longer when none will be."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self._settled <= height and self.fault is None:
                    await self._moved.wait()

    # -- coming to an end ---------------------------------------------------------------------------------------------------

    async def _guard(self, part: Coroutine[None, None, None]) -> None:
        """Run one of the two loops; where it fails, this host stops taking part and says why."""
        try:
            await part
        except DDSError as error:
            self._stop_for(error)
        except Exception as error:  # unknown, so this host may differ from the others: it stops rather than go on
            logger.exception("the ledger host stops")
            self._stop_for(CorruptError(f"a fault of the ledger host itself: {error!r}"))

    def _stop_for(self, error: DDSError) -> None:
        if self.fault is None:
            logger.error("the ledger host stops at block %d: %s", self._replica.height, error.message)
            self.fault = error
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._give_up(f"this ledger host stopped: {error.message}")
        self._moved.set()

    def _give_up(self, reason: str) -> None:
        """Tell everybody who waits that nobody here will know."""
        proposal, self._proposal = self._proposal, None
        for waiting in (*(() if proposal is None else proposal.txs), *self._queue):
            _fail(waiting, UnavailableError(reason))
        self._queue.clear()


def _answer(waiting: _Waiting, outcome: Outcome) -> None:
    if not waiting.answer.done():
        waiting.answer.set_result(outcome)


def _fail(waiting: _Waiting, error: DDSError) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)

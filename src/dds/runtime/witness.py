"""A witness: hears nodes' answers, looks again at who failed to answer, and tells the ledger once an epoch what it saw.

Decides when things happen within an epoch; what they mean is decided by protocol/audit_round.py.

    epoch e, from its beginning   POST /v1/audits: challenge derived from the ledger, message judged, noted, replied to
             LOOK_AGAIN_PART      nodes that have not passed are asked for their missing leaves
    epoch e + 1, GRACE_PART       the round is closed and reported: passes, losses, the commitment of round e; and the secret of
                                  the round that is being revealed now

The report is on disk before it is sent, and sent again as it is. Secrets follow from the node's key, so that a witness that was
started anew can reveal what it committed to. Idle cost: a few requests to the ledger an epoch, and nothing between.
Source: docs/spec/proofs.md, "Witnesses"; docs/spec/ledger.md, "Witnesses, audits, the beacon".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, assert_never

from dds.ledger.facts import Entries, Reader, asked_of, each, was_audited
from dds.ledger.records import CHAIN, EPOCHS, NODES, NUMBERS, EpochRecord, number_key
from dds.ledger.rules.witnesses import REVEAL_DELAY, beacon_commitment
from dds.primitives.errors import DDSError, InputError, LedgerRefused, UnavailableError
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import id_text
from dds.primitives.keys import SigningKey
from dds.proofs.audit import Asked
from dds.proofs.challenge import Target
from dds.protocol.audit_round import (
    Accuse,
    AuditRound,
    Close,
    Derive,
    Derived,
    Effect,
    Held,
    Keep,
    LookAgain,
    LookedAgain,
    MessageCame,
    Recheck,
    Refuse,
    Reply,
    Vote,
)
from dds.runtime.audit_ledger import EpochClock, LedgerPort, look_up
from dds.runtime.logs import event
from dds.runtime.metrics import Registry
from dds.runtime.tasks import cancel_all
from dds.storage.witness_log import REPORT_BYTES_MAX, WitnessLog
from dds.transport.routes import Request, Response, Route, message_response
from dds.wire.audit import AUDIT_MESSAGE_BYTES_MAX, AuditReply, claimed_epoch, open_message
from dds.wire.codec import decode, encode
from dds.wire.ledger import SubmitEvidence, WitnessReport

LISTENING_PART: Final = 0.4  # who began to listen by then hears every node that answers: nodes try again until 0.6
LOOK_AGAIN_PART: Final = 0.7
GRACE_PART: Final = 0.05
REPORT_UNTIL_PART: Final = 0.8  # of the epoch after: no attempt begins later
REPORT_PAUSE_PART: Final = 0.02  # before the second attempt; doubled each time
QUESTIONS_AT_ONCE: Final = 8
ENTRIES_KEPT_MAX: Final = 1024  # of the ledger, in memory for the next challenge

LookAt = Callable[[Asked, tuple[Target, ...]], Awaitable[tuple[tuple[Target, Held], ...]]]  # runtime/recheck.py; never raises

_log: Final = logging.getLogger("dds.witness")


@dataclass(slots=True)
class _Watch:
    """One epoch that we are in the committee of."""

    machine: AuditRound
    replies: dict[int, asyncio.Future[AuditReply]] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    vote: Vote | None = None
    known: Entries = field(default_factory=Entries)  # what challenges of this epoch have in common
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # effects of one event are performed before those of the next


class Witness:
    """One witness. `route` is to be served while `run` runs."""

    def __init__(
        self,
        key: SigningKey,
        network: str,
        ledger: LedgerPort,
        log: WitnessLog,
        pool: Executor,
        look_at: LookAt,
        metrics: Registry,
    ) -> None:
        """`pool`: for the log's disk; one call at a time is made of it."""
        self._key, self._network, self._ledger, self._pool = key, network, ledger, pool
        self._disk, self._look_at, self._clock = log, look_at, EpochClock(ledger)
        self._disk_turn = asyncio.Lock()
        self._watches: dict[int, _Watch] = {}
        self._node_ids: dict[int, bytes] = {}  # by number: they never change
        self._questions = asyncio.Semaphore(QUESTIONS_AT_ONCE)
        self._requests = 0
        self._outcomes = metrics.counter("dds_audited_nodes_total", "Nodes by outcome, of every epoch watched.", "outcome")
        self._reports = metrics.counter("dds_witness_reports_total", "Reports to the ledger.", "outcome")

    # -- answers ------------------------------------------------------------------------------------------------------------

    def route(self) -> Route:
        return Route("POST", "/v1/audits", self._receive, AUDIT_MESSAGE_BYTES_MAX, peer_required=True)

    async def _receive(self, request: Request) -> Response:
        assert request.peer is not None  # the route requires it
        epoch = claimed_epoch(open_message(request.body))
        watch = self._watches.get(epoch)
        if watch is None:
            raise UnavailableError(f"no witness of epoch {epoch} now", hint="try again, or look who is in its committee")
        self._requests += 1
        came = MessageCame(self._requests, request.peer, request.body)
        reply = watch.replies[came.request] = asyncio.get_running_loop().create_future()
        try:
            self._begin(watch, self._happen(watch, came))  # a task of its own: who hangs up must not stop it half-way
            return message_response(await reply)
        finally:
            watch.replies.pop(came.request, None)

    # -- epochs -------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever.

        Raises:
            DDSError: the ledger cannot be asked at the start, or the disk failed; to be run again.
        """
        epoch = await self._clock.start()
        async with asyncio.TaskGroup() as group:
            if epoch > 0:
                group.create_task(self._keep_watching(epoch - 1))  # it may not have been reported before a restart
            while True:
                group.create_task(self._keep_watching(epoch))
                epoch = await self._clock.after(epoch)
                await self._on_disk(self._disk.forget, epoch)

    async def _keep_watching(self, epoch: int) -> None:
        """What ends a watch early is like a restart: what was proven until then is on disk."""
        while True:
            try:
                return await self.watch_epoch(epoch)
            except DDSError as error:
                event(_log, logging.ERROR, "an epoch cannot be watched", epoch=epoch, error=error)
            if self._clock.seconds_until(epoch + 1, REPORT_UNTIL_PART) <= 0:
                return None
            await self._clock.pause()

    async def watch_epoch(self, epoch: int) -> None:
        """Hear, look again, report.

        Raises:
            DDSError: the ledger cannot be asked, or the disk failed.
        """
        watch = await self._open(epoch)
        try:
            if watch is not None:
                self._watches[epoch] = watch
                await self._clock.until(epoch, LOOK_AGAIN_PART)
                await self._happen(watch, LookAgain())
            await self._clock.until(epoch + 1, GRACE_PART)
            if watch is not None:
                await self._happen(watch, Close())
                self._count(watch.machine)
        finally:
            self._watches.pop(epoch, None)
            await cancel_all(() if watch is None else watch.tasks)
        await self._report(epoch, watch.vote if watch is not None else None)

    async def _open(self, epoch: int) -> _Watch | None:
        """None: we are not in this epoch's committee."""
        record = await look_up(self._ledger, partial(_seat_in, node_id=self._key.public, epoch=epoch))
        if record is None:
            return None
        numbers = [number for number in range(record.node_count) if was_audited(record, number)]
        await self._learn_ids([number for number in numbers if number not in self._node_ids])
        heard_all = self._clock.seconds_until(epoch, LISTENING_PART) > 0
        nodes = {self._node_ids[number]: number for number in numbers}
        machine = AuditRound(epoch, record.beacon, nodes, heard_all=heard_all)
        for number, (asked, proven) in (await self._on_disk(self._disk.proven, epoch)).items():
            machine.restore(number, asked, proven)
        return _Watch(machine)

    async def _learn_ids(self, numbers: list[int]) -> None:
        nodes = await self._ledger.find_many([(NODES, number_key(number)) for number in numbers]) if numbers else []
        self._node_ids.update({node.number: node.node_id for node in nodes if node is not None})

    def _count(self, machine: AuditRound) -> None:
        outcomes = machine.outcomes()
        for outcome, count in outcomes.items():
            self._outcomes.add(count, outcome.value)
        shown = {outcome.value: count for outcome, count in outcomes.items()}
        event(_log, logging.INFO, "audits of an epoch", epoch=machine.epoch, outcomes=shown)

    # -- effects ------------------------------------------------------------------------------------------------------------

    async def _happen(self, watch: _Watch, what: MessageCame | Derived | LookAgain | LookedAgain | Close) -> None:
        async with watch.turn:
            for effect in watch.machine.step(what):
                await self._perform(watch, effect)

    async def _perform(self, watch: _Watch, effect: Effect) -> None:
        match effect:
            case Derive(node_id):
                self._begin(watch, self._derive(watch, node_id))
            case Recheck(asked, targets):
                self._begin(watch, self._recheck(watch, asked, targets))
            case Accuse(evidence):
                self._begin(watch, self._accuse(evidence))
            case Keep():
                await self._keep(watch.machine.epoch, effect)
            case Reply(request, reply):
                _settle(watch.replies.get(request), reply)
            case Refuse(request, why):
                _fail(watch.replies.get(request), InputError(why))
            case Vote():
                watch.vote = effect
            case _:
                assert_never(effect)

    async def _keep(self, epoch: int, what: Keep) -> None:
        """Only a restart needs it: where the disk fails, the node is answered and counted all the same."""
        try:
            await self._on_disk(self._disk.note_proven, epoch, what.number, what.asked, what.proven)
        except DDSError as error:
            event(_log, logging.ERROR, "what a node proved could not be noted", epoch=epoch, node=what.number, error=error)

    def _begin(self, watch: _Watch, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        watch.tasks.add(task)
        task.add_done_callback(watch.tasks.discard)

    async def _derive(self, watch: _Watch, node_id: bytes) -> None:
        number = next(number for number, known in self._node_ids.items() if known == node_id)
        asked: Asked | None = None
        try:
            async with self._questions:
                if len(watch.known) > ENTRIES_KEPT_MAX:
                    watch.known = Entries()
                asked = await look_up(self._ledger, lambda reader: asked_of(reader, number, watch.machine.epoch), watch.known)
        except DDSError as error:
            watch.known = Entries()
            event(_log, logging.WARNING, "a challenge cannot be derived", node=id_text(node_id), error=error)
        await self._happen(watch, Derived(node_id, asked))

    async def _recheck(self, watch: _Watch, asked: Asked, targets: tuple[Target, ...]) -> None:
        async with self._questions:
            found = await self._look_at(asked, targets)
        await self._happen(watch, LookedAgain(asked.node_id, found))

    async def _accuse(self, evidence: bytes) -> None:
        try:
            await self._ledger.submit(self._key, SubmitEvidence(evidence))
        except DDSError as error:  # another witness may have been first
            event(_log, logging.WARNING, "evidence was not taken", error=error)
        else:
            event(_log, logging.WARNING, "a false answer was reported")

    # -- reporting ----------------------------------------------------------------------------------------------------------

    async def _report(self, epoch: int, vote: Vote | None) -> None:
        now = await self._clock.after(epoch)
        if now != epoch + 1:
            event(_log, logging.WARNING, "too late to report", epoch=epoch, now=now)
            return
        body = await self._body(epoch, vote)
        pause_s = self._clock.epoch_s * REPORT_PAUSE_PART
        while body is not None:
            try:
                await self._ledger.submit(self._key, body)
            except LedgerRefused as refusal:
                self._reports.add(1, "refused")
                event(_log, logging.ERROR, "the ledger refused a report", epoch=epoch, error=refusal)
                return
            except DDSError as error:
                event(_log, logging.WARNING, "a report did not get through", epoch=epoch, error=error)
            else:
                self._reports.add(1, "taken")
                return
            if pause_s > self._clock.seconds_until(epoch + 1, REPORT_UNTIL_PART):
                self._reports.add(1, "given-up")
                return
            await asyncio.sleep(pause_s)
            pause_s *= 2
            body = await self._body(epoch, vote)  # the lost one may have arrived: then nothing is left to say

    async def _body(self, epoch: int, vote: Vote | None) -> WitnessReport | None:
        """What is to be said in epoch + 1: the vote, unless it is there already, and the secret that is due. None: nothing."""
        look = partial(_spoken, node_id=self._key.public, epoch=epoch, secret_of=self._secret)
        has_voted, secret = await look_up(self._ledger, look)
        said = None if has_voted else await self._said(epoch, vote)
        if said is not None:
            return WitnessReport(epoch, said.passed, said.losses, said.commit, secret)
        return WitnessReport(epoch, b"", [], b"", secret) if secret else None

    async def _said(self, epoch: int, vote: Vote | None) -> WitnessReport | None:
        """The vote as it was first written down; another one must never be signed."""
        raw = await self._on_disk(self._disk.report, epoch)
        if raw is not None:
            return decode(raw, WitnessReport, max_bytes=REPORT_BYTES_MAX)
        if vote is None:
            return None
        commit = beacon_commitment(self._key.public, self._secret(epoch))
        report = WitnessReport(epoch, vote.passed, list(vote.losses), commit, b"")
        await self._on_disk(self._disk.keep_report, epoch, encode(report))
        return report

    def _secret(self, epoch: int) -> bytes:
        return beacon_secret(self._key, self._network, epoch)

    async def _on_disk(self, work: Callable[..., Any], *args: object) -> Any:
        async with self._disk_turn:
            return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *args))


def beacon_secret(key: SigningKey, network: str, epoch: int) -> bytes:
    """A witness' secret of one round: whoever has the key can make it again, and nobody else."""
    return tagged_hash(b"dds/beacon-secret/v1", key.seed, epoch.to_bytes(8, "big"), network.encode())


def _settle(reply: asyncio.Future[AuditReply] | None, result: AuditReply) -> None:
    if reply is not None and not reply.done():
        reply.set_result(result)


def _fail(reply: asyncio.Future[AuditReply] | None, error: DDSError) -> None:
    if reply is not None and not reply.done():
        reply.set_exception(error)


# -- what is looked up --------------------------------------------------------------------------------------------------------


def _seat_in(reader: Reader, *, node_id: bytes, epoch: int) -> EpochRecord | None:
    """The epoch's record where the node is in its committee."""
    mine, record = each(lambda: reader.find(NUMBERS, node_id), lambda: reader.find(EPOCHS, number_key(epoch)))
    return record if mine is not None and record is not None and mine.number in record.committee else None


def _spoken(reader: Reader, *, node_id: bytes, epoch: int, secret_of: Callable[[int], bytes]) -> tuple[bool, bytes]:
    """(whether the ledger has the node's vote on `epoch`, or wants none; the secret that it is to reveal now, or nothing)."""
    chain, mine = each(lambda: reader.find(CHAIN), lambda: reader.find(NUMBERS, node_id))
    if chain is None or mine is None or chain.epoch != epoch + 1:
        return True, b""
    due = chain.epoch - REVEAL_DELAY
    watched, revealing = each(*(partial(_epoch_record, reader, number) for number in (epoch, due)))
    is_wanted = (
        watched is not None
        and mine.number in watched.committee
        and not watched.reported >> watched.committee.index(mine.number) & 1
    )
    if revealing is None or beacon_commitment(node_id, secret_of(due)) not in revealing.commits:
        return not is_wanted, b""  # once it is revealed, the secret stands in the commitment's place
    return not is_wanted, secret_of(due)


def _epoch_record(reader: Reader, epoch: int) -> EpochRecord | None:
    return reader.find(EPOCHS, number_key(epoch)) if epoch >= 0 else None

"""A storing node proves what it holds: every epoch it answers its own challenge, unasked, to the epoch's witnesses.

Decides when answers are sent and how often again. What is asked follows from the ledger (ledger/facts.py). A leaf is read from
the disk itself, and nothing is signed that does not hold against the ledger's entry: a leaf that is damaged, gone, or of a
segment that the ledger describes wrongly is left out, so no honest node ever signs a false statement.

The node asks the ledger once an epoch, and for the entries of its own challenge. Nodes spread over the first part of the epoch
by a hash of beacon and NodeID, so that witnesses are not all told at once; a witness that did not take the answer is tried
again a few times, later each time, and not after the epoch's answering time is over.
Source: docs/spec/proofs.md, "Answers".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from itertools import groupby
from typing import Final

from dds.ledger.facts import Reader, asked_of, each
from dds.ledger.records import EPOCHS, NODES, NUMBERS, number_key
from dds.primitives.errors import DDSError
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import NodeID, SegmentID, id_text
from dds.primitives.keys import SigningKey
from dds.primitives.units import RECORD_BYTES_MAX
from dds.proofs.audit import Asked, statement_holds, statement_of
from dds.proofs.challenge import SegmentFacts, Target
from dds.runtime.audit_ledger import EpochClock, LedgerPort, look_up
from dds.runtime.logs import event
from dds.runtime.metrics import Registry
from dds.storage.fragment_store import FragmentStore
from dds.wire.audit import STATEMENTS_MAX, AuditReply, LeafStatement, sign_answer
from dds.wire.codec import decode, encode
from dds.wire.segment import EncodingRecord, decode_encoding
from dds.wire.signed import ENVELOPE_BYTES_MAX, Signed

SPREAD_PART: Final = 0.25  # of the epoch: nodes begin to answer within it
ANSWERS_UNTIL_PART: Final = 0.6  # no attempt begins later: then witnesses look for themselves
ATTEMPTS_MAX: Final = 5
FIRST_PAUSE_PART: Final = 0.02  # of the epoch, before a witness is tried again; doubled each time
WITNESSES_AT_ONCE: Final = 8

Send = Callable[[NodeID, bytes], Awaitable[AuditReply]]  # raises DDSError

_log: Final = logging.getLogger("dds.auditor")


class Auditor:
    """One node's side of the audits."""

    def __init__(
        self,
        key: SigningKey,
        network: str,
        store: FragmentStore,
        pool: Executor,
        ledger: LedgerPort,
        send: Send,
        metrics: Registry,
    ) -> None:
        self._key, self._network, self._store, self._pool = key, network, store, pool
        self._ledger, self._send, self._clock = ledger, send, EpochClock(ledger)
        self._leaves = metrics.counter("dds_audit_leaves_total", "Challenged leaves, proven or left out.", "what")
        self._pushed = metrics.counter("dds_audit_answers_total", "Answers to witnesses.", "outcome")

    async def run(self) -> None:
        """For ever.

        Raises:
            DDSError: the ledger cannot be asked at the start; to be run again.
        """
        epoch = await self._clock.start()
        while True:
            try:
                await self.answer_epoch(epoch)
            except DDSError as error:
                event(_log, logging.WARNING, "an epoch's audits could not be looked up", epoch=epoch, error=error)
                await self._clock.pause()
                epoch = await self._clock.after(epoch - 1)
                if self._clock.seconds_until(epoch, ANSWERS_UNTIL_PART) > 0:
                    continue
            epoch = await self._clock.after(epoch)

    async def answer_epoch(self, epoch: int) -> None:
        """Answer the challenge of the present epoch to all its witnesses, as far as they can be had in time.

        Raises:
            DDSError: the ledger cannot be asked.
        """
        found = await look_up(self._ledger, lambda reader: _own_part(reader, self._key.public, epoch))
        if found is None:
            return
        asked, witnesses = found
        await self._clock.until(epoch, spread(asked.beacon, self._key.public) * SPREAD_PART)
        messages = await asyncio.get_running_loop().run_in_executor(self._pool, self._messages, asked)
        gate = asyncio.Semaphore(WITNESSES_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for witness in witnesses:
                group.create_task(self._push(epoch, witness, messages, gate))

    def _messages(self, asked: Asked) -> list[bytes]:
        statements = [encode(statement) for statement in prove(self._store, asked)]
        self._leaves.add(len(statements), "proven")
        self._leaves.add(len(asked.targets) - len(statements), "left-out")
        parts = [statements[at : at + STATEMENTS_MAX] for at in range(0, len(statements), STATEMENTS_MAX)]
        return [sign_answer(self._key, self._network, asked.epoch, asked.beacon, part) for part in parts or [[]]]

    async def _push(self, epoch: int, witness: NodeID, messages: Sequence[bytes], gate: asyncio.Semaphore) -> None:
        """Until the witness has taken every message, or it is too late."""
        left = list(messages)
        for attempt in range(ATTEMPTS_MAX):
            async with gate:
                while left and await self._sent(witness, left[0]):
                    left.pop(0)
            pause_s = self._clock.epoch_s * FIRST_PAUSE_PART * 2**attempt
            if not left or pause_s > self._clock.seconds_until(epoch, ANSWERS_UNTIL_PART):
                break
            await asyncio.sleep(pause_s)
        self._pushed.add(1, "given-up" if left else "taken")

    async def _sent(self, witness: NodeID, message: bytes) -> bool:
        try:
            reply = await self._send(witness, message)
        except DDSError as error:
            event(_log, logging.INFO, "a witness did not take an answer", witness=id_text(witness), error=error)
            return False
        if reply.wrong:
            event(_log, logging.WARNING, "a witness disagrees", witness=id_text(witness), statements=reply.wrong)
        return True


def spread(beacon: bytes, node_id: bytes) -> float:
    """When within the spread a node begins, 0 <= x < 1: other nodes first in other epochs."""
    return int.from_bytes(tagged_hash(b"dds/audit-spread/v1", beacon, node_id)[:4], "big") / (1 << 32)


def _own_part(reader: Reader, node_id: bytes, epoch: int) -> tuple[Asked, list[NodeID]] | None:
    """What we are asked, and the witnesses; None: nothing, or nobody to tell."""
    mine, record = each(lambda: reader.find(NUMBERS, node_id), lambda: reader.find(EPOCHS, number_key(epoch)))
    asked = None if mine is None or record is None else asked_of(reader, mine.number, epoch)
    if asked is None:
        return None
    members = each(*(_node_look(reader, number) for number in record.committee))
    return asked, [NodeID(node.node_id) for node in members if node is not None]


def _node_look(reader: Reader, number: int) -> Callable[[], object]:
    return lambda: reader.find(NODES, number_key(number))


# -- reading what is asked ---------------------------------------------------------------------------------------------------


def prove(store: FragmentStore, asked: Asked) -> Iterator[LeafStatement]:
    """A statement for each leaf that is asked and there. Blocks on the disk."""
    for segment_id, targets in groupby(asked.targets, key=lambda target: target.segment_id):
        facts, problems = asked.segments[segment_id], []
        for statement in _read_all(store, SegmentID(segment_id), list(targets), facts):
            if isinstance(statement, LeafStatement):
                yield statement
            else:
                problems.append(statement)
        if problems:
            event(_log, logging.ERROR, "cannot prove leaves", segment=id_text(segment_id), count=len(problems), why=problems[0])


def _read_all(
    store: FragmentStore, segment_id: SegmentID, targets: Sequence[Target], facts: SegmentFacts
) -> Iterator[LeafStatement | str]:
    """Of each target its statement, or why there is none."""
    try:
        encoding = _encoding(store, segment_id, facts)
    except DDSError as error:
        yield from [error.message] * len(targets)
        return
    for target in targets:
        statement = "no encoding record of this root is here" if encoding is None else _read(store, encoding, target)
        holds = isinstance(statement, LeafStatement) and statement_holds(statement, facts)
        yield statement if holds or isinstance(statement, str) else "the ledger describes the segment otherwise"


def _encoding(store: FragmentStore, segment_id: SegmentID, facts: SegmentFacts) -> EncodingRecord | None:
    """The encoding record that the ledger's root is of. Its signature was checked when it came, its checksum just now."""
    for raw, _ in store.segment(segment_id):
        encoding = decode_encoding(decode(raw, Signed, max_bytes=RECORD_BYTES_MAX + ENVELOPE_BYTES_MAX).payload)
        if encoding.root() == facts.segment_root:
            return encoding
    return None


def _read(store: FragmentStore, encoding: EncodingRecord, target: Target) -> LeafStatement | str:
    if target.stripe >= len(encoding.records) or target.index >= len(encoding.records[target.stripe]):
        return "the encoding record has no such fragment"
    record = encoding.records[target.stripe][target.index]
    if target.leaf >= record.leaf_count:
        return "the fragment has no such leaf"
    try:
        _, (leaf,), (path,) = store.read_leaves(record.root, target.leaf, 1, fresh=True)
    except DDSError as error:
        return error.message
    return statement_of(encoding, target, leaf, path)

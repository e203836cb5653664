"""A storing node collects what it has earned: it has the ledger settle the segments that it holds, now and then.

Decides how often and whose turn it is: settling a segment pays all of its holders, so each round one of them does it for all;
who it is follows from the segment's name and the round, and whoever has waited for two rounds does it anyway. Does not decide
what is paid (ledger/rules/settlement.py). Source: docs/operate/ledger.md, "Being paid".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from typing import Final

from dds.ledger.records import NUMBERS, SEGMENTS, Assignment, Holding, Segment
from dds.primitives.errors import DDSError
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import SegmentID
from dds.primitives.keys import SigningKey
from dds.runtime.audit_ledger import EpochClock, LedgerPort
from dds.runtime.logs import event
from dds.runtime.metrics import Registry
from dds.storage.fragment_store import FragmentStore
from dds.wire.ledger import BATCH_MAX, Settle

AT_PART: Final = 0.75  # of the epoch: when audits are over
OVERDUE_ROUNDS: Final = 2

_log: Final = logging.getLogger("dds.settler")


class Settler:
    """Use `run`, which goes on for ever."""

    def __init__(self, key: SigningKey, store: FragmentStore, ledger: LedgerPort, every_epochs: int, metrics: Registry) -> None:
        self._key, self._store, self._ledger, self._every = key, store, ledger, every_epochs
        self._clock = EpochClock(ledger)
        self._settled = metrics.counter("dds_settled_segments_total", "Segments that this node had the ledger settle.")

    async def run(self) -> None:
        """
        Raises:
            DDSError: the ledger cannot be asked at the start; to be run again.
        """
        epoch = await self._clock.start()
        while True:
            await self._clock.until(epoch, AT_PART)
            try:
                await self.settle(epoch)
            except DDSError as error:
                event(_log, logging.WARNING, "segments could not be settled", epoch=epoch, error=error)
            epoch = await self._clock.after((epoch // self._every + 1) * self._every - 1)

    async def settle(self, epoch: int) -> int:
        """Settle what is due and ours to do in the round of `epoch`; how many segments.

        Raises:
            DDSError
        """
        (mine,) = await self._ledger.find_many([(NUMBERS, self._key.public)])
        count, after = 0, SegmentID(b"")
        while mine is not None and (held := await asyncio.to_thread(self._store.segments_after, after, BATCH_MAX)):
            after = held[-1][0]
            ids = [segment_id for segment_id, _ in held]
            found = await self._ledger.find_many([(SEGMENTS, segment_id) for segment_id in ids])
            due = sorted(self._due(ids, found, mine.number, epoch))
            if due:
                await self._ledger.submit(self._key, Settle(due))
                count += len(due)
        self._settled.add(count)
        return count

    def _due(self, ids: Sequence[bytes], segments: Sequence[Segment | None], number: int, epoch: int) -> Iterator[bytes]:
        for segment_id, segment in zip(ids, segments, strict=True):
            holders = [] if segment is None else [each for each in segment.assignments if each.state == Holding.ACTIVE]
            own = next((each for each in holders if each.node == number), None)
            if own is not None and own.settled_epoch < epoch - 1 and self._is_our_turn(segment_id, holders, own, epoch):
                yield segment_id

    def _is_our_turn(self, segment_id: bytes, holders: Sequence[Assignment], own: Assignment, epoch: int) -> bool:
        if epoch - 1 - own.settled_epoch >= OVERDUE_ROUNDS * self._every:
            return True
        turn = tagged_hash(b"dds/settle-turn/v1", segment_id, (epoch // self._every).to_bytes(8, "big"))
        return holders[int.from_bytes(turn[:8], "big") % len(holders)] == own

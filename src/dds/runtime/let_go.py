"""A paid node lets go of shares that the ledger no longer assigns to it, so that the space is free and adds up.

Decides when a share may go into the trash, and asks again right before it is unlinked. Does not decide who holds what (the
ledger does) nor how long the trash keeps (fragment_store.py): the trash still serves reads.

    held, and there is evidence that it was this ledger's (storage/unassigned.py)
         -> the ledger gives it to somebody else, or to nobody, and no open reservation is waiting for it
         -> still so `release_epochs` later, for until then it may be asked for -> trash, no longer announced
         -> its window -> still so -> unlinked

Nothing is done on a guess: a ledger that does not answer, whose answer is not proven, that is another one than before, or that
went back behind an epoch which it has said (a host that was restored from an old copy), leaves everything as it is. The ledger
is asked for some segments at a time with a pause in between, and for all of them once an epoch at most; how far that has come
is on disk. A share that was stored for nothing, before the node named this ledger, is not the ledger's to take away: it stays
and is counted. A node without a ledger lets go of nothing, and takes out of the trash what an earlier ledger put there.

Source: docs/spec/tiering.md, "Letting go".
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from dds.ledger.facts import Key
from dds.ledger.params import Params
from dds.ledger.records import CHAIN, NUMBERS, PARAMS, RESERVATIONS, SEGMENTS, Chain, Holding, Reservation, Segment
from dds.primitives.errors import DDSError, UnavailableError
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import NodeID, SegmentID, id_text
from dds.runtime.audit_ledger import EpochClock, LedgerPort
from dds.runtime.logs import event
from dds.runtime.metrics import Registry
from dds.runtime.node_service import Receipted
from dds.storage.fragment_store import FragmentStore
from dds.storage.reader import HoldKey
from dds.storage.unassigned import UnassignedLog

SEGMENTS_PER_STEP: Final = 32
STEP_PAUSE_S: Final = 0.5  # so at most two requests a second
LOG_FILE: Final = "unassigned.sqlite"

_log: Final = logging.getLogger("dds.letgo")


class Announcements(Protocol):
    """What tells others what is held here (`Announcer` is one)."""

    def announce_segment(self, segment_id: SegmentID, index: int) -> None: ...

    def withdraw_segment(self, segment_id: SegmentID, index: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the ledger says of some shares."""

    epoch: int
    release_epochs: int  # that a node keeps what is no longer assigned to it
    assigned: frozenset[HoldKey]  # or waiting to be registered
    unassigned: frozenset[HoldKey]


class LetGo:
    """One node's. `run` goes on for ever; `recheck` is the store keeper's last question before it unlinks."""

    def __init__(
        self, node_id: NodeID, store: FragmentStore, ledger: LedgerPort, directory: Path, said: Announcements, metrics: Registry
    ) -> None:
        self._node_id, self._store, self._ledger, self._said = node_id, store, ledger, said
        self._notes = UnassignedLog(directory / LOG_FILE)
        self._clock = EpochClock(ledger)
        self._number: int | None = None
        self._turn = threading.Lock()  # between a commit's note and a release, each of which looks before it acts
        self._kept_bytes: int | None = None  # of shares without evidence, when all had been looked at last
        self._said_kept = False
        kept = "Bytes of shares that the ledger does not assign here and never did: they stay."
        metrics.gauge("dds_shares_without_ledger_bytes", kept, lambda: self._kept_bytes)
        self._moved = metrics.counter("dds_unassigned_shares_total", "Shares that the ledger no longer assigns here.", "what")

    def close(self) -> None:
        self._notes.close()

    def committed(self, done: Receipted, reservation: bytes) -> None:
        """A share is durable, and its receipt about to leave. Blocks on the disk."""
        share = HoldKey(done.encoding.segment_id, done.encoding.root(), done.index)
        with self._turn:
            self._notes.committed(share, reservation)
            if share not in self._store.holds([share.segment]):  # released after the commit and before this note of it
                self._store.restore(share)

    async def run(self) -> None:
        """
        Raises:
            DDSError: the ledger cannot be asked at the start; to be run again.
        """
        epoch = await self._clock.start()
        while True:
            try:
                await self.look_through()
            except DDSError as error:
                event(_log, logging.WARNING, "what is assigned here could not be looked up", error=error)
            epoch = await self._clock.after(epoch)

    async def look_through(self) -> int:
        """Go on behind the last segment that was looked at, to the end; how many shares went into the trash.

        Raises:
            DDSError: the ledger cannot be asked. What was looked at before counts.
        """
        chain, params = await self._ledger.find_many([(CHAIN, b""), (PARAMS, b"")])  # known before anything is committed for it
        await asyncio.to_thread(self._check_ledger, chain, params)
        released = kept_bytes = 0
        after = first = await asyncio.to_thread(self._notes.cursor)
        while held := await asyncio.to_thread(self._store.segments_after, after, SEGMENTS_PER_STEP):
            segments = [segment for segment, _ in held]
            count, kept = await self._step(segments)
            released, kept_bytes = released + count, kept_bytes + kept
            after = segments[-1]
            await asyncio.to_thread(self._notes.set_cursor, after)
            if len(held) < SEGMENTS_PER_STEP:
                break
            await asyncio.sleep(STEP_PAUSE_S)
        await asyncio.to_thread(self._notes.set_cursor, b"")
        if not first:
            self._say_kept(kept_bytes)
        return released

    def _say_kept(self, kept_bytes: int) -> None:
        self._kept_bytes = kept_bytes
        if kept_bytes and not self._said_kept:
            self._said_kept = True
            event(_log, logging.INFO, "shares that the ledger never assigned here stay, and it pays for none", bytes=kept_bytes)

    async def _step(self, segments: Sequence[SegmentID]) -> tuple[int, int]:
        """(shares that went into the trash, bytes that stay for want of evidence)"""
        holds = await asyncio.to_thread(self._store.holds, segments)
        said = await self._ask(holds)
        since = await asyncio.to_thread(self._notes.seen, said.assigned, said.unassigned, said.epoch)
        ripe = sorted(hold for hold, epoch in since.items() if said.epoch >= epoch + said.release_epochs)
        kept_bytes = await asyncio.to_thread(self._store.share_bytes, sorted(said.unassigned - since.keys()))
        return sum([await self._release(hold) for hold in ripe]), kept_bytes

    async def _release(self, hold: HoldKey) -> bool:
        """Whether it went into the trash: it may have been committed anew since the ledger was asked."""
        if not await asyncio.to_thread(self._to_trash, hold):
            return False
        (left,) = await asyncio.to_thread(self._store.holding, [hold.segment])
        if hold.place not in left:
            self._said.withdraw_segment(hold.segment, hold.place)
        self._moved.add(1, "released")
        event(_log, logging.INFO, "let go", segment=id_text(hold.segment), index=hold.place)
        return True

    def _to_trash(self, hold: HoldKey) -> bool:
        with self._turn:
            if not self._notes.is_unassigned(hold):
                return False
            self._store.release(hold.segment, hold.place, hold.root)
            return True

    async def recheck(self, due: Sequence[HoldKey]) -> Collection[HoldKey]:
        """Which of these shares may be unlinked now. One that is assigned here again, or was never seen to be this ledger's,
        leaves the trash; in doubt it stays, and so does one that has not been known to be unassigned for `release_epochs`."""
        try:
            said = await self._ask(due)
            since = await asyncio.to_thread(self._notes.seen, said.assigned, said.unassigned, said.epoch)
        except DDSError as error:
            event(_log, logging.WARNING, "the trash is kept: the ledger does not say what may go", error=error)
            return ()
        restored = await restore_all(self._store, self._said, sorted(said.assigned | (said.unassigned - since.keys())))
        self._moved.add(restored, "restored")
        gone = [hold for hold, epoch in since.items() if said.epoch >= epoch + said.release_epochs]
        for hold in gone:
            await asyncio.to_thread(self._notes.forget, hold)
        self._moved.add(len(gone), "unlinked")
        return gone

    async def _ask(self, holds: Sequence[HoldKey]) -> Verdicts:
        """
        Raises:
            DDSError: no proven answer.
        """
        number = await self._own_number()
        segments = list(dict.fromkeys(hold.segment for hold in holds))
        waiting = await asyncio.to_thread(self._notes.reservations, segments)
        reservations = sorted({each for ids in waiting.values() for each in ids})
        keys: list[Key] = [
            (CHAIN, b""),
            (PARAMS, b""),
            *((RESERVATIONS, each) for each in reservations),
            *((SEGMENTS, each) for each in segments),
        ]
        chain, params, *found = await self._ledger.find_many(keys)
        await asyncio.to_thread(self._check_ledger, chain, params)
        open_ones = {
            identifier
            for identifier, made in zip(reservations, found[: len(reservations)], strict=True)
            if _is_open(made, chain.epoch)
        }
        entries = dict(zip(segments, found[len(reservations) :], strict=True))
        await asyncio.to_thread(self._notes.closed, set(reservations) - open_ones)
        assigned = frozenset(
            hold
            for hold in holds
            if _is_assigned(entries[hold.segment], hold, number) or not open_ones.isdisjoint(waiting.get(hold, ()))
        )
        return Verdicts(chain.epoch, params.release_epochs, assigned, frozenset(holds) - assigned)

    def _check_ledger(self, chain: Chain | None, params: Params | None) -> None:
        """
        Raises:
            UnavailableError: the shares here were stored under another ledger, or under a later state of this one.
        """
        if chain is None or params is None:
            raise UnavailableError("the ledger has no genesis")
        known, latest = self._notes.meet(_identity(chain, params), chain.epoch)
        if known != _identity(chain, params):
            raise UnavailableError(
                "this is another ledger than the one that the shares here were stored under: all of them stay",
                hint=f"if the node has moved to it for good, stop the node and remove {LOG_FILE}",
            )
        if chain.epoch < latest:
            raise UnavailableError(f"the ledger went back to epoch {chain.epoch} after {latest}: nothing is let go on its word")

    async def _own_number(self) -> int:
        if self._number is None:
            (found,) = await self._ledger.find_many([(NUMBERS, self._node_id)])
            if found is None:
                raise UnavailableError("this node is not registered on the ledger")
            self._number = int(found.number)
        return self._number


async def restore_all(store: FragmentStore, said: Announcements, holds: Sequence[HoldKey]) -> int:
    """Take these shares out of the trash and announce them; how many were there."""
    restored = 0
    for hold in holds:
        if await asyncio.to_thread(store.restore, hold):
            said.announce_segment(hold.segment, hold.place)
            restored += 1
    return restored


async def keep_without_ledger(store: FragmentStore, said: Announcements, due: Sequence[HoldKey]) -> Collection[HoldKey]:
    """The last question of a node that names no ledger (any more): nobody is there to say that shares may go, so none does."""
    if restored := await restore_all(store, said, due):
        event(_log, logging.WARNING, "out of the trash: no ledger says any longer that it may go", shares=restored)
    return ()


def _identity(chain: Chain, params: Params) -> bytes:
    """What no ledger of the same name shares with another: when it began, and with how much money."""
    began = params.genesis_ms.to_bytes(16, "big") + chain.genesis_supply.to_bytes(16, "big")
    return tagged_hash(b"dds/ledger-identity/v1", began, chain.network.encode())


def _is_open(reservation: Reservation | None, epoch: int) -> bool:
    return reservation is not None and epoch < reservation.expires_epoch


def _is_assigned(segment: Segment | None, hold: HoldKey, number: int) -> bool:
    """Whether the ledger counts on this share here: active, draining, or pending its receipt."""
    if segment is None or segment.segment_root != hold.root or hold.place >= len(segment.assignments):
        return False
    assignment = segment.assignments[hold.place]
    return assignment.node == number and assignment.state != Holding.FREED

"""Performs one segment's upload: SegmentUpload's effects as requests, its events as their outcomes.

Keeps at most `WINDOW_STRIPES` stripes' fragments in memory; the producer waits in `add` while they are on their way. The data
space is spooled to disk meanwhile, so that a spare that comes in late can be given stripes that have left memory, and so that
nothing depends on the source staying as it was. The spool is deleted when the segment is done, whatever came of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dds.erasure.layout import SlotRange
from dds.erasure.reed_solomon import encode
from dds.erasure.stripes import EncodedStripe
from dds.placement.draw import Draw
from dds.primitives.errors import (
    DDSError,
    IntegrityError,
    LocalError,
    NotEnoughNodes,
    PeerRefused,
    PeerTimeout,
    PeerUnreachable,
    UnavailableError,
)
from dds.primitives.ids import FragmentRoot, NodeID, SegmentID, SegmentRoot, UploadID, id_text
from dds.protocol.upload import (
    Abandon,
    Commit,
    Effect,
    Enough,
    Failed,
    Failure,
    Finished,
    SegmentUpload,
    Send,
    Settled,
    enough_receipts,
)
from dds.runtime.network import Network
from dds.runtime.spool import Spool
from dds.wire.api import INLINE_BYTES_MAX, CommitReply, CommitRequest, PaidCommitRequest, StagedReply
from dds.wire.ledger import stripe_runs, stripes_hash
from dds.wire.receipts import open_receipt
from dds.wire.segment import EncodingRecord, StripeShape

log = logging.getLogger(__name__)

WINDOW_STRIPES: Final = 3  # stripes whose fragments are kept in memory: 16 MiB each at 10+6
TICK_S: Final = 0.1
STAGE_TIMEOUT_S: Final = 30.0
COMMIT_TIMEOUT_S: Final = 30.0
CONTROL_TIMEOUT_S: Final = 5.0
BUSY_STATUS: Final = 503  # it has more to do than it can hold just now: come back later
REPLY_BYTES_MAX: Final = 64 << 10


@dataclass(slots=True)
class SegmentOutcome:
    holders: tuple[NodeID, ...]
    receipts: list[bytes]  # signed, by index
    sent_bytes: int
    replaced: list[tuple[int, NodeID, Failure]]


@dataclass(slots=True)
class _Closing:
    record: EncodingRecord
    encoding: bytes
    root: SegmentRoot
    manifest: bytes | None
    inline_from: int  # stripes from here on ride in the commit


@dataclass(slots=True)
class SegmentSender:
    """One segment on its way to its nodes. Use: `add` stripe by stripe, then `finish`; `cancel` on any other end."""

    network: Network
    draw: Draw
    upload_id: UploadID
    spool_path: Path
    resume: bool = False  # a broken put left fragments at these nodes
    on_sent: Callable[[int], None] = lambda count: None
    contract: bytes = b""  # the reservation, and from `finish` on the stripes too: what receipts name; empty: nothing is paid
    ticket: bytes = b""  # proves it
    fast_m: int | None = None  # with --ack fast: the parity fragments of which floor(m/3) need not have their receipts
    enough: asyncio.Event = field(default_factory=asyncio.Event)  # so many receipts are there (with `fast_m`)
    _late: asyncio.Lock = field(default_factory=asyncio.Lock)  # one fragment at a time is made again
    _machine: SegmentUpload = field(init=False)
    _spool: Spool = field(init=False)
    _stripes: dict[int, EncodedStripe] = field(default_factory=dict)  # whose fragments are in memory
    _shapes: dict[int, StripeShape] = field(default_factory=dict)
    _roots: dict[int, list[FragmentRoot]] = field(default_factory=dict)
    _tasks: dict[tuple[int, NodeID], set[asyncio.Task[None]]] = field(default_factory=dict)
    _already: dict[NodeID, asyncio.Task[set[bytes]]] = field(default_factory=dict)
    _receipts: dict[int, tuple[NodeID, bytes]] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _outcome: asyncio.Future[tuple[NodeID, ...]] = field(init=False)
    _ticker: asyncio.Task[None] | None = None
    _closing: _Closing | None = None
    _sent_bytes: int = 0
    _held_back: dict[int, EncodedStripe] = field(default_factory=dict)

    def __post_init__(self) -> None:
        chosen = self.draw.chosen
        enough = None if self.fast_m is None else enough_receipts(len(chosen), self.fast_m)
        self._machine = SegmentUpload(chosen, self.draw.spares, enough)
        self._spool = Spool(self.spool_path)
        self._outcome = asyncio.get_running_loop().create_future()

    # -- the producer's side ----------------------------------------------------------------------------------------------

    async def add(self, stripe: EncodedStripe, *, last: bool = False) -> None:
        """Take the next stripe; returns when there is room for one more.

        Raises:
            NotEnoughNodes: the segment has already failed. UnavailableError: the put was stopped.
        """
        await self._raise_if_ended()
        if last and self._fits_commit(stripe):
            self._held_back[stripe.number] = stripe
            return
        self._start_ticker()
        await asyncio.to_thread(self._spool.append, stripe)  # a disk under load must not hold up what is being sent
        await self._raise_if_ended()  # stopped meanwhile: nothing more may be sent
        self._stripes[stripe.number] = stripe
        self._shapes[stripe.number] = stripe.shape
        self._roots[stripe.number] = [record.root for record in stripe.records]
        self._perform(self._machine.stripe_ready(stripe.number, len(stripe.fragments), self._now()))
        while len(self._stripes) >= WINDOW_STRIPES and not self._outcome.done():
            self._news.clear()
            await self._news.wait()
        await self._raise_if_ended()

    async def _raise_if_ended(self) -> None:
        if self._outcome.done():
            await self._outcome  # only failure can come before `finish`

    async def finish(self, record: EncodingRecord, encoding: bytes, manifest: bytes | None) -> SegmentOutcome:
        """Commit at every node and wait for all receipts.

        Raises:
            NotEnoughNodes: no node is left for some index.
        """
        if self.contract:
            self.contract += stripes_hash(stripe_runs(record.stripes))
        inline_from = min(self._held_back, default=len(record.stripes))
        self._closing = _Closing(record, encoding, record.root(), manifest, inline_from)
        self._start_ticker()
        self._perform(self._machine.all_ready(self._now()))
        holders = await asyncio.shield(self._outcome)  # who is cancelled here must not cancel what `cancel` still settles
        return SegmentOutcome(holders, self.receipts, self._sent_bytes, self._machine.replaced)

    @property
    def receipts(self) -> list[bytes]:
        """Those that are here, signed, by ascending index."""
        return [self._receipts[index][1] for index in sorted(self._receipts)]

    @property
    def segment_id(self) -> SegmentID:
        assert self._closing is not None, "known once it finishes"
        return self._closing.record.segment_id

    @property
    def holders(self) -> tuple[NodeID, ...]:
        """By fragment index, who holds it or is the latest that was to."""
        return self._machine.holders

    @property
    def receipted(self) -> tuple[NodeID, ...]:
        """Those whose receipts are here, by index."""
        return tuple(self._receipts[index][0] for index in sorted(self._receipts))

    def read(self, ranges: Sequence[SlotRange]) -> bytes:
        """Bytes of the data space, from the spool or from what is held back for the commit. Blocks on the disk.

        Raises:
            StorageError: the spool is closed, or has lost them.
        """
        return b"".join([self._read_range(at) for at in ranges])

    def _read_range(self, at: SlotRange) -> bytes:
        held = self._held_back.get(at.stripe)
        if held is not None:
            return held.fragments[at.slot][at.lo : at.hi]
        return self._spool.read_slot(at.stripe, at.slot, at.lo, at.hi)

    def close_spool(self) -> None:
        """Free what `cancel` left for readers. Safe to repeat."""
        self._spool.close()

    async def cancel(self, *, keep_spool: bool = False) -> None:
        """Stop everything that is in flight and delete the spool. What nodes have staged is left for a resumed put."""
        tasks = [task for group in self._tasks.values() for task in group] + list(self._already.values())
        if self._ticker is not None:
            tasks.append(self._ticker)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._outcome.done():
            self._outcome.set_exception(UnavailableError("the put was stopped"))
        self._outcome.exception()  # retrieved: whoever waits in `add` or `finish` is told
        self._news.set()
        self._stripes.clear()
        if not keep_spool:
            self._spool.close()

    @staticmethod
    def _fits_commit(stripe: EncodedStripe) -> bool:
        return stripe.shape.slot_bytes <= INLINE_BYTES_MAX // 2

    # -- effects ----------------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(index, node, stripe):
                    self._spawn(index, node, self._send(index, node, stripe))
                case Commit(index, node):
                    self._spawn(index, node, self._commit(index, node))
                case Abandon(index, node, why):
                    self._abandon(index, node, why)
                case Settled(stripe):
                    self._stripes.pop(stripe, None)
                    self._news.set()
                case Enough():
                    self.enough.set()
                case Finished(holders):
                    self._outcome.set_result(holders)
                    self._news.set()
                case Failed():
                    self._outcome.set_exception(self._failure(effect))
                    self._news.set()

    def _spawn(self, index: int, node: NodeID, work: Coroutine[None, None, None]) -> None:
        group = self._tasks.setdefault((index, node), set())
        task = asyncio.create_task(work)
        group.add(task)
        task.add_done_callback(group.discard)
        task.add_done_callback(self._fail_on_fault)

    def _start_ticker(self) -> None:
        if self._ticker is None:
            self._ticker = asyncio.create_task(self._tick())
            self._ticker.add_done_callback(self._fail_on_fault)

    def _fail_on_fault(self, task: asyncio.Task[None]) -> None:
        """A bug of ours must end the segment: its lane would wait for ever for what will not be reported."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail_locally(error)

    def _abandon(self, index: int, node: NodeID, why: Failure) -> None:
        log.info("segment upload: node %s given up for index %d: %s", id_text(node), index, why.value)
        self.network.ranking.struck(node, self._now())
        for task in self._tasks.pop((index, node), set()):
            if task is not asyncio.current_task():
                task.cancel()

    async def _tick(self) -> None:
        while not self._machine.over:
            await asyncio.sleep(TICK_S)
            self._perform(self._machine.tick(self._now()))

    # -- requests ---------------------------------------------------------------------------------------------------------

    async def _send(self, index: int, node: NodeID, stripe: int) -> None:
        try:
            root = self._roots[stripe][index]
            if root not in await self._staged_at(node):
                fragment = await self._fragment(stripe, index, node)
                path = f"/v1/uploads/{self.upload_id.hex()}/{root.hex()}"
                await self.network.client.put(node, path, fragment, timeout_s=STAGE_TIMEOUT_S)
                self._count(len(fragment))
        except LocalError as error:  # our disk, not the node
            self._fail_locally(error)
        except DDSError as error:
            self._fail(index, node, error)
        else:
            self._perform(self._machine.staged(index, node, stripe, self._now()))

    async def _staged_at(self, node: NodeID) -> set[bytes]:
        """Roots that a broken put left at the node; asked once, and only when resuming."""
        if not self.resume:
            return set()
        if node not in self._already:
            self._already[node] = asyncio.create_task(self._ask_staged(node))
        return await asyncio.shield(self._already[node])  # one lane's end must not cancel it for the next

    async def _ask_staged(self, node: NodeID) -> set[bytes]:
        path = f"/v1/uploads/{self.upload_id.hex()}"
        with contextlib.suppress(DDSError):
            reply = await self.network.fetch(node, path, StagedReply, max_bytes=REPLY_BYTES_MAX, timeout_s=CONTROL_TIMEOUT_S)
            return set(reply.roots)
        return set()

    async def _fragment(self, number: int, index: int, node: NodeID) -> bytes:
        stripe = self._stripes.get(number)
        if stripe is not None:
            return stripe.fragments[index]
        self._machine.preparing(index, node, number)
        async with self._late:
            fragment = await asyncio.to_thread(self._make_again, number, index)
        self._machine.departed(index, node, number, self._now())
        return fragment

    def _make_again(self, number: int, index: int) -> bytes:
        """One fragment of a stripe that has left memory: a data slot as it was spooled, or one parity row."""
        shape = self._shapes[number]
        if index < shape.k or shape.k == 1:
            return self._spool.read_slot(number, min(index, shape.k - 1), 0, shape.slot_bytes)
        _, data = self._spool.read(number)
        slots = [memoryview(data)[at : at + shape.slot_bytes] for at in range(0, len(data), shape.slot_bytes)]
        return encode(shape.k, shape.m, slots)[index - shape.k]

    async def _commit(self, index: int, node: NodeID) -> None:
        closing = self._closing
        assert closing is not None
        inline = [bytes(s.fragments[index]) for s in self._held_back.values() if index < len(s.fragments)]
        request = CommitRequest(self.upload_id, index, closing.encoding, inline, closing.manifest, self.contract)
        try:
            reply = await self._ask_to_commit(node, request)
            self._check_receipt(reply.receipt, index, node)
        except DDSError as error:
            self._fail(index, node, error)
            return
        self._count(sum(map(len, inline)))
        self._receipts[index] = node, reply.receipt
        self._perform(self._machine.committed_by(index, node, self._now()))

    async def _ask_to_commit(self, node: NodeID, request: CommitRequest) -> CommitReply:
        path = "/v1/commit/paid" if self.ticket else "/v1/commit"
        message = PaidCommitRequest(request, self.ticket) if self.ticket else request
        return await self.network.client.call(
            node, path, message, CommitReply, max_bytes=REPLY_BYTES_MAX, timeout_s=COMMIT_TIMEOUT_S
        )

    def _check_receipt(self, raw: bytes, index: int, node: NodeID) -> None:
        closing = self._closing
        assert closing is not None
        receipt = open_receipt(raw, self.network.name)
        held = [record for _, record in closing.record.fragments_of(index)]
        claim = (
            receipt.node_id,
            receipt.segment_id,
            receipt.segment_root,
            receipt.index,
            receipt.fragment_bytes,
            receipt.leaf_count,
        )
        due = (
            *(node, closing.record.segment_id, closing.root, index),
            *(sum(record.size for record in held), sum(record.leaf_count for record in held)),
        )
        if claim != due:
            raise IntegrityError("a receipt for something else than was sent", expected=str(due), actual=str(claim))
        if receipt.contract != self.contract or 0 < receipt.expires_ms <= self.network.now_ms():
            raise IntegrityError("a receipt for another contract than the upload's, or that is over already")

    def _fail_locally(self, error: BaseException) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(error)
        self._news.set()

    def _fail(self, index: int, node: NodeID, error: DDSError) -> None:
        log.info("segment upload: %s failed for index %d: %s: %s", id_text(node), index, error.code, error.message)
        self._perform(self._machine.failed(index, node, failure_of(error), self._now()))

    def _count(self, sent: int) -> None:
        self._sent_bytes += sent
        self.on_sent(sent)

    def _failure(self, failed: Failed) -> NotEnoughNodes:
        reasons = ", ".join(f"{id_text(node)[:12]} {why.value}" for node, why in sorted(failed.reasons.items()))
        need, tried = len(self.draw.chosen), len(self.draw.chosen) + len(self.draw.spares)
        return NotEnoughNodes(
            f"{need} nodes are needed, and of the {tried} that were drawn {len(failed.reasons)} did not take their fragments "
            f"({reasons})",
            hint="look at the nodes' state and logs; run the same put again to resume, or use --class custom -k K -m M",
            needed=need,
            missing=list(failed.missing),
        )


def failure_of(error: DDSError) -> Failure:
    """What a failed request means for the node's lane."""
    match error:
        case PeerRefused() if error.status != BUSY_STATUS:
            return Failure.REFUSED
        case PeerTimeout() | PeerRefused():
            return Failure.SLOW
        case PeerUnreachable():
            return Failure.UNREACHABLE
        case _:
            return Failure.BROKEN

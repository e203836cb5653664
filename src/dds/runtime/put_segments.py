"""The new segments of a put, from the first stripe until the network holds them: drawn, sent, committed, registered.

Decides how many are under way at once, who is asked for a segment (the ledger's draw where the network is paid, else a draw of
our own; in both cases a broken put of the same thing is taken up), and when a segment counts as stored. Does not decide what is
in a segment (runtime/packer.py) nor what the manifest says of it (runtime/put.py).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dds.erasure.geometry import Geometry, class_geometry
from dds.erasure.segment_builder import ClosedSegment
from dds.erasure.stripes import EncodedStripe
from dds.placement.draw import Draw, Rules, draw
from dds.placement.roles import too_few
from dds.primitives.errors import NotEnoughNodes
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import NodeID, SegmentID, UploadID
from dds.primitives.units import SLOT_BYTES_MAX, STRIPES_PER_SEGMENT_MAX
from dds.protocol.hooks import hooks_of
from dds.protocol.quote import segments_of, sizes_by_index
from dds.runtime.contract_desk import ContractDesk
from dds.runtime.hooks import NewHook
from dds.runtime.network import Network
from dds.runtime.offers import Reserved
from dds.runtime.put_origin import PutOrigin
from dds.runtime.results import PutOptions
from dds.runtime.segment_sender import SegmentOutcome, SegmentSender
from dds.runtime.tasks import cancel_all
from dds.storage.catalog import Catalog, UploadNote
from dds.wire.segment import ENCODING_TAG, EncodingRecord
from dds.wire.signed import sign

SEGMENTS_IN_FLIGHT_MAX: Final = 2
SEGMENTS_UNFINISHED_MAX: Final = 4  # with --ack fast, those that lack only their last receipts are counted too


@dataclass(slots=True)
class SentSegment:
    """A new segment on the network."""

    segment_id: SegmentID
    holders: tuple[NodeID, ...]


@dataclass(slots=True)
class NewSegments:
    """Use: `add` stripes in order, `finish_soon` each segment but the last, `finish` that one; `cancel` at any end.

    `start_of` names a segment for the catalog by the position of its first block: its number changes when others are reused.
    """

    network: Network
    catalog: Catalog
    spool_dir: Path
    options: PutOptions
    source_key: bytes
    start_of: Callable[[int], int]
    desk: ContractDesk | None
    notes: list[str]
    block_bytes: int | None = None
    origin: PutOrigin | None = None
    senders: dict[int, SegmentSender] = field(default_factory=dict)
    finishing: dict[int, asyncio.Task[SentSegment]] = field(default_factory=dict)
    hooks: list[NewHook] = field(default_factory=list)
    short: NotEnoughNodes | None = None  # of a segment with enough receipts, but not all
    sent_bytes: int = 0
    encoded_bytes: int = 0
    _journal: dict[int, tuple[bytes, int]] = field(default_factory=dict)  # segment -> what names its upload in the catalog
    _reserved: dict[int, Reserved] = field(default_factory=dict)

    async def add(self, segment: int, stripe: EncodedStripe, last: bool) -> None:
        if segment not in self.senders:
            self.senders[segment] = await self._open(segment, stripe, last)
        await self.senders[segment].add(stripe, last=last)

    async def _open(self, segment: int, stripe: EncodedStripe, last: bool) -> SegmentSender:
        """A sender with its nodes drawn, or with those of a broken put of the same thing."""
        width, m = len(stripe.fragments), stripe.shape.m
        candidates = self.network.candidates(self.options.class_name)
        start = self.start_of(segment)
        self._journal[segment] = self.source_key, start
        note = self.catalog.open_upload(self.source_key, start)
        if self.desk is not None:
            return await self._open_paid(segment, width, m, self._fragment_bytes_max(stripe, last), note)
        if note is not None and len(note.nodes) == width and set(self.network.known_nodes()).issuperset(note.nodes):
            rest = [candidate for candidate in candidates if candidate.node_id not in note.nodes]
            spares = draw(rest, 0, Rules.for_loss_tolerance(m), bytes(note.upload_id)).spares
            return self._sender(note.upload_id, Draw(note.nodes, spares, ()), segment, m, resume=True)
        if len(candidates) < width:
            raise too_few(self.options.class_name, width, len(candidates))
        upload_id = UploadID(os.urandom(16))
        seed = tagged_hash(b"dds/candidates/v1", self.network.key.public, upload_id, segment.to_bytes(8, "big"))
        order = draw(candidates, width, Rules.for_loss_tolerance(m), seed)
        self._note_bends([bend.describe(m) for bend in order.bends])
        if note is not None:
            self.catalog.close_upload(note.upload_id)
        self.catalog.note_upload(self.source_key, start, upload_id, order.chosen)
        return self._sender(upload_id, order, segment, m, resume=False)

    @property
    def _geometry(self) -> Geometry:
        return class_geometry(self.options.class_name, self.options.k, self.options.m)

    async def _open_paid(
        self, segment: int, width: int, m: int, fragment_bytes_max: int, note: UploadNote | None
    ) -> SegmentSender:
        """The ledger draws the nodes; what a broken put left at some of them is found under the same upload."""
        assert self.desk is not None
        reserved = await self.desk.reserve(width, m, fragment_bytes_max)
        self._note_bends(list(reserved.bends))
        upload_id = note.upload_id if note is not None else UploadID(os.urandom(16))
        self._reserved[segment] = reserved
        self.catalog.note_upload(*self._journal[segment], upload_id, reserved.draw.chosen)
        return self._sender(upload_id, reserved.draw, segment, m, resume=note is not None)

    def _fragment_bytes_max(self, stripe: EncodedStripe, last: bool) -> int:
        """What one node keeps of the segment that begins with this stripe, at most."""
        if last:
            return stripe.shape.slot_bytes
        whole = STRIPES_PER_SEGMENT_MAX * SLOT_BYTES_MAX
        if self.block_bytes is None:
            return whole
        return min(whole, max(sizes_by_index(next(segments_of(self._geometry, self.block_bytes)))))

    def _note_bends(self, bends: list[str]) -> None:
        self.notes += [text for text in bends if text not in self.notes]

    def _sender(self, upload_id: UploadID, order: Draw, segment: int, m: int, *, resume: bool) -> SegmentSender:
        path = self.spool_dir / f"{upload_id.hex()}-{segment}"
        fast_m = m if self.options.ack == "fast" else None
        paid = self._reserved.get(segment)
        contract, ticket = (paid.id, paid.ticket) if paid is not None else (b"", b"")
        return SegmentSender(self.network, order, upload_id, path, resume, self._count, contract, ticket, fast_m)

    def _count(self, sent: int) -> None:
        self.sent_bytes += sent

    async def finish_soon(self, segment: int, closed: ClosedSegment) -> None:
        """Commit in the background while the next segment is packed."""
        self.finishing[segment] = asyncio.create_task(self.finish(segment, closed, None))
        while (under_way := self._under_way()) is not None:
            waits = [asyncio.create_task(self.held(number)) for number in under_way]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            await cancel_all(waits)
        for task in self.finishing.values():
            if task.done():
                task.result()

    def _under_way(self) -> list[int] | None:
        """The segments to wait for before another is opened; None when there is room for one more."""
        unfinished = [number for number, task in self.finishing.items() if not task.done()]
        senders = {number: self.senders.get(number) for number in unfinished}  # none: all receipts are there, it is being noted
        open_ones = [number for number, sender in senders.items() if sender is not None and not sender.enough.is_set()]
        if len(unfinished) < SEGMENTS_UNFINISHED_MAX and len(open_ones) < SEGMENTS_IN_FLIGHT_MAX:
            return None
        return open_ones if len(open_ones) >= SEGMENTS_IN_FLIGHT_MAX else unfinished

    async def held(self, number: int) -> None:
        """Wait until a segment is finished, well or not, or has the receipts that a fast acknowledgement needs."""
        task, sender = self.finishing[number], self.senders.get(number)
        waits: list[asyncio.Task[Any]] = [task]
        if sender is not None and not sender.enough.is_set():
            waits.append(asyncio.create_task(sender.enough.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_all(waits[1:])

    async def finish(self, segment: int, closed: ClosedSegment, manifest: bytes | None) -> SentSegment:
        sender = self.senders[segment]
        payload = closed.record.encode()
        encoding = sign(self.network.key, ENCODING_TAG, self.network.name, payload)
        self.encoded_bytes += sum(fragment.size for row in closed.record.records for fragment in row)
        try:
            if self.desk is not None:
                sender.ticket = await self.desk.ticket(self._reserved[segment])
            outcome: SegmentOutcome = await sender.finish(closed.record, encoding, manifest)
            await self._register(segment, closed.record, payload, outcome.receipts)
        except NotEnoughNodes as error:
            if not sender.enough.is_set():
                raise
            self.short = error
            await self._register(segment, closed.record, payload, sender.receipts)
            await asyncio.to_thread(self._note_short, segment, sender)
            return SentSegment(closed.record.segment_id, sender.holders)
        finally:
            await self._end_sender(segment, sender)
        for index, node, why in outcome.replaced:
            self.notes.append(f"node {self.network.describe(node)} was replaced for fragment {index}: {why.value}")
        await asyncio.to_thread(self._keep, closed, outcome.holders, encoding, sender.upload_id)
        hooks = hooks_of([(entry.cid, entry.raw_bytes) for entry in closed.entries])
        self.hooks += [NewHook(block, closed.record.segment_id, outcome.holders) for block in hooks]
        return SentSegment(closed.record.segment_id, outcome.holders)

    async def _register(self, segment: int, record: EncodingRecord, payload: bytes, receipts: list[bytes]) -> None:
        if self.desk is not None:
            await self.desk.register(self._reserved[segment], record, payload, receipts)

    async def _end_sender(self, segment: int, sender: SegmentSender) -> None:
        kept = self.origin is not None and self.origin.keeps_spools
        await sender.cancel(keep_spool=kept)
        self.senders.pop(segment, None)
        if self.origin is not None and not kept:
            self.origin.drop(segment)

    def _note_short(self, segment: int, sender: SegmentSender) -> None:
        """The next try begins with the nodes that have it."""
        self.catalog.note_upload(*self._journal[segment], sender.upload_id, sender.holders)

    def _keep(self, closed: ClosedSegment, holders: tuple[NodeID, ...], encoding: bytes, upload_id: UploadID) -> None:
        self.catalog.add_segment(closed.record.segment_id, holders, encoding, closed.index)
        self.catalog.close_upload(upload_id)

    async def earlier(self) -> dict[int, SentSegment]:
        """All segments but the last: finished or, with ack fast, held well enough to be named in the manifest."""
        sent: dict[int, SentSegment] = {}
        for number, task in self.finishing.items():
            sender = self.senders.get(number)
            if sender is None or not sender.enough.is_set():
                await self.held(number)
            sent[number] = task.result() if sender is None or task.done() else SentSegment(sender.segment_id, sender.holders)
        return sent

    async def finish_last(self, segment: int, closed: ClosedSegment, manifest: bytes) -> SegmentSender:
        """Begin to commit the last segment, with the manifest; returns when it has enough receipts, or has ended."""
        sender = self.senders[segment]
        self.finishing[segment] = asyncio.create_task(self.finish(segment, closed, manifest))
        await self.held(segment)
        return sender

    async def cancel(self) -> None:
        """End whatever is under way; what nodes have staged is left for a resumed put."""
        await cancel_all(self.finishing.values())
        for sender in list(self.senders.values()):
            await sender.cancel()

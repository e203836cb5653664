"""Moves a content to another class: the same blocks, the same segment ids, another geometry on other nodes.

Each segment is moved by itself, in two phases: it is read whole, verified against its CIDs, and stored anew; the new holders
prove what they hold, and a block is read back from them; only then does the ledger's entry change, in one transaction. Whatever
fails before that leaves the old encoding as it was, and the money comes back. ContentID and manifests never change.

Decides the order of things and what is checked. Does not decide whether a move is worth it (protocol/tiering.py), who stores
(the ledger's draw, or one of our own where nobody pays), what it costs, nor when the old holders let go (runtime/let_go.py).
A segment that is in the target class already is skipped, so a broken move is simply run again; what its nodes had staged is
found there. Source: docs/spec/tiering.md, "Moving".
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dds.erasure.compression import StoredBlock
from dds.erasure.geometry import ARCHIVE_CLASS, CUSTOM_CLASS, Geometry, stored_bytes, stripe_shapes
from dds.erasure.segment_builder import ClosedSegment, SegmentBuilder
from dds.ledger import rent
from dds.ledger.records import CHAIN, CONTRACTS, NODES, SEGMENTS, Holding, contract_id, number_key
from dds.ledger.records import Segment as LedgerSegment
from dds.placement.draw import Draw, Rules, draw
from dds.primitives.cid import CID, cid_text
from dds.primitives.errors import DDSError, InputError, IntegrityError, NotFoundError, UnavailableError
from dds.primitives.hashing import sha256, tagged_hash
from dds.primitives.ids import NodeID, SegmentID, UploadID, id_text
from dds.primitives.units import MIB
from dds.protocol.quote import MONTH_EPOCHS, sizes_by_index
from dds.protocol.tiering import Tier
from dds.runtime.content_blocks import ContentBlocks
from dds.runtime.contract_desk import ContractDesk
from dds.runtime.fetcher import Fetcher
from dds.runtime.holders import holders_among_known
from dds.runtime.holding_proof import prove_holding
from dds.runtime.network import Network
from dds.runtime.offers import Reserved
from dds.runtime.resolver import Found, Resolver
from dds.runtime.results import Payment, Progress
from dds.runtime.segment_sender import SegmentOutcome, SegmentSender
from dds.runtime.segments import Segment, open_segment
from dds.runtime.tasks import gather_all
from dds.storage.catalog import Catalog, ContentNote
from dds.wire.ledger import stripe_runs
from dds.wire.manifest import SegmentRow
from dds.wire.segment import ENCODING_TAG, EncodingRecord, Entry, StripeShape
from dds.wire.signed import sign

READ_BYTES: Final = 8 * MIB  # stored bytes asked for at once while a segment is read
MANIFESTS_LOOKED_AT_MAX: Final = 16

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """The class that a content is moved to."""

    class_name: str  # of the encoding
    geometry: Geometry

    @property
    def is_named(self) -> bool:
        """Whether the class's name says its geometry."""
        return self.class_name not in (CUSTOM_CLASS, ARCHIVE_CLASS)

    @property
    def contract_name(self) -> str:
        """What the contract that pays is called."""
        return self.class_name if self.class_name != CUSTOM_CLASS else f"{CUSTOM_CLASS}-{self.geometry.k}-{self.geometry.m}"


@dataclass(frozen=True, slots=True)
class Standing:
    """What a content takes, over all nodes; rent in base units for 720 epochs, 0 where nobody pays."""

    class_names: tuple[str, ...]
    stored_bytes: int
    rent_month: int


@dataclass(frozen=True, slots=True)
class MovePlan:
    """What a move will do, before anything is done."""

    content: CID
    target: Target
    segments: int
    to_move: int
    before: Standing
    after_bytes: int


@dataclass(frozen=True, slots=True)
class MoveResult:
    """`before` and `after` are as stored and as paid for."""

    content: CID
    class_name: str
    geometry: str
    segments: int
    moved: int  # the others were there already
    sent_bytes: int
    before: Standing
    after: Standing
    payment: Payment | None
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Part:
    """One segment of the content, before it is moved."""

    row: SegmentRow
    data_bytes: int
    class_name: str  # that it has now
    stored_bytes: int  # by all its holders
    shapes: list[StripeShape]  # it will have
    paid: LedgerSegment | None  # its entry on the ledger
    is_there: bool  # in the target class


@dataclass(slots=True)
class Move:
    """One move. Use `run`, once."""

    network: Network
    catalog: Catalog
    spool_dir: Path
    note: ContentNote
    target: Target
    desk: ContractDesk | None  # None where nobody pays
    on_plan: Callable[[MovePlan], None] = lambda plan: None
    progress: Callable[[Progress], None] = lambda progress: None
    _notes: list[str] = field(default_factory=list)
    _sent_bytes: int = 0
    _random: random.Random = field(default_factory=random.SystemRandom)

    async def run(self) -> MoveResult:
        """
        Raises:
            InputError: not this home's content, a segment that others pay for too, or a quote that was declined.
            UnavailableError: too few nodes, or one that did not prove what it took; the old encoding is as it was. Running it
                again goes on where it stopped.
        """
        resolver, fetcher = Resolver(self.network), Fetcher(self.network)
        try:
            found = await own_manifest(self.network, resolver, self.note)
            blocks = ContentBlocks(found, resolver, fetcher)
            parts = [await self._part(blocks, row) for row in await blocks.rows()]
            before = self._standing(parts)
            self.on_plan(self._plan(parts, before))
            holders = await self._move_all(blocks, found, parts)
            await asyncio.to_thread(self._note_done, holders)
            if holders:
                await self.network.announce(self.note.cid, holders)
            return await self._result(parts, before)
        finally:
            resolver.close()

    # -- looking ----------------------------------------------------------------------------------------------------------

    async def _part(self, blocks: ContentBlocks, row: SegmentRow) -> _Part:
        segment = await blocks.load_index(row)
        record = await self._known_record(segment)
        most = self.target.geometry.segment_bytes
        if record.data_bytes > most:
            raise InputError(
                f"segment {id_text(row.segment_id)[:16]} has {record.data_bytes} bytes, and one of {self.target.geometry} at "
                f"most {most}",
                hint="a segment keeps its blocks when it moves: choose a class of larger stripes, or put the content anew",
            )
        shapes = stripe_shapes(self.target.geometry, record.data_bytes)
        paid, is_there = None, (record.class_name, list(record.stripes)) == (self.target.class_name, shapes)
        if self.desk is not None:
            paid, is_there = await self._paid(self.desk, row.segment_id, shapes)
            if sha256(record.encode()) != paid.encoding_hash:  # a move ended between the ledger and this home's catalog
                await asyncio.to_thread(self.catalog.forget_segment, row.segment_id)
                record = segment.record
        return _Part(row, record.data_bytes, record.class_name, stored_bytes(record.stripes), shapes, paid, is_there)

    async def _known_record(self, segment: Segment) -> EncodingRecord:
        """The encoding that this home knows as the present one, else the one that was found."""
        cached = await asyncio.to_thread(self.catalog.segment, segment.segment_id)
        opened = None if cached is None else open_segment(cached.encoding_raw, segment.segment_id, self.network.name)
        return segment.record if opened is None else opened.record

    async def _paid(
        self, desk: ContractDesk, segment_id: SegmentID, shapes: Sequence[StripeShape]
    ) -> tuple[LedgerSegment, bool]:
        """The segment's entry, and whether the target contract pays for it in the target's geometry already.

        Raises:
            InputError, UnavailableError: it is not for this home to move, or not now.
        """
        chain, entry = await desk.ledger.find_many([(CHAIN, b""), (SEGMENTS, segment_id)])
        name = f"segment {id_text(segment_id)[:16]}"
        if entry is None or not entry.sponsors:
            raise UnavailableError(f"{name} is not on the ledger: nobody is paid for it", hint="put the content again")
        await self._check_sponsors(desk, entry, segment_id)
        target = contract_id(self.network.key.public, self.target.contract_name)
        if any(sponsor.contract == target for sponsor in entry.sponsors):
            if list(entry.stripes) == stripe_runs(shapes):
                return entry, True
            raise InputError(
                f"{name} is in another geometry, and contract {self.target.contract_name!r} pays for it in that already",
                hint="it was put again after it had been moved; it can move when that contract's term for it is over",
            )
        if entry.released:
            raise UnavailableError(f"stripes of {name} are released: nobody paid for them", hint="put the content again")
        if entry.registered_epoch >= chain.epoch:
            raise UnavailableError(f"{name} was stored in this very epoch", hint="move it in the next epoch")
        return entry, False

    async def _check_sponsors(self, desk: ContractDesk, entry: LedgerSegment, segment_id: SegmentID) -> None:
        contracts = await desk.ledger.find_many([(CONTRACTS, sponsor.contract) for sponsor in entry.sponsors])
        if any(contract is None or contract.publisher != self.network.key.public for contract in contracts):
            raise InputError(
                f"other publishers pay for segment {id_text(segment_id)[:16]} too: it stays where it is",
                hint="store the content anew with --dedup off to have it for yourself",
            )

    def _plan(self, parts: Sequence[_Part], before: Standing) -> MovePlan:
        after = sum(sum(sizes_by_index(part.shapes)) for part in parts)
        moving = sum(not part.is_there for part in parts)
        return MovePlan(self.note.cid, self.target, len(parts), moving, before, after)

    def _standing(self, parts: Sequence[_Part]) -> Standing:
        names = tuple(dict.fromkeys(part.class_name for part in parts))
        paying = [(part.paid, sponsor) for part in parts if part.paid is not None for sponsor in part.paid.sponsors]
        month = sum(
            rent.rent(rent.sponsored_bytes(paid.stripes, sponsor.stripes), sponsor.price, MONTH_EPOCHS)
            for paid, sponsor in paying
        )
        return Standing(names, sum(part.stored_bytes for part in parts), month)

    # -- moving -----------------------------------------------------------------------------------------------------------

    async def _move_all(self, blocks: ContentBlocks, found: Found, parts: Sequence[_Part]) -> list[NodeID]:
        """Returns who holds the last segment, and with it the manifest; none where nothing was moved."""
        moving = [part for part in parts if not part.is_there]
        if not moving:
            return []
        if self.desk is not None:
            self.desk.segments = [part.shapes for part in moving]
            await self.desk.begin(sum(part.data_bytes for part in moving))
        total = sum(part.data_bytes for part in moving)
        carrier = next((part for part in reversed(moving) if names_segment(found, part.row)), None)
        keepers: tuple[NodeID, ...] = ()
        try:
            for part in moving:
                holders = await self._move(blocks, part, found.raw if part is carrier else None, total)
                keepers = holders if part is carrier else keepers
        except BaseException:
            if self.desk is not None:
                await self.desk.fail()
            raise
        finally:
            if self.desk is not None:
                self.desk.end()
        return list(keepers)

    async def _move(self, blocks: ContentBlocks, part: _Part, manifest: bytes | None, total: int) -> tuple[NodeID, ...]:
        sender, reserved = await self._open(part)
        try:
            closed = await self._send(blocks, part, sender, total)
            payload = closed.record.encode()
            encoding = sign(self.network.key, ENCODING_TAG, self.network.name, payload)
            if self.desk is not None and reserved is not None:
                sender.ticket = await self.desk.ticket(reserved)
            outcome = await sender.finish(closed.record, encoding, manifest)
            await self._check_or_forget(closed, encoding, outcome, sender.upload_id)
            if self.desk is not None and reserved is not None:
                await self.desk.reencode(reserved, closed.record, payload, outcome.receipts)
        finally:
            await sender.cancel()
        await asyncio.to_thread(self._keep, closed, outcome.holders, encoding, sender.upload_id)
        return outcome.holders

    async def _open(self, part: _Part) -> tuple[SegmentSender, Reserved | None]:
        sizes, m = sizes_by_index(part.shapes), self.target.geometry.m
        source = self._source_key(part)
        note = await asyncio.to_thread(self.catalog.open_upload, source, 0)
        upload_id = note.upload_id if note is not None else UploadID(os.urandom(16))
        taken = await self._old_holders(part)
        reserved = None
        if self.desk is not None:
            reserved = await self.desk.reserve(len(sizes), m, max(sizes))
            order, bends = without(reserved.draw, taken), list(reserved.bends)
        else:
            order = self._draw(len(sizes), m, upload_id, taken, () if note is None else note.nodes)
            bends = [bend.describe(m) for bend in order.bends]
        self._notes += [text for text in bends if text not in self._notes]
        await asyncio.to_thread(self.catalog.note_upload, source, 0, upload_id, order.chosen)
        path = self.spool_dir / f"{upload_id.hex()}-move"
        contract, ticket = (reserved.id, reserved.ticket) if reserved is not None else (b"", b"")
        return SegmentSender(self.network, order, upload_id, path, note is not None, self._count, contract, ticket), reserved

    def _source_key(self, part: _Part) -> bytes:
        shape = f"{self.target.class_name} {self.target.geometry}"
        return tagged_hash(b"dds/move-source/v1", self.network.key.public, part.row.segment_id, shape.encode())

    async def _old_holders(self, part: _Part) -> set[NodeID]:
        """Nobody should keep two shares of a segment; the ledger takes no such encoding."""
        if self.desk is None or part.paid is None:
            cached = await asyncio.to_thread(self.catalog.segment, part.row.segment_id)
            if cached is not None:
                return set(cached.holders)
            return {node for _, node in await holders_among_known(self.network, part.row.segment_id)}
        numbers = [each.node for each in part.paid.assignments if each.state != Holding.FREED]
        nodes = await self.desk.ledger.find_many([(NODES, number_key(number)) for number in numbers])
        return {NodeID(node.node_id) for node in nodes if node is not None}

    def _draw(self, width: int, m: int, upload_id: UploadID, taken: set[NodeID], begun: Sequence[NodeID]) -> Draw:
        """Where nobody pays; `begun`: the nodes of a broken move of the same thing."""
        free = [each for each in self.network.candidates(self.target.class_name) if each.node_id not in taken]
        seed = tagged_hash(b"dds/candidates/v1", self.network.key.public, upload_id, bytes(8))
        if len(begun) == width and taken.isdisjoint(begun) and {each.node_id for each in free}.issuperset(begun):
            rest = [each for each in free if each.node_id not in begun]
            return Draw(tuple(begun), draw(rest, 0, Rules.for_loss_tolerance(m), seed).spares, ())
        return draw(free, width, Rules.for_loss_tolerance(m), seed)

    async def _send(self, blocks: ContentBlocks, part: _Part, sender: SegmentSender, total: int) -> ClosedSegment:
        """Read the segment batch by batch, and send it stripe by stripe.

        Raises:
            IntegrityError: what was read does not give the same segment.
        """
        segment = await blocks.load_index(part.row)
        assert segment.entries is not None, "loaded"
        k, m = self.target.geometry
        builder = SegmentBuilder(k, m, self.target.class_name)
        for batch in batches(segment.entries):
            stored = await blocks.stored(segment, batch)
            for entry, raw in zip(batch, stored, strict=True):
                block = StoredBlock(entry.cid, entry.raw_bytes, entry.codec, bytes(raw))
                for stripe in await asyncio.to_thread(builder.add_stored, block):
                    await sender.add(stripe)
            self.progress(Progress("moving", builder.stored_bytes, total))
        closed = await asyncio.to_thread(builder.close)
        if closed.record.segment_id != segment.segment_id:
            raise IntegrityError("a segment that was read became another one: it stays as it was")
        for stripe in closed.stripes:
            await sender.add(stripe, last=stripe is closed.stripes[-1])
        return closed

    # -- checking ---------------------------------------------------------------------------------------------------------

    async def _check(self, closed: ClosedSegment, encoding: bytes, outcome: SegmentOutcome) -> None:
        """Every new holder proves some of its leaves, and a block comes back through the new encoding.

        Raises:
            UnavailableError: one does not.
        """
        proofs = [
            prove_holding(self.network, closed.record, index, node, self._random) for index, node in enumerate(outcome.holders)
        ]
        await gather_all(proofs)
        segment = Segment(closed.record.segment_id, closed.record, encoding, self.network.key.public)
        segment.learn_holders(outcome.holders)
        await Fetcher(self.network).blocks(segment, [self._random.choice(closed.entries)])

    async def _check_or_forget(
        self, closed: ClosedSegment, encoding: bytes, outcome: SegmentOutcome, upload_id: UploadID
    ) -> None:
        """After a failed check the next run begins anew, with a draw of its own."""
        try:
            await self._check(closed, encoding, outcome)
        except DDSError:
            await asyncio.to_thread(self.catalog.close_upload, upload_id)
            raise

    # -- the end ----------------------------------------------------------------------------------------------------------

    def _count(self, sent: int) -> None:
        self._sent_bytes += sent

    def _keep(self, closed: ClosedSegment, holders: tuple[NodeID, ...], encoding: bytes, upload_id: UploadID) -> None:
        self.catalog.add_segment(closed.record.segment_id, holders, encoding, closed.index)
        self.catalog.close_upload(upload_id)

    def _note_done(self, holders: Sequence[NodeID]) -> None:
        kept = holders or self.note.holders
        if holders or self.note.class_name != self.target.class_name:
            to = Tier(self.target.class_name, *(() if self.target.is_named else self.target.geometry))
            self.catalog.note_move(self.note.cid, to, self.network.now_ms(), kept)

    async def _result(self, parts: Sequence[_Part], before: Standing) -> MoveResult:
        moved = sum(not part.is_there for part in parts)
        after = before
        if moved:
            after = self._standing([await self._after(part) for part in parts])
        if moved and self.desk is None:
            self._notes.append("nobody pays on this network: the old copies stay where they are, beside the new ones")
        payment = self.desk.payment() if self.desk is not None and moved else None
        return MoveResult(
            content=self.note.cid,
            class_name=self.target.class_name,
            geometry=str(self.target.geometry),
            segments=len(parts),
            moved=moved,
            sent_bytes=self._sent_bytes,
            before=before,
            after=after,
            payment=payment,
            notes=self._notes,
        )

    async def _after(self, part: _Part) -> _Part:
        if part.is_there:
            return part
        paid = None if self.desk is None else await self.desk.ledger.find(SEGMENTS, part.row.segment_id)
        kept = stored_bytes(part.shapes)
        return _Part(part.row, part.data_bytes, self.target.class_name, kept, part.shapes, paid, is_there=True)


async def own_manifest(network: Network, resolver: Resolver, note: ContentNote) -> Found:
    """The manifest that this home signed.

    Raises:
        NotFoundError: none of the nodes asked has it.
    """
    seen = 0
    async with aclosing(resolver.manifests(note.cid, note.holders)) as manifests:
        async for found in manifests:
            if found.manifest.publisher == network.key.public:
                return found
            seen += 1
            if seen == MANIFESTS_LOOKED_AT_MAX:
                break
    raise NotFoundError(f"nobody has this home's own manifest of {cid_text(note.cid)}", hint="put the content again")


def names_segment(found: Found, row: SegmentRow) -> bool:
    """Whether the manifest's root section names the segment itself: only then do its holders keep the manifest."""
    bodies = (found.manifest.body, found.manifest.meta)
    return any(each.segment_id == row.segment_id for body in bodies for each in body.segments)


def without(order: Draw, taken: set[NodeID]) -> Draw:
    """The draw with spares in the place of nodes that are taken.

    Raises:
        UnavailableError: too few spares.
    """
    spares = [node for node in order.spares if node not in taken]
    chosen = []
    for node in order.chosen:
        if node in taken:
            if not spares:
                raise UnavailableError(
                    "too many of the nodes that were drawn hold the segment already", hint="run the move again for another draw"
                )
            node = spares.pop(0)
        chosen.append(node)
    return Draw(tuple(chosen), tuple(spares), order.bends)


def batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Entries in order, about READ_BYTES of stored bytes together."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        if batch and size + entry.stored_bytes > READ_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry.stored_bytes
    if batch:
        yield batch

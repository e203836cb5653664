"""Putting a file, directory or stream on the network: source -> blocks -> segments -> nodes -> manifest -> announcement.

A worker thread reads, hashes, compresses and encodes (`Packer`); this loop sends. Segments are finished while the next is
being packed; the last one is committed together with the manifest, because only then is the ContentID known. Success is
returned only when every fragment of every segment has a durable receipt and the manifest is held by all holders of the last.
With ack "fast" `on_enough` is called before that, when k + ceil(2m/3) receipts of every segment are there, and a segment that
finds no nodes for the rest fails the put only after all others are through.

While the put runs it serves its own content (put_origin.py), unless somebody else does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from dds.content.block import Block, Built
from dds.erasure.geometry import Geometry, class_geometry
from dds.erasure.segment_builder import ClosedSegment
from dds.erasure.stripes import EncodedStripe
from dds.placement.draw import Draw, Rules, draw
from dds.primitives.cid import CID
from dds.primitives.errors import DDSError, NotEnoughNodes, UnavailableError
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import NodeID, PublisherID, SegmentID, UploadID, id_text
from dds.protocol.hooks import hooks_of
from dds.runtime.dedup import NETWORK, Reuse
from dds.runtime.hooks import Hooks, NewHook
from dds.runtime.lookahead import LookAhead
from dds.runtime.manifest_bodies import body_of, kind_of, split_runs
from dds.runtime.network import Network
from dds.runtime.packer import Packer, Place, PlacedRun
from dds.runtime.put_origin import PutOrigin
from dds.runtime.results import Progress, PutOptions, PutResult
from dds.runtime.segment_sender import SegmentOutcome, SegmentSender
from dds.runtime.stoppable_input import StoppableInput
from dds.runtime.tasks import cancel_all
from dds.storage.block_file import BlockFile
from dds.storage.catalog import Catalog, ContentNote
from dds.storage.source import BuiltTree, SourceOptions, build_dag, build_stream
from dds.wire.api import ManifestReply, ManifestRequest
from dds.wire.manifest import INLINE_BODY_BYTES_MAX, Body, Manifest, Section, SegmentRow, encode_body, section_cid
from dds.wire.segment import ENCODING_TAG
from dds.wire.signed import sign

log = logging.getLogger(__name__)
T = TypeVar("T")

SEGMENTS_IN_FLIGHT_MAX: Final = 2
SEGMENTS_UNFINISHED_MAX: Final = 4  # with --ack fast, those that lack only their last receipts are counted too
MANIFEST_TIMEOUT_S: Final = 10.0
SMALL_REPLY_BYTES_MAX: Final = 64 << 10


@dataclass(slots=True)
class _Sent:
    """A new segment on the network."""

    segment_id: SegmentID
    holders: tuple[NodeID, ...]


@dataclass(frozen=True, slots=True)
class KeptSource:
    """A content that was read before: its blocks in a file of ours. `key` names the put, so that it can be resumed."""

    blocks: BlockFile
    name: str
    key: bytes


Source = Path | BinaryIO | KeptSource


@dataclass(slots=True)
class Put:
    """One run of `dds put`. Make one, call `run` once.

    `on_enough` is called at most once, with the result so far and the nodes that hold the manifest by then.
    """

    network: Network
    catalog: Catalog
    spool_dir: Path
    options: PutOptions
    progress: Callable[[Progress], None]
    inline_body_bytes_max: int = INLINE_BODY_BYTES_MAX
    serve: bool = True  # be the origin while it runs
    on_enough: Callable[[PutResult, list[NodeID]], None] | None = None
    manifest_holders: list[NodeID] = field(default_factory=list)  # after `run`
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _senders: dict[int, SegmentSender] = field(default_factory=dict)
    _finishing: dict[int, asyncio.Task[_Sent]] = field(default_factory=dict)
    _last: tuple[int, ClosedSegment] | None = None
    _journal: dict[int, tuple[bytes, int]] = field(default_factory=dict)  # segment -> what names its upload in the catalog
    _ahead: LookAhead | None = None
    _hooks: list[NewHook] = field(default_factory=list)  # of the segments made
    _rows: dict[SegmentID, SegmentRow] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)
    _sent_bytes: int = 0
    _encoded_bytes: int = 0
    _read_bytes: int = 0
    _source_key: bytes = b""
    _packer: Packer | None = None
    _origin: PutOrigin | None = None
    _short: NotEnoughNodes | None = None  # of a segment with enough receipts, but not all
    _started: float = field(default_factory=time.monotonic)
    _stop: bool = False

    async def run(self, source: Source, total_bytes: int | None = None) -> PutResult:
        """Put `source`.

        Raises:
            InputError, SourceChangedError: about the source.
            NotEnoughNodes: fewer nodes than the geometry needs took their fragments; running it again resumes.
        """
        geometry = self._geometry()
        self._source_key = _source_key(source, self.options, self.network.key.public)
        packer = self._packer = Packer(geometry, self.options.class_name, self)
        reuse = Reuse(self.network, self.catalog, geometry, self.options.dedup, self._notes)
        ahead = self._ahead = LookAhead(reuse, self.catalog, self._loop, self._await)
        self._rows = reuse.rows
        if self.serve:
            self._origin = PutOrigin(self.network, self.catalog, packer.has)
        try:
            built = await self._in_thread(lambda: self._read(source, packer, ahead, total_bytes))
            await reuse.remember()
            if self._origin is not None:
                self._origin.start_soon(built.root.cid)
            manifest, self.manifest_holders = await self._publish(built, packer)
            await asyncio.gather(*self._finishing.values())
            if self._short is not None:
                raise self._short
        finally:
            self._stop = True
            await self._cancel_all()
            await reuse.close()
        await self.network.announce(manifest.content, self.manifest_holders)
        if self.options.dedup == NETWORK:
            Hooks(self.network).announce(self._hooks)
        await asyncio.to_thread(self._remember, source, manifest)
        return self._result(built, manifest, packer)

    def _geometry(self) -> Geometry:
        return class_geometry(self.options.class_name, self.options.k, self.options.m)

    # -- in the worker thread ---------------------------------------------------------------------------------------------

    def _read(self, source: Source, packer: Packer, ahead: LookAhead, total_bytes: int | None) -> BuiltTree:
        options = SourceOptions(self.options.chunker, self.options.hidden, self.options.follow_symlinks)

        def sink(block: Block, position: int) -> None:
            ahead.block(packer, block, position)
            self._read_bytes += len(block.data)
            self._report("sending" if self._sent_bytes else "reading", self._read_bytes, total_bytes)

        match source:
            case KeptSource(blocks):
                built = blocks.replay(sink)
            case Path():
                built = build_dag(source, options, sink)
            case _:
                built = build_stream(StoppableInput(source, lambda: self._stop), options, sink)
        ahead.finish(packer)
        packer.finish()
        return built

    def known(self, cid: CID) -> Place | None:
        assert self._ahead is not None
        return self._ahead.known(cid)

    def stripe(self, segment: int, stripe: EncodedStripe, last: bool) -> None:
        self._await(self._add(segment, stripe, last))

    def closed(self, segment: int, closed: ClosedSegment, final: bool) -> None:
        if self._origin is not None:
            self._origin.add(segment, closed, self._senders[segment])
        if final:
            self._last = (segment, closed)
        else:
            self._await(self._finish_soon(segment, closed))

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop from the worker thread, and wait for it: this is what holds the worker back."""
        if self._stop:
            work.close()
            raise UnavailableError("the put was stopped")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """A thread whose end is always awaited: it uses our senders, so it must not outlive this call."""
        task = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._stop = True
            await self._cancel_all()
            await asyncio.gather(task, return_exceptions=True)
            raise

    # -- segments ---------------------------------------------------------------------------------------------------------

    async def _add(self, segment: int, stripe: EncodedStripe, last: bool) -> None:
        if segment not in self._senders:
            self._senders[segment] = self._open(segment, len(stripe.fragments), stripe.shape.m)
        await self._senders[segment].add(stripe, last=last)

    def _open(self, segment: int, width: int, m: int) -> SegmentSender:
        """A sender with its nodes drawn, or with those of a broken put of the same thing."""
        candidates = self.network.candidates()
        assert self._packer is not None
        start = self._packer.starts[segment]  # names the segment in the journal: its number changes when others are reused
        self._journal[segment] = self._source_key, start
        note = self.catalog.open_upload(self._source_key, start)
        if note is not None and len(note.nodes) == width and set(self.network.known_nodes()).issuperset(note.nodes):
            rest = [candidate for candidate in candidates if candidate.node_id not in note.nodes]
            spares = draw(rest, 0, Rules.for_loss_tolerance(m), bytes(note.upload_id)).spares
            return self._sender(note.upload_id, Draw(note.nodes, spares, ()), segment, m, resume=True)
        upload_id = UploadID(os.urandom(16))
        seed = tagged_hash(b"dds/candidates/v1", self.network.key.public, upload_id, segment.to_bytes(8, "big"))
        order = draw(candidates, width, Rules.for_loss_tolerance(m), seed)
        bends = [bend.describe(m) for bend in order.bends]
        self._notes += [text for text in bends if text not in self._notes]
        if note is not None:
            self.catalog.close_upload(note.upload_id)
        self.catalog.note_upload(self._source_key, start, upload_id, order.chosen)
        return self._sender(upload_id, order, segment, m, resume=False)

    def _sender(self, upload_id: UploadID, order: Draw, segment: int, m: int, *, resume: bool) -> SegmentSender:
        path = self.spool_dir / f"{upload_id.hex()}-{segment}"
        fast_m = m if self.options.ack == "fast" else None
        return SegmentSender(self.network, order, upload_id, path, resume, self._count, fast_m)

    def _count(self, sent: int) -> None:
        self._sent_bytes += sent

    async def _finish_soon(self, segment: int, closed: ClosedSegment) -> None:
        """Commit in the background while the next segment is packed."""
        self._finishing[segment] = asyncio.create_task(self._finish(segment, closed, None))
        while (under_way := self._under_way()) is not None:
            waits = [asyncio.create_task(self._held(number)) for number in under_way]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            await cancel_all(waits)
        for task in self._finishing.values():
            if task.done():
                task.result()

    def _under_way(self) -> list[int] | None:
        """The segments to wait for before another is opened; None when there is room for one more."""
        unfinished = [number for number, task in self._finishing.items() if not task.done()]
        senders = {
            number: self._senders.get(number) for number in unfinished
        }  # none: all receipts are there, it is being noted
        open_ones = [number for number, sender in senders.items() if sender is not None and not sender.enough.is_set()]
        if len(unfinished) < SEGMENTS_UNFINISHED_MAX and len(open_ones) < SEGMENTS_IN_FLIGHT_MAX:
            return None
        return open_ones if len(open_ones) >= SEGMENTS_IN_FLIGHT_MAX else unfinished

    async def _held(self, number: int) -> None:
        """Wait until a segment is finished, well or not, or has the receipts that a fast acknowledgement needs."""
        task, sender = self._finishing[number], self._senders.get(number)
        waits: list[asyncio.Task[Any]] = [task]
        if sender is not None and not sender.enough.is_set():
            waits.append(asyncio.create_task(sender.enough.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_all(waits[1:])

    async def _finish(self, segment: int, closed: ClosedSegment, manifest: bytes | None) -> _Sent:
        sender = self._senders[segment]
        encoding = sign(self.network.key, ENCODING_TAG, self.network.name, closed.record.encode())
        self._encoded_bytes += sum(fragment.size for row in closed.record.records for fragment in row)
        try:
            outcome: SegmentOutcome = await sender.finish(closed.record, encoding, manifest)
        except NotEnoughNodes as error:
            if not sender.enough.is_set():
                raise
            self._short = error
            await asyncio.to_thread(self._note_short, segment, sender)
            return _Sent(closed.record.segment_id, sender.holders)
        finally:
            await self._end_sender(segment, sender)
        for index, node, why in outcome.replaced:
            self._notes.append(f"node {self.network.describe(node)} was replaced for fragment {index}: {why.value}")
        await asyncio.to_thread(self._keep, closed, outcome.holders, encoding, sender.upload_id)
        hooks = hooks_of([(entry.cid, entry.raw_bytes) for entry in closed.entries])
        self._hooks += [NewHook(block, closed.record.segment_id, outcome.holders) for block in hooks]
        return _Sent(closed.record.segment_id, outcome.holders)

    async def _end_sender(self, segment: int, sender: SegmentSender) -> None:
        kept = self._origin is not None and self._origin.keeps_spools
        await sender.cancel(keep_spool=kept)
        self._senders.pop(segment, None)
        if self._origin is not None and not kept:
            self._origin.drop(segment)

    def _note_short(self, segment: int, sender: SegmentSender) -> None:
        """The next try begins with the nodes that have it."""
        self.catalog.note_upload(*self._journal[segment], sender.upload_id, sender.holders)

    def _keep(self, closed: ClosedSegment, holders: tuple[NodeID, ...], encoding: bytes, upload_id: UploadID) -> None:
        self.catalog.add_segment(closed.record.segment_id, holders, encoding, closed.index)
        self.catalog.close_upload(upload_id)

    async def _cancel_all(self) -> None:
        for task in self._finishing.values():
            task.cancel()
        await asyncio.gather(*self._finishing.values(), return_exceptions=True)
        for sender in list(self._senders.values()):
            await sender.cancel()
        if self._origin is not None:
            await self._origin.stop()

    # -- the manifest -----------------------------------------------------------------------------------------------------

    async def _publish(self, built: BuiltTree, packer: Packer) -> tuple[Manifest, list[NodeID]]:
        """Finish all segments, the last with the manifest in it; returns the manifest and who holds it."""
        self._report("committing", built.content_bytes, built.content_bytes)
        sent = await self._earlier()
        body = self._body(packer.runs, sent)
        if len(encode_body(body)) > self.inline_body_bytes_max:
            return await self._publish_sections(built, packer, sent)
        manifest = self._manifest(built, packer, body=body)
        return manifest, await self._place(built, packer, manifest)

    async def _earlier(self) -> dict[int, _Sent]:
        """All segments but the last: finished or, with ack fast, held well enough to be named in the manifest."""
        sent: dict[int, _Sent] = {}
        for number, task in self._finishing.items():
            sender = self._senders.get(number)
            if sender is None or not sender.enough.is_set():
                await self._held(number)
            sent[number] = task.result() if sender is None or task.done() else _Sent(sender.segment_id, sender.holders)
        return sent

    async def _publish_sections(
        self, built: BuiltTree, packer: Packer, sent: dict[int, _Sent]
    ) -> tuple[Manifest, list[NodeID]]:
        """The body is too large for the root: store it in sections, in segments of their own."""
        if self._last is not None:
            (number, closed), self._last = self._last, None
            await self._finish_soon(number, closed)
            sent = await self._earlier()
        width = max(packer.geometry.n, *(len(row.holders) for row in self._rows.values()))
        parts = split_runs(packer.runs, width)
        bodies = [self._body(part, sent) for part in parts]
        self._source_key = tagged_hash(b"dds/put-sections/v1", self._source_key)
        meta = self._packer = Packer(packer.geometry, self.options.class_name, self, first_segment=max(sent, default=-1) + 1)
        sections: list[Section] = []
        position = 0
        for part, body in zip(parts, bodies, strict=True):
            raw = encode_body(body)
            sections.append(Section(section_cid(raw), part[0].position))
            await self._in_thread(lambda raw=raw, at=position: meta.block(Block(section_cid(raw), raw), at))  # type: ignore[misc]
            position += len(raw)
        await self._in_thread(meta.finish)
        sent = await self._earlier()
        manifest = self._manifest(built, packer, sections=tuple(sections), meta=self._body(meta.runs, sent))
        return manifest, await self._place(built, packer, manifest)

    def _body(self, runs: list[PlacedRun], sent: dict[int, _Sent]) -> Body:
        return body_of(runs, lambda segment: self._row(segment, sent))

    def _row(self, segment: int | SegmentID, sent: dict[int, _Sent]) -> SegmentRow:
        """The last segment is not sent yet: its row names the nodes it is meant for."""
        if isinstance(segment, bytes):
            return self._rows[segment]
        if segment in sent:
            row = SegmentRow(sent[segment].segment_id, sent[segment].holders)
        else:
            assert self._last is not None and self._last[0] == segment
            row = SegmentRow(self._last[1].record.segment_id, self._senders[segment].draw.chosen)
        self._rows[row.segment_id] = row
        return row

    def _manifest(
        self,
        built: BuiltTree,
        packer: Packer,
        *,
        body: Body | None = None,
        sections: tuple[Section, ...] = (),
        meta: Body | None = None,
    ) -> Manifest:
        root: Built = built.root
        return Manifest(
            content=root.cid,
            publisher=PublisherID(self.network.key.public),
            kind=kind_of(built),
            class_name=self.options.class_name,
            chunker=self.options.chunker,
            content_bytes=built.content_bytes,
            dag_bytes=root.tsize,
            unique_bytes=packer.unique_bytes,
            stored_bytes=packer.stored_bytes + packer.reused_bytes,
            created_ms=self.network.now_ms(),
            body=body or Body(),
            sections=sections,
            meta=meta or Body(),
        )

    async def _place(self, built: BuiltTree, packer: Packer, manifest: Manifest) -> list[NodeID]:
        """Commit the last segment with the manifest; with nothing new, hand the manifest to holders of what is reused."""
        raw = manifest.sign(self.network.key, self.network.name)
        if self._last is None:
            took = await self._spread_manifest(manifest, raw)
            self._tell_enough(self._result(built, manifest, packer), took)
            return took
        (number, closed), self._last = self._last, None
        sender = self._senders[number]
        self._finishing[number] = asyncio.create_task(self._finish(number, closed, raw))
        await self._held(number)
        if sender.enough.is_set():
            self._tell_enough(self._result(built, manifest, packer), list(sender.receipted))
        done = await self._finishing[number]
        self._rows[done.segment_id] = SegmentRow(done.segment_id, done.holders)
        return list(done.holders)

    def _tell_enough(self, result: PutResult, holders: list[NodeID]) -> None:
        if self.on_enough is not None:
            self.on_enough(result, holders)

    async def _spread_manifest(self, manifest: Manifest, raw: bytes) -> list[NodeID]:
        """Hand it to m + 1 holders of its segments; as many as a reused segment may lack may be missing here too."""
        m = self._geometry().m
        holders = [node for row in (*manifest.body.segments, *manifest.meta.segments) for node in row.holders]
        took: list[NodeID] = []
        for node in dict.fromkeys(holders):
            if len(took) == m + 1:
                break
            if await self._takes_manifest(node, raw):
                took.append(node)
        if len(took) < m + 1 - m // 3:
            raise NotEnoughNodes(f"only {len(took)} of {m + 1} nodes took the manifest", hint="run the same put again")
        if len(took) < m + 1:
            self._notes.append(f"the manifest is held by only {len(took)} of {m + 1} nodes: others do not answer")
        return took

    async def _takes_manifest(self, node: NodeID, raw: bytes) -> bool:
        request = ManifestRequest(raw)
        try:
            await self.network.client.call(
                node, "/v1/manifests", request, ManifestReply, max_bytes=SMALL_REPLY_BYTES_MAX, timeout_s=MANIFEST_TIMEOUT_S
            )
        except DDSError as error:
            log.info("manifest not taken by %s: %s", id_text(node), error)
            return False
        return True

    # -- the end ----------------------------------------------------------------------------------------------------------

    def _remember(self, source: Source, manifest: Manifest) -> None:
        name = source.name if isinstance(source, Path | KeptSource) else "-"
        self.catalog.add_content(
            ContentNote(
                cid=manifest.content,
                name=name,
                size_bytes=manifest.content_bytes,
                class_name=manifest.class_name,
                kind=manifest.kind,
                put_ms=manifest.created_ms,
                holders=tuple(self.manifest_holders),
            )
        )

    def _report(self, phase: str, done: int, total: int | None) -> None:
        self.progress(Progress(phase, done, total))

    def _result(self, built: BuiltTree, manifest: Manifest, packer: Packer) -> PutResult:
        unfinished = {sender.segment_id: sender.receipted for sender in self._senders.values() if sender.enough.is_set()}
        nodes = {node for row in self._rows.values() for node in unfinished.get(row.segment_id, row.holders)}
        labels = [self.network.labels(node) for node in nodes]
        return PutResult(
            content=manifest.content,
            kind=manifest.kind,
            files=built.files,
            content_bytes=built.content_bytes,
            dag_bytes=manifest.dag_bytes,
            unique_bytes=packer.unique_bytes,
            stored_bytes=packer.stored_bytes,
            encoded_bytes=self._encoded_bytes,
            sent_bytes=self._sent_bytes,
            reused_bytes=packer.reused_bytes,
            segments=len(self._rows),
            nodes=len(nodes),
            regions=len({region for region, _ in labels}),
            operators=len({operator for _, operator in labels}),
            seconds=time.monotonic() - self._started,
            reused_from_others_bytes=self._ahead.from_others_bytes if self._ahead else 0,
            notes=self._notes,
        )


def _source_key(source: Source, options: PutOptions, publisher: bytes) -> bytes:
    """Names a put, so that the same put after a crash finds what it had staged. A stream can't be resumed."""
    if isinstance(source, KeptSource):
        return source.key
    if not isinstance(source, Path):
        return tagged_hash(b"dds/put-source/v1", os.urandom(32))
    described = repr((str(source.resolve()), options)).encode()
    return tagged_hash(b"dds/put-source/v1", publisher, described)

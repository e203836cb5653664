"""Putting a file, directory or stream on the network: source -> blocks -> segments -> nodes -> manifest -> announcement.

A worker thread reads, hashes, compresses and encodes (`Packer`); this loop sends. Segments are finished while the next is
being packed; the last one is committed together with the manifest, because only then is the ContentID known. Success is
returned only when every fragment of every segment has a durable receipt and the manifest is held by all holders of the last.
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
from dds.primitives.errors import DDSError, InputError, NotEnoughNodes, UnavailableError
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import NodeID, PublisherID, SegmentID, UploadID, id_text
from dds.runtime.network import Network
from dds.runtime.packer import Packer, Place, PlacedRun
from dds.runtime.results import Progress, PutOptions, PutResult
from dds.runtime.segment_sender import SegmentOutcome, SegmentSender
from dds.runtime.segments import open_segment
from dds.runtime.tasks import gather_all
from dds.storage.catalog import Catalog, ContentNote
from dds.storage.source import BuiltTree, SourceOptions, build_dag, build_stream
from dds.wire.api import HoldingReply, HoldingRequest, ManifestReply, ManifestRequest
from dds.wire.manifest import INLINE_BODY_BYTES_MAX, Body, Manifest, Run, Section, SegmentRow, encode_body, section_cid
from dds.wire.segment import ENCODING_TAG, EncodingRecord
from dds.wire.signed import sign

log = logging.getLogger(__name__)
T = TypeVar("T")

SEGMENTS_IN_FLIGHT_MAX: Final = 2
HOLDING_TIMEOUT_S: Final = 3.0
MANIFEST_TIMEOUT_S: Final = 10.0
SMALL_REPLY_BYTES_MAX: Final = 64 << 10
ROWS_PER_SECTION: Final = 400  # segment rows and as many runs: about 230 KB at n = 16


@dataclass(slots=True)
class _Sent:
    """A new segment on the network."""

    segment_id: SegmentID
    record: EncodingRecord
    holders: tuple[NodeID, ...]
    planned: tuple[NodeID, ...]


@dataclass(slots=True)
class Put:
    """One run of `dds put`. Make one, call `run` once."""

    network: Network
    catalog: Catalog
    spool_dir: Path
    options: PutOptions
    progress: Callable[[Progress], None]
    inline_body_bytes_max: int = INLINE_BODY_BYTES_MAX
    manifest_holders: list[NodeID] = field(default_factory=list)  # after `run`
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _senders: dict[int, SegmentSender] = field(default_factory=dict)
    _finishing: dict[int, asyncio.Task[_Sent]] = field(default_factory=dict)
    _last: tuple[int, ClosedSegment] | None = None
    _usable: dict[SegmentID, bool] = field(default_factory=dict)
    _rows: dict[SegmentID, SegmentRow] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)
    _sent_bytes: int = 0
    _encoded_bytes: int = 0
    _read_bytes: int = 0
    _source_key: bytes = b""
    _packer: Packer | None = None
    _stop: bool = False

    async def run(self, source: Path | BinaryIO, total_bytes: int | None = None) -> PutResult:
        """Put `source`.

        Raises:
            InputError, SourceChangedError: about the source.
            NotEnoughNodes: fewer nodes than the geometry needs took their fragments; running it again resumes.
        """
        started = time.monotonic()
        geometry = self._geometry()
        self._source_key = _source_key(source, self.options, self.network.key.public)
        packer = self._packer = Packer(geometry, self.options.class_name, self)
        try:
            built = await self._in_thread(lambda: self._read(source, packer, total_bytes))
            manifest, self.manifest_holders = await self._publish(built, packer)
        finally:
            self._stop = True
            await self._cancel_all()
        await self.network.announce(manifest.content, self.manifest_holders)
        await asyncio.to_thread(self._remember, source, manifest)
        return self._result(built, manifest, packer, time.monotonic() - started)

    def _geometry(self) -> Geometry:
        if self.options.ack != "all":
            raise InputError(
                "--ack fast needs a running origin daemon in this home, and none is running",
                hint="leave --ack out: put then waits for all receipts",
            )
        return class_geometry(self.options.class_name, self.options.k, self.options.m)

    # -- in the worker thread ---------------------------------------------------------------------------------------------

    def _read(self, source: Path | BinaryIO, packer: Packer, total_bytes: int | None) -> BuiltTree:
        options = SourceOptions(self.options.chunker, self.options.hidden, self.options.follow_symlinks)

        def sink(block: Block, position: int) -> None:
            packer.block(block, position)
            self._read_bytes += len(block.data)
            self._report("sending" if self._sent_bytes else "reading", self._read_bytes, total_bytes)

        built = build_dag(source, options, sink) if isinstance(source, Path) else build_stream(source, options, sink)
        packer.finish()
        return built

    def known(self, cid: CID) -> Place | None:
        found = self.catalog.lookup([cid]).get(cid)
        if found is None:
            return None
        usable = self._usable.get(found.segment_id)
        if usable is None:
            usable = self._await(self._check_reuse(found.segment_id))
            self._usable[found.segment_id] = usable
        return Place(found.segment_id, found.entry) if usable else None

    def stripe(self, segment: int, stripe: EncodedStripe, last: bool) -> None:
        self._await(self._add(segment, stripe, last))

    def closed(self, segment: int, closed: ClosedSegment, final: bool) -> None:
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
        note = self.catalog.open_upload(self._source_key, start)
        if note is not None and len(note.nodes) == width and set(self.network.known_nodes()).issuperset(note.nodes):
            rest = [candidate for candidate in candidates if candidate.node_id not in note.nodes]
            spares = draw(rest, 0, Rules.for_loss_tolerance(m), bytes(note.upload_id)).spares
            return self._sender(note.upload_id, Draw(note.nodes, spares, ()), segment, resume=True)
        upload_id = UploadID(os.urandom(16))
        seed = tagged_hash(b"dds/candidates/v1", self.network.key.public, upload_id, segment.to_bytes(8, "big"))
        order = draw(candidates, width, Rules.for_loss_tolerance(m), seed)
        bends = [bend.describe(m) for bend in order.bends]
        self._notes += [text for text in bends if text not in self._notes]
        if note is not None:
            self.catalog.close_upload(note.upload_id)
        self.catalog.note_upload(self._source_key, start, upload_id, order.chosen)
        return self._sender(upload_id, order, segment, resume=False)

    def _sender(self, upload_id: UploadID, order: Draw, segment: int, *, resume: bool) -> SegmentSender:
        path = self.spool_dir / f"{upload_id.hex()}-{segment}"
        return SegmentSender(self.network, order, upload_id, path, resume, self._count)

    def _count(self, sent: int) -> None:
        self._sent_bytes += sent

    async def _finish_soon(self, segment: int, closed: ClosedSegment) -> None:
        """Commit in the background while the next segment is packed."""
        self._finishing[segment] = asyncio.create_task(self._finish(segment, closed, None))
        running = [task for task in self._finishing.values() if not task.done()]
        if len(running) >= SEGMENTS_IN_FLIGHT_MAX:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in self._finishing.values():
            if task.done():
                task.result()

    async def _finish(self, segment: int, closed: ClosedSegment, manifest: bytes | None) -> _Sent:
        sender = self._senders.pop(segment)
        encoding = sign(self.network.key, ENCODING_TAG, self.network.name, closed.record.encode())
        try:
            outcome: SegmentOutcome = await sender.finish(closed.record, encoding, manifest)
        finally:
            await sender.cancel()
        for index, node, why in outcome.replaced:
            self._notes.append(f"node {self.network.describe(node)} was replaced for fragment {index}: {why.value}")
        await asyncio.to_thread(self._keep, closed, outcome.holders, encoding, sender.upload_id)
        self._encoded_bytes += sum(fragment.size for row in closed.record.records for fragment in row)
        return _Sent(closed.record.segment_id, closed.record, outcome.holders, sender.draw.chosen)

    def _keep(self, closed: ClosedSegment, holders: tuple[NodeID, ...], encoding: bytes, upload_id: UploadID) -> None:
        self.catalog.add_segment(closed.record.segment_id, holders, encoding, closed.index)
        self.catalog.close_upload(upload_id)

    async def _cancel_all(self) -> None:
        for task in self._finishing.values():
            task.cancel()
        await asyncio.gather(*self._finishing.values(), return_exceptions=True)
        for sender in list(self._senders.values()):
            await sender.cancel()

    # -- reuse ------------------------------------------------------------------------------------------------------------

    async def _check_reuse(self, segment_id: SegmentID) -> bool:
        """Whether a segment of ours is still held well enough to be relied on: k + ceil(2m/3) of its n holders say so."""
        cached = self.catalog.segment(segment_id)
        if cached is None:
            return False
        segment = open_segment(cached.encoding_raw, segment_id, self.network.name)
        if segment is None:
            return False
        record, holders = segment.record, cached.holders
        held = await gather_all([self._holds(node, index, segment_id) for index, node in enumerate(holders)])
        live, tolerance = sum(held), record.loss_tolerance
        if live < record.width - tolerance // 3:
            self._notes.append(f"an earlier segment is held by only {live} of {record.width} nodes: its blocks are sent anew")
            self.catalog.forget_segment(segment_id)
            return False
        if live < record.width:
            self._notes.append(f"an earlier segment is reused although only {live} of its {record.width} nodes answer")
        self._rows[segment_id] = SegmentRow(segment_id, tuple(holders))
        return True

    async def _holds(self, node: NodeID, index: int, segment_id: SegmentID) -> bool:
        try:
            reply = await self.network.client.call(
                node,
                "/v1/segments",
                HoldingRequest([segment_id]),
                HoldingReply,
                max_bytes=SMALL_REPLY_BYTES_MAX,
                timeout_s=HOLDING_TIMEOUT_S,
            )
        except DDSError:
            return False
        return len(reply.indices) == 1 and index in reply.indices[0]

    # -- the manifest -----------------------------------------------------------------------------------------------------

    async def _publish(self, built: BuiltTree, packer: Packer) -> tuple[Manifest, list[NodeID]]:
        """Finish all segments, the last with the manifest in it; returns the manifest and who holds it."""
        self._report("committing", built.content_bytes, built.content_bytes)
        sent = {number: await task for number, task in self._finishing.items()}
        body = self._body(packer.runs, sent)
        if len(encode_body(body)) > self.inline_body_bytes_max:
            return await self._publish_sections(built, packer, sent)
        manifest = self._manifest(built, packer, body=body)
        return manifest, await self._place(manifest)

    async def _publish_sections(
        self, built: BuiltTree, packer: Packer, sent: dict[int, _Sent]
    ) -> tuple[Manifest, list[NodeID]]:
        """The body is too large for the root: store it in sections, in segments of their own."""
        if self._last is not None:
            number, closed = self._last
            sent[number], self._last = await self._finish(number, closed, None), None
        parts = list(_split_runs(packer.runs))
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
        for number, task in self._finishing.items():
            sent[number] = await task
        manifest = self._manifest(built, packer, sections=tuple(sections), meta=self._body(meta.runs, sent))
        return manifest, await self._place(manifest)

    def _body(self, runs: list[PlacedRun], sent: dict[int, _Sent]) -> Body:
        """Runs with their segments numbered. The last segment is not sent yet: its row names the nodes it is meant for."""
        rows: list[SegmentRow] = []
        numbers: dict[int | SegmentID, int] = {}
        out: list[Run] = []
        for run in runs:
            if run.segment not in numbers:
                numbers[run.segment] = len(rows)
                rows.append(self._row(run.segment, sent))
            out.append(Run(numbers[run.segment], run.first, run.count, run.position))
        return Body(tuple(rows), tuple(out))

    def _row(self, segment: int | SegmentID, sent: dict[int, _Sent]) -> SegmentRow:
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
            kind=_kind(built),
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

    async def _place(self, manifest: Manifest) -> list[NodeID]:
        """Commit the last segment with the manifest; with nothing new, hand the manifest to holders of what is reused."""
        raw = manifest.sign(self.network.key, self.network.name)
        if self._last is not None:
            number, closed = self._last
            done = await self._finish(number, closed, raw)
            self._last = None
            self._rows[done.segment_id] = SegmentRow(done.segment_id, done.holders)
            return list(done.holders)
        return await self._spread_manifest(manifest, raw)

    async def _spread_manifest(self, manifest: Manifest, raw: bytes) -> list[NodeID]:
        row = (manifest.body.segments or manifest.meta.segments)[0]
        need = self._geometry().m + 1
        took: list[NodeID] = []
        others = [node for node in self.network.known_nodes() if node not in row.holders]
        for node in [*row.holders, *others]:
            if len(took) == need:
                return took
            try:
                await self.network.client.call(
                    node,
                    "/v1/manifests",
                    ManifestRequest(raw),
                    ManifestReply,
                    max_bytes=SMALL_REPLY_BYTES_MAX,
                    timeout_s=MANIFEST_TIMEOUT_S,
                )
            except DDSError as error:
                log.info("manifest not taken by %s: %s", id_text(node), error)
                continue
            took.append(node)
        if len(took) < need:
            raise NotEnoughNodes(f"only {len(took)} of {need} nodes took the manifest", hint="run the same put again")
        return took

    # -- the end ----------------------------------------------------------------------------------------------------------

    def _remember(self, source: Path | BinaryIO, manifest: Manifest) -> None:
        name = source.name if isinstance(source, Path) else "-"
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

    def _result(self, built: BuiltTree, manifest: Manifest, packer: Packer, seconds: float) -> PutResult:
        nodes = {node for row in self._rows.values() for node in row.holders}
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
            seconds=seconds,
            notes=self._notes,
        )


def _split_runs(runs: list[PlacedRun]) -> list[list[PlacedRun]]:
    """Runs in groups that fit a section."""
    return [runs[at : at + ROWS_PER_SECTION] for at in range(0, len(runs), ROWS_PER_SECTION)]


def _kind(built: BuiltTree) -> str:
    if built.directories:
        return "directory"
    return "file" if built.files else "symlink"


def _source_key(source: Path | BinaryIO, options: PutOptions, publisher: bytes) -> bytes:
    """Names a put, so that the same put after a crash finds what it had staged. A stream can't be resumed."""
    if not isinstance(source, Path):
        return tagged_hash(b"dds/put-source/v1", os.urandom(32))
    described = repr((str(source.resolve()), options)).encode()
    return tagged_hash(b"dds/put-source/v1", publisher, described)

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from dds.content.block import Block, Built
from dds.erasure.geometry import Geometry, class_geometry
from dds.erasure.segment_builder import ClosedSegment
from dds.erasure.stripes import EncodedStripe
from dds.primitives.cid import CID
from dds.primitives.errors import DDSError, NotEnoughNodes, UnavailableError
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import NodeID, PublisherID, SegmentID, id_text
from dds.runtime.contract_desk import ContractDesk
from dds.runtime.dedup import NETWORK, Reuse
from dds.runtime.hooks import Hooks
from dds.runtime.lookahead import LookAhead
from dds.runtime.manifest_bodies import body_of, kind_of, split_runs
from dds.runtime.network import Network
from dds.runtime.packer import Packer, Place, PlacedRun
from dds.runtime.put_origin import PutOrigin
from dds.runtime.put_segments import NewSegments, SentSegment
from dds.runtime.results import Progress, PutOptions, PutResult
from dds.runtime.reuse_paid import pay_for_reused
from dds.runtime.stoppable_input import StoppableInput
from dds.storage.block_file import BlockFile
from dds.storage.catalog import Catalog, ContentNote, TierNote
from dds.storage.source import BuiltTree, SourceOptions, build_dag, build_stream
from dds.wire.api import ManifestReply, ManifestRequest
from dds.wire.manifest import INLINE_BODY_BYTES_MAX, Body, Manifest, Section, SegmentRow, encode_body, section_cid

log = logging.getLogger(__name__)
T = TypeVar("T")

MANIFEST_TIMEOUT_S: Final = 10.0
SMALL_REPLY_BYTES_MAX: Final = 64 << 10


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
    desk: ContractDesk | None = None  # where the network is paid
    manifest_holders: list[NodeID] = field(default_factory=list)  # after `run`
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _last: tuple[int, ClosedSegment] | None = None
    _ahead: LookAhead | None = None
    _rows: dict[SegmentID, SegmentRow] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)
    _read_bytes: int = 0
    _packer: Packer | None = None
    _segments: NewSegments = field(init=False)
    _origin: PutOrigin | None = None
    _started: float = field(default_factory=time.monotonic)
    _stop: bool = False

    async def run(self, source: Source, total_bytes: int | None = None, block_bytes: int | None = None) -> PutResult:
        """Put `source`. `total_bytes` is for the progress; `block_bytes`, of all blocks that it becomes, for the quote.

        Raises:
            InputError, SourceChangedError: about the source.
            NotEnoughNodes: fewer nodes than the geometry needs took their fragments; running it again resumes.
        """
        geometry = self._geometry()
        if self.desk is not None:
            await self.desk.begin(block_bytes)
        packer = self._packer = Packer(geometry, self.options.class_name, self)
        self._segments = self._new_segments(_source_key(source, self.options, self.network.key.public), block_bytes)
        reuse = Reuse(self.network, self.catalog, geometry, self.options.dedup, self._notes)
        ahead = self._ahead = LookAhead(reuse, self.catalog, self._loop, self._await)
        self._rows = reuse.rows
        if self.serve:
            self._segments.origin = self._origin = PutOrigin(self.network, self.catalog, packer.has)
        try:
            built = await self._in_thread(lambda: self._read(source, packer, ahead, total_bytes))
            await reuse.remember()
            if self._origin is not None:
                self._origin.start_soon(built.root.cid)
            manifest, self.manifest_holders = await self._publish(built, packer)
            await asyncio.gather(*self._segments.finishing.values())
            if self._segments.short is not None:
                raise self._segments.short
            if self.desk is not None:
                await pay_for_reused(self.desk, self.catalog, self.network.name, packer.runs)
        except BaseException:
            self._stop = True
            await self._cancel_all()  # before the money is counted: what is under way may still reserve or register
            if self.desk is not None:
                await self.desk.fail()
            raise
        finally:
            self._stop = True
            await self._cancel_all()
            if self.desk is not None:
                self.desk.end()
            await reuse.close()
        await self.network.announce(manifest.content, self.manifest_holders)
        if self.options.dedup == NETWORK:
            Hooks(self.network).announce(self._segments.hooks)
        await asyncio.to_thread(self._remember, source, manifest)
        return self._result(built, manifest, packer)

    def _new_segments(self, source_key: bytes, block_bytes: int | None) -> NewSegments:
        return NewSegments(
            self.network,
            self.catalog,
            self.spool_dir,
            self.options,
            source_key,
            start_of=self._start_of,
            desk=self.desk,
            notes=self._notes,
            block_bytes=block_bytes,
        )

    def _start_of(self, segment: int) -> int:
        assert self._packer is not None
        return self._packer.starts[segment]

    def _geometry(self) -> Geometry:
        return class_geometry(self.options.class_name, self.options.k, self.options.m)

    # -- in the worker thread ---------------------------------------------------------------------------------------------

    def _read(self, source: Source, packer: Packer, ahead: LookAhead, total_bytes: int | None) -> BuiltTree:
        options = SourceOptions(self.options.chunker, self.options.hidden, self.options.follow_symlinks)

        def sink(block: Block, position: int) -> None:
            ahead.block(packer, block, position)
            self._read_bytes += len(block.data)
            self._report("sending" if self._segments.sent_bytes else "reading", self._read_bytes, total_bytes)

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
        self._await(self._segments.add(segment, stripe, last))

    def closed(self, segment: int, closed: ClosedSegment, final: bool) -> None:
        if self._origin is not None:
            self._origin.add(segment, closed, self._segments.senders[segment])
        if final:
            self._last = (segment, closed)
        else:
            self._await(self._segments.finish_soon(segment, closed))

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

    async def _cancel_all(self) -> None:
        await self._segments.cancel()
        if self._origin is not None:
            await self._origin.stop()

    # -- the manifest -----------------------------------------------------------------------------------------------------

    async def _publish(self, built: BuiltTree, packer: Packer) -> tuple[Manifest, list[NodeID]]:
        """Finish all segments, the last with the manifest in it; returns the manifest and who holds it."""
        self._report("committing", built.content_bytes, built.content_bytes)
        sent = await self._segments.earlier()
        body = self._body(packer.runs, sent)
        if len(encode_body(body)) > self.inline_body_bytes_max:
            return await self._publish_sections(built, packer, sent)
        manifest = self._manifest(built, packer, body=body)
        return manifest, await self._place(built, packer, manifest)

    async def _publish_sections(
        self, built: BuiltTree, packer: Packer, sent: dict[int, SentSegment]
    ) -> tuple[Manifest, list[NodeID]]:
        """The body is too large for the root: store it in sections, in segments of their own."""
        if self._last is not None:
            (number, closed), self._last = self._last, None
            await self._segments.finish_soon(number, closed)
            sent = await self._segments.earlier()
        width = max(packer.geometry.n, *(len(row.holders) for row in self._rows.values()))
        parts = split_runs(packer.runs, width)
        bodies = [self._body(part, sent) for part in parts]
        self._segments.source_key = tagged_hash(b"dds/put-sections/v1", self._segments.source_key)
        self._segments.block_bytes = None
        meta = self._packer = Packer(packer.geometry, self.options.class_name, self, first_segment=max(sent, default=-1) + 1)
        sections: list[Section] = []
        position = 0
        for part, body in zip(parts, bodies, strict=True):
            raw = encode_body(body)
            sections.append(Section(section_cid(raw), part[0].position))
            await self._in_thread(lambda raw=raw, at=position: meta.block(Block(section_cid(raw), raw), at))  # type: ignore[misc]
            position += len(raw)
        await self._in_thread(meta.finish)
        sent = await self._segments.earlier()
        manifest = self._manifest(built, packer, sections=tuple(sections), meta=self._body(meta.runs, sent))
        return manifest, await self._place(built, packer, manifest)

    def _body(self, runs: list[PlacedRun], sent: dict[int, SentSegment]) -> Body:
        return body_of(runs, lambda segment: self._row(segment, sent))

    def _row(self, segment: int | SegmentID, sent: dict[int, SentSegment]) -> SegmentRow:
        """The last segment is not sent yet: its row names the nodes it is meant for."""
        if isinstance(segment, bytes):
            return self._rows[segment]
        if segment in sent:
            row = SegmentRow(sent[segment].segment_id, sent[segment].holders)
        else:
            assert self._last is not None and self._last[0] == segment
            row = SegmentRow(self._last[1].record.segment_id, self._segments.senders[segment].draw.chosen)
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
            stored_bytes=packer.stored_bytes + packer.reused_stored_bytes,
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
        sender = await self._segments.finish_last(number, closed, raw)
        if sender.enough.is_set():
            self._tell_enough(self._result(built, manifest, packer), list(sender.receipted))
        done = await self._segments.finishing[number]
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
            ),
            TierNote(self.options.k, self.options.m, self.options.archive_after_days),
        )

    def _report(self, phase: str, done: int, total: int | None) -> None:
        self.progress(Progress(phase, done, total))

    def _result(self, built: BuiltTree, manifest: Manifest, packer: Packer) -> PutResult:
        senders = self._segments.senders.values()
        unfinished = {sender.segment_id: sender.receipted for sender in senders if sender.enough.is_set()}
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
            encoded_bytes=self._segments.encoded_bytes,
            sent_bytes=self._segments.sent_bytes,
            reused_bytes=packer.reused_bytes,
            segments=len(self._rows),
            nodes=len(nodes),
            regions=len({region for region, _ in labels}),
            operators=len({operator for _, operator in labels}),
            seconds=time.monotonic() - self._started,
            reused_from_others_bytes=self._ahead.from_others_bytes if self._ahead else 0,
            notes=self._notes,
            payment=self.desk.payment() if self.desk is not None else None,
            class_name=self.options.class_name,
            reused_stored_bytes=packer.reused_stored_bytes,
        )


def _source_key(source: Source, options: PutOptions, publisher: bytes) -> bytes:
    """Names a put, so that the same put after a crash finds what it had staged. A stream can't be resumed."""
    if isinstance(source, KeptSource):
        return source.key
    if not isinstance(source, Path):
        return tagged_hash(b"dds/put-source/v1", os.urandom(32))
    described = repr((str(source.resolve()), replace(options, archive_after_days=None))).encode()  # of no matter to the nodes
    return tagged_hash(b"dds/put-source/v1", publisher, described)

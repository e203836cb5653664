"""Reading content off the network: whole trees and files to disk, byte ranges, listings, and what is known of a content.

Several manifests of a content may be around, made by anybody. Each is tried in turn: one whose blocks do not fit is left for
the next, and only when none works is the last error shown. A read never returns a byte that its ContentID does not vouch for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from dds.content.block import Ref
from dds.content.events import Data, OpenFile, Symlink
from dds.content.events import Entry as DirectoryEntry
from dds.content.reader import DagReader, list_directory, read_file, read_tree, resolve
from dds.primitives.cid import CID, DAG_CBOR, cid_text, codec_of
from dds.primitives.errors import DDSError, FormatError, InputError, NotFoundError
from dds.primitives.ids import NodeID
from dds.runtime.content_blocks import ContentBlocks
from dds.runtime.dag_host import READ_WINDOW, drive
from dds.runtime.fetcher import Fetcher
from dds.runtime.network import Network
from dds.runtime.resolver import Found, Resolver
from dds.runtime.results import ContentStat, Entry, GetResult, HolderStat, Progress, SegmentStat
from dds.runtime.segments import Segment
from dds.runtime.tasks import gather_all
from dds.runtime.write_behind import WriteBehind, Writer
from dds.storage.sink import StreamWriter, TreeWriter
from dds.wire.api import HoldingReply, HoldingRequest
from dds.wire.manifest import Manifest

log = logging.getLogger(__name__)

MANIFESTS_TRIED_MAX: Final = 4
DESCRIBED_AT_ONCE: Final = 64
HOLDING_TIMEOUT_S: Final = 3.0
SMALL_REPLY_BYTES_MAX: Final = 64 << 10


@dataclass(slots=True)
class Reading:
    """One operation on one content; counts what it cost."""

    network: Network
    content: CID
    hints: Sequence[NodeID] = ()
    progress: Callable[[Progress], None] = lambda progress: None
    fetcher: Fetcher = field(init=False)
    resolver: Resolver = field(init=False)
    _started: float = field(default_factory=time.monotonic)
    _moved_before: int = 0
    _written: int = 0
    _files: int = 0
    _kind: str = ""

    def __post_init__(self) -> None:
        if codec_of(self.content) == DAG_CBOR:
            raise InputError(
                f"{cid_text(self.content)} is a dag-cbor block, not content",
                hint="a ContentID of a file or directory has the codec raw or dag-pb",
            )
        self.fetcher = Fetcher(self.network)
        self.resolver = Resolver(self.network)
        self._moved_before = self.network.received_bytes()

    # -- operations -------------------------------------------------------------------------------------------------------

    async def to_path(self, out: Path, path: str, byte_range: tuple[int, int | None] | None, *, overwrite: bool) -> GetResult:
        """Write what lies at `path` to `out`: all of it or nothing appears."""

        async def attempt(blocks: ContentBlocks, root: Ref) -> None:
            with TreeWriter(out, overwrite=overwrite) as writer:
                await self._write(blocks, self._reader(root, byte_range), writer)
                await asyncio.to_thread(writer.commit)

        await self._each_manifest(path, attempt)
        return self._result()

    async def to_stream(self, stream: BinaryIO, path: str, byte_range: tuple[int, int | None] | None) -> GetResult:
        """Write a file's bytes to `stream`. What was written before a failure is right, but not all."""

        async def attempt(blocks: ContentBlocks, root: Ref) -> None:
            start, stop = byte_range or (0, None)
            reader = read_file(
                root, start + self._written, stop, READ_WINDOW
            )  # a second manifest goes on where the first ended
            await self._write(blocks, reader, StreamWriter(stream))

        await self._each_manifest(path, attempt)
        return self._result()

    async def entries(self, path: str) -> list[Entry]:
        """A directory's entries in stored order; a file or symbolic link shows as itself."""
        rows: list[Entry] = []

        async def attempt(blocks: ContentBlocks, root: Ref) -> None:
            rows.clear()
            refs: list[tuple[str, Ref]] = []
            async for event in drive(list_directory(root, READ_WINDOW), blocks.fetch):
                match event:
                    case DirectoryEntry(name, ref):
                        refs.append((os.fsdecode(name), ref))  # lossless: it can be given back as a path
                    case OpenFile(_, size, ref):
                        rows.append(Entry(path.rpartition("/")[2], "file", size, ref.cid))
                    case Symlink(_, target):
                        rows.append(Entry(path.rpartition("/")[2], "symlink", len(target), root.cid))
                    case _:
                        pass
            rows.extend(await self._describe_all(blocks, refs))

        await self._each_manifest(path, attempt)
        return rows

    async def stat(self) -> ContentStat:
        """Sizes, savings and how many fragments of each segment are live now."""
        found = await anext(self.resolver.manifests(self.content, self.hints))
        blocks = ContentBlocks(found, self.resolver, self.fetcher)
        segments = await blocks.segments()
        stats = await gather_all([self._segment_stat(segment) for segment in segments])
        return self._content_stat(found.manifest, stats)

    # -- manifests, one after the other -----------------------------------------------------------------------------------

    async def _each_manifest(self, path: str, attempt: Callable[[ContentBlocks, Ref], Awaitable[None]]) -> None:
        """Run `attempt` on the first manifest that works."""
        names = split_path(path)
        last: DDSError | None = None
        tried = 0
        manifests = self.resolver.manifests(self.content, self.hints)
        async with contextlib.aclosing(manifests):
            async for found in manifests:
                tried += 1
                try:
                    blocks = ContentBlocks(found, self.resolver, self.fetcher)
                    self._kind = found.manifest.kind
                    root = await self._resolve(blocks, found, names)
                    await attempt(blocks, root)
                except (FormatError, NotFoundError) as error:
                    log.warning("a manifest of %s does not work: %s", cid_text(self.content), error.message)
                    last = error
                    if tried >= MANIFESTS_TRIED_MAX:
                        break
                else:
                    return
        assert last is not None
        raise last

    async def _resolve(self, blocks: ContentBlocks, found: Found, names: Sequence[bytes]) -> Ref:
        ref = Ref(self.content, 0, found.manifest.dag_bytes)
        steps = resolve(ref, names)
        block: bytes | None = None
        while True:
            try:
                wanted = next(steps) if block is None else steps.send(block)
            except StopIteration as stop:
                result: Ref = stop.value
                return result
            block = (await blocks.fetch([wanted]))[0]

    def _reader(self, root: Ref, byte_range: tuple[int, int | None] | None) -> DagReader:
        if byte_range is None:
            return read_tree(root, READ_WINDOW)
        return read_file(root, byte_range[0], byte_range[1], READ_WINDOW)

    async def _write(self, blocks: ContentBlocks, reader: DagReader, writer: Writer) -> None:
        total = None if isinstance(writer, StreamWriter) else blocks.found.manifest.content_bytes
        if not isinstance(writer, StreamWriter):
            self._written = self._files = 0
        async with WriteBehind(writer) as out:
            async for event in drive(reader, blocks.fetch):
                await out.write(event)
                match event:
                    case Data(data):
                        self._written += len(data)
                        self.progress(Progress("fetching", self._written, total))
                    case OpenFile() | Symlink():
                        self._files += 1
                    case _:
                        pass

    def _result(self) -> GetResult:
        return GetResult(
            content=self.content,
            kind=self._kind,
            files=self._files,
            content_bytes=self._written,
            moved_bytes=self.network.received_bytes() - self._moved_before,
            seconds=time.monotonic() - self._started,
            decoded_stripes=self.fetcher.decoded_stripes,
            culprits=list(self.fetcher.culprits),
        )

    # -- listings and statistics ------------------------------------------------------------------------------------------

    async def _describe_all(self, blocks: ContentBlocks, refs: Sequence[tuple[str, Ref]]) -> list[Entry]:
        """Kind and size of each entry: its root block tells; raw leaves need no block."""
        entries: list[Entry] = []
        for at in range(0, len(refs), DESCRIBED_AT_ONCE):
            part = refs[at : at + DESCRIBED_AT_ONCE]
            entries += await gather_all([self._describe(blocks, name, ref) for name, ref in part])
        return entries

    async def _describe(self, blocks: ContentBlocks, name: str, ref: Ref) -> Entry:
        async with contextlib.aclosing(drive(list_directory(ref, READ_WINDOW), blocks.fetch)) as events:
            async for event in events:
                match event:
                    case OpenFile(_, size, _):
                        return Entry(name, "file", size, ref.cid)
                    case Symlink(_, target):
                        return Entry(name, "symlink", len(target), ref.cid)
                    case _:
                        break
        return Entry(name, "directory", ref.tsize or 0, ref.cid)

    async def _segment_stat(self, segment: Segment) -> SegmentStat:
        record = segment.record
        holders: list[HolderStat] = []
        nodes = [(index, node) for index in range(record.width) for node in segment.holders_of(index)[:1]]
        live = await gather_all([self._is_live(segment, index, node) for index, node in nodes])
        for (index, node), alive in zip(nodes, live, strict=True):
            region, operator = self.network.labels(node)
            holders.append(HolderStat(index, node, region, operator, alive))
        encoded = sum(fragment.size for row in record.records for fragment in row)
        k = max(shape.k for shape in record.stripes)
        return SegmentStat(segment.segment_id, k, record.width, sum(live), len(record.stripes), encoded, holders)

    async def _is_live(self, segment: Segment, index: int, node: NodeID) -> bool:
        try:
            reply = await self.network.client.call(
                node,
                "/v1/segments",
                HoldingRequest([segment.segment_id]),
                HoldingReply,
                max_bytes=SMALL_REPLY_BYTES_MAX,
                timeout_s=HOLDING_TIMEOUT_S,
            )
        except DDSError:
            return False
        return len(reply.indices) == 1 and index in reply.indices[0]

    def _content_stat(self, manifest: Manifest, segments: list[SegmentStat]) -> ContentStat:
        nodes = {holder.node for segment in segments for holder in segment.holders}
        labels = [self.network.labels(node) for node in nodes]
        return ContentStat(
            content=manifest.content,
            kind=manifest.kind,
            class_name=manifest.class_name,
            publisher=manifest.publisher,
            chunker=manifest.chunker,
            content_bytes=manifest.content_bytes,
            dag_bytes=manifest.dag_bytes,
            unique_bytes=manifest.unique_bytes,
            stored_bytes=manifest.stored_bytes,
            encoded_bytes=sum(segment.encoded_bytes for segment in segments),
            dedup_saved_bytes=max(0, manifest.dag_bytes - manifest.unique_bytes),
            compression_saved_bytes=max(0, manifest.unique_bytes - manifest.stored_bytes),
            nodes=len(nodes),
            regions=len({region for region, _ in labels}),
            operators=len({operator for _, operator in labels}),
            losses_survived=min((segment.live - segment.k for segment in segments), default=0),
            segments=segments,
        )


def split_path(path: str) -> list[bytes]:
    """`a/b` -> [b"a", b"b"].

    Raises:
        InputError: empty parts, "." or "..".
    """
    if not path:
        return []
    parts = path.strip("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise InputError(f"not a path inside content: {path!r}")
    return [os.fsencode(part) for part in parts]

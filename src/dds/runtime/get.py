"""Reading content off the network: whole trees and files to disk, byte ranges, listings, and what is known of a content.

Several manifests of a content may be around, made by anybody. Each is tried in turn: one whose blocks do not fit is left for
the next, and only when none works is the last error shown. While the network has not got a content, its origin serves it: it is
read when the DHT names one and no manifest comes, or none gives the blocks. No read ever returns a byte that its ContentID does
not vouch for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, TypeVar

from dds.content.block import Ref
from dds.content.events import Data, Event, OpenDirectory, OpenFile, Symlink
from dds.content.events import Entry as DirectoryEntry
from dds.content.reader import DagReader, list_directory, read_file, read_tree, resolve
from dds.primitives.cid import CID, DAG_CBOR, RAW, cid_text, codec_of
from dds.primitives.errors import DDSError, FormatError, InputError, NotEnoughFragments, NotFoundError, UnavailableError
from dds.primitives.ids import NodeID
from dds.runtime.content_blocks import ContentBlocks
from dds.runtime.content_stat import ContentStatistics, KnownIndex, Payers, Usage, no_index, usage_of
from dds.runtime.dag_host import READ_WINDOW, drive
from dds.runtime.edge_blocks import EdgeFirst, Edges, Upcoming, open_edges
from dds.runtime.fetcher import Fetcher
from dds.runtime.network import Network
from dds.runtime.origin_blocks import OriginBlocks
from dds.runtime.resolver import Found, Resolver
from dds.runtime.results import ContentStat, Entry, GetResult, Progress
from dds.runtime.tasks import cancel_all, gather_all
from dds.runtime.write_behind import WriteBehind, Writer
from dds.storage.sink import StreamWriter, TreeWriter

log = logging.getLogger(__name__)
T = TypeVar("T")

MANIFESTS_TRIED_MAX: Final = 16  # anybody may publish one of any content, and none of these need be right
STALL_S: Final = 5.0  # without a byte, and an origin is read instead
ORIGIN_PATIENCE_S: Final = 0.5  # how long a manifest is waited for once the DHT has named an origin
DESCRIBED_AT_ONCE: Final = 64


class BlockSource(Protocol):
    """Where the blocks of a content come from: a manifest's segments, or an origin."""

    root: Ref
    kind: str  # empty: not known yet
    content_bytes: int | None

    async def fetch(self, refs: Sequence[Ref]) -> list[bytes]: ...


class _StallWatch:
    """Ends a timeout when no byte has come for STALL_S and there is somewhere else to go.

    It lets go of the timeout when it is stopped: that one knows its task, the task its result, and a cycle would keep what was
    read in memory until the collector comes by.
    """

    def __init__(self, received: Callable[[], int], is_better_elsewhere: Callable[[], bool]) -> None:
        self._received, self._is_better_elsewhere = received, is_better_elsewhere
        self._limit: asyncio.Timeout | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, limit: asyncio.Timeout) -> None:
        self._limit = limit
        self._wait()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._limit = None

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(STALL_S, self._look, self._received())

    def _look(self, before: int) -> None:
        if self._limit is None:
            return
        if self._received() == before and self._is_better_elsewhere():
            self._limit.reschedule(asyncio.get_running_loop().time())
        else:
            self._wait()


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
    _lost: bool = False  # too many fragments of what a manifest names are gone: an origin is asked first, if there is one
    _origin_tried: bool = False
    _edges: Edges | None = None  # the caches near by, while this network has any

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

        async def attempt(blocks: BlockSource, root: Ref) -> None:
            with TreeWriter(out, overwrite=overwrite) as writer:
                await self._write(blocks, self._reader(root, byte_range), writer)
                await asyncio.to_thread(writer.commit)

        await self._each_source(path, attempt)
        return self._result()

    async def to_stream(self, stream: BinaryIO, path: str, byte_range: tuple[int, int | None] | None) -> GetResult:
        """Write a file's bytes to `stream`. What was written before a failure is right, but not all."""

        async def attempt(blocks: BlockSource, root: Ref) -> None:
            start, stop = byte_range or (0, None)
            reader = read_file(
                root, start + self._written, stop, READ_WINDOW
            )  # a second manifest goes on where the first ended
            await self._write(blocks, reader, StreamWriter(stream))

        await self._each_source(path, attempt)
        return self._result()

    async def entries(self, path: str) -> list[Entry]:
        """A directory's entries in stored order; a file or symbolic link shows as itself."""
        rows: list[Entry] = []

        async def attempt(blocks: BlockSource, root: Ref) -> None:
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

        await self._each_source(path, attempt)
        return rows

    async def stat(self, known: KnownIndex = no_index, payers: Payers | None = None) -> ContentStat:
        """Sizes and savings as the segments' indexes have them, and how many fragments of each segment are live now.

        `known` gives the indexes that need not be fetched, `payers` what a ledger has of segments.
        """
        try:
            return await self._first_manifest(lambda blocks: ContentStatistics(self.network, blocks, known, payers).run())
        finally:
            self.resolver.close()

    async def usage(self) -> Usage:
        """Which rows of which segments the content uses."""
        try:
            return await self._first_manifest(usage_of)
        finally:
            self.resolver.close()

    async def _first_manifest(self, use: Callable[[ContentBlocks], Awaitable[T]]) -> T:
        """What `use` makes of the first manifest that serves for it."""
        last: DDSError | None = None
        async with contextlib.aclosing(self.resolver.manifests(self.content, self.hints)) as manifests:
            tried = 0
            async for found in manifests:
                try:
                    return await use(ContentBlocks(found, self.resolver, self.fetcher))
                except (FormatError, NotFoundError, NotEnoughFragments) as error:
                    last = last or error
                tried += 1
                if tried == MANIFESTS_TRIED_MAX:
                    break
        assert last is not None  # without any manifest the resolver has raised
        raise last

    # -- sources, one after the other -------------------------------------------------------------------------------------

    async def _each_source(self, path: str, attempt: Callable[[BlockSource, Ref], Awaitable[None]]) -> None:
        """Run `attempt` on the first manifest or origin that works."""
        names = split_path(path)
        last: DDSError | None = None
        try:
            async with contextlib.aclosing(self._sources()) as sources:
                async for blocks in sources:
                    try:
                        self._kind = blocks.kind
                        await attempt(blocks, await self._resolve(blocks, names))
                    except (FormatError, NotFoundError, NotEnoughFragments) as error:
                        log.warning("a source of %s does not work: %s", cid_text(self.content), error.message)
                        last = last if isinstance(last, NotEnoughFragments) else error
                        self._lost = self._lost or isinstance(error, NotEnoughFragments)
                    else:
                        return
        finally:
            self.resolver.close()
        assert last is not None
        last.hint = self._why_unpaid() or last.hint
        raise last

    def _why_unpaid(self) -> str | None:
        """Where nodes wanted to be paid and were not, that is what to do something about."""
        purse = self.network.purse
        return purse.hint() if purse is not None else None

    async def unless_stalled(self, fetching: Coroutine[Any, Any, list[bytes]]) -> list[bytes]:
        """What is being fetched, while bytes come or there is no origin to go to instead.

        Raises:
            NotEnoughFragments: nothing has come for STALL_S, and there is.
        """
        watch = _StallWatch(self.network.received_bytes, self._has_origin_left)
        try:
            async with asyncio.timeout(None) as limit:
                watch.start(limit)
                return await fetching
        except TimeoutError:
            raise NotEnoughFragments(f"nothing has come for {STALL_S:.0f} s", hint="its nodes may be down; try again") from None
        finally:
            watch.stop()

    def _has_origin_left(self) -> bool:
        lookup = self.resolver.providers(self.content)
        return not self._origin_tried and lookup.done() and bool(lookup.result().origins)

    async def _sources(self) -> AsyncGenerator[BlockSource, None]:
        """An edge near by with the first of the ordinary sources behind it, then the others.

        Raises:
            NotFoundError, UnavailableError: see `_ordinary_sources`.
        """
        async with contextlib.aclosing(self._ordinary_sources()) as ordinary:
            self._edges = open_edges(self.network, self.content, self.fetcher.culprits)
            if self._edges is not None:
                upcoming = Upcoming(ordinary)
                try:
                    yield EdgeFirst(self._edges, upcoming)
                finally:
                    await upcoming.close()
            async for source in ordinary:
                yield source

    async def _ordinary_sources(self) -> AsyncGenerator[BlockSource, None]:
        """Manifests as they come, and an origin when the DHT names one before any has come, or when none works.

        Raises:
            NotFoundError, UnavailableError: nobody has a manifest, or nobody could be asked, and the DHT names no origin.
        """
        manifests = self.resolver.manifests(self.content, self.hints)
        upcoming: asyncio.Task[Found | None] | None = None
        tried = 0
        try:
            while tried < MANIFESTS_TRIED_MAX:
                upcoming = upcoming or asyncio.create_task(_next(manifests))
                if self._lost and self._has_origin_left():
                    yield self._origin_blocks()
                    continue
                if not tried and not self._origin_tried and await self._is_origin_sooner(upcoming):
                    yield self._origin_blocks()
                    continue
                found = await upcoming
                upcoming = None
                if found is None:
                    break
                tried += 1
                yield _WhileItComes(ContentBlocks(found, self.resolver, self.fetcher), self)
            if not self._origin_tried and (await self.resolver.providers(self.content)).origins:
                yield self._origin_blocks()
        except UnavailableError:
            if self._origin_tried or not (await self.resolver.providers(self.content)).origins:
                raise
            yield self._origin_blocks()
        finally:
            await cancel_all([] if upcoming is None else [upcoming])
            await manifests.aclose()

    async def _is_origin_sooner(self, manifest: asyncio.Task[Found | None]) -> bool:
        """Whether the DHT names an origin, and no manifest comes within a moment of that."""
        lookup = self.resolver.providers(self.content)
        await asyncio.wait((manifest, lookup), return_when=asyncio.FIRST_COMPLETED)
        if manifest.done() or not lookup.result().origins:
            return False
        await asyncio.wait((manifest,), timeout=ORIGIN_PATIENCE_S)
        return not manifest.done()

    def _origin_blocks(self) -> OriginBlocks:
        self._origin_tried = True
        origins = self.resolver.providers(self.content).result().origins
        return OriginBlocks(self.network, self.content, origins, self.fetcher.culprits)

    async def _resolve(self, blocks: BlockSource, names: Sequence[bytes]) -> Ref:
        steps = resolve(blocks.root, names)
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

    async def _write(self, blocks: BlockSource, reader: DagReader, writer: Writer) -> None:
        total = None if isinstance(writer, StreamWriter) else blocks.content_bytes
        if not isinstance(writer, StreamWriter):
            self._written = self._files = 0
        async with WriteBehind(writer) as out:
            async for event in drive(reader, blocks.fetch):
                self._kind = self._kind or _kind_of(event)
                await out.write(event)
                match event:
                    case Data(data):
                        self._written += len(data)
                        self.progress(Progress("fetching", self._written, total))
                    case OpenFile() | Symlink():
                        self._files += 1
                        if total is None and isinstance(event, OpenFile) and isinstance(writer, TreeWriter):
                            total = event.size if self._kind == "file" else None
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
            edge_bytes=0 if self._edges is None else self._edges.used_bytes,
        )

    # -- listings and statistics ------------------------------------------------------------------------------------------

    async def _describe_all(self, blocks: BlockSource, refs: Sequence[tuple[str, Ref]]) -> list[Entry]:
        """Kind and size of each entry: its root block tells; raw leaves need none, their link has it."""
        entries: list[Entry] = []
        for at in range(0, len(refs), DESCRIBED_AT_ONCE):
            part = refs[at : at + DESCRIBED_AT_ONCE]
            entries += await gather_all([self._describe(blocks, name, ref) for name, ref in part])
        return entries

    async def _describe(self, blocks: BlockSource, name: str, ref: Ref) -> Entry:
        if codec_of(ref.cid) == RAW and ref.tsize is not None:
            return Entry(name, "file", ref.tsize, ref.cid)
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


class _WhileItComes:
    """A manifest's blocks, left for an origin when they stop coming. A failed fetch ends the reading in good order: what
    was taken before it is written, which a cancelled one would lose."""

    def __init__(self, blocks: ContentBlocks, reading: Reading) -> None:
        self.root, self.kind, self.content_bytes = blocks.root, blocks.kind, blocks.content_bytes
        self._blocks, self._reading = blocks, reading

    async def fetch(self, refs: Sequence[Ref]) -> list[bytes]:
        return await self._reading.unless_stalled(self._blocks.fetch(refs))


async def _next(manifests: AsyncGenerator[Found, None]) -> Found | None:
    return await anext(manifests, None)


def _kind_of(first: Event) -> str:
    """What a content is whose reading begins with this event."""
    match first:
        case OpenDirectory():
            return "directory"
        case Symlink():
            return "symlink"
        case _:
            return "file"


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

"""How an edge fetches what it has not got: on demand, in the background, with the ordinary verified reader.

Decides what is fetched when, and what is dropped: one job a content, however many readers ask for it; a few jobs at a time, a
bounded line behind them, and whoever comes when it is full is not served by the edge this time. A content that cannot be read
is left alone for a while. Does not decide what is worth keeping (storage/block_cache.py) nor how much may be fetched for whom
(protocol/warming_budget.py), and believes nobody: only blocks that match their CID are kept.

Source: docs/spec/retrieval.md, "Warming".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from dds.content.block import Ref, child_refs
from dds.content.dagpb import PBLink
from dds.content.nodes import DirectoryNode, FileNode, ShardNode, parse_node
from dds.primitives.cid import CID, RAW, cid_text, codec_of
from dds.primitives.errors import DDSError, FormatError, NotFoundError
from dds.primitives.units import CHUNK_BYTES, KIB
from dds.protocol.warming_budget import WarmingBudget
from dds.runtime.content_blocks import ContentBlocks
from dds.runtime.fetcher import Fetcher
from dds.runtime.network import Network
from dds.runtime.resolver import Resolver
from dds.runtime.tasks import cancel_all

JOBS_AT_ONCE: Final = 2
READERS_PER_JOB_MAX: Final = 16  # that its bytes may be charged to
JOBS_MAX: Final = 64  # under way and waiting; each is one content
WANTED_MAX: Final = 4096  # blocks of one job
BATCH_BLOCKS: Final = 8  # fetched together: at most 16 MiB of memory a job
SLICE_S: Final = 20.0  # then a job makes way for those that wait
LINGER_S: Final = 3.0  # a job whose reader is about to ask for more keeps what it has looked up
FETCH_TIMEOUT_S: Final = 60.0  # for one batch
LOOKUP_TIMEOUT_S: Final = 20.0
MANIFESTS_TRIED_MAX: Final = 4
STRANGERS_MAX: Final = 4  # blocks that the content has not got, after which a job ends
PAUSE_S: Final = 30.0  # a content that could not be read is left alone for so long
PAUSED_MAX: Final = 1024
WALK_BLOCKS_MAX: Final = 16_384  # of one request to warm a whole content
NODE_BYTES_TYPICAL: Final = 64 * KIB

_log: Final = logging.getLogger("dds.edge")


class Shelf(Protocol):
    """Where blocks are kept; each answers quickly enough for a request, but none in the event loop."""

    async def peek(self, cid: CID) -> bytes | None: ...

    async def wants(self, cids: Sequence[tuple[CID, int]]) -> list[bool]:
        """Whether each (block, about so many bytes) is worth fetching."""
        ...

    async def keep(self, content: CID, blocks: Sequence[tuple[CID, bytes]]) -> None: ...


@dataclass(slots=True)
class WarmingCounters:
    fetched_blocks: int = 0
    fetched_bytes: int = 0
    dropped: int = 0  # contents that came when too much was under way
    failed: int = 0  # contents that could not be read
    over_budget: int = 0  # jobs that asked for more than their readers' budgets reach


@dataclass(slots=True)
class _Walk:
    waiting: list[Ref]
    seen: set[CID]


@dataclass(slots=True)
class _Job:
    content: CID
    wanted: OrderedDict[CID, None] = field(default_factory=OrderedDict)
    is_walk: bool = False  # all of the content is wanted
    walk: _Walk | None = None  # how far that has come
    more: asyncio.Event = field(default_factory=asyncio.Event)
    readers: OrderedDict[str, None] = field(default_factory=OrderedDict)

    @property
    def is_done(self) -> bool:
        return not (self.wanted or self.is_walk or self.walk)

    def drop(self) -> None:
        """Nothing is wanted any more; whoever still does asks again."""
        self.wanted.clear()
        self.is_walk, self.walk = False, None


class Warmer:
    """`start`, `want` as often as there is demand, `stop`. `network` is called once for each job."""

    def __init__(self, network: Callable[[], Network], shelf: Shelf) -> None:
        self.counters, self.budget = WarmingCounters(), WarmingBudget()
        self._network, self._shelf = network, shelf
        self._jobs: dict[CID, _Job] = {}
        self._line: asyncio.Queue[_Job] = asyncio.Queue()
        self._paused: OrderedDict[CID, float] = OrderedDict()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._work()) for _ in range(JOBS_AT_ONCE)]

    async def stop(self) -> None:
        await cancel_all(self._tasks)

    def served(self, reader: str, byte_count: int) -> None:
        """A reader got bytes of blocks: more may be fetched for it."""
        self.budget.served(reader, byte_count, asyncio.get_running_loop().time())

    def want(self, content: CID, blocks: Iterable[CID], *, walk: bool = False, reader: str = "") -> bool:
        """A reader of `content` asked for these and they were not here. Whether they are going to be looked at."""
        job = self._jobs.get(content)
        if job is None:
            if len(self._jobs) >= JOBS_MAX or self._is_paused(content):
                self.counters.dropped += 1
                return False
            job = self._jobs[content] = _Job(content)
            self._line.put_nowait(job)
        for cid in (content, *blocks):  # the next reader begins with the root
            if len(job.wanted) < WANTED_MAX:
                job.wanted[cid] = None
        job.is_walk = job.is_walk or walk
        if len(job.readers) < READERS_PER_JOB_MAX:
            job.readers[reader] = None
        job.more.set()
        return True

    @property
    def busy(self) -> int:
        """Contents under way or waiting."""
        return len(self._jobs)

    async def _work(self) -> None:
        while True:
            job = await self._line.get()
            try:
                is_done = await self._run(job)
            except (DDSError, TimeoutError) as error:
                _log.info("content %s cannot be warmed: %s", cid_text(job.content), error)
                self.counters.failed += 1
                self._pause(job.content)
                is_done = True
            except Exception:  # a bug of ours: this content is given up, the edge serves on
                _log.exception("warming %s failed", cid_text(job.content))
                is_done = True
            if is_done:
                self._jobs.pop(job.content, None)
            else:
                self._line.put_nowait(job)

    async def _run(self, job: _Job) -> bool:
        """Fetch what is wanted, and what comes to be wanted meanwhile; False: the job makes way, and is not done.

        Raises:
            DDSError, TimeoutError: the content cannot be read.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with contextlib.aclosing(_Source(self._network(), job.content)) as source:
            while True:
                job.more.clear()
                if job.is_walk and job.walk is None:
                    job.is_walk, job.walk = False, _Walk([Ref(job.content, 0)], {job.content})
                while job.walk is not None or job.wanted:
                    if job.walk is not None:
                        await self._walk_on(job, job.walk, source)
                    if job.wanted and (job.walk is None or self._line.empty()):  # a reader is waiting for just these
                        await self._fetch(job, source, [job.wanted.popitem(last=False)[0] for _ in _batch(job.wanted)])
                    if self._line.qsize() and loop.time() - began > SLICE_S:
                        return job.is_done
                if self._line.qsize() or not await _comes(job.more, LINGER_S):
                    return job.is_done

    async def _fetch(self, job: _Job, source: _Source, cids: Sequence[CID]) -> None:
        wants = await self._shelf.wants([(cid, _size_of(cid)) for cid in cids])
        await self._get(job, source, [Ref(cid, None) for cid, is_wanted in zip(cids, wants, strict=True) if is_wanted])

    async def _get(self, job: _Job, source: _Source, refs: Sequence[Ref]) -> list[tuple[CID, bytes]]:
        """Fetch these and keep them. A job that no reader of it can pay for is dropped; what fails is not given back."""
        if not refs:
            return []
        loop, thought = asyncio.get_running_loop(), sum(_size_of(ref.cid) for ref in refs)
        reader = self.budget.spend(job.readers, thought, loop.time())
        if reader is None:
            self.counters.over_budget += 1
            job.drop()
            return []
        blocks = await source.fetch(refs)
        fetched = sum(len(block) for _, block in blocks)
        self.budget.settle(reader, thought - fetched, loop.time())
        if blocks:
            self.counters.fetched_blocks += len(blocks)
            self.counters.fetched_bytes += fetched
            await self._shelf.keep(job.content, blocks)
        return blocks

    async def _walk_on(self, job: _Job, walk: _Walk, source: _Source) -> None:
        """The next few blocks of the whole content, in reading order, as far as they are worth keeping and WALK_BLOCKS_MAX
        reaches."""
        refs = [walk.waiting.pop() for _ in _batch(walk.waiting)]
        found: list[Ref] = []
        for ref, block in await self._at_hand(job, source, refs):
            for child in child_refs(ref.start, _links_of(ref, block)):
                if child.cid not in walk.seen and len(walk.seen) < WALK_BLOCKS_MAX:
                    walk.seen.add(child.cid)
                    found.append(child)
        walk.waiting += reversed(found)
        if not walk.waiting:
            job.walk = None

    async def _at_hand(self, job: _Job, source: _Source, refs: Sequence[Ref]) -> list[tuple[Ref, bytes]]:
        """The nodes among these, kept already or fetched now; leaves are fetched and that is all."""
        here = [(ref, await self._shelf.peek(ref.cid) if codec_of(ref.cid) != RAW else None) for ref in refs]
        absent = [ref for ref, block in here if block is None]
        wants = await self._shelf.wants([(ref.cid, _size_of(ref.cid)) for ref in absent])
        got = await self._get(job, source, [ref for ref, is_wanted in zip(absent, wants, strict=True) if is_wanted])
        blocks = dict(got)
        both = [(ref, blocks.get(ref.cid) if block is None else block) for ref, block in here]
        return [(ref, block) for ref, block in both if block is not None and codec_of(ref.cid) != RAW]

    def _pause(self, content: CID) -> None:
        self._paused[content] = asyncio.get_running_loop().time() + PAUSE_S
        if len(self._paused) > PAUSED_MAX:
            self._paused.popitem(last=False)

    def _is_paused(self, content: CID) -> bool:
        if self._paused.get(content, 0.0) > asyncio.get_running_loop().time():
            return True
        self._paused.pop(content, None)
        return False


class _Source:
    """Verified blocks of one content from the nodes that store it, by the first manifest that gives them."""

    def __init__(self, network: Network, content: CID) -> None:
        self._content = content
        self._resolver, self._fetcher = Resolver(network), Fetcher(network)
        self._manifests = self._resolver.manifests(content)
        self._blocks: ContentBlocks | None = None
        self._tried = self._strangers = 0

    async def fetch(self, refs: Sequence[Ref]) -> list[tuple[CID, bytes]]:
        """Those of the blocks that the content has.

        Raises:
            DDSError, TimeoutError: they cannot be had.
        """
        if not refs:
            return []
        while True:
            blocks = await self._current()
            try:
                async with asyncio.timeout(FETCH_TIMEOUT_S):
                    return await self._each(blocks, [blocks.root if ref.cid == self._content else ref for ref in refs])
            except FormatError:  # this manifest is not right; another may be
                self._blocks = None

    async def _each(self, blocks: ContentBlocks, refs: Sequence[Ref]) -> list[tuple[CID, bytes]]:
        """All together, or one by one when one of them is strange to the content: anybody may ask for anything."""
        try:
            return [(ref.cid, block) for ref, block in zip(refs, await blocks.fetch(refs), strict=True)]
        except NotFoundError:
            got: list[tuple[CID, bytes]] = []
            for ref in refs:
                try:
                    got.append((ref.cid, (await blocks.fetch([ref]))[0]))
                except NotFoundError:
                    self._strangers += 1
                    if self._strangers > STRANGERS_MAX:
                        raise
            return got

    async def _current(self) -> ContentBlocks:
        if self._blocks is None:
            self._tried += 1
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                found = await anext(self._manifests, None) if self._tried <= MANIFESTS_TRIED_MAX else None
            if found is None:
                raise NotFoundError(f"no manifest of {cid_text(self._content)} gives its blocks")
            self._blocks = ContentBlocks(found, self._resolver, self._fetcher)
        return self._blocks

    async def aclose(self) -> None:
        self._resolver.close()
        await self._manifests.aclose()


def _size_of(cid: CID) -> int:
    """What a block is taken for before it is fetched, in bytes."""
    return CHUNK_BYTES if codec_of(cid) == RAW else NODE_BYTES_TYPICAL


def _batch(waiting: Sequence[Ref] | OrderedDict[CID, None]) -> range:
    return range(min(len(waiting), BATCH_BLOCKS))


def _links_of(ref: Ref, block: bytes) -> tuple[PBLink, ...]:
    match parse_node(ref.cid, block, ref.tsize):
        case FileNode(links=links) | DirectoryNode(links=links) | ShardNode(links=links):
            return links
        case _:
            return ()


async def _comes(event: asyncio.Event, timeout_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
            return True
    return False

"""What a put need not send: blocks that lie in segments which are on the network already, and may be relied on.

Decides, batch by batch and ahead of the packer, where a block already lies: first in the segments that this home's catalog
knows, then in those that hooks lead to. A segment counts when it is coded at least as well as asked for and k + ceil(2m/3) of
its n holders say that they have their part. What another publisher encoded is read back first, every block, and checked against
its CID. Does not ask the DHT (runtime/hooks.py), does not buffer blocks (runtime/lookahead.py).

Everything a hook says may be a lie, so what it can cost is bounded: waiting in vain, segments tried in vain, time to learn and
to read back each. When a bound is reached the blocks are simply sent. Source: docs/spec/deduplication.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from array import array
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dds.erasure.geometry import Geometry
from dds.primitives.cid import CID
from dds.primitives.errors import DDSError, InputError
from dds.primitives.ids import NodeID, SegmentID, id_text
from dds.runtime.fetcher import Fetcher
from dds.runtime.holders import indices_held
from dds.runtime.hooks import Hooks
from dds.runtime.network import Network
from dds.runtime.packer import Place
from dds.runtime.resolver import Resolver
from dds.runtime.segments import Segment, open_segment
from dds.runtime.tasks import gather_all
from dds.storage.catalog import Catalog, Location
from dds.wire.discovery import SegmentHook
from dds.wire.manifest import SegmentRow
from dds.wire.segment import EncodingRecord, decode_index, encode_index

log = logging.getLogger(__name__)

NETWORK: Final = "network"
HOME: Final = "home"
OFF: Final = "off"
MODES: Final = (NETWORK, HOME, OFF)

LEARN_TIMEOUT_S: Final = 5.0  # a segment's record, who holds it, its index
READ_BACK_TIMEOUT_S: Final = 15.0  # of one batch, some 10 MiB
FIND_PATIENCE_S: Final = 0.06  # a put is held up so long by questions that nobody answers, all together,
FIND_PATIENCE_SHARE: Final = 0.02  # and by this share of its duration
VET_PATIENCE_S: Final = 2.0  # and so long by answers that come to nothing
SEGMENTS_IN_VAIN_MAX: Final = 16  # segments tried and not used; then this put asks no more
SEGMENTS_OPEN_MAX: Final = 16  # learned segments whose indexes are in memory
EDGES_PER_BATCH_MAX: Final = 2


@dataclass(slots=True)
class Batch:
    """Neighbouring blocks of a content, decided together."""

    sizes: dict[CID, int]  # raw bytes
    home: dict[CID, Location]  # where the catalog has them
    lookups: list[CID] = field(default_factory=list)  # blocks that may be hooks
    checks: dict[CID, asyncio.Task[bool] | None] = field(default_factory=dict)  # None: needs none
    segments: dict[CID, _Known] = field(default_factory=dict)


@dataclass(slots=True)
class _Known:
    """A segment on the network that may be relied on."""

    segment: Segment
    holders: tuple[NodeID, ...]
    is_ours: bool
    live: int
    stored_sizes: Sequence[int]  # of the index's rows: 4 bytes each
    verified: set[CID] = field(default_factory=set)  # read back; everything where it is ours
    announcer: bytes = b""
    changed: bool = False  # the catalog does not know all of it
    given_up: bool = False

    @property
    def entry_count(self) -> int:
        return len(self.stored_sizes)

    def place(self, entry: int) -> Place:
        return Place(self.segment.segment_id, entry, self.stored_sizes[entry])


class Reuse:
    """One put's reuse. All methods belong to the event loop."""

    def __init__(self, network: Network, catalog: Catalog, geometry: Geometry, mode: str, notes: list[str]) -> None:
        if mode not in MODES:
            raise InputError(f"no such way of deduplication: {mode[:20]!r}", hint="it is one of " + ", ".join(MODES))
        self.mode = mode
        self.rows: dict[SegmentID, SegmentRow] = {}  # of the segments that are reused
        self.from_others: set[SegmentID] = set()
        self._network, self._catalog, self._geometry, self._notes = network, catalog, geometry, notes
        self._hooks, self._resolver, self._fetcher = Hooks(network), Resolver(network), Fetcher(network)
        self._at_home: dict[SegmentID, asyncio.Task[_Known | None]] = {}
        self._entry_counts: dict[SegmentID, int] = {}
        self._open: dict[SegmentID, _Known] = {}  # by hooks, oldest first
        self._learning: dict[tuple[SegmentID, bytes], asyncio.Task[_Known | None]] = {}  # by segment and who says so
        self._asked: set[CID] = set()
        self._lookups: set[asyncio.Task[None]] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._liars: set[bytes] = set()
        self._at_end = False  # the last block decided on is the last of a segment
        self._started = asyncio.get_running_loop().time()
        self._news = asyncio.Event()  # a lookup has got further
        self._find_waited_s, self._vet_patience_s = 0.0, VET_PATIENCE_S
        self._vetting = self._learned = self._in_vain = 0

    async def close(self) -> None:
        """End what is under way; remember what was learned, so that the next put need not ask."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.remember()
        for culprit in self._fetcher.culprits:
            self._notes.append(f"node {self._network.describe(culprit.node)} was caught while reading back: {culprit.reason}")

    async def remember(self) -> None:
        """Bring what has been learned into the catalog."""
        for known in list(self._open.values()):
            with contextlib.suppress(DDSError):  # a memory only
                await self._remember(known)

    # -- batches ----------------------------------------------------------------------------------------------------------

    def begin(self, batch: Batch) -> None:
        """Start looking for a batch that will be decided later."""
        if not self._asks():
            return
        for block in batch.lookups:
            if block not in batch.home and self._in_open(block) is None:
                self._look_up(block)
        self._check(batch, batch.home)

    async def decide(self, batch: Batch, *, at_home: bool = False) -> dict[CID, Place]:
        """Where blocks of the batch lie; those left out must be sent."""
        places = await self._from_home(batch)
        if not at_home and self.mode == NETWORK:
            if self._asks():
                await self._explore(batch, places)
            await self._from_network(batch, places)
            self._at_end = self._is_last(batch, places, next(reversed(batch.sizes)))
        return places

    async def _from_home(self, batch: Batch) -> dict[CID, Place]:
        wanted = list(dict.fromkeys(location.segment_id for location in batch.home.values()))
        found = await gather_all([self._segment_at_home(segment_id) for segment_id in wanted])
        usable = {segment_id: known for segment_id, known in zip(wanted, found, strict=True) if known is not None}
        for known in usable.values():
            self._use(known)
        return {
            block: usable[location.segment_id].place(location.entry)
            for block, location in batch.home.items()
            if location.segment_id in usable and location.entry < usable[location.segment_id].entry_count
        }

    async def _explore(self, batch: Batch, places: dict[CID, Place]) -> None:
        """Wait for hooks that may lead to these blocks. Where one segment ends, another may begin."""
        await self._settle(batch, places)
        for _ in range(EDGES_PER_BATCH_MAX):
            edge = self._edge(batch, places)
            if edge is None:
                return
            self._look_up(edge)
            await self._settle(batch, places)

    async def _settle(self, batch: Batch, places: dict[CID, Place]) -> None:
        """Wait for lookups while patience lasts. An answer that comes later still helps the blocks behind."""
        self._check(batch, places)
        loop = asyncio.get_running_loop()
        while self._lookups and any(block not in places and block not in batch.segments for block in batch.sizes):
            is_vetting, began, learned = self._vetting > 0, loop.time(), self._learned
            patience_s = self._vet_patience_s if is_vetting else self._find_patience_s(began)
            if patience_s <= 0:
                return
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._news.wait()
            if self._learned == learned:
                self._charge(is_vetting, loop.time() - began)
            self._check(batch, places)

    def _find_patience_s(self, now: float) -> float:
        return FIND_PATIENCE_S + FIND_PATIENCE_SHARE * (now - self._started) - self._find_waited_s

    def _charge(self, is_vetting: bool, waited_s: float) -> None:
        if is_vetting:
            self._vet_patience_s -= waited_s
        else:
            self._find_waited_s += waited_s

    def _edge(self, batch: Batch, places: dict[CID, Place]) -> CID | None:
        """A block that nothing is known of, right behind the last one of a segment."""
        at_end = self._at_end
        for block in batch.sizes:
            if at_end and block not in places and block not in batch.segments and block not in self._asked:
                return block
            at_end = self._is_last(batch, places, block)
        return None

    def _is_last(self, batch: Batch, places: dict[CID, Place], block: CID) -> bool:
        known = batch.segments.get(block)
        if known is not None:
            return known.segment.by_cid[block] == known.entry_count - 1
        place = places.get(block)
        return place is not None and place.entry == self._entry_counts.get(place.segment, 0) - 1

    async def _from_network(self, batch: Batch, places: dict[CID, Place]) -> None:
        """Take what the checks confirm."""
        for block, known in batch.segments.items():
            task = batch.checks[block]
            if block not in places and (task is None or await task) and not known.given_up:
                self._use(known)
                places[block] = known.place(known.segment.by_cid[block])

    def _use(self, known: _Known) -> None:
        segment_id = known.segment.segment_id
        self.rows[segment_id] = SegmentRow(segment_id, known.holders)
        self._entry_counts[segment_id] = known.entry_count
        if not known.is_ours:
            self.from_others.add(segment_id)

    # -- reading back -----------------------------------------------------------------------------------------------------

    def _check(self, batch: Batch, have: Iterable[CID]) -> None:
        """Begin to read back what open segments have of the batch."""
        groups: dict[SegmentID, list[CID]] = {}
        for block in batch.sizes.keys() - set(have) - batch.segments.keys():
            known = self._in_open(block)
            if known is not None:
                batch.segments[block], batch.checks[block] = known, None
                if not known.is_ours and block not in known.verified:
                    groups.setdefault(known.segment.segment_id, []).append(block)
        for segment_id, blocks in groups.items():
            task = self._spawn(self._read_back(self._open[segment_id], blocks))
            batch.checks.update(dict.fromkeys(blocks, task))

    def _in_open(self, block: CID) -> _Known | None:
        return next((known for known in reversed(self._open.values()) if block in known.segment.by_cid), None)

    async def _read_back(self, known: _Known, blocks: Sequence[CID]) -> bool:
        segment = known.segment
        entries = [entry for block in blocks if (entry := segment.entry_of(block)) is not None]
        try:
            async with asyncio.timeout(READ_BACK_TIMEOUT_S):
                await self._fetcher.blocks(segment, sorted(entries, key=lambda entry: entry.offset))
        except (DDSError, TimeoutError) as error:
            self._give_up(known, f"cannot be read back: {error}")
            return False
        if known.live - len(segment.shunned) < _holders_needed(segment.record):
            self._give_up(known, "too many of its holders lie")
            return False
        known.verified.update(blocks)
        known.changed = True
        return True

    def _give_up(self, known: _Known, why: str) -> None:
        if not known.given_up:
            segment_id = known.segment.segment_id
            known.given_up = True
            self._open.pop(segment_id, None)
            log.warning("segment %s is not reused: %s", id_text(segment_id), why)
            self._liars.add(known.announcer)
            self._in_vain += 1

    # -- following hooks --------------------------------------------------------------------------------------------------

    def _asks(self) -> bool:
        return self.mode == NETWORK and self._in_vain < SEGMENTS_IN_VAIN_MAX

    def _look_up(self, block: CID) -> None:
        if block not in self._asked:
            self._asked.add(block)
            task = self._spawn(self._pursue(block))
            self._lookups.add(task)
            task.add_done_callback(self._looked_up)

    def _looked_up(self, task: asyncio.Task[None]) -> None:
        self._lookups.discard(task)
        self._news.set()

    async def _pursue(self, block: CID) -> None:
        for hook in await self._hooks.find(block):
            if not self._asks():
                return
            known = None if hook.publisher in self._liars else await self._learn(hook)
            if known is not None and block in known.segment.by_cid:
                return
            if known is not None:
                self._liars.add(hook.publisher)
                self._in_vain += 1

    async def _learn(self, hook: SegmentHook) -> _Known | None:
        """The segment that a hook names; tried once, however many hooks of its publisher lead to it."""
        segment_id = SegmentID(hook.segment_id)
        key = segment_id, hook.publisher
        task = self._learning.get(key)
        if task is None:
            task = self._learning[key] = self._spawn(self._learn_once(segment_id, hook))
        return await asyncio.shield(task)

    async def _learn_once(self, segment_id: SegmentID, hook: SegmentHook) -> _Known | None:
        self._vetting += 1
        self._news.set()
        known = None
        try:
            async with asyncio.timeout(LEARN_TIMEOUT_S):
                known = await self._vet(segment_id, hook)
        except (DDSError, TimeoutError) as error:
            log.info("a hook to segment %s leads nowhere: %s", id_text(segment_id), error)
        finally:
            self._vetting -= 1
        if known is None:
            self._in_vain += 1
            return None
        self._learned += 1
        self._open[segment_id] = known
        self._news.set()
        if len(self._open) > SEGMENTS_OPEN_MAX:
            await self._remember(self._open.pop(next(iter(self._open))))
        return known

    async def _vet(self, segment_id: SegmentID, hook: SegmentHook) -> _Known | None:
        row = SegmentRow(segment_id, tuple(NodeID(holder) for holder in hook.holders))
        segment = await self._resolver.segment(row, encoder=hook.publisher)
        if not self._is_strong(segment.record):
            return None
        if any(not segment.holders_of(index) for index in range(segment.record.width)):
            for index, node in await self._network.segment_holders(segment_id):
                segment.learn_holder(index, node)
        holders = _holders(segment)
        live = await self._live(segment_id, holders)
        if live < _holders_needed(segment.record):
            return None
        await self._fetcher.index(segment)
        is_ours = segment.publisher == self._network.key.public
        sizes = array("I", (entry.stored_bytes for entry in segment.entries or ()))
        return _Known(segment, holders, is_ours, live, sizes, announcer=hook.publisher, changed=is_ours)

    async def _remember(self, known: _Known) -> None:
        """Into the catalog: of a foreign segment, only what was read back."""
        if not known.changed or known.segment.entries is None:
            return
        segment = known.segment
        index = encode_index(segment.entries or [])
        only = None if known.is_ours else frozenset(known.verified)
        await asyncio.to_thread(self._catalog.add_segment, segment.segment_id, known.holders, segment.encoding, index, only)
        known.changed = False

    # -- segments ---------------------------------------------------------------------------------------------------------

    async def _segment_at_home(self, segment_id: SegmentID) -> _Known | None:
        task = self._at_home.get(segment_id)
        if task is None:
            task = self._at_home[segment_id] = self._spawn(self._recall(segment_id))
        return await asyncio.shield(task)

    async def _recall(self, segment_id: SegmentID) -> _Known | None:
        """A segment that the catalog knows, if it is still held well enough and coded as well as is asked for now."""
        cached = await asyncio.to_thread(self._catalog.segment, segment_id)
        segment = None if cached is None else open_segment(cached.encoding_raw, segment_id, self._network.name)
        if cached is None or segment is None:
            return None
        live, width = await self._live(segment_id, cached.holders), segment.record.width
        if live < _holders_needed(segment.record):
            self._notes.append(f"an earlier segment is held by only {live} of {width} nodes: its blocks are sent anew")
        elif not self._is_strong(segment.record):
            self._notes.append(f"an earlier segment survives fewer losses than {self._geometry}: its blocks are sent anew")
        else:
            if live < width:
                self._notes.append(f"an earlier segment is reused although only {live} of its {width} nodes answer")
            entries = await asyncio.to_thread(decode_index, cached.index_raw)
            sizes = array("I", (entry.stored_bytes for entry in entries))
            return _Known(segment, cached.holders, segment.publisher == self._network.key.public, live, sizes)
        await asyncio.to_thread(self._catalog.forget_segment, segment_id)
        return None

    def _is_strong(self, record: EncodingRecord) -> bool:
        """Survives as many losses as what is asked for, and as large a share of its holders."""
        k, m = self._geometry
        return record.loss_tolerance >= m and record.loss_tolerance * (k + m) >= m * record.width

    async def _live(self, segment_id: SegmentID, holders: Sequence[NodeID]) -> int:
        """How many distinct nodes say that they hold their part."""
        held = await gather_all([indices_held(self._network, node, segment_id) for node in holders])
        return len({node for index, node in enumerate(holders) if index in held[index]})

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _holders_needed(record: EncodingRecord) -> int:
    """k + ceil(2m/3) of n."""
    return record.width - record.loss_tolerance // 3


def _holders(segment: Segment) -> tuple[NodeID, ...]:
    """By fragment index; one that nobody is known to hold is named at a wrong place, which costs a wasted question."""
    known = [segment.holders_of(index)[:1] for index in range(segment.record.width)]
    anybody = segment.nodes()[0]
    return tuple(nodes[0] if nodes else anybody for nodes in known)

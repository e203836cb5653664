"""Reads blocks out of segments: performs StripeRead's effects, checks every block against its CID, names who lied.

The order of trust (docs/spec/reading.md): a block that matches its CID is right, whoever sent it. A block that does not is
traced: each node that gave bytes for it is asked for the leaves and paths of what it sent. Leaves that do not match the
segment's record, or that differ from what was sent before, convict the node; if all hold, the encoding record is wrong and no
node is to blame.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakValueDictionary

from dds.erasure.compression import decompress
from dds.erasure.fragment_tree import verify_leaf
from dds.erasure.layout import Layout, SlotRange
from dds.erasure.reed_solomon import decode
from dds.primitives.cid import cid_text, matches
from dds.primitives.errors import DDSError, FormatError, IntegrityError, NotEnoughFragments
from dds.primitives.ids import NodeID, id_text
from dds.primitives.units import LEAF_BYTES
from dds.protocol.download import Cancel, Effect, Fetch, Ready, StripeRead, Stuck, Wanted
from dds.runtime.holders import search_holders
from dds.runtime.network import Network
from dds.runtime.results import Culprit
from dds.runtime.segments import Segment
from dds.runtime.tasks import gather_all
from dds.wire.api import LeavesReply, LeavesRequest
from dds.wire.segment import Entry

log = logging.getLogger(__name__)

TICK_S: Final = 0.05
FETCH_TIMEOUT_S: Final = 20.0
LEAVES_TIMEOUT_S: Final = 5.0
LEAVES_REPLY_BYTES_MAX: Final = 4 << 20
PIECE_CACHE_BYTES_MAX: Final = 64 << 20
REREADS_MAX: Final = 8  # a read is tried again after each conviction; a segment has at most n liars worth trying
GAPS_BYTES_MAX: Final = 4 << 20
DECODE_IN_THREAD_BYTES: Final = 1 << 20


@dataclass(slots=True)
class Piece:
    """Bytes that one node gave: [lo, hi) of a fragment."""

    index: int
    node: NodeID
    lo: int
    data: bytes


@dataclass(slots=True)
class StripeBytes:
    """Columns of a stripe's data slots, and which pieces they were made from."""

    slots: dict[int, tuple[int, bytes | memoryview]] = field(default_factory=dict)  # slot -> (lo, bytes)
    pieces: list[Piece] = field(default_factory=list)
    decoded: bool = False


class PieceCache:
    """Pieces fetched for decoding, by stripe. A sequential read comes back to the same columns slot by slot; without this,
    each lost slot would cost k slots of traffic again. Bounded; the stripe that was longest untouched goes first.

    A segment is named by its encoding record: under another record the same indices are other bytes."""

    def __init__(self, bytes_max: int = PIECE_CACHE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._stripes: dict[tuple[bytes, int], dict[tuple[int, int], Piece]] = {}
        self._turns: WeakValueDictionary[tuple[bytes, int], asyncio.Lock] = WeakValueDictionary()

    def turn(self, encoding: bytes, stripe: int) -> asyncio.Lock:
        """Reads that must decode the same stripe take turns."""
        return self._turns.setdefault((encoding, stripe), asyncio.Lock())

    def of(self, encoding: bytes, stripe: int) -> Iterable[Piece]:
        return self._stripes.get((encoding, stripe), {}).values()

    def keep(self, encoding: bytes, stripe: int, pieces: Iterable[Piece]) -> None:
        kept = self._stripes.pop((encoding, stripe), {})
        for piece in pieces:
            if (piece.index, piece.lo) not in kept:
                kept[piece.index, piece.lo] = piece
                self._bytes += len(piece.data)
        self._stripes[encoding, stripe] = kept
        while self._bytes > self._bytes_max and len(self._stripes) > 1:
            self.drop(*next(iter(self._stripes)))

    def drop(self, encoding: bytes, stripe: int) -> None:
        for piece in self._stripes.pop((encoding, stripe), {}).values():
            self._bytes -= len(piece.data)


@dataclass(slots=True)
class Fetcher:
    """Block reads over one network; keeps score of what happened."""

    network: Network
    decoded_stripes: int = 0
    pieces: PieceCache = field(default_factory=PieceCache)
    culprits: list[Culprit] = field(default_factory=list)

    async def blocks(self, segment: Segment, entries: Sequence[Entry]) -> list[bytes]:
        """The verified blocks of `entries`, in order.

        Raises:
            NotEnoughFragments: fewer than k fragments of some stripe could be had.
            IntegrityError: the nodes are honest, but the encoding record or index is not.
        """
        return [block for block, _ in await self._both(segment, entries)]

    async def stored(self, segment: Segment, entries: Sequence[Entry]) -> list[bytes | memoryview]:
        """The same as it lies in the data space, compressed or not: each gives the block that its CID names."""
        return [stored for _, stored in await self._both(segment, entries)]

    async def _both(self, segment: Segment, entries: Sequence[Entry]) -> list[tuple[bytes, bytes | memoryview]]:
        found: dict[int, tuple[bytes, bytes | memoryview]] = {}
        for group in neighbours(entries, max(shape.slot_bytes for shape in segment.record.stripes)):
            found |= zip(group, await self._neighbours(segment, [entries[at] for at in group]), strict=True)
        return [found[at] for at in range(len(entries))]

    async def _neighbours(self, segment: Segment, entries: Sequence[Entry]) -> list[tuple[bytes, bytes | memoryview]]:
        for _ in range(REREADS_MAX):
            stripes, stored = await self._stored(segment, [(entry.offset, entry.stored_bytes) for entry in entries])
            blocks = [unpack(entry, data) for entry, data in zip(entries, stored, strict=True)]
            wrong = [entry for entry, block in zip(entries, blocks, strict=True) if block is None]
            if not wrong:
                return [(block, raw) for block, raw in zip(blocks, stored, strict=True) if block is not None]
            await self._convict(segment, stripes, f"block {cid_text(wrong[0].cid)}")
        raise IntegrityError(f"segment {id_text(segment.segment_id)} gave wrong bytes {REREADS_MAX} times")

    async def index(self, segment: Segment) -> bytes:
        """The segment's index bytes, checked against the segment id by the caller's `Segment.load_index`."""
        record = segment.record
        for _ in range(REREADS_MAX):
            stripes, (raw,) = await self._stored(segment, [(record.index_offset, record.index_bytes)])
            if segment.accepts_index(raw):
                return bytes(raw)
            await self._convict(segment, stripes, "the segment index")
        raise IntegrityError(f"segment {id_text(segment.segment_id)} gave a wrong index {REREADS_MAX} times")

    # -- stripes ----------------------------------------------------------------------------------------------------------

    async def _stored(
        self, segment: Segment, spans: Sequence[tuple[int, int]]
    ) -> tuple[dict[int, StripeBytes], list[bytes | memoryview]]:
        """Stored bytes of each (offset, length) of the data space, and the stripes they came from."""
        layout = Layout.of(segment.record)
        plans = [layout.locate(offset, offset + length) for offset, length in spans]
        wanted: dict[int, dict[int, tuple[int, int]]] = {}
        for plan in plans:
            for part in plan:
                lo, hi = wanted.setdefault(part.stripe, {}).get(part.slot, (part.lo, part.hi))
                wanted[part.stripe][part.slot] = (min(lo, part.lo), max(hi, part.hi))
        numbers = list(wanted)
        reads = [
            self._stripe(segment, number, [Wanted(slot, lo, hi) for slot, (lo, hi) in sorted(wanted[number].items())])
            for number in numbers
        ]
        stripes = dict(zip(numbers, await gather_all(reads), strict=True))
        return stripes, [_assemble(stripes, plan) for plan in plans]

    async def _stripe(self, segment: Segment, number: int, wanted: list[Wanted]) -> StripeBytes:
        """Columns of a stripe, from the holders we know of or, when those are too few, from whoever else has fragments."""
        try:
            return await self._known_stripe(segment, number, wanted)
        except NotEnoughFragments:
            if not await self._search(segment):
                raise
            return await self._known_stripe(segment, number, wanted)

    async def _search(self, segment: Segment) -> bool:
        """Whether more holders are known now; they are looked for once."""
        if segment.search is None:
            segment.search = asyncio.create_task(search_holders(self.network, segment))
        return await asyncio.shield(segment.search)

    async def _known_stripe(self, segment: Segment, number: int, wanted: list[Wanted]) -> StripeBytes:
        shape = segment.record.stripes[number]
        ranking, now = self.network.ranking, asyncio.get_running_loop().time()
        width = shape.k + shape.m
        holders = {index: segment.holders_of(index) for index in range(width)}
        doubtful = frozenset(i for i, nodes in holders.items() if not nodes or ranking.avoided(nodes[0], now))
        speed = {i: ranking.expected_s(nodes[0]) if nodes else 0.0 for i, nodes in holders.items()}
        preference = sorted(range(shape.k, width), key=speed.__getitem__) if shape.k > 1 else self._copies(width, speed)
        machine = StripeRead(shape.k, shape.m, wanted, holders, doubtful, preference)
        if doubtful.isdisjoint(want.slot for want in wanted):
            return await self._read(segment, number, machine)
        async with self.pieces.turn(segment.encoding, number):  # the one before may have fetched what this one needs
            return await self._read(segment, number, machine)

    async def _read(self, segment: Segment, number: int, machine: StripeRead) -> StripeBytes:
        at_hand = {machine.offer(p.index, p.node, p.lo, p.lo + len(p.data)): p for p in self._at_hand(segment, number)}
        return await _StripeHost(self, segment, number, machine, at_hand).run()

    def _at_hand(self, segment: Segment, number: int) -> list[Piece]:
        """Pieces that earlier reads of the stripe fetched for decoding, and small fragments that came with the manifest."""
        pieces = list(self.pieces.of(segment.encoding, number))
        for record in segment.record.records[number] if segment.inline else ():
            if record.root in segment.inline:
                pieces.append(Piece(record.index, segment.inline[record.root][0], 0, segment.inline[record.root][1]))
        return [piece for piece in pieces if piece.node not in segment.shunned]

    def _copies(self, width: int, speed: dict[int, float]) -> list[int]:
        """Verbatim copies: fastest first, strangers by turns so that not one node serves every small thing."""
        self.network.turn += 1
        turn = self.network.turn
        return sorted(range(width), key=lambda index: (round(speed[index], 3), (index + turn) % width))

    # -- finding the liar -------------------------------------------------------------------------------------------------

    async def _convict(self, segment: Segment, stripes: dict[int, StripeBytes], what: str) -> None:
        """Find who sent wrong bytes and shun them; returns when a new read may come out better.

        Raises:
            IntegrityError: every piece is what the record says: the record is wrong.
        """
        pieces = [(number, piece) for number, read in stripes.items() for piece in read.pieces]
        verdicts = await gather_all([self._check(segment, number, piece) for number, piece in pieces])
        unproven = False
        for number in stripes:
            self.pieces.drop(segment.encoding, number)
        for (_, piece), verdict in zip(pieces, verdicts, strict=True):
            if verdict is None:
                continue
            unproven = True
            if verdict:
                self.network.lied(piece.node)
                self.culprits.append(Culprit(piece.node, verdict))
                log.warning("node %s sent wrong bytes: %s", id_text(piece.node), verdict)
            segment.shun(piece.node)
        if not unproven:
            raise IntegrityError(
                f"{what} is not what segment {id_text(segment.segment_id)} promises; its encoder is to blame, not the nodes"
            )

    async def _check(self, segment: Segment, number: int, piece: Piece) -> str | None:
        """None: the piece is right. Text: why the node is convicted. Empty: it would not prove what it sent."""
        record = segment.record.records[number][piece.index]
        first, last = piece.lo // LEAF_BYTES, (piece.lo + len(piece.data) - 1) // LEAF_BYTES
        request = LeavesRequest(record.root, first, last - first + 1)
        try:
            reply = await self.network.client.call(
                piece.node, "/v1/leaves", request, LeavesReply, max_bytes=LEAVES_REPLY_BYTES_MAX, timeout_s=LEAVES_TIMEOUT_S
            )
        except FormatError:
            return "its proof does not parse"
        except DDSError:
            return ""
        fits = len(reply.leaves) == len(reply.paths) == request.count
        proofs = zip(range(first, last + 1), reply.leaves, reply.paths, strict=False)
        if not fits or not all(verify_leaf(record, at, leaf, path) for at, leaf, path in proofs):
            return f"leaves of fragment {record.root.hex()[:16]} do not match its root"
        offset = piece.lo - first * LEAF_BYTES
        if b"".join(reply.leaves)[offset : offset + len(piece.data)] != piece.data:
            return f"sent other bytes of fragment {record.root.hex()[:16]} than it can prove"
        return None


class _StripeHost:
    """Performs one StripeRead."""

    def __init__(self, fetcher: Fetcher, segment: Segment, number: int, machine: StripeRead, at_hand: dict[int, Piece]) -> None:
        self._fetcher, self._segment, self._number, self._machine = fetcher, segment, number, machine
        self._network = fetcher.network
        self._shape = segment.record.stripes[number]
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._pieces = at_hand  # by ticket
        self._done: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()

    async def run(self) -> StripeBytes:
        ticker = self._spawn(self._tick())
        try:
            self._perform(self._machine.start(self._now()))
            return await self._assemble(await self._done)
        finally:
            for task in (ticker, *self._tasks.values()):
                task.cancel()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._fail_on_fault)
        return task

    def _fail_on_fault(self, task: asyncio.Task[None]) -> None:
        """A bug of ours must end the read: it would wait for ever for what will not be reported."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._done.done():
            self._done.set_exception(error)

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Fetch(ticket):
                    self._tasks[ticket] = self._spawn(self._fetch(effect))
                case Cancel(ticket):
                    task = self._tasks[ticket]
                    if task is not asyncio.current_task():
                        task.cancel()
                case Ready():
                    self._done.set_result(effect)
                case Stuck():
                    self._done.set_exception(self._stuck(effect))

    async def _tick(self) -> None:
        while not self._machine.over:
            await asyncio.sleep(TICK_S)
            before = self._machine.slow_nodes()
            effects = self._machine.tick(self._now(), self._network.ranking.hedge_s())
            for node in self._machine.slow_nodes() - before:
                self._network.ranking.struck(node, self._now())
            self._perform(effects)

    async def _fetch(self, fetch: Fetch) -> None:
        record = self._segment.record.records[self._number][fetch.index]
        started = self._now()
        try:
            data = await self._network.client.get(
                fetch.node,
                f"/v1/fragments/{record.root.hex()}",
                range=(fetch.lo, fetch.hi),  # also for all of it: a root does not bind zeros behind the end
                max_bytes=fetch.hi - fetch.lo,
                timeout_s=FETCH_TIMEOUT_S,
            )
        except DDSError as error:
            self._network.ranking.struck(fetch.node, self._now())
            self._perform(self._machine.failed(fetch.ticket, f"{error.code}: {error.message}", self._now()))
            return
        self._network.ranking.succeeded(fetch.node, self._now() - started)
        if len(data) != fetch.hi - fetch.lo:
            self._perform(self._machine.failed(fetch.ticket, f"sent {len(data)} bytes of {fetch.hi - fetch.lo}", self._now()))
            return
        self._pieces[fetch.ticket] = Piece(fetch.index, fetch.node, fetch.lo, data)
        self._perform(self._machine.arrived(fetch.ticket, self._now()))

    async def _assemble(self, ready: Ready) -> StripeBytes:
        out = StripeBytes(pieces=[self._pieces[ticket] for ticket in {*ready.direct.values(), *ready.sources.values()}])
        for slot, ticket in ready.direct.items():
            out.slots[slot] = (self._pieces[ticket].lo, self._pieces[ticket].data)
        if not ready.missing:
            return out
        self._fetcher.pieces.keep(self._segment.encoding, self._number, [self._pieces[t] for t in ready.sources.values()])
        have = {}
        for index, ticket in ready.sources.items():
            piece = self._pieces[ticket]
            have[index] = memoryview(piece.data)[ready.lo - piece.lo : ready.hi - piece.lo]
        k, m = self._shape.k, self._shape.m
        if k * (ready.hi - ready.lo) >= DECODE_IN_THREAD_BYTES:
            columns = await asyncio.to_thread(decode, k, m, have, ready.missing)
        else:
            columns = decode(k, m, have, ready.missing)
        for slot in ready.missing:
            out.slots[slot] = (ready.lo, columns[slot])
        out.decoded = k > 1
        self._fetcher.decoded_stripes += out.decoded
        return out

    def _stuck(self, stuck: Stuck) -> NotEnoughFragments:
        names = self._network.describe
        where = []
        for index in range(self._shape.k + self._shape.m):
            rows = stuck.tried.get(index)
            if rows is not None:
                seen = dict.fromkeys(f"{names(node)} ({why})" for node, why in rows)  # some were asked twice
                where.append(f"{index} at " + (", ".join(seen) or "no known node"))
        short = stuck.need - stuck.have
        return NotEnoughFragments(
            f"segment {id_text(self._segment.segment_id)[:16]}, stripe {self._number}: of the {stuck.need} fragments needed "
            f"{stuck.have} could be had, {short} too few. Not had: " + "; ".join(where),
            hint="bring some of these nodes back, or wait for them, and run the same command again",
            have=stuck.have,
            need=stuck.need,
            missing=short,
        )


def neighbours(entries: Sequence[Entry], slot_bytes: int) -> list[list[int]]:
    """Which entries to fetch together, by place in `entries`: a slot is asked for everything from its first wanted byte to its
    last, so what lies between blocks that are far apart comes too. Of that a group has at most about GAPS_BYTES_MAX."""
    groups: list[list[int]] = []
    gaps, end = 0, 0
    for at in sorted(range(len(entries)), key=lambda at: entries[at].offset):
        gap = max(0, entries[at].offset - end)
        gaps += gap if gap < slot_bytes else 0  # further off it is another slot
        if not groups or gaps > GAPS_BYTES_MAX:
            groups.append([])
            gaps = 0
        groups[-1].append(at)
        end = entries[at].offset + entries[at].stored_bytes
    return groups


def unpack(entry: Entry, stored: bytes | memoryview) -> bytes | None:
    """The block, or None where the stored bytes do not give the block that the CID names."""
    try:
        block = decompress(entry.codec, stored, entry.raw_bytes)
    except FormatError:
        return None
    return bytes(block) if matches(entry.cid, block) else None


def _assemble(stripes: dict[int, StripeBytes], plan: Sequence[SlotRange]) -> bytes | memoryview:
    parts: list[bytes | memoryview] = []
    for part in plan:
        lo, data = stripes[part.stripe].slots[part.slot]
        whole = part.lo == lo and part.hi - part.lo == len(data)
        parts.append(data if whole else memoryview(data)[part.lo - lo : part.hi - lo])
    return parts[0] if len(parts) == 1 else b"".join(parts)

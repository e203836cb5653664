"""The host of the announce queue: signs, seals and puts what is due, in batches, at a bounded rate.

Decides batching and how fast puts may follow each other. Does not decide when something is due (protocol/announce.py), how the
queue is kept (storage/announce_queue.py) or what a record looks like (wire/discovery.py).
Source: docs/spec/discovery.md, "Announcing"; the rates: docs/adr/0027-announcing-at-scale.md.

What a node let go of is withdrawn when its turn comes: before anything is said, `held` is asked whether that is still so. So
no path by which the store lets go of something needs to know of announcements, and none can forget them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from dds.primitives.cid import CID
from dds.primitives.errors import DDSError, LimitError, StorageError
from dds.primitives.ids import NodeID, SegmentID
from dds.primitives.keys import SigningKey
from dds.protocol.announce import Announcement, Lane, Pacer, Schedule, Turn
from dds.runtime.peers import wall_clock_ms
from dds.storage.announce_queue import AnnounceQueue, Queued
from dds.transport.dht import DHTNode, ValueType
from dds.wire.discovery import (
    CONTENT_ANNOUNCE,
    CONTENT_PROVIDER,
    PROVIDER_LIFETIME_MS,
    RECORD_VERSION,
    SEGMENT_PROVIDER,
    ContentAnnounce,
    ContentProvider,
    SegmentProvider,
    content_place,
    open_record,
    seal,
    segment_place,
    sign_record,
)

log = logging.getLogger("dds.announce")

BATCH_MAX: Final = 20  # taken from the queue, put side by side and rescheduled together
UNWRITTEN_MAX: Final = 20_000  # news that wait for the queue; beyond it the store offers them at the next start
REST_S_MAX: Final = 3600.0
AFTER_DISK_ERROR_S: Final = 30.0


@dataclass(frozen=True)
class AnnouncerConfig:
    puts_per_s: float = 4.0  # in the long run: at most 10 KB stay in OpenDHT for an hour after each
    burst: int = 600  # puts beyond it that an idle node has in reserve
    puts_per_s_max: int = 20  # at any time
    first_after_s: float = 0.0  # about so long after something is new it is first said


class Announcer:
    """Keeps a node's content and segments announced.

    Args:
        open_queue: called in a thread at `start`.
        addresses: where we can be dialled now, `host:port`, best first; asked at every put.
        seed: 32 secret bytes of this node, for the jitter.
        held: of each announcement whether it still holds; called in a thread before anything is said.
    """

    def __init__(
        self,
        key: SigningKey,
        network: str,
        dht: DHTNode,
        open_queue: Callable[[], AnnounceQueue],
        addresses: Callable[[], list[str]],
        seed: bytes,
        *,
        held: Callable[[Sequence[Announcement]], list[bool]],
        config: AnnouncerConfig = AnnouncerConfig(),
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._schedule = Schedule(seed, config.puts_per_s)
        self._key = key
        self._network = network
        self._dht = dht
        self._open_queue = open_queue
        self._addresses = addresses
        self._held = held
        self._config = config
        self._clock_ms = clock_ms
        self._queue: AnnounceQueue | None = None
        self._unwritten: dict[tuple[int, bytes, str], tuple[Announcement, Turn | None]] = {}  # no turn: withdrawn
        self._renewing_from: int | None = None  # an id: all behind it becomes due, a step at a time
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """How many announcements are kept up."""
        return 0 if self._queue is None else len(self._queue)

    async def start(self) -> None:
        """Take the queue up where it was left, and begin.

        Raises:
            ConfigError, StorageError: the queue cannot be opened.
        """
        self._queue = await asyncio.to_thread(self._open_queue)
        latest_ms = self._clock_ms() + self._schedule.period_ms(Lane.HINTED, len(self._queue))
        await asyncio.to_thread(self._queue.bring_forward, latest_ms)
        self._task = asyncio.create_task(self._announce_loop(self._queue))

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._queue is not None:
            queue, self._queue = self._queue, None
            with suppress(StorageError):
                await self._write_news(queue)
            await asyncio.to_thread(queue.close)

    def announce_content(self, content: CID, kind: str) -> None:
        """We serve this content: `kind` is manifest, origin or edge."""
        self._add(Announcement(CONTENT_PROVIDER.code, content, kind))

    def announce_segment(self, segment_id: SegmentID, index: int, *, hinted: bool = False) -> None:
        """We hold this fragment index of the segment; `hinted`: whoever has its content's manifest knows that from there."""
        self._add(Announcement(SEGMENT_PROVIDER.code, segment_id, str(index)), hinted=hinted)

    def repeat(self, signed: bytes) -> None:
        """Keep a publisher's ContentAnnounce in the DHT until it expires.

        Raises:
            FormatError, IntegrityError, UnsupportedVersion: it is none.
        """
        record = open_record(signed, CONTENT_ANNOUNCE, self._network)
        detail = record.publisher.hex()
        self._add(Announcement(CONTENT_ANNOUNCE.code, record.content, detail, bytes(signed), record.expires_ms))

    async def offer(self, announcements: Sequence[Announcement]) -> int:
        """Keep all these announced; how many were not yet. For many at once: they go straight to the disk.

        Raises:
            LimitError: the queue is full.
            StorageError
        """
        if self._queue is None:
            return 0
        turn = self._schedule.first(self._clock_ms(), delay_ms=self._delay_ms())
        fresh = await asyncio.to_thread(self._queue.add, [(each, turn) for each in announcements])
        if fresh:
            self._wake()
        return fresh

    def withdraw_content(self, content: CID, kind: str) -> None:
        self._note(Announcement(CONTENT_PROVIDER.code, content, kind), None)

    async def contents_announced(self, kind: str, limit: int) -> list[CID]:
        """What `announce_content` was asked for, in this run or an earlier one, and not withdrawn.

        Raises:
            StorageError
        """
        if self._queue is None:
            return []
        subjects = await asyncio.to_thread(self._queue.subjects, CONTENT_PROVIDER.code, kind, limit)
        return [CID(subject) for subject in subjects]

    def withdraw_segment(self, segment_id: SegmentID, index: int) -> None:
        self._note(Announcement(SEGMENT_PROVIDER.code, segment_id, str(index)), None)

    def addresses_changed(self) -> None:
        """Say everything again with the new addresses, at the usual rate."""
        self._renewing_from = 0
        self._wake()

    async def settled(self, timeout_s: float) -> bool:
        """Wait until nothing is due. Whether that came about in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self._idle.is_set()

    def _delay_ms(self) -> int:
        return int(self._config.first_after_s * (500 + secrets.randbelow(1000)))

    def _add(self, announcement: Announcement, *, hinted: bool = False) -> None:
        self._note(announcement, self._schedule.first(self._clock_ms(), delay_ms=self._delay_ms(), hinted=hinted))

    def _note(self, announcement: Announcement, turn: Turn | None) -> None:
        if len(self._unwritten) < UNWRITTEN_MAX:
            self._unwritten[announcement.identity] = announcement, turn
        self._wake()

    def _wake(self) -> None:
        self._idle.clear()
        self._news.set()

    async def _announce_loop(self, queue: AnnounceQueue) -> None:
        """A slow DHT slows the loop down, never piles up; a failing disk stops it for a while."""
        loop = asyncio.get_running_loop()
        pacer = Pacer(self._config.puts_per_s, self._config.burst, loop.time())
        while True:
            try:
                await self._announce_some(queue, pacer)
            except StorageError as error:
                log.error("announcing waits: %s", error)
                await asyncio.sleep(AFTER_DISK_ERROR_S)

    async def _announce_some(self, queue: AnnounceQueue, pacer: Pacer) -> None:
        """One batch, then the pause that belongs to it."""
        loop = asyncio.get_running_loop()
        self._news.clear()
        await self._write_news(queue)
        if self._renewing_from is not None:
            await self._renew(queue, self._renewing_from)
        began = loop.time()
        room = pacer.take(began, BATCH_MAX)
        found, batch = await asyncio.to_thread(self._take, queue, room)
        pacer.give_back(room - len(batch))
        if batch:
            await self._say(queue, batch)
        if room < BATCH_MAX:
            await asyncio.sleep(BATCH_MAX / self._config.puts_per_s)
        elif batch:
            await asyncio.sleep(max(0.0, began + len(batch) / self._config.puts_per_s_max - loop.time()))
        elif not found:
            await self._rest(queue)

    async def _renew(self, queue: AnnounceQueue, after: int) -> None:
        self._renewing_from = None
        last = await asyncio.to_thread(queue.renew_step, after, self._clock_ms())
        if self._renewing_from is None:  # else the addresses have changed again, meanwhile
            self._renewing_from = last

    async def _write_news(self, queue: AnnounceQueue) -> None:
        news, self._unwritten = self._unwritten, {}
        try:
            await asyncio.to_thread(_write, queue, list(news.values()))
        except LimitError as error:
            log.warning("not announced: %s", error)
        except StorageError:
            self._unwritten = news | self._unwritten
            raise

    def _take(self, queue: AnnounceQueue, room: int) -> tuple[int, list[Queued]]:
        """In a thread. How many were due, and those of them that still hold; the others are withdrawn."""
        now_ms = self._clock_ms()
        found = queue.due(now_ms, room) if room else []
        held = self._held([each.announcement for each in found])
        batch = [q for q, holds in zip(found, held, strict=True) if holds and not 0 < q.announcement.until_ms <= now_ms]
        if len(batch) < len(found):
            kept = {each.id for each in batch}
            queue.remove([each.announcement for each in found if each.id not in kept])
        return len(found), batch

    async def _say(self, queue: AnnounceQueue, batch: Sequence[Queued]) -> None:
        outcomes = await asyncio.gather(*(self._put(each, len(queue)) for each in batch))
        now_ms, count = self._clock_ms(), len(queue)
        turns = [
            (said, self._schedule.after(said.announcement, said.turn, ok, now_ms, count))
            for said, ok in zip(batch, outcomes, strict=True)
        ]
        await asyncio.to_thread(queue.reschedule, turns)

    async def _rest(self, queue: AnnounceQueue) -> None:
        due_ms = await asyncio.to_thread(queue.next_due_ms)
        pause_s = REST_S_MAX if due_ms is None else min((due_ms - self._clock_ms()) / 1000, REST_S_MAX)
        if pause_s <= 0 or self._news.is_set() or self._renewing_from is not None:
            return
        self._idle.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._news.wait()
        self._idle.clear()

    async def _put(self, queued: Queued, count: int) -> bool:
        lifetime_ms = self._schedule.lifetime_ms(queued.turn.lane, count)
        try:
            key, value = self._sealed(queued.announcement, lifetime_ms)
            lasts = lifetime_ms > PROVIDER_LIFETIME_MS and not queued.announcement.signed
            return await self._dht.put(key, value, ValueType.LASTING if lasts else ValueType.PROVIDER)
        except DDSError as error:  # no address to name yet, or the DHT has stopped: the queue keeps it for later
            log.warning("cannot announce %s: %s", queued.announcement.subject.hex(), error)
            return False

    def _sealed(self, announcement: Announcement, lifetime_ms: int) -> tuple[bytes, bytes]:
        """The DHT key and the sealed value, made now."""
        if announcement.code == SEGMENT_PROVIDER.code:
            segment_id, index = SegmentID(announcement.subject), int(announcement.detail)
            place = segment_place(self._network, segment_id)
            return place.key, seal(place, SEGMENT_PROVIDER, self._segment_record(segment_id, index, lifetime_ms))
        content = CID(announcement.subject)
        place = content_place(self._network, content)
        if announcement.code == CONTENT_ANNOUNCE.code:
            return place.key, seal(place, CONTENT_ANNOUNCE, announcement.signed)
        return place.key, seal(place, CONTENT_PROVIDER, self._content_record(content, announcement.detail, lifetime_ms))

    def _content_record(self, content: CID, kind: str, lifetime_ms: int) -> bytes:
        now_ms, me = self._clock_ms(), self._key.public
        until_ms = now_ms + lifetime_ms
        record = ContentProvider(RECORD_VERSION, self._network, content, me, kind, self._addresses(), now_ms, until_ms)
        return sign_record(self._key, CONTENT_PROVIDER, record)

    def _segment_record(self, segment_id: SegmentID, index: int, lifetime_ms: int) -> bytes:
        now_ms, me = self._clock_ms(), self._key.public
        until_ms = now_ms + lifetime_ms
        record = SegmentProvider(RECORD_VERSION, self._network, segment_id, index, me, self._addresses(), now_ms, until_ms)
        return sign_record(self._key, SEGMENT_PROVIDER, record)


def _write(queue: AnnounceQueue, news: Sequence[tuple[Announcement, Turn | None]]) -> None:
    if withdrawn := [announcement for announcement, turn in news if turn is None]:
        queue.remove(withdrawn)
    if wanted := [(announcement, turn) for announcement, turn in news if turn is not None]:
        queue.add(wanted)


def sign_announce(key: SigningKey, network: str, content: CID, holders: Sequence[NodeID], now_ms: int) -> bytes:
    """A publisher's word on who holds the manifest; hand it to `Announcer.repeat`, here or on the holders.

    Raises:
        FormatError: no holder, or more than HOLDERS_MAX.
    """
    until_ms = now_ms + PROVIDER_LIFETIME_MS
    record = ContentAnnounce(RECORD_VERSION, network, content, key.public, list(holders), now_ms, until_ms)
    return sign_record(key, CONTENT_ANNOUNCE, record)

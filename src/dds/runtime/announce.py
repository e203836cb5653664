"""The host of the announce queue: signs, seals and puts what is due, at a bounded rate, and keeps the queue on disk.

Decides: rate, batching and when the queue is saved. Does not decide when something is due (protocol/announce.py) or what a
record looks like (wire/discovery.py). Source: docs/spec/discovery.md, "Announcing".
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from dds.primitives.cid import CID
from dds.primitives.errors import DDSError
from dds.primitives.ids import NodeID, SegmentID
from dds.primitives.keys import SigningKey
from dds.protocol.announce import Announcement, AnnounceQueue
from dds.runtime.peers import wall_clock_ms
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


class AnnounceStore(Protocol):
    """Where the queue survives a restart. Called in a thread; `save` replaces the state durably and atomically."""

    def load(self) -> bytes | None: ...

    def save(self, state: bytes) -> None: ...


@dataclass(frozen=True)
class AnnouncerConfig:
    puts_per_s_max: int = 20  # 2 % of a core at 1 ms a put
    save_every_s: float = 10.0
    first_after_s: float = 0.0  # about so long after something is new it is first said


class Announcer:
    """Keeps a node's content and segments announced.

    Args:
        addresses: where we can be dialled now, `host:port`, best first; asked at every put.
        seed: 32 secret bytes of this node, for the jitter.
    """

    def __init__(
        self,
        key: SigningKey,
        network: str,
        dht: DHTNode,
        store: AnnounceStore,
        addresses: Callable[[], list[str]],
        seed: bytes,
        *,
        config: AnnouncerConfig = AnnouncerConfig(),
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self.queue = AnnounceQueue(seed)
        self._key = key
        self._network = network
        self._dht = dht
        self._store = store
        self._addresses = addresses
        self._config = config
        self._clock_ms = clock_ms
        self._added = asyncio.Event()
        self._idle = asyncio.Event()
        self._dirty = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Take the saved queue up and begin.

        Raises:
            FormatError: the saved state is not ours; it is left as it is.
        """
        state = await asyncio.to_thread(self._store.load)
        if state is not None:
            self.queue.restore(state, self._clock_ms())
        self._tasks = [asyncio.create_task(self._announce_loop()), asyncio.create_task(self._save_loop())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self._save()

    def announce_content(self, content: CID, kind: str) -> None:
        """We serve this content: `kind` is manifest, origin or edge."""
        self._add(Announcement(CONTENT_PROVIDER.code, content, kind))

    def announce_segment(self, segment_id: SegmentID, index: int) -> None:
        """We hold this fragment index of the segment."""
        self._add(Announcement(SEGMENT_PROVIDER.code, segment_id, str(index)))

    def repeat(self, signed: bytes) -> None:
        """Keep a publisher's ContentAnnounce in the DHT until it expires.

        Raises:
            FormatError, IntegrityError, UnsupportedVersion: it is none.
        """
        record = open_record(signed, CONTENT_ANNOUNCE, self._network)
        detail = record.publisher.hex()
        self._add(Announcement(CONTENT_ANNOUNCE.code, record.content, detail, bytes(signed), record.expires_ms))

    def withdraw_content(self, content: CID, kind: str) -> None:
        self._withdraw(Announcement(CONTENT_PROVIDER.code, content, kind))

    def announces_content(self, content: CID, kind: str) -> bool:
        """Whether `announce_content` was asked for, in this run or an earlier one, and not withdrawn."""
        return Announcement(CONTENT_PROVIDER.code, content, kind) in self.queue

    def withdraw_segment(self, segment_id: SegmentID, index: int) -> None:
        self._withdraw(Announcement(SEGMENT_PROVIDER.code, segment_id, str(index)))

    def addresses_changed(self) -> None:
        """Say everything again with the new addresses, at the usual rate."""
        self.queue.renew_all(self._clock_ms())
        self._wake()

    async def settled(self, timeout_s: float) -> bool:
        """Wait until nothing is due. Whether that came about in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self._idle.is_set()

    def _add(self, announcement: Announcement) -> None:
        delay_ms = int(self._config.first_after_s * (500 + secrets.randbelow(1000)))
        if self.queue.add(announcement, self._clock_ms() + delay_ms):
            self._wake()

    def _withdraw(self, announcement: Announcement) -> None:
        self.queue.withdraw(announcement)
        self._dirty = True

    def _wake(self) -> None:
        self._dirty = True
        self._idle.clear()
        self._added.set()

    async def _announce_loop(self) -> None:
        """At most `puts_per_s_max` puts are begun in each second; a slow DHT slows the loop down, never piles up."""
        loop = asyncio.get_running_loop()
        while True:
            self._added.clear()
            batch = self.queue.due(self._clock_ms(), self._config.puts_per_s_max)
            if not batch:
                await self._wait_for_due()
                continue
            self._dirty = True
            began = loop.time()
            await asyncio.gather(*(self._announce(each) for each in batch))
            await asyncio.sleep(max(0.0, began + len(batch) / self._config.puts_per_s_max - loop.time()))

    async def _wait_for_due(self) -> None:
        due_ms = self.queue.next_due_ms()
        pause_s = 3600.0 if due_ms is None else (due_ms - self._clock_ms()) / 1000
        if pause_s <= 0:
            return
        self._idle.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(min(pause_s, 3600.0)):
                await self._added.wait()
        self._idle.clear()

    async def _announce(self, announcement: Announcement) -> None:
        try:
            key, value = self._sealed(announcement)
            ok = await self._dht.put(key, value, ValueType.PROVIDER)
        except DDSError as error:  # no address to name yet, or the DHT has stopped: the queue keeps it for later
            log.warning("cannot announce %s: %s", announcement.subject.hex(), error)
            ok = False
        self.queue.done(announcement, ok, self._clock_ms())

    def _sealed(self, announcement: Announcement) -> tuple[bytes, bytes]:
        """The DHT key and the sealed value, made now."""
        if announcement.code == SEGMENT_PROVIDER.code:
            segment_id, index = SegmentID(announcement.subject), int(announcement.detail)
            place = segment_place(self._network, segment_id)
            return place.key, seal(place, SEGMENT_PROVIDER, self._segment_record(segment_id, index))
        content = CID(announcement.subject)
        place = content_place(self._network, content)
        if announcement.code == CONTENT_ANNOUNCE.code:
            return place.key, seal(place, CONTENT_ANNOUNCE, announcement.signed)
        return place.key, seal(place, CONTENT_PROVIDER, self._content_record(content, announcement.detail))

    def _content_record(self, content: CID, kind: str) -> bytes:
        now_ms, me = self._clock_ms(), self._key.public
        until_ms = now_ms + PROVIDER_LIFETIME_MS
        record = ContentProvider(RECORD_VERSION, self._network, content, me, kind, self._addresses(), now_ms, until_ms)
        return sign_record(self._key, CONTENT_PROVIDER, record)

    def _segment_record(self, segment_id: SegmentID, index: int) -> bytes:
        now_ms, me = self._clock_ms(), self._key.public
        until_ms = now_ms + PROVIDER_LIFETIME_MS
        record = SegmentProvider(RECORD_VERSION, self._network, segment_id, index, me, self._addresses(), now_ms, until_ms)
        return sign_record(self._key, SEGMENT_PROVIDER, record)

    async def _save_loop(self) -> None:
        while True:
            await asyncio.sleep(self._config.save_every_s)
            await self._save()

    async def _save(self) -> None:
        if self._dirty:
            self._dirty = False
            await asyncio.to_thread(self._store.save, self.queue.to_state())


def sign_announce(key: SigningKey, network: str, content: CID, holders: Sequence[NodeID], now_ms: int) -> bytes:
    """A publisher's word on who holds the manifest; hand it to `Announcer.repeat`, here or on the holders.

    Raises:
        FormatError: no holder, or more than HOLDERS_MAX.
    """
    until_ms = now_ms + PROVIDER_LIFETIME_MS
    record = ContentAnnounce(RECORD_VERSION, network, content, key.public, list(holders), now_ms, until_ms)
    return sign_record(key, CONTENT_ANNOUNCE, record)

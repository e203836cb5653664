"""A put as the origin of its own content: while the network has not got all of it, blocks are served from this process.

Decides when serving begins and where blocks are taken from: the open segments' spools and what is held back for their commits;
blocks that the network has already (reused, or in segments that were finished before the whole was known) are read from there
and passed on. Does not decide how the put goes on, and cannot make it fail: an origin that cannot be bound or announced is a
log line.

A put that ends within SERVE_AFTER_S of knowing its ContentID starts nothing. Source: docs/spec/origin.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from dds.erasure.layout import Layout
from dds.erasure.segment_builder import ClosedSegment
from dds.primitives.cid import CID, cid_text, parse_cid
from dds.primitives.errors import ConfigError, NotFoundError
from dds.primitives.ids import SegmentID
from dds.primitives.units import BLOCK_BYTES_MAX, MIB
from dds.runtime.fetcher import Fetcher, unpack
from dds.runtime.network import Network
from dds.runtime.segment_sender import SegmentSender
from dds.runtime.segments import Segment, open_segment
from dds.storage.catalog import Catalog
from dds.transport.limits import ServerLimits
from dds.transport.routes import Request, Response, Route
from dds.transport.server import PeerServer
from dds.wire.discovery import format_address
from dds.wire.segment import Entry

log = logging.getLogger(__name__)

SERVE_AFTER_S: Final = 1.0  # from knowing the ContentID; a put that is done by then needs no origin
RENEW_S: Final = 300.0  # a third of an origin record's life
STOP_GRACE_S: Final = 2.0  # for requests under way when the put ends
MEMORY_BYTES_MAX: Final = 16 * MIB  # blocks on their way to readers
SEGMENTS_CACHED_MAX: Final = 8  # of those that are read back from the network


class _Spooled:
    """A closed segment whose data space is still here."""

    def __init__(self, closed: ClosedSegment, sender: SegmentSender) -> None:
        self._entries, self.sender = closed.entries, sender
        self._layout = Layout.of(closed.record)

    @cached_property
    def by_cid(self) -> dict[CID, Entry]:
        return {entry.cid: entry for entry in self._entries}

    def block(self, entry: Entry) -> bytes | None:
        """The block's bytes, checked; None if the spool does not give them. Blocks on the disk."""
        return unpack(entry, self.sender.read(self._layout.locate_entry(entry)))


@dataclass(slots=True)
class PutOrigin:
    """Use: `add` and `drop` segments, `start_soon` once the ContentID is known, `stop` whatever came of it.

    `contains` says which blocks belong to the content: nothing else is served.
    """

    network: Network
    catalog: Catalog
    contains: Callable[[CID], bool]
    serving_at: str = ""  # host:port, once it serves
    _segments: dict[int, _Spooled] = field(default_factory=dict)
    _cached: dict[SegmentID, Segment] = field(default_factory=dict)
    _fetcher: Fetcher = field(init=False)
    _task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._fetcher = Fetcher(self.network)

    @property
    def keeps_spools(self) -> bool:
        """Whether a finished segment's spool is to be left to readers until the put ends."""
        return self._task is not None

    def add(self, number: int, closed: ClosedSegment, sender: SegmentSender) -> None:
        self._segments[number] = _Spooled(closed, sender)

    def drop(self, number: int) -> None:
        self._segments.pop(number, None)

    def start_soon(self, content: CID) -> None:
        self._task = asyncio.create_task(self._serve(content))

    async def stop(self) -> None:
        """Serve no more, then free the spools."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for spooled in self._segments.values():
            spooled.sender.close_spool()
        self._segments.clear()

    async def _serve(self, content: CID) -> None:
        await asyncio.sleep(SERVE_AFTER_S)
        host = self.network.origin_host
        if host is None:
            log.info("this put is not served while it runs: set `host` in config.toml to an address that others can dial")
            return
        routes = [Route("GET", "/v1/blocks/{cid}", self._get_block, max_reply_bytes=BLOCK_BYTES_MAX)]
        limits = ServerLimits(bodies_bytes_max=MEMORY_BYTES_MAX)
        server = PeerServer(self.network.key, network=self.network.name, routes=routes, limits=limits)
        try:
            port = await server.start(host)
        except ConfigError as error:
            log.warning("this put is not served while it runs: %s", error.message)
            return
        self.serving_at = format_address(host, port)
        log.info("serving %s at %s until the network has it", cid_text(content), self.serving_at)
        try:
            while True:
                await self.network.announce_origin(content, self.serving_at)
                await asyncio.sleep(RENEW_S)
        finally:
            await server.stop(STOP_GRACE_S)

    async def _get_block(self, request: Request) -> Response:
        cid = parse_cid(request.params["cid"])
        block = await self.block(cid)
        if block is None:
            raise NotFoundError(f"block {cid_text(cid)} is not served here")
        return Response(200, block)

    async def block(self, cid: CID) -> bytes | None:
        """A block of the content; None for any other.

        Raises:
            StorageError: the put has just ended.
            DDSError: the network does not give back what it had.
        """
        for spooled in list(self._segments.values()):
            entry = spooled.by_cid.get(cid)
            if entry is not None:
                return await asyncio.to_thread(spooled.block, entry)
        return await self._from_network(cid) if self.contains(cid) else None

    async def _from_network(self, cid: CID) -> bytes | None:
        place = (await asyncio.to_thread(self.catalog.lookup, [cid])).get(cid)
        segment = await asyncio.to_thread(self._segment, place.segment_id) if place is not None else None
        entry = segment.entry_of(cid) if segment is not None else None
        if segment is None or entry is None:
            return None
        return (await self._fetcher.blocks(segment, [entry]))[0]

    def _segment(self, segment_id: SegmentID) -> Segment | None:
        """A segment of this home's catalog, ready to be read."""
        if segment_id not in self._cached:
            cached = self.catalog.segment(segment_id)
            segment = open_segment(cached.encoding_raw, segment_id, self.network.name) if cached is not None else None
            if cached is None or segment is None or not segment.accepts_index(cached.index_raw):
                return None
            segment.learn_holders(cached.holders)
            while len(self._cached) >= SEGMENTS_CACHED_MAX:
                self._cached.pop(next(iter(self._cached)), None)
            self._cached[segment_id] = segment
        return self._cached.get(segment_id)

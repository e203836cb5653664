"""From a ContentID to manifests, from a segment id to its encoding record and holders.

Asks in the order of cost, side by side where that saves waiting: what this home remembers, the holders that announcements in
the DHT name, and, while the DHT is still being asked, a few known nodes directly. Whatever answers is checked: a manifest by
its signature and the ContentID in it, an encoding record by its signature and segment id. Neither is bound by the ContentID,
so several are kept and the reader falls back to the next when blocks do not fit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from dds.primitives.cid import CID, cid_text
from dds.primitives.errors import DDSError, FormatError, NotFoundError
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import FragmentRoot, NodeID, SegmentID, id_text
from dds.runtime.network import ContentProviders, Network
from dds.runtime.segments import Segment, open_segment
from dds.wire.api import CONTENT_REPLY_BYTES_MAX, SEGMENT_REPLY_BYTES_MAX, ContentReply, SegmentReply
from dds.wire.manifest import Manifest, SegmentRow, open_manifest

log = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 5.0
ASK_AT_ONCE: Final = 2  # holders asked side by side for metadata; the next one after each failure or ASK_PATIENCE_S
ASK_PATIENCE_S: Final = 0.4
DIRECT_PATIENCE_S: Final = 0.3  # how long the DHT is given before known nodes are asked directly as well
DIRECT_ASKS_MAX: Final = 24  # known nodes asked directly when announcements lead nowhere


@dataclass(frozen=True, slots=True)
class Found:
    """A verified manifest, and what came with it."""

    manifest: Manifest
    raw: bytes
    source: NodeID
    reply: ContentReply


class Resolver:
    def __init__(self, network: Network) -> None:
        self._network = network
        self._lookups: dict[CID, asyncio.Task[ContentProviders]] = {}

    def providers(self, content: CID) -> asyncio.Task[ContentProviders]:
        """What the DHT says of a content: asked once, however many wait for it. `close` ends it."""
        if content not in self._lookups:
            self._lookups[content] = asyncio.create_task(self._network.content_providers(content))
        return self._lookups[content]

    def close(self) -> None:
        """Ask the DHT no more."""
        for lookup in self._lookups.values():
            lookup.cancel()
        self._lookups.clear()

    async def manifests(self, content: CID, hints: Sequence[NodeID] = ()) -> AsyncGenerator[Found, None]:
        """Verified manifests of `content`, best first, each publisher's statement at most once.

        Raises:
            NotFoundError: nobody asked has one (raised only when nothing was yielded).
        """
        seen: set[bytes] = set()
        asked: set[NodeID] = set()
        async for node, reply in self._race(content, hints, asked):
            for raw in reply.manifests:
                if raw in seen:
                    continue
                seen.add(raw)
                with contextlib.suppress(FormatError):
                    manifest = open_manifest(raw, self._network.name)
                    if manifest.content == content:
                        yield Found(manifest, raw, node, reply)
        if not seen:
            raise NotFoundError(
                f"nobody of {len(asked)} nodes asked has {cid_text(content)}",
                hint="check the ContentID and that this home is on the right network (dds doctor)",
            )

    async def _feed(self, content: CID, hints: Sequence[NodeID], queue: asyncio.Queue[NodeID | None]) -> None:
        """Nodes to ask, best first: hints, announced holders, then known nodes; None ends the list."""
        for node in hints:
            queue.put_nowait(node)
        announced = self.providers(content)
        try:
            await asyncio.wait((announced,), timeout=DIRECT_PATIENCE_S)
            if announced.done():
                for node in announced.result().holders:
                    queue.put_nowait(node)
            known = self._network.known_nodes()
            known.sort(key=lambda node: tagged_hash(b"dds/ask-order/v1", content, node))
            for node in known[:DIRECT_ASKS_MAX]:
                queue.put_nowait(node)
            for node in (await asyncio.shield(announced)).holders:
                queue.put_nowait(node)
        finally:
            queue.put_nowait(None)

    async def _race(
        self, content: CID, hints: Sequence[NodeID], asked: set[NodeID]
    ) -> AsyncIterator[tuple[NodeID, ContentReply]]:
        """Replies as they come. A few requests run side by side; one more after each failure and each ASK_PATIENCE_S."""
        queue: asyncio.Queue[NodeID | None] = asyncio.Queue()
        feeder = asyncio.create_task(self._feed(content, hints, queue))
        upcoming: asyncio.Task[NodeID | None] | None = asyncio.create_task(queue.get())
        running: dict[asyncio.Task[ContentReply], NodeID] = {}
        room = ASK_AT_ONCE
        try:
            while running or upcoming is not None:
                watched = {*running, *([upcoming] if upcoming is not None and len(running) < room else [])}
                done, _ = await asyncio.wait(watched, timeout=ASK_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
                room += not done
                if upcoming in done:
                    node = upcoming.result()
                    upcoming = None if node is None else asyncio.create_task(queue.get())
                    if node is not None and node not in asked:
                        asked.add(node)
                        running[asyncio.create_task(self._ask_content(content, node))] = node
                for task in [each for each in running if each.done()]:
                    node = running.pop(task)
                    if task.exception() is None:
                        yield node, task.result()
                    elif not isinstance(task.exception(), DDSError):
                        task.result()
        finally:
            for job in (feeder, upcoming, *running):
                if job is not None:
                    job.cancel()

    async def _ask_content(self, content: CID, node: NodeID) -> ContentReply:
        path = f"/v1/content/{cid_text(content)}"
        return await self._network.fetch(node, path, ContentReply, max_bytes=CONTENT_REPLY_BYTES_MAX, timeout_s=ASK_TIMEOUT_S)

    async def segment(self, row: SegmentRow, found: Found | None = None, *, encoder: bytes = b"") -> Segment:
        """A segment ready to be read: record verified, holders learned.

        The same blocks may have been encoded twice, by different publishers or with another geometry: the record of as many
        fragments as the row has holders is preferred, and of these that of `encoder`, where it is known.

        Raises:
            NotFoundError: no holder that could be reached has a valid encoding record.
        """
        if found is not None:
            encoder = encoder or found.manifest.publisher
            ready = self._from_reply(row, found)
            if ready is not None:
                return ready
        tried: set[NodeID] = set()
        for named in (True, False):
            wave = await (self._named(row) if named else self._announced(row.segment_id))
            nodes = [node for node in wave if node not in tried]
            tried.update(nodes)
            segment = await self._first_record(row, encoder, nodes)
            if segment is not None:
                segment.learn_holders(row.holders)
                return segment
        raise NotFoundError(
            f"none of {len(tried)} nodes has the encoding record of segment {id_text(row.segment_id)}",
            hint="its holders may be down; try again when they are back",
        )

    def _from_reply(self, row: SegmentRow, found: Found) -> Segment | None:
        segment = self._best(found.reply.encodings, row, found.manifest.publisher)
        if segment is not None:
            segment.learn_holders(row.holders)
            for fragment in found.reply.inline:
                segment.inline[FragmentRoot(fragment.root)] = (found.source, fragment.data)
        return segment

    async def _named(self, row: SegmentRow) -> list[NodeID]:
        now = asyncio.get_running_loop().time()
        ranking = self._network.ranking
        return sorted(row.holders, key=lambda node: (ranking.avoided(node, now), ranking.latency_s(node)))

    async def _announced(self, segment_id: SegmentID) -> list[NodeID]:
        return [node for _, node in await self._network.segment_holders(segment_id)]

    async def _first_record(self, row: SegmentRow, encoder: bytes, nodes: Iterable[NodeID]) -> Segment | None:
        """The first valid record, asking a few holders at once and the next after a short wait."""
        queue = list(nodes)
        running: set[asyncio.Task[Segment | None]] = set()
        try:
            while queue or running:
                if queue:
                    running.add(asyncio.create_task(self._ask_record(row, encoder, queue.pop(0))))
                patience = ASK_PATIENCE_S if queue else None
                done, running = await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    segment = task.result()
                    if segment is not None:
                        return segment
            return None
        finally:
            for task in running:
                task.cancel()

    async def _ask_record(self, row: SegmentRow, encoder: bytes, node: NodeID) -> Segment | None:
        segment_id = row.segment_id
        path = f"/v1/segments/{id_text(segment_id)}"
        try:
            reply = await self._network.fetch(
                node, path, SegmentReply, max_bytes=SEGMENT_REPLY_BYTES_MAX, timeout_s=ASK_TIMEOUT_S
            )
        except DDSError as error:
            log.debug("no record of %s from %s: %s", id_text(segment_id), id_text(node), error)
            return None
        segment = self._best(reply.encodings, row, encoder)
        if segment is not None:
            for index in reply.indices:
                segment.learn_holder(index, node)
        return segment

    def _best(self, encodings: Iterable[bytes], row: SegmentRow, encoder: bytes) -> Segment | None:
        valid = [segment for raw in encodings if (segment := open_segment(raw, row.segment_id, self._network.name)) is not None]
        return max(valid, key=lambda each: (each.record.width == len(row.holders), each.publisher == encoder), default=None)

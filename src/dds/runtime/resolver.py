"""From a ContentID to manifests, from a segment id to its encoding record and holders.

Asks in the order of cost, side by side where that saves waiting: what this home remembers, the holders that announcements in
the DHT name, and, while the DHT is still being asked, a few known nodes directly. Whatever answers is checked: a manifest by
its signature and the ContentID in it, an encoding record by its signature and segment id. Neither is bound by the ContentID,
so the reader falls back to the next when what one says cannot be had: manifests come one by one, and a record that `refuse`
was told of is not given again, nor asked of the node that gave it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from dds.primitives.cid import CID, cid_text
from dds.primitives.errors import DDSError, FormatError, NotFoundError, PeerRefused, UnavailableError
from dds.primitives.hashing import sha256, tagged_hash
from dds.primitives.ids import FragmentRoot, NodeID, SegmentID, id_text
from dds.runtime.holders import holders_among_known
from dds.runtime.network import ContentProviders, Network
from dds.runtime.segments import Segment, open_segment
from dds.wire.api import (
    CONTENT_REPLY_BYTES_MAX,
    ENCODINGS_PER_SEGMENT_MAX,
    MANIFESTS_PER_CONTENT_MAX,
    SEGMENT_REPLY_BYTES_MAX,
    ContentReply,
    SegmentReply,
)
from dds.wire.manifest import Manifest, SegmentRow, open_manifest

log = logging.getLogger(__name__)

ASK_TIMEOUT_S: Final = 5.0
ASK_AT_ONCE: Final = 2  # holders asked side by side for metadata; the next one after each failure or ASK_PATIENCE_S
ASK_PATIENCE_S: Final = 0.4
DIRECT_PATIENCE_S: Final = 0.3  # how long the DHT is given before known nodes are asked directly as well
ANNOUNCED_FIRST: Final = 16  # announced holders asked before known nodes; anybody may announce many that are none
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
        self._loading: set[asyncio.Task[Segment]] = set()
        self._refused: set[bytes] = set()  # hashes of encoding records that did not serve
        self._refused_sources: set[tuple[SegmentID, NodeID | None]] = set()  # who gave them

    def providers(self, content: CID) -> asyncio.Task[ContentProviders]:
        """What the DHT says of a content: asked once, however many wait for it. `close` ends it."""
        if content not in self._lookups:
            self._lookups[content] = asyncio.create_task(self._network.content_providers(content))
        return self._lookups[content]

    def start(self, row: SegmentRow, found: Found) -> asyncio.Task[Segment]:
        """`segment` in a task that outlives whoever waits for it; `close` ends it."""
        task = asyncio.create_task(self.segment(row, found))
        self._loading.add(task)
        task.add_done_callback(self._loading.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever still waits is told
        return task

    def close(self) -> None:
        """Ask the DHT, and whoever is still being asked for segments, no more."""
        for task in self._loading:
            task.cancel()
        for lookup in self._lookups.values():
            lookup.cancel()
        self._lookups.clear()

    async def manifests(self, content: CID, hints: Sequence[NodeID] = ()) -> AsyncGenerator[Found, None]:
        """Verified manifests of `content`, best first, each publisher's statement at most once.

        Every node's answer gives one that is new at a time, so that nobody can hide another's behind many of his own; the rest
        come when all have been asked.

        Raises (only when nothing was yielded):
            NotFoundError: nobody asked has one.
            UnavailableError: the same, but most of those asked, or all that this home remembers as holders, did not answer.
        """
        seen: set[bytes] = set()
        asked: set[NodeID] = set()
        answered: set[NodeID] = set()
        rest: list[Found] = []
        nothing = True
        async for node, reply in self._race(content, hints, asked, answered):
            fresh = [Found(manifest, raw, node, reply) for raw, manifest in self._manifests_in(reply, content, seen)]
            rest += fresh[1:]
            for found in fresh[:1]:
                nothing = False
                yield found
        for found in rest:
            yield found
        if nothing:
            raise _nobody_has(content, hints, asked, answered)

    def _manifests_in(self, reply: ContentReply, content: CID, seen: set[bytes]) -> list[tuple[bytes, Manifest]]:
        """Those of a reply that are valid, of this content and not seen before; now they are."""
        fresh: list[tuple[bytes, Manifest]] = []
        for raw in reply.manifests[:MANIFESTS_PER_CONTENT_MAX]:
            if raw in seen:
                continue
            seen.add(raw)
            with contextlib.suppress(FormatError):
                manifest = open_manifest(raw, self._network.name)
                if manifest.content == content:
                    fresh.append((raw, manifest))
        return fresh

    async def _feed(self, content: CID, hints: Sequence[NodeID], queue: asyncio.Queue[NodeID | None]) -> None:
        """Nodes to ask, best first: hints, announced holders, then known nodes; None ends the list."""
        for node in sorted(hints, key=self._network.ranking.expected_s):
            queue.put_nowait(node)
        announced = self.providers(content)
        try:
            await asyncio.wait((announced,), timeout=DIRECT_PATIENCE_S)
            if announced.done():
                for node in announced.result().holders[:ANNOUNCED_FIRST]:
                    queue.put_nowait(node)
            known = self._network.known_nodes()
            expected_s = self._network.ranking.expected_s  # nearest first; among equals every reader begins with the same
            known.sort(key=lambda node: (round(expected_s(node), 2), tagged_hash(b"dds/ask-order/v1", content, node)))
            for node in known[:DIRECT_ASKS_MAX]:
                queue.put_nowait(node)
            for node in (await asyncio.shield(announced)).holders:
                queue.put_nowait(node)
        finally:
            queue.put_nowait(None)

    async def _race(
        self, content: CID, hints: Sequence[NodeID], asked: set[NodeID], answered: set[NodeID]
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
                    error = task.exception()
                    if error is None or isinstance(error, PeerRefused):
                        answered.add(node)
                    if error is None:
                        yield node, task.result()
                    elif not isinstance(error, DDSError):
                        raise error
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
        for whom in (self._named, self._announced, self._known):
            wave = await whom(row)
            nodes = [node for node in wave if node not in tried and (row.segment_id, node) not in self._refused_sources]
            tried.update(nodes)
            segment = await self._first_record(row, encoder, nodes)
            if segment is not None:
                _learn_named(segment, row)
                return segment
        raise NotFoundError(
            f"none of {len(tried)} nodes has the encoding record of segment {id_text(row.segment_id)}",
            hint="its holders may be down; try again when they are back",
        )

    def refuse(self, segment: Segment) -> None:
        """What this record names cannot be had, or is wrong: find another from now on, from another node."""
        self._refused.add(sha256(segment.encoding))
        self._refused_sources.add((segment.segment_id, segment.source))

    def _open(self, raw: bytes, segment_id: SegmentID, source: NodeID) -> Segment | None:
        if sha256(raw) in self._refused:
            return None
        segment = open_segment(raw, segment_id, self._network.name)
        if segment is not None:
            segment.source = source
        return segment

    def _from_reply(self, row: SegmentRow, found: Found) -> Segment | None:
        if (row.segment_id, found.source) in self._refused_sources:
            return None
        encodings = found.reply.encodings[: MANIFESTS_PER_CONTENT_MAX * ENCODINGS_PER_SEGMENT_MAX]
        segment = self._best(encodings, row, found.manifest.publisher, found.source)
        if segment is not None:
            _learn_named(segment, row)
            for fragment in found.reply.inline:
                segment.inline[FragmentRoot(fragment.root)] = (found.source, fragment.data)
        return segment

    async def _named(self, row: SegmentRow) -> list[NodeID]:
        now = asyncio.get_running_loop().time()
        ranking = self._network.ranking
        return sorted(row.holders, key=lambda node: (ranking.avoided(node, now), ranking.expected_s(node)))

    async def _announced(self, row: SegmentRow) -> list[NodeID]:
        return [node for _, node in await self._network.segment_holders(row.segment_id)]

    async def _known(self, row: SegmentRow) -> list[NodeID]:
        """Known nodes that say they hold some of it: those that it has just moved to are not announced everywhere yet."""
        return [node for _, node in await holders_among_known(self._network, row.segment_id)]

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
        segment = self._best(reply.encodings[:ENCODINGS_PER_SEGMENT_MAX], row, encoder, node)
        if segment is not None:
            for index in reply.indices:
                segment.learn_holder(index, node)
        return segment

    def _best(self, encodings: Iterable[bytes], row: SegmentRow, encoder: bytes, source: NodeID) -> Segment | None:
        valid = [segment for raw in encodings if (segment := self._open(raw, row.segment_id, source)) is not None]
        return max(valid, key=lambda each: (each.record.width == len(row.holders), each.publisher == encoder), default=None)


def _learn_named(segment: Segment, row: SegmentRow) -> None:
    """A row names holders by the index of one encoding: where it has another number of indices, that one is not this."""
    if segment.record.width == len(row.holders):
        segment.learn_holders(row.holders)


def _nobody_has(content: CID, hints: Sequence[NodeID], asked: set[NodeID], answered: set[NodeID]) -> UnavailableError:
    """What it means that none of `asked` gave a manifest."""
    silent = len(asked - answered)
    if 2 * silent > len(asked) or (hints and answered.isdisjoint(hints)):
        return UnavailableError(
            f"{silent} of {len(asked)} nodes could not be asked for {cid_text(content)}, and none of the others has it",
            hint="the nodes that have it may be down; try again when they are back (dds doctor)",
        )
    more = f"; {silent} could not be asked" if silent else ""
    return NotFoundError(
        f"nobody of {len(asked)} nodes asked has {cid_text(content)}{more}",
        hint="check the ContentID and that this home is on the right network (dds doctor)",
    )

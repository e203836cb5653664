"""Blocks of one content from an edge near by, and what it has not got from wherever they come from otherwise.

Decides when the ordinary path begins: for what the edge says it has not, at once; for all, when nothing has come from the edge
for as long as protocol/edge_choice.py waits for it. Whoever is first wins. A read that the edge answers whole asks nobody else,
not even for a manifest. Every block is checked against its CID; an edge that sends others is named as a culprit and not asked
again.

The root of a DAG is asked for at GET /v1/blocks/{cid}, which fetches nothing on a miss: a request for the root alone at
/v1/edge/read would have the edge fetch all of the content for what may be a read of one byte.

Source: docs/spec/retrieval.md, "Reading through an edge".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Final, Protocol

from dds.content.block import Ref
from dds.primitives.cid import CID, RAW, cid_text, codec_of, matches
from dds.primitives.errors import DDSError, NotFoundError, PeerProtocolError, PeerRefused
from dds.primitives.ids import NodeID, id_text
from dds.primitives.units import BLOCK_BYTES_MAX, KIB
from dds.runtime.network import Network
from dds.runtime.results import Culprit
from dds.runtime.tasks import cancel_all, gather_all
from dds.wire.api import decode_frames
from dds.wire.codec import encode
from dds.wire.retrieval import EDGE_BLOCKS_MAX, EDGE_REPLY_BYTES_MAX, EdgeReadRequest

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S: Final = 20.0
REQUESTS_MAX: Final = 8  # side by side
NODE_BYTES_TYPICAL: Final = 64 * KIB
EDGE_READ: Final = "/v1/edge/read"
REPLY_BYTES_MAX: Final = EDGE_REPLY_BYTES_MAX + 4 * (EDGE_BLOCKS_MAX + 1)
NOT_FOUND: Final = 404


class BlockSource(Protocol):
    """As in get.py."""

    root: Ref
    kind: str
    content_bytes: int | None

    async def fetch(self, refs: Sequence[Ref]) -> list[bytes]: ...


class Edges:
    """The edges that one read may ask, one at a time; another when that one fails."""

    def __init__(self, network: Network, content: CID, culprits: list[Culprit]) -> None:
        self.content = content
        self.used_bytes = 0  # of blocks that were taken from edges
        self.heard_at = 0.0  # when the last answer came; in the loop's time
        self._network, self._culprits = network, culprits
        self._room = asyncio.Semaphore(REQUESTS_MAX)

    def current(self) -> NodeID | None:
        """Whom to ask now."""
        order = self._network.edge_choice.order(self._network.edges(), self.content, self._now())
        return order[0] if order else None

    def patience_s(self, node: NodeID) -> float:
        return self._network.edge_choice.patience_s(node)

    def too_late(self, node: NodeID) -> None:
        """Nothing came from it in time, and others had given the blocks meanwhile."""
        self._network.edge_choice.failed(node, self._now())

    async def ask(self, node: NodeID, refs: Sequence[Ref]) -> dict[CID, bytes]:
        """Those of the blocks that the edge has, verified."""
        if len(refs) == 1 and refs[0].cid == self.content and codec_of(self.content) != RAW:
            return await self._ask_root(node)
        wanted = list({ref.cid: ref for ref in refs}.values())
        sizes = {ref.cid: _size_of(ref) for ref in wanted}
        answers = await gather_all([self._ask_group(node, group, sizes) for group in _groups(wanted)])
        return {cid: block for answer in answers for cid, block in answer.items()}

    async def _ask_root(self, node: NodeID) -> dict[CID, bytes]:
        path, began = f"/v1/blocks/{cid_text(self.content)}", self._now()
        try:
            block = await self._network.client.get(node, path, max_bytes=BLOCK_BYTES_MAX, timeout_s=REQUEST_TIMEOUT_S)
        except PeerRefused as error:
            if error.status == NOT_FOUND:
                self._answered(node, began, 1, 0)
            else:
                self._failed(node, error)
            return {}
        except DDSError as error:
            self._failed(node, error)
            return {}
        return self._checked(node, began, [self.content], [block])

    async def _ask_group(self, node: NodeID, cids: Sequence[CID], sizes: Mapping[CID, int]) -> dict[CID, bytes]:
        """What one answer has no room for is asked for again."""
        blocks: dict[CID, bytes] = {}
        waiting = list(cids)
        while waiting and self._network.edge_choice.is_usable(node, self._now()):
            got = await self._ask_once(node, waiting, sum(sizes[cid] for cid in waiting))
            blocks |= got
            waiting = [cid for cid in waiting if cid not in got]
            if 2 * sum(map(len, got.values())) < EDGE_REPLY_BYTES_MAX:
                break
        return blocks

    async def _ask_once(self, node: NodeID, cids: Sequence[CID], about_bytes: int) -> dict[CID, bytes]:
        request = encode(EdgeReadRequest(self.content, list(cids)))
        async with self._room:
            began = self._now()
            try:
                raw = await self._network.client.post(
                    node, EDGE_READ, request, max_bytes=REPLY_BYTES_MAX, timeout_s=REQUEST_TIMEOUT_S
                )
                frames = decode_frames(raw, max_frame_bytes=BLOCK_BYTES_MAX)
                if len(frames) != len(cids):
                    raise PeerProtocolError("an edge's answer does not fit the question", peer=id_text(node))
            except asyncio.CancelledError:
                if self._network.purse is not None:  # the edge has read and sent it, and counts it
                    self._network.purse.took(node, EDGE_READ, min(about_bytes, EDGE_REPLY_BYTES_MAX))
                raise
            except DDSError as error:
                self._failed(node, error)
                return {}
        return self._checked(node, began, cids, [None if frame is None else bytes(frame) for frame in frames])

    def _checked(self, node: NodeID, began: float, cids: Sequence[CID], blocks: Sequence[bytes | None]) -> dict[CID, bytes]:
        right = {cid: block for cid, block in zip(cids, blocks, strict=True) if block is not None and matches(cid, block)}
        wrong = next((c for c, block in zip(cids, blocks, strict=True) if block is not None and c not in right), None)
        self._answered(node, began, len(cids), len(right))
        if wrong is not None:
            self._network.edge_choice.lied(node)
            self._network.lied(node)
            if all(culprit.node != node for culprit in self._culprits):
                self._culprits.append(Culprit(node, f"as an edge, sent other bytes than block {cid_text(wrong)}"))
            log.warning("edge %s sent wrong bytes", id_text(node))
        return right

    def _answered(self, node: NodeID, began: float, asked: int, hits: int) -> None:
        self.heard_at = self._now()
        self._network.edge_choice.answered(node, self.heard_at - began, asked=asked, hits=hits)

    def _failed(self, node: NodeID, error: DDSError) -> None:
        log.info("edge %s gives nothing: %s", id_text(node), error.message)
        self._network.edge_choice.failed(node, self._now())

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class Upcoming:
    """The next of the ordinary sources, looked for when it is first needed."""

    def __init__(self, sources: AsyncGenerator[BlockSource, None]) -> None:
        self._sources = sources
        self._found: asyncio.Task[BlockSource | None] | None = None

    async def fetch(self, refs: Sequence[Ref]) -> list[bytes]:
        """
        Raises:
            NotFoundError, UnavailableError: there is none. Whatever the source raises.
        """
        if self._found is None:
            self._found = asyncio.create_task(_next(self._sources))
        source = await asyncio.shield(self._found)
        if source is None:
            raise NotFoundError("nobody has what the edge has not")
        root = source.root.cid
        return await source.fetch([source.root if ref.cid == root and ref.tsize is None else ref for ref in refs])

    async def close(self) -> None:
        if self._found is not None:
            await cancel_all([self._found])


class EdgeFirst:
    """A content's blocks, from an edge where one has them."""

    kind = ""  # what the content is shows only when its root is read
    content_bytes: int | None = None

    def __init__(self, edges: Edges, upcoming: Upcoming) -> None:
        self.root = Ref(edges.content, 0)
        self._edges, self._upcoming = edges, upcoming

    async def fetch(self, refs: Sequence[Ref]) -> list[bytes]:
        """Verified bytes of the blocks, in order.

        Raises:
            As the ordinary sources do, for what no edge gives.
        """
        node = self._edges.current()
        if node is None:
            return await self._upcoming.fetch(refs)
        patience_s = self._edges.patience_s(node)
        asking = asyncio.create_task(self._edges.ask(node, refs))
        ordinary: asyncio.Task[list[bytes]] | None = None
        try:
            if not await self._in_time(asking, patience_s):
                ordinary = asyncio.create_task(self._upcoming.fetch(refs))
                await asyncio.wait((asking, ordinary), return_when=asyncio.FIRST_COMPLETED)
                if not asking.done() and ordinary.exception() is None:
                    if patience_s:  # it was waited for, in vain: the next batch does not wait again
                        self._edges.too_late(node)
                    return ordinary.result()
            return await self._merged(refs, await asking, ordinary)
        finally:
            await cancel_all([task for task in (asking, ordinary) if task is not None])

    async def _merged(
        self, refs: Sequence[Ref], got: dict[CID, bytes], ordinary: asyncio.Task[list[bytes]] | None
    ) -> list[bytes]:
        """What the edge gave, and the rest, which is on its way already where `ordinary` is."""
        absent = [ref for ref in refs if ref.cid not in got]
        if absent and ordinary is not None:
            return await ordinary
        rest = dict(zip((ref.cid for ref in absent), await self._upcoming.fetch(absent), strict=True)) if absent else {}
        self._edges.used_bytes += sum(map(len, got.values()))
        return [got[ref.cid] if ref.cid in got else rest[ref.cid] for ref in refs]

    async def _in_time(self, asking: asyncio.Task[dict[CID, bytes]], patience_s: float) -> bool:
        """Wait for the edge as long as it keeps answering, here or to other requests of this read. Whether it is done."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not asking.done():
            left = max(began, self._edges.heard_at) + patience_s - loop.time()
            if left <= 0:
                return False
            await asyncio.wait((asking,), timeout=left)
        return True


def open_edges(network: Network, content: CID, culprits: list[Culprit]) -> Edges | None:
    """What a read of `content` can ask, if this network has an edge; what it finds wrong is added to `culprits`."""
    edges = Edges(network, content, culprits)
    return edges if edges.current() is not None else None


def _groups(refs: Sequence[Ref]) -> list[list[CID]]:
    """What one answer probably has room for."""
    groups: list[list[CID]] = []
    room = 0
    for ref in refs:
        size = _size_of(ref)
        if not groups or size > room or len(groups[-1]) >= EDGE_BLOCKS_MAX:
            groups.append([])
            room = EDGE_REPLY_BYTES_MAX
        groups[-1].append(ref.cid)
        room -= size
    return groups


def _size_of(ref: Ref) -> int:
    """A raw block's size is in its link; of a node the link says what lies below it."""
    if codec_of(ref.cid) == RAW:
        return BLOCK_BYTES_MAX if ref.tsize is None else min(ref.tsize, BLOCK_BYTES_MAX)
    return NODE_BYTES_TYPICAL if ref.tsize is None else min(ref.tsize, NODE_BYTES_TYPICAL)


async def _next(sources: AsyncGenerator[BlockSource, None]) -> BlockSource | None:
    return await anext(sources, None)

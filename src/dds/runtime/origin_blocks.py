"""Blocks of one content from its origins, while the network has not got them: GET /v1/blocks/{cid}, checked against the CID.

Decides whom to ask next: one origin at a time, another as soon as one does not answer within PATIENCE_S; the one that answered
last is asked first. One that sends wrong bytes is named as a culprit and not asked again, nor is one that fails FAILURES_MAX
times. Does not decide when an origin is read at all (get.py). Source: docs/spec/origin.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Final

from dds.content.block import Ref
from dds.primitives.cid import CID, cid_text, matches
from dds.primitives.errors import DDSError, NotFoundError, PeerRefused
from dds.primitives.ids import NodeID, id_text
from dds.primitives.units import BLOCK_BYTES_MAX
from dds.runtime.network import Network
from dds.runtime.results import Culprit
from dds.runtime.tasks import cancel_all, gather_all

log = logging.getLogger(__name__)

ORIGINS_MAX: Final = 8  # of those the DHT names; anybody may name himself
REQUESTS_MAX: Final = 8  # side by side
BLOCK_TIMEOUT_S: Final = 30.0
PATIENCE_S: Final = 1.0  # before another origin is asked as well
FAILURES_MAX: Final = 3


class OriginBlocks:
    """Reads one content from the nodes that say they are its origin. Wrong ones are added to `culprits`."""

    kind = ""  # what the content is shows only when its root is read
    content_bytes: int | None = None

    def __init__(self, network: Network, content: CID, origins: Sequence[NodeID], culprits: list[Culprit]) -> None:
        self.root = Ref(content, None)
        self._network, self._culprits = network, culprits
        self._origins = list(origins[:ORIGINS_MAX])
        self._failures: Counter[NodeID] = Counter()
        self._room = asyncio.Semaphore(REQUESTS_MAX)

    async def fetch(self, refs: Sequence[Ref]) -> list[bytes]:
        """Verified bytes of the blocks, in order.

        Raises:
            NotFoundError: none of the origins gives a block.
        """
        return await gather_all([self._block(ref) for ref in refs])

    async def _block(self, ref: Ref) -> bytes:
        async with self._room:
            waiting = list(self._origins)
            running: set[asyncio.Task[bytes | None]] = set()
            try:
                while waiting or running:
                    if waiting:
                        running.add(asyncio.create_task(self._ask(waiting.pop(0), ref)))
                    patience = PATIENCE_S if waiting else None
                    done, running = await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        block = task.result()
                        if block is not None:
                            return block
            finally:
                await cancel_all(running)
        raise NotFoundError(
            f"no origin gives block {cid_text(ref.cid)}",
            hint="the content is not on the network yet, and its origin is away: try again later",
        )

    async def _ask(self, node: NodeID, ref: Ref) -> bytes | None:
        size_max = BLOCK_BYTES_MAX if ref.tsize is None else min(max(ref.tsize, 1), BLOCK_BYTES_MAX)
        path = f"/v1/blocks/{cid_text(ref.cid)}"
        try:
            block = await self._network.client.get(node, path, max_bytes=size_max, timeout_s=BLOCK_TIMEOUT_S)
        except DDSError as error:
            log.info("origin %s gives no block: %s", id_text(node), error.message)
            self._failures[node] += 1
            if not isinstance(error, PeerRefused) and self._failures[node] >= FAILURES_MAX:
                self._leave(node)
            return None
        if not matches(ref.cid, block):
            self._culprits.append(Culprit(node, f"as an origin, sent other bytes than block {cid_text(ref.cid)}"))
            self._leave(node)
            return None
        self._prefer(node)
        return block

    def _leave(self, node: NodeID) -> None:
        if node in self._origins:
            self._origins.remove(node)

    def _prefer(self, node: NodeID) -> None:
        self._failures[node] = 0
        if node in self._origins and self._origins[0] != node:
            self._origins.remove(node)
            self._origins.insert(0, node)

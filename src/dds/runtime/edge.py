"""An edge cache: the blocks that readers near by ask for, served to them and fetched when they are missed.

Decides what a request gets, when a content is announced and that the cache is swept. Does not decide what is kept
(protocol/edge_cache.py), how it lies on disk (storage/block_cache.py), how it is fetched (warming.py) nor who may ask
(edge_routes.py). An edge counts for nothing in durability and is believed in nothing: readers check every block.

Source: docs/spec/retrieval.md, "Edges".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from dds.primitives.cid import CID, RAW, cid_from_bytes, codec_of
from dds.primitives.errors import LimitError
from dds.protocol.warming_budget import account_of
from dds.runtime.announce import Announcer
from dds.runtime.logs import event
from dds.runtime.metrics import Registry
from dds.runtime.network import Network
from dds.runtime.popularity import ContentCounter
from dds.runtime.supervisor import every
from dds.runtime.warming import Warmer
from dds.storage.block_cache import BlockCache
from dds.storage.home import NodeConfig
from dds.wire.retrieval import EDGE_REPLY_BYTES_MAX, EdgeReadRequest

ANNOUNCED_MAX: Final = 4096  # contents; the others are found by readers of this region only
SWEEP_S_MAX: Final = 60.0
EDGE_KIND: Final = "edge"

_log: Final = logging.getLogger("dds.edge")
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EdgeParts:
    """What the node lends its edge."""

    pool: Executor
    announcer: Announcer
    network: Callable[[], Network]  # the nodes known now; called when a content begins to be fetched
    seed: bytes  # 32 secret bytes of this node


class Edge:
    """Use: `start`, then `read` and `block`; `jobs` run in the background until `stop`."""

    def __init__(self, root: Path, config: NodeConfig, parts: EdgeParts) -> None:
        self._config, self._parts = config, parts
        self._loop = asyncio.get_running_loop()
        self._cache = BlockCache(root, config.edge_bytes_max, config.edge_ttl_s, parts.seed, on_gone=self._on_gone)
        self._announced: set[CID] = set()
        self.warmer = Warmer(parts.network, self)
        self.popularity = ContentCounter(root)

    async def start(self) -> None:
        """Take up what an earlier run kept. The announcer runs already.

        Raises:
            StorageError: the cache's directory cannot be used.
        """
        kept = set(await self._run(self._cache.load))
        self._announced = set(await self._parts.announcer.contents_announced(EDGE_KIND, ANNOUNCED_MAX))
        self._withdraw([content for content in self._announced if content not in kept])
        self.warmer.start()
        event(_log, logging.INFO, "edge ready", blocks=self._cache.count, bytes=self._cache.size)

    async def stop(self) -> None:
        await self.warmer.stop()
        await self.popularity.save()

    def jobs(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What runs in the background, by name."""
        sweep = partial(self._run, self._cache.expire)
        return {
            "edge sweep": lambda: every(min(SWEEP_S_MAX, self._config.edge_ttl_s / 4), sweep),
            "edge popularity": self.popularity.run,
        }

    # -- what is asked ----------------------------------------------------------------------------------------------------

    async def read(self, message: EdgeReadRequest, address: str = "") -> list[bytes | None]:
        """The blocks that are here, in order, as far as one answer reaches; what is not is fetched in the background.

        A request for the root block alone asks for all of the content to be fetched. `address`: where the reader is, whom that
        is charged to.

        Raises:
            FormatError: an identifier that is none.
        """
        content, cids = cid_from_bytes(message.content), [cid_from_bytes(raw) for raw in message.blocks]
        blocks, missed = await self._run(self._collect, cids)
        is_walk, reader = cids == [content], account_of(address)
        self.warmer.served(reader, sum(len(block) for block in blocks if block is not None))
        if missed or is_walk:
            self.warmer.want(content, missed, walk=is_walk, reader=reader)
        self.popularity.served(content, _data_bytes(cids, blocks))
        return blocks

    def _collect(self, cids: Sequence[CID]) -> tuple[list[bytes | None], list[CID]]:
        """Blocks while there is room for one more, and those that are not here."""
        blocks: list[bytes | None] = []
        missed: list[CID] = []
        room = EDGE_REPLY_BYTES_MAX
        for cid in cids:
            if room <= 0:
                blocks.append(None)
                continue
            block = self._cache.get(cid)
            if block is None:
                missed.append(cid)
            elif len(block) > room:
                block, room = None, 0
            else:
                room -= len(block)
            blocks.append(block)
        return blocks, missed

    async def block(self, cid: CID) -> bytes | None:
        """A block that is here. A miss is counted; nobody knows of which content it is, so nothing is fetched."""
        return await self._run(self._cache.get, cid)

    # -- what the warmer needs: warming.py, Shelf -------------------------------------------------------------------------

    async def peek(self, cid: CID) -> bytes | None:
        return await self._run(self._cache.peek, cid)

    async def wants(self, cids: Sequence[tuple[CID, int]]) -> list[bool]:
        return await self._run(lambda: [self._cache.wants(cid, size) for cid, size in cids])

    async def keep(self, content: CID, blocks: Sequence[tuple[CID, bytes]]) -> None:
        kept = await self._run(lambda: [cid for cid, block in blocks if self._cache.put(cid, block)])
        if content in kept:
            self._announce(content)

    # -- announcing -------------------------------------------------------------------------------------------------------

    def _announce(self, content: CID) -> None:
        """Whoever has the root of a content can be asked for it."""
        if content in self._announced or len(self._announced) >= ANNOUNCED_MAX:
            return
        try:
            self._parts.announcer.announce_content(content, EDGE_KIND)
        except LimitError as error:
            event(_log, logging.WARNING, "content not announced", error=error)
        else:
            self._announced.add(content)

    def _on_gone(self, gone: list[CID]) -> None:
        """From the cache, in a thread of the pool."""
        self._loop.call_soon_threadsafe(self._withdraw, gone)

    def _withdraw(self, gone: list[CID]) -> None:
        for cid in gone:
            if cid in self._announced:
                self._announced.discard(cid)
                self._parts.announcer.withdraw_content(cid, EDGE_KIND)

    # -- what is told -----------------------------------------------------------------------------------------------------

    def summary(self) -> dict[str, object]:
        """For /healthz, which anybody may read: counts and sizes only."""
        counters = self._cache.counters
        return {
            "blocks": self._cache.count,
            "bytes": self._cache.size,
            "bytes_max": self._config.edge_bytes_max,
            "hits": counters.hits,
            "misses": counters.misses,
            "hit_bytes": counters.hit_bytes,
            "evictions": counters.evicted,
            "warming": self.warmer.busy,
        }

    def add_metrics(self, metrics: Registry) -> None:
        cache, counters, warming = self._cache, self._cache.counters, self.warmer.counters
        metrics.total("dds_edge_hits_total", "Blocks that were asked for and here.", lambda: counters.hits)
        metrics.total("dds_edge_misses_total", "Blocks that were asked for and not here.", lambda: counters.misses)
        metrics.total("dds_edge_hit_bytes_total", "Bytes of blocks served.", lambda: counters.hit_bytes)
        gone = "Blocks that went, by why: for others, unread for too long, damaged."
        metrics.totals(
            "dds_edge_evictions_total",
            gone,
            ("reason",),
            lambda: {("demand",): counters.evicted, ("age",): counters.expired, ("damage",): counters.damaged},
        )
        metrics.total("dds_edge_write_failures_total", "Blocks that could not be written.", lambda: counters.failed)
        metrics.total("dds_edge_warmed_bytes_total", "Bytes of blocks fetched.", lambda: warming.fetched_bytes)
        unserved = "Contents not fetched, by why: too much under way, not to be read, more than was served allows."
        metrics.totals(
            "dds_edge_unwarmed_total",
            unserved,
            ("reason",),
            lambda: {
                ("busy",): warming.dropped,
                ("failed",): warming.failed,
                ("budget",): warming.over_budget,
            },
        )
        metrics.gauge("dds_edge_bytes", "Bytes of blocks kept.", lambda: cache.size)
        metrics.gauge("dds_edge_blocks", "Blocks kept.", lambda: cache.count)
        budget = "Bytes that may be fetched for what readers miss."
        metrics.gauge("dds_edge_warming_budget_bytes", budget, lambda: self.warmer.budget.left_bytes)
        metrics.gauge("dds_edge_warming", "Contents being fetched or waiting for it.", lambda: self.warmer.busy)

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._parts.pool, partial(work, *args, **kwargs))


def _data_bytes(cids: Sequence[CID], blocks: Sequence[bytes | None]) -> int:
    """Of the user's data: looking through a directory is no reading of what is in it."""
    return sum(len(block) for cid, block in zip(cids, blocks, strict=True) if block is not None and codec_of(cid) == RAW)

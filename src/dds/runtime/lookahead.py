"""Keeps a few batches of blocks between the reader and the packer, so that it can be found out which of them need not be sent.

Runs in the worker thread of a put. Decides how far ahead of the packer blocks are looked for; where they lie is decided on the
event loop (runtime/dedup.py). Memory: at most AHEAD_BATCHES + 1 batches of BATCH_BYTES_MAX.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from dds.content.block import Block
from dds.primitives.cid import CID
from dds.primitives.units import MIB
from dds.protocol.hooks import Lookups
from dds.runtime.dedup import NETWORK, OFF, Batch, Reuse
from dds.runtime.packer import Packer, Place
from dds.storage.catalog import Catalog

BATCH_BYTES_MAX: Final = 8 * MIB
BATCH_BLOCKS_MAX: Final = 256
AHEAD_BATCHES: Final = 3

Await = Callable[[Coroutine[Any, Any, dict[CID, Place]]], dict[CID, Place]]


@dataclass(slots=True)
class LookAhead:
    """Use: `into` the packer, `block` for each block, `finish`; meanwhile the packer asks `known`."""

    reuse: Reuse
    catalog: Catalog
    loop: asyncio.AbstractEventLoop
    wait: Await  # runs on the loop, blocks this thread
    reused_bytes: int = 0
    from_others_bytes: int = 0
    _filling: list[tuple[Block, int]] = field(default_factory=list)
    _filled_bytes: int = 0
    _lookups: Lookups = field(default_factory=Lookups)
    _waiting: deque[tuple[Batch, list[tuple[Block, int]]]] = field(default_factory=deque)
    _sizes: dict[CID, int] = field(default_factory=dict)  # of the batch that is being packed
    _places: dict[CID, Place] = field(default_factory=dict)

    def block(self, packer: Packer, block: Block, position: int) -> None:
        """Take the next block of the content; older ones are packed when their fate is known."""
        if self.reuse.mode == OFF:
            packer.block(block, position)
            return
        self._filling.append((block, position))
        self._filled_bytes += len(block.data)
        if self._filled_bytes >= BATCH_BYTES_MAX or len(self._filling) >= BATCH_BLOCKS_MAX:
            self._begin(is_last=False)
            while len(self._waiting) > (AHEAD_BATCHES if self.reuse.mode == NETWORK else 0):
                self._pack(packer)

    def finish(self, packer: Packer) -> None:
        """Pack what is left."""
        if self._filling:
            self._begin(is_last=True)
        while self._waiting:
            self._pack(packer)
        self._sizes, self._places = {}, {}

    def known(self, block: CID) -> Place | None:
        """Where the network already has a block, if it is worth relying on."""
        if self.reuse.mode == OFF:
            return None
        if block not in self._sizes:  # a section of the manifest, which comes unannounced
            batch = Batch({block: 0}, dict(self.catalog.lookup([block])))
            return self.wait(self.reuse.decide(batch, at_home=True)).get(block) if batch.home else None
        place = self._places.get(block)
        if place is not None:
            self.reused_bytes += self._sizes[block]
            if place.segment in self.reuse.from_others:
                self.from_others_bytes += self._sizes[block]
        return place

    def _begin(self, *, is_last: bool) -> None:
        blocks, self._filling, self._filled_bytes = self._filling, [], 0
        sizes = {block.cid: len(block.data) for block, _ in blocks}
        batch = Batch(sizes, self.catalog.lookup(list(sizes)), self._lookups.of(sizes, is_last=is_last))
        if self.reuse.mode == NETWORK:
            self.loop.call_soon_threadsafe(self.reuse.begin, batch)
        self._waiting.append((batch, blocks))

    def _pack(self, packer: Packer) -> None:
        batch, blocks = self._waiting.popleft()
        self._sizes = batch.sizes
        self._places = self.wait(self.reuse.decide(batch)) if batch.home or self.reuse.mode == NETWORK else {}
        for block, position in blocks:
            packer.block(block, position)

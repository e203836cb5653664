"""Hooks in the DHT: asks who has a block, and announces the segments that a put has made.

Decides how many values of a place are looked at, how many segments a block may lead to, and at what rate announcements go out.
Does not choose the blocks (protocol/hooks.py) and believes a record only as far as its signature: that a segment exists and
holds the block is found out by runtime/dedup.py. Source: docs/spec/deduplication.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dds.primitives.cid import CID
from dds.primitives.errors import DDSError
from dds.primitives.ids import NodeID, SegmentID
from dds.protocol.discovery import select_records, unseal_all
from dds.runtime.network import Network
from dds.transport.dht import DHTNode, ValueType
from dds.wire.discovery import (
    HOLDERS_MAX,
    HOOK_LIFETIME_MS,
    RECORD_VERSION,
    SEGMENT_HOOK,
    Place,
    SegmentHook,
    hook_place,
    seal,
    sign_record,
    unseal,
)

log = logging.getLogger(__name__)

LOOKUP_TIMEOUT_S: Final = 3.0  # a DHT with dead nodes says after 1.2 s that it has nothing; what it has comes in 0.05 s
GRACE_S: Final = 0.05  # further values are waited for so long
LOOKUPS_AT_ONCE: Final = 16
LOOKUPS_WAITING_MAX: Final = 32  # beyond it a lookup is left out: the DHT is too slow for its answer to matter
VALUES_MAX: Final = 64  # sealed values of one place; past this a place is under attack and a sample must do
VALUES_SEEN_MAX: Final = 1024
SEGMENTS_PER_BLOCK_MAX: Final = 3  # segments tried for one block
HOOKS_PER_PUT_MAX: Final = 512
HOOKS_PER_S_MAX: Final = 200
HOOK_TIMEOUT_S: Final = 1.5  # live nodes have a value long before; dead ones are waited for


@dataclass(frozen=True, slots=True)
class NewHook:
    """A block to announce, and the segment that it leads to."""

    block: CID
    segment_id: SegmentID
    holders: tuple[NodeID, ...]  # by fragment index


class Hooks:
    """The hooks of one network, as one client sees and makes them."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._seed = os.urandom(32)
        self._turns = asyncio.Semaphore(LOOKUPS_AT_ONCE)
        self._waiting = 0

    async def find(self, block: CID) -> list[SegmentHook]:
        """Verified hooks of a block, at most SEGMENTS_PER_BLOCK_MAX: our own first, a flood notwithstanding."""
        if self._waiting >= LOOKUPS_AT_ONCE + LOOKUPS_WAITING_MAX:
            return []
        self._waiting += 1
        try:
            async with self._turns:
                dht = await self._network.dht()
                values = [] if dht is None else await self._values(dht, hook_place(self._network.name, block))
        finally:
            self._waiting -= 1
        return self._select(block, values)

    async def _values(self, dht: DHTNode, place: Place) -> list[bytes]:
        """What is there soon: an answer's end may take a second longer than its values."""
        loop, found, some = asyncio.get_running_loop(), list[bytes](), asyncio.Event()

        def accept(value: bytes) -> bool:  # on OpenDHT's thread
            if unseal(place, value) is None:
                return False
            found.append(value)
            with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
                loop.call_soon_threadsafe(some.set)
            return True

        get = dht.get(place.key, limit=VALUES_MAX, seen_max=VALUES_SEEN_MAX, timeout_s=LOOKUP_TIMEOUT_S, accept=accept)
        whole, first = asyncio.ensure_future(get), asyncio.ensure_future(some.wait())
        try:
            await asyncio.wait((whole, first), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((whole,), timeout=GRACE_S)
        finally:
            for task in (whole, first):
                task.cancel()
            await asyncio.gather(whole, first, return_exceptions=True)
        return found[:VALUES_MAX]

    def _select(self, block: CID, values: Sequence[bytes]) -> list[SegmentHook]:
        place = hook_place(self._network.name, block)
        selection = select_records(
            unseal_all(values, place, SEGMENT_HOOK),
            SEGMENT_HOOK,
            self._network.name,
            self._network.now_ms(),
            subject=block,
            last_good=(self._network.key.public,),
            seed=self._seed,
            limit=SEGMENTS_PER_BLOCK_MAX,
        )
        return selection.records

    def announce(self, hooks: Sequence[NewHook]) -> None:
        """Announce in the background, at most HOOKS_PER_PUT_MAX and HOOKS_PER_S_MAX."""
        if hooks:
            self._network.in_background(self._announce(hooks[:HOOKS_PER_PUT_MAX]))

    async def _announce(self, hooks: Sequence[NewHook]) -> None:
        dht = await self._network.dht()
        if dht is None:
            return
        async with asyncio.TaskGroup() as group:
            for hook in hooks:
                group.create_task(self._put(dht, hook))
                await asyncio.sleep(1 / HOOKS_PER_S_MAX)

    async def _put(self, dht: DHTNode, hook: NewHook) -> None:
        network, now_ms = self._network, self._network.now_ms()
        record = SegmentHook(
            version=RECORD_VERSION,
            network=network.name,
            block=hook.block,
            segment_id=hook.segment_id,
            publisher=network.key.public,
            holders=list(hook.holders[:HOLDERS_MAX]),
            seq=now_ms,
            expires_ms=now_ms + HOOK_LIFETIME_MS,
        )
        place = hook_place(network.name, hook.block)
        value = seal(place, SEGMENT_HOOK, sign_record(network.key, SEGMENT_HOOK, record))
        try:
            await dht.put(place.key, value, ValueType.HOOK, timeout_s=HOOK_TIMEOUT_S)
        except DDSError as error:
            log.info("a hook was not announced: %s", error.message)

"""Asking the DHT who has a content or a segment.

Decides: caching, sharing of one question among askers, and what is remembered when the DHT fails. Does not choose among
records (protocol/discovery.py) and dials nobody. Source: docs/spec/discovery.md, "Choosing".

A DHT with dead nodes answers in about a second, so a reader dials `remembered` holders while `find_*` is under way.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dds.primitives.cid import CID
from dds.primitives.ids import NodeID, SegmentID
from dds.protocol.discovery import Memory, select_records, unseal_all
from dds.runtime.peers import wall_clock_ms
from dds.transport.dht import DHTNode
from dds.wire.discovery import (
    CONTENT_ANNOUNCE,
    CONTENT_PROVIDER,
    SEGMENT_PROVIDER,
    ContentAnnounce,
    ContentProvider,
    Kind,
    Place,
    R,
    SegmentProvider,
    content_place,
    is_current,
    segment_place,
    unseal,
)

VALUES_WANTED_MAX: Final = 512  # sealed values of one answer; past this a key is under attack and a sample must do
CACHE_ENTRIES_MAX: Final = 1024
FRESH_MS: Final = 60_000
FRESH_EMPTY_MS: Final = 2_000  # nobody has it: ask again soon


@dataclass(frozen=True)
class ContentHolders:
    """Who serves a content, best first: by their own word, and by its publishers'."""

    providers: list[ContentProvider]
    announces: list[ContentAnnounce]

    @property
    def node_ids(self) -> list[NodeID]:
        """Both sorts together; a provider's own word comes first."""
        own = [NodeID(record.node_id) for record in self.providers]
        named = [NodeID(holder) for record in self.announces for holder in record.holders]
        return list(dict.fromkeys(own + named))


@dataclass(frozen=True)
class _Answer:
    """What was selected out of one get: at most RECORDS_MAX of each kind, so a flooded key stays small in the cache."""

    asked_ms: int
    providers: list[ContentProvider]
    announces: list[ContentAnnounce]
    segments: list[SegmentProvider]

    @property
    def is_empty(self) -> bool:
        return not (self.providers or self.announces or self.segments)


class Locator:
    """Finds providers through the DHT.

    Args:
        seed: 32 secret bytes of this node, for the draw among unknown providers.
    """

    def __init__(self, network: str, dht: DHTNode, seed: bytes, *, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._network = network
        self._dht = dht
        self._seed = seed
        self._clock_ms = clock_ms
        self._memory = Memory()
        self._cache: OrderedDict[bytes, _Answer] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[_Answer]] = {}

    async def find_content(self, content: CID, *, timeout_s: float = 10.0, fresh: bool = False) -> ContentHolders:
        """Who serves this content. Empty lists: nobody that the DHT knows of.

        Args:
            fresh: do not answer from the cache.

        Raises:
            UnavailableError: the DHT node is not running.
        """
        answer = await self._answer(content_place(self._network, content), content, timeout_s, fresh)
        return ContentHolders(
            self._in_order(answer.providers, CONTENT_PROVIDER, content),
            self._in_order(answer.announces, CONTENT_ANNOUNCE, content),
        )

    async def find_segment(
        self, segment_id: SegmentID, *, timeout_s: float = 10.0, fresh: bool = False
    ) -> list[SegmentProvider]:
        """Who holds which fragment index of this segment.

        Raises:
            UnavailableError: the DHT node is not running.
        """
        answer = await self._answer(segment_place(self._network, segment_id), segment_id, timeout_s, fresh)
        return self._in_order(answer.segments, SEGMENT_PROVIDER, segment_id)

    def remembered(self, subject: CID | SegmentID) -> list[NodeID]:
        """Nodes that had this content or segment before, the latest success first. Answers at once."""
        return [NodeID(signer) for signer in self._memory.recall(subject)]

    def proved(self, subject: CID | SegmentID, node_id: NodeID) -> None:
        """The node had it: it is asked first from now on."""
        self._memory.proved(subject, node_id)

    def failed(self, subject: CID | SegmentID, node_id: NodeID) -> None:
        """The node did not have it after all."""
        self._memory.failed(subject, node_id)

    def _in_order(self, records: list[R], kind: Kind[R], subject: bytes) -> list[R]:
        """Still current ones, those that proved good first."""
        now_ms = self._clock_ms()
        rank = {signer: at for at, signer in enumerate(self._memory.recall(subject))}
        current = [record for record in records if is_current(record, kind, now_ms)]
        return sorted(current, key=lambda record: rank.get(kind.signer(record), len(rank)))

    async def _answer(self, place: Place, subject: bytes, timeout_s: float, fresh: bool) -> _Answer:
        cached = self._cache.get(place.key)
        if cached is not None and not fresh:
            age_ms = self._clock_ms() - cached.asked_ms
            if 0 <= age_ms < (FRESH_EMPTY_MS if cached.is_empty else FRESH_MS):
                return cached
        task = self._asking.get(place.key)
        if task is None:
            task = self._asking[place.key] = asyncio.create_task(self._ask(place, subject, timeout_s))
        return await asyncio.shield(task)

    async def _ask(self, place: Place, subject: bytes, timeout_s: float) -> _Answer:
        try:
            values = await self._dht.get(
                place.key,
                limit=VALUES_WANTED_MAX,
                timeout_s=timeout_s,
                accept=lambda value: unseal(place, value) is not None,
            )
        finally:
            del self._asking[place.key]
        answer = _Answer(
            self._clock_ms(),
            self._select(values, place, CONTENT_PROVIDER, subject),
            self._select(values, place, CONTENT_ANNOUNCE, subject),
            self._select(values, place, SEGMENT_PROVIDER, subject),
        )
        self._cache[place.key] = answer
        self._cache.move_to_end(place.key)
        if len(self._cache) > CACHE_ENTRIES_MAX:
            self._cache.popitem(last=False)
        return answer

    def _select(self, values: list[bytes], place: Place, kind: Kind[R], subject: bytes) -> list[R]:
        signed = unseal_all(values, place, kind)
        last_good = self._memory.recall(subject)
        now_ms = self._clock_ms()
        return select_records(
            signed, kind, self._network, now_ms, subject=subject, last_good=last_good, seed=self._seed
        ).records

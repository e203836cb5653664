"""Who holds which fragments of a segment, beyond what a manifest says: asked of the nodes themselves and of the DHT.

A manifest names the nodes that its segments were meant for when it was signed; some were replaced while they were sent, others
left since. What is found here are hints like any other: a wrong one costs a request.

Decides whom to ask and how many. Does not decide when that is worth it (fetcher.py, get.py).
"""

from __future__ import annotations

import asyncio
from typing import Final

from dds.primitives.errors import DDSError
from dds.primitives.ids import NodeID, SegmentID
from dds.runtime.network import Network
from dds.runtime.segments import Segment
from dds.runtime.tasks import gather_all
from dds.wire.api import HoldingReply, HoldingRequest

TIMEOUT_S: Final = 3.0
REPLY_BYTES_MAX: Final = 64 << 10
NODES_ASKED_MAX: Final = 128
ASKED_AT_ONCE: Final = 32


async def indices_held(network: Network, node: NodeID, segment_id: SegmentID) -> list[int]:
    """The fragment indices of a segment that a node says it holds; none if it does not answer."""
    request = HoldingRequest([segment_id])
    try:
        reply = await network.client.call(
            node, "/v1/segments", request, HoldingReply, max_bytes=REPLY_BYTES_MAX, timeout_s=TIMEOUT_S
        )
    except DDSError:
        return []
    return reply.indices[0] if len(reply.indices) == 1 else []


async def holders_among_known(network: Network, segment_id: SegmentID) -> list[tuple[int, NodeID]]:
    """Ask every node we know, up to NODES_ASKED_MAX, what it holds of a segment: (fragment index, node)."""
    room = asyncio.Semaphore(ASKED_AT_ONCE)

    async def ask(node: NodeID) -> list[tuple[int, NodeID]]:
        async with room:
            return [(index, node) for index in await indices_held(network, node, segment_id)]

    nodes = network.known_nodes()[:NODES_ASKED_MAX]
    return [found for answer in await gather_all([ask(node) for node in nodes]) for found in answer]


async def search_holders(network: Network, segment: Segment) -> bool:
    """Ask the DHT and every node we know, up to NODES_ASKED_MAX, who holds the segment. Whether anybody new was found."""
    answers = await gather_all([network.segment_holders(segment.segment_id), holders_among_known(network, segment.segment_id)])
    new = [(index, node) for answer in answers for index, node in answer if segment.learn_holder(index, node)]
    return bool(new)

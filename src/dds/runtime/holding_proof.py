"""Whether a node really has what it gave a receipt for: leaves drawn at random, with their paths to the fragment's root.

Decides how many leaves are asked for, and how often. Does not decide what follows from it (tiering.py). It is a check of one's
own, at once; what the ledger pays and punishes by are audits (docs/spec/proofs.md).
Source: docs/spec/tiering.md, "Moving"; docs/spec/wire.md.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from dds.erasure.fragment_tree import verify_leaf
from dds.primitives.errors import DDSError, UnavailableError
from dds.primitives.ids import NodeID
from dds.runtime.network import Network
from dds.wire.api import LeavesReply, LeavesRequest
from dds.wire.segment import EncodingRecord

ATTEMPTS: Final = 3
PAUSE_S: Final = 0.5  # between them
TIMEOUT_S: Final = 10.0
LEAVES_CHECKED: Final = 3
LEAVES_REPLY_BYTES_MAX: Final = 64 << 10


async def prove_holding(network: Network, record: EncodingRecord, index: int, node: NodeID, source: random.Random) -> None:
    """Returns when `node` has proven some leaves of fragment `index`.

    Raises:
        UnavailableError: it does not, though it was asked ATTEMPTS times.
    """
    why = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(PAUSE_S)
        why = await _ask_for_leaves(network, record, index, node, source)
        if not why:
            return
    raise UnavailableError(
        f"node {network.describe(node)} does not prove fragment {index} that it has just taken: {why}",
        hint="nothing has changed; run the same move again",
    )


async def _ask_for_leaves(network: Network, record: EncodingRecord, index: int, node: NodeID, source: random.Random) -> str:
    """Empty, or what is wrong."""
    held = record.fragments_of(index)
    for _ in range(LEAVES_CHECKED):
        _, fragment = source.choice(held)
        leaf = source.randrange(fragment.leaf_count)
        request = LeavesRequest(fragment.root, leaf, 1)
        try:
            reply = await network.client.call(
                node, "/v1/leaves", request, LeavesReply, max_bytes=LEAVES_REPLY_BYTES_MAX, timeout_s=TIMEOUT_S
            )
        except DDSError as error:
            return error.message
        proven = len(reply.leaves) == len(reply.paths) == 1
        if not proven or not verify_leaf(fragment, leaf, reply.leaves[0], reply.paths[0]):
            return f"leaf {leaf} of fragment {fragment.root.hex()[:16]} does not match its root"
    return ""

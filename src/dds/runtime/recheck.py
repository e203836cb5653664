"""Asking a node for a leaf that it has not proven, before anybody speaks of a loss.

Decides what counts as lost: the node is there, and says that it has not got the segment or the leaf, or that it is damaged, or
gives other bytes. Everything else is no loss: a node that is away, busy or broken in other ways, or a segment that the ledger
describes otherwise than its encoding record does. Does not decide whom to ask, nor what follows (protocol/audit_round.py).
Source: docs/spec/proofs.md, "Witnesses".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from dds.primitives.errors import DDSError, FormatError, PeerRefused, PeerTimeout, PeerUnreachable
from dds.primitives.ids import NodeID, id_text
from dds.primitives.units import KIB, RECORD_BYTES_MAX
from dds.proofs.audit import Asked, statement_holds, statement_of
from dds.proofs.challenge import SegmentFacts, Target, spot_of
from dds.protocol.audit_round import Held
from dds.transport.client import PeerClient
from dds.wire.api import SEGMENT_REPLY_BYTES_MAX, LeavesReply, LeavesRequest, SegmentReply
from dds.wire.codec import decode
from dds.wire.segment import EncodingRecord, decode_encoding
from dds.wire.signed import ENVELOPE_BYTES_MAX, Signed

TIMEOUT_S: Final = 10.0
LEAF_REPLY_BYTES_MAX: Final = 8 * KIB
LOST_CODES: Final = frozenset({"not-found", "corrupt"})


class Rechecker:
    """Asks nodes by NodeID; `learn` tells the client where one is, or raises PeerUnreachable."""

    def __init__(self, client: PeerClient, learn: Callable[[NodeID], None]) -> None:
        self._client, self._learn = client, learn

    async def look_at(self, asked: Asked, targets: tuple[Target, ...]) -> tuple[tuple[Target, Held], ...]:
        """Each target once; the rest is not asked when the node turns out to be away."""
        found: list[tuple[Target, Held]] = []
        for target in targets:
            held = await self._look(NodeID(asked.node_id), target, asked.segments[target.segment_id])
            found.append((target, held))
            if held is Held.OFFLINE:
                break
        return tuple(found)

    async def _look(self, node: NodeID, target: Target, facts: SegmentFacts) -> Held:
        try:
            self._learn(node)
            encoding = await self._encoding(node, target, facts)
            if encoding is None or not _agree(encoding, target, facts):
                return Held.UNKNOWN
            root = encoding.records[target.stripe][target.index].root
            request = LeavesRequest(root, target.leaf, 1)
            reply = await self._client.call(
                node, "/v1/leaves", request, LeavesReply, max_bytes=LEAF_REPLY_BYTES_MAX, timeout_s=TIMEOUT_S
            )
        except PeerRefused as error:
            return Held.LOST if error.remote_code in LOST_CODES else Held.UNKNOWN
        except (PeerUnreachable, PeerTimeout):
            return Held.OFFLINE
        except DDSError:
            return Held.UNKNOWN
        return Held.HELD if _gives(reply, encoding, target, facts) else Held.LOST

    async def _encoding(self, node: NodeID, target: Target, facts: SegmentFacts) -> EncodingRecord | None:
        """The one that the ledger's root is of. Its root is checked, so that whoever signed it does not matter."""
        path = f"/v1/segments/{id_text(target.segment_id)}"
        raw = await self._client.get(node, path, max_bytes=SEGMENT_REPLY_BYTES_MAX, timeout_s=TIMEOUT_S)
        for signed in decode(raw, SegmentReply, max_bytes=SEGMENT_REPLY_BYTES_MAX).encodings:
            try:
                envelope = decode(signed, Signed, max_bytes=RECORD_BYTES_MAX + ENVELOPE_BYTES_MAX)
                encoding = decode_encoding(envelope.payload)
            except FormatError:
                continue
            if encoding.segment_id == target.segment_id and encoding.root() == facts.segment_root:
                return encoding
        return None


def _agree(encoding: EncodingRecord, target: Target, facts: SegmentFacts) -> bool:
    """Whether ledger and encoding record mean the same fragment by the target."""
    spot = spot_of(facts.stripes, target.stripe, target.index)
    if spot is None or target.stripe >= len(encoding.records) or target.index >= len(encoding.records[target.stripe]):
        return False
    before = sum(len(row) for row in encoding.records[: target.stripe])
    return spot.position == before + target.index and spot.size == encoding.records[target.stripe][target.index].size


def _gives(reply: LeavesReply, encoding: EncodingRecord, target: Target, facts: SegmentFacts) -> bool:
    if len(reply.leaves) != 1 or len(reply.paths) != 1:
        return False
    return statement_holds(statement_of(encoding, target, reply.leaves[0], reply.paths[0]), facts)

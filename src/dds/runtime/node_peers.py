"""The questions that a node asks other nodes: are you there, and whom do you know.

Decides how they are asked. Does not decide whom to ask, when, or what to make of the answer (peers.py, protocol/peers.py).
"""

from __future__ import annotations

import asyncio
from typing import Final

from dds.primitives.errors import FormatError, PeerProtocolError, PeerUnreachable
from dds.primitives.ids import NodeID, id_text
from dds.protocol.peers import PeerTable
from dds.transport.client import PeerClient
from dds.wire.api import PEERS_REPLY_BYTES_MAX, PeersReply
from dds.wire.codec import decode
from dds.wire.discovery import SIGNED_RECORD_BYTES_MAX, parse_address

TIMEOUT_S: Final = 5.0


class PeerQuestions:
    """Asks by NodeID, at the addresses that the peer table knows."""

    def __init__(self, client: PeerClient, table: PeerTable) -> None:
        self._client, self._table = client, table

    async def probe(self, node: NodeID) -> float:
        """Seconds until the peer, under its own key, gave its record.

        Raises:
            RemoteError
        """
        self.learn(node)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._client.get(node, "/v1/node", max_bytes=SIGNED_RECORD_BYTES_MAX, timeout_s=TIMEOUT_S)
        return loop.time() - began

    async def fetch_peers(self, node: NodeID) -> list[bytes]:
        """Signed node records, unchecked.

        Raises:
            RemoteError
        """
        self.learn(node)
        raw = await self._client.get(node, "/v1/peers", max_bytes=PEERS_REPLY_BYTES_MAX, timeout_s=TIMEOUT_S)
        try:
            return decode(raw, PeersReply, max_bytes=PEERS_REPLY_BYTES_MAX).records
        except FormatError as error:
            raise PeerProtocolError(error.message, peer=id_text(node)) from None

    def learn(self, node: NodeID) -> None:
        """Let the client dial the node where the table knows it to be.

        Raises:
            PeerUnreachable: it is nowhere.
        """
        peer = self._table.get(node)
        if peer is None or not peer.addresses:
            raise PeerUnreachable("no address of this node is known", peer=id_text(node))
        self._client.learn(node, [parse_address(address) for address in peer.addresses])

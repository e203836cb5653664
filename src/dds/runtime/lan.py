"""Peers of the local network: whoever is found there is asked whom it knows.

Decides how fast finds are asked and what becomes of the answers: signed node records, offered to whoever keeps them. A find is
dialled under the NodeID that it names, so a stranger on the LAN costs a failed dial and nothing else. Does not speak multicast
(transport/lan.py) and judges no record (protocol/peers.py). Source: docs/spec/discovery.md, "On the LAN".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from dds.primitives.errors import DDSError
from dds.primitives.ids import NodeID, id_text
from dds.transport.client import PeerClient
from dds.transport.lan import FINDS_MAX, Lan, LanNode, LanService
from dds.wire.api import PEERS_MAX, PEERS_REPLY_BYTES_MAX, PeersReply
from dds.wire.codec import decode

log = logging.getLogger("dds.lan")

ASK_TIMEOUT_S: Final = 3.0
ASK_PAUSE_S: Final = 0.1  # between two finds: bounds what a flood of names can cost

Offer = Callable[[bytes, NodeID], object]  # a signed node record, and who sent it


class LanPeers:
    """Looks for nodes on the LAN for as long as it runs.

    Args:
        offer: told of each record, its sender's own among them.
        service: what to say of ourselves; None: a client, which only looks.
    """

    def __init__(
        self, client: PeerClient, network: str, interface: str, offer: Offer, service: LanService | None = None
    ) -> None:
        self._client, self._offer = client, offer
        self._finds: asyncio.Queue[LanNode] = asyncio.Queue(FINDS_MAX)
        self._lan = Lan(network, interface, self._on_found, service)
        self._first = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.answered: list[NodeID] = []  # that proved their NodeID, in order; at most FINDS_MAX

    @property
    def found(self) -> list[LanNode]:
        """Everybody who says that it is there, proven or not."""
        return self._lan.found

    def start(self) -> None:
        """Begin, in the background: a LAN that cannot be spoken to is logged and hinders nobody."""
        self._tasks = [asyncio.create_task(self._speak()), asyncio.create_task(self._ask_loop())]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._lan.stop()

    async def wait_for_first(self, timeout_s: float) -> bool:
        """Wait until one node has answered. Whether one did in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._first.wait()
        return self._first.is_set()

    def _on_found(self, find: LanNode) -> None:
        if not self._finds.full():
            self._finds.put_nowait(find)

    async def _speak(self) -> None:
        try:
            await self._lan.start()
        except DDSError as error:
            log.warning("not on the LAN: %s", error)

    async def _ask_loop(self) -> None:
        while True:
            await self._ask(await self._finds.get())
            await asyncio.sleep(ASK_PAUSE_S)

    async def _ask(self, find: LanNode) -> None:
        node = find.node_id
        known = self._client.known(node)  # where it is known to be comes first: a stranger's word displaces nothing
        self._client.learn(node, list(dict.fromkeys((*known, *find.addresses))))
        try:
            raw = await self._client.get(node, "/v1/peers", max_bytes=PEERS_REPLY_BYTES_MAX, timeout_s=ASK_TIMEOUT_S)
            reply = decode(raw, PeersReply, max_bytes=PEERS_REPLY_BYTES_MAX)
        except DDSError as error:
            log.info("%s, found on the LAN, does not answer: %s", id_text(node), error.message)
            return
        for record in reply.records[:PEERS_MAX]:
            self._offer(record, node)
        if node not in self.answered and len(self.answered) < FINDS_MAX:
            self.answered.append(node)
        self._first.set()

"""The host of dialling back: dials a caller where it says it is, and asks others to do the same for this node.

Decides deadlines and what is told of a failure. Who may ask, which addresses are tried and who is asked: protocol/dialback.py.
Each dial is a connection of its own: a pooled one would show that the caller dialled us, not that it can be dialled.

Source: docs/spec/wire.md, "Dial-back".
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

from dds.primitives.errors import DDSError, InputError, LimitError, NotFoundError, PeerTimeout, RemoteError
from dds.primitives.ids import NodeID
from dds.primitives.keys import SigningKey
from dds.protocol.dialback import DialbackGate, callers_record, check_transfer, choose_observers, may_dial
from dds.protocol.peers import Peer, PeerTable
from dds.transport.bandwidth import Bandwidth
from dds.transport.client import Distance, PeerClient
from dds.transport.limits import ClientLimits
from dds.transport.routes import Request, Response, Route, refusal, rpc_route
from dds.wire.dialback import (
    DIALBACK_REPLY_BYTES_MAX,
    DIALBACK_REQUEST_BYTES_MAX,
    NONCE_BYTES,
    PROBLEM_CHARS_MAX,
    SELF_TEST_REPLY_BYTES_MAX,
    SELF_TEST_REQUEST_BYTES_MAX,
    TRANSFER_BYTES_MAX,
    AddressSeen,
    DialbackReply,
    DialbackRequest,
    Observation,
    SelfTestReply,
    SelfTestRequest,
)
from dds.wire.discovery import NODE, SIGNED_RECORD_BYTES_MAX, NodeRecord, open_record, parse_address

RESOLVE_TIMEOUT_S: Final = 2.0
LOOKUPS_MAX: Final = 2  # of names at the same time, those included that nobody waits for any longer
CONNECT_TIMEOUT_S: Final = 4.0
EXCHANGE_TIMEOUT_S: Final = 6.0  # with the connection before it
TRANSFER_TIMEOUT_S: Final = 10.0
OBSERVER_TIMEOUT_S: Final = 50.0  # four addresses, and one transfer; below what a server gives a handler
MICRO: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class DialbackParts:
    """What of a node the host uses."""

    key: SigningKey
    network: str
    table: PeerTable
    client: PeerClient
    learn: Callable[[NodeID], None]  # lets `client` dial a peer of the table
    report: Callable[[NodeID, bool, float | None], object]  # outcomes are news for the peer table
    own_record: Callable[[], bytes]
    bandwidth: Bandwidth
    distance: Distance | None = None
    tunnelled: bool = False  # strangers come through this machine's own loopback too
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class _Offer:
    observer: NodeID
    byte_count: int


class DialbackHost:
    """Both sides of dialling back, of one node."""

    def __init__(self, parts: DialbackParts) -> None:
        self._parts = parts
        self._own_id = NodeID(parts.key.public)
        self._gate = DialbackGate()
        self._names = _Names()
        self._offers: dict[bytes, _Offer] = {}
        self._testing = False

    def routes(self) -> list[Route]:
        return [
            rpc_route(
                "/v1/dialback",
                DialbackRequest,
                self._dialback,
                max_body_bytes=DIALBACK_REQUEST_BYTES_MAX,
                max_reply_bytes=DIALBACK_REPLY_BYTES_MAX,
                peer_required=True,
            ),
            Route("GET", "/v1/dialback/{nonce}", self._send, max_reply_bytes=TRANSFER_BYTES_MAX, peer_required=True),
            self._for_its_own_key(
                rpc_route(
                    "/v1/selftest",
                    SelfTestRequest,
                    self._self_test,
                    max_body_bytes=SELF_TEST_REQUEST_BYTES_MAX,
                    max_reply_bytes=SELF_TEST_REPLY_BYTES_MAX,
                    peer_required=True,
                )
            ),
        ]

    # ---- for others

    async def _dialback(self, request: Request, message: DialbackRequest) -> DialbackReply:
        caller, parts = request.peer, self._parts
        assert caller is not None  # the route requires it
        self._gate.enter(caller, asyncio.get_running_loop().time())
        try:
            record = callers_record(message.record, caller, parts.network, parts.clock_ms())
            seen = await self._look(caller, record, request.address, message)
        finally:
            self._gate.leave()
        return self._reply(caller, seen)

    async def _look(self, caller: NodeID, record: NodeRecord, source: str, message: DialbackRequest) -> tuple[AddressSeen, ...]:
        """Every address once; the bytes that were agreed on are fetched over the first that answers."""
        seen: list[AddressSeen] = []
        left = message.transfer_bytes
        for address in record.addresses:
            found = await self._try(caller, address, source, message.nonce, left)
            seen.append(found)
            if not found.problem:
                left = 0
        dialled = [each for each in seen if each.round_trip_us]
        if dialled:
            self._parts.report(caller, True, min(each.round_trip_us for each in dialled) / MICRO)
        return tuple(seen)

    async def _try(self, caller: NodeID, address: str, source: str, nonce: bytes, byte_count: int) -> AddressSeen:
        host, port = parse_address(address)
        resolved = await self._names.resolve(host)
        if resolved is None:
            return AddressSeen(address, "not tried: too many names are being looked up here", 0, 0)
        if not may_dial(resolved, source, tunnelled=self._parts.tunnelled):
            return AddressSeen(address, f"not tried: your connection came from {source}", 0, 0)
        limits = ClientLimits(connections_max=1, connections_per_peer_max=1, connect_timeout_s=self._parts.connect_timeout_s)
        parts = self._parts
        try:
            async with PeerClient(
                parts.key, network=parts.network, limits=limits, bandwidth=parts.bandwidth, distance=parts.distance
            ) as client:
                client.learn(caller, [(source, port)])
                await _ask_record(client, caller)  # connects
                took_s = await _ask_record(client, caller)
                rate = await _fetch(client, caller, nonce, byte_count) if byte_count else 0
        except DDSError as error:
            return AddressSeen(address, error.message[:PROBLEM_CHARS_MAX], 0, 0)
        return AddressSeen(address, "", max(1, round(took_s * MICRO)), rate)

    def _reply(self, caller: NodeID, seen: tuple[AddressSeen, ...]) -> DialbackReply:
        peer, now_ms = self._parts.table.get(caller), self._parts.clock_ms()
        if peer is None:
            return DialbackReply(seen, now_ms, "", 0, 0, 0)
        latency_us = 0 if peer.latency_s is None else round(peer.latency_s * MICRO)
        return DialbackReply(seen, now_ms, str(peer.health), latency_us, peer.successes, peer.failures)

    # ---- for this node

    def _for_its_own_key(self, route: Route) -> Route:
        async def handle(request: Request) -> Response:
            if request.peer != self._own_id:
                return refusal(403, "not-yours", "only who holds this node's key may let it test itself")
            return await route.handler(request)

        return replace(route, handler=handle)

    async def _self_test(self, _request: Request, message: SelfTestRequest) -> SelfTestReply:
        if self._testing:
            raise LimitError("a self-test is under way already", hint="try again when it has ended")
        self._testing = True
        try:
            parts = self._parts
            raw = parts.own_record()
            candidates = parts.table.candidates(parts.clock_ms())
            chosen = choose_observers(candidates, open_record(raw, NODE, parts.network), message.observers)
            said = await asyncio.gather(*(self._ask(peer, raw, message.transfer_bytes) for peer in chosen))
            return SelfTestReply(len(parts.table), tuple(said))
        finally:
            self._testing = False

    async def _ask(self, peer: Peer, record: bytes, byte_count: int) -> Observation:
        parts, nonce = self._parts, secrets.token_bytes(NONCE_BYTES)
        assert peer.record is not None  # chosen for it
        self._offers[nonce] = _Offer(peer.node_id, byte_count)
        reply, problem, skew_ms = None, "", 0
        try:
            parts.learn(peer.node_id)
            reply = await parts.client.call(
                peer.node_id,
                "/v1/dialback",
                DialbackRequest(record, nonce, byte_count),
                DialbackReply,
                max_bytes=DIALBACK_REPLY_BYTES_MAX,
                timeout_s=OBSERVER_TIMEOUT_S,
            )
            skew_ms = reply.time_ms - parts.clock_ms()
        except RemoteError as error:
            problem = error.message[:PROBLEM_CHARS_MAX]
        finally:
            self._offers.pop(nonce, None)
        return Observation(peer.node_id, peer.record.region, peer.record.operator, problem, skew_ms, reply)

    async def _send(self, request: Request) -> Response:
        """The bytes that were offered to this very observer, once."""
        nonce = _nonce(request.params["nonce"])
        offer = self._offers.get(nonce)
        if offer is None or offer.observer != request.peer:
            raise NotFoundError("nothing was offered under this nonce")
        del self._offers[nonce]
        return Response(200, bytes(offer.byte_count))


class _Names:
    """What strangers' host names stand for. They are looked up in threads of their own, for a name can be made to take its
    resolver's whole patience: nothing else of the process waits behind it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(LOOKUPS_MAX, thread_name_prefix="dialback-names")
        self._free = threading.Semaphore(LOOKUPS_MAX)

    async def resolve(self, host: str) -> Sequence[str] | None:
        """IP addresses; none if nobody knows the name in time, None where too many others are being looked up."""
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            if not self._free.acquire(blocking=False):
                return None
        looking = asyncio.get_running_loop().run_in_executor(self._pool, self._look_up, host)
        await asyncio.wait((looking,), timeout=RESOLVE_TIMEOUT_S)
        return looking.result() if looking.done() else ()

    def _look_up(self, host: str) -> list[str]:
        try:
            return [str(address[0]) for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
        except OSError:  # nobody knows it
            return []
        finally:
            self._free.release()


async def _ask_record(client: PeerClient, node: NodeID) -> float:
    """Seconds of one exchange with a node, which proves its key by the connection."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    await client.get(node, "/v1/node", max_bytes=SIGNED_RECORD_BYTES_MAX, timeout_s=EXCHANGE_TIMEOUT_S)
    return loop.time() - began


async def _fetch(client: PeerClient, node: NodeID, nonce: bytes, byte_count: int) -> int:
    """Bytes a second at which the caller sent what it had offered; 0 where that took too long."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        path = f"/v1/dialback/{nonce.hex()}"
        got = await client.get(node, path, max_bytes=byte_count, timeout_s=TRANSFER_TIMEOUT_S)
    except PeerTimeout:
        return 0
    check_transfer(byte_count, len(got))
    return round(byte_count / max(loop.time() - began, 1 / MICRO))


def _nonce(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text) if len(text) == 2 * NONCE_BYTES and text.isascii() else b""
    except ValueError:
        raw = b""
    if len(raw) != NONCE_BYTES:
        raise InputError("not a nonce", hint=f"{2 * NONCE_BYTES} hexadecimal digits")
    return raw


async def ask_self_test(client: PeerClient, node: NodeID, message: SelfTestRequest) -> SelfTestReply:
    """Let a running node be looked at from outside; `client` must hold the node's own key.

    Raises:
        RemoteError
    """
    return await client.call(
        node, "/v1/selftest", message, SelfTestReply, max_bytes=SELF_TEST_REPLY_BYTES_MAX, timeout_s=OBSERVER_TIMEOUT_S + 5
    )

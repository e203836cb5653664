"""The client of a node: dials peers by NodeID, bounds what they may send and how long they may take.

Decides: which address of a peer is dialled, what is accepted as an answer, which error a failure becomes. Does not decide whom
to ask, nor whether bytes are the right bytes (content hashes do).

Every connection is to a NodeID, proven by key (tls.py), whatever address it goes through; the pool is keyed by NodeID. A peer
that is slow, floods, lies about lengths, compresses or speaks nonsense costs at most the time and bytes that the caller named.

Source: docs/spec/identity.md; RFC 9110, RFC 9112.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.http_exceptions import ContentLengthError
from yarl import URL

from dds.primitives.errors import FormatError, InputError, PeerProtocolError, PeerRefused, PeerTimeout, PeerUnreachable
from dds.primitives.ids import NodeID, id_text
from dds.primitives.keys import SigningKey
from dds.primitives.units import KIB
from dds.transport.bandwidth import PIECE_BYTES, Bandwidth
from dds.transport.bodies import JOIN_BYTES_MAX, read_sized
from dds.transport.certificate import host_name, parse_host_name
from dds.transport.limits import ERROR_BODY_BYTES_MAX, HEADER_LINE_BYTES_MAX, ClientLimits, Traffic
from dds.transport.loop_faults import ignore_closed_connections
from dds.transport.routes import NETWORK_HEADER, OCTETS
from dds.transport.tls import client_context
from dds.wire.api import ErrorReply
from dds.wire.codec import Message, decode, encode

Address = tuple[str, int]
WayTo = Callable[[NodeID], Awaitable["Address | None"]]  # another address for a node, behind which a tunnel lies
Distance = Callable[[NodeID], float]  # seconds of a round trip to a node, added to what the wire takes
Reply = TypeVar("Reply", bound=Message)

PAYMENT_REQUIRED: Final = 402
READ_AHEAD_BYTES: Final = 64 * KIB
CONNECTING_ROUND_TRIPS: Final = 2  # TCP's and TLS 1.3's handshakes
_PATH: Final = re.compile(r"/[!-~]*")
_HOST_CHARS_MAX: Final = 253


class AddressBook(AbstractResolver):
    """Where nodes were last heard of. For aiohttp it is the resolver of `<NodeID>.dds.invalid`."""

    def __init__(self, limits: ClientLimits, distance: Distance | None = None) -> None:
        self._limits, self._distance = limits, distance
        self.way_to: WayTo | None = None
        self._addresses: dict[NodeID, tuple[Address, ...]] = {}

    def learn(self, node_id: NodeID, addresses: Sequence[Address]) -> None:
        """Replace what is known of a node. Addresses are tried in order."""
        for host, port in addresses:
            if not 0 < port < 0x10000 or not 0 < len(host) <= _HOST_CHARS_MAX:
                raise InputError(f"not an address: {host[:64]!r} port {port}")
        self._addresses.pop(node_id, None)
        self._addresses[node_id] = tuple(addresses[: self._limits.addresses_per_peer_max])
        if len(self._addresses) > self._limits.peers_max:
            del self._addresses[next(iter(self._addresses))]

    def known(self, node_id: NodeID) -> tuple[Address, ...]:
        return self._addresses.get(node_id, ())

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        if self._distance is not None:
            await asyncio.sleep(CONNECTING_ROUND_TRIPS * self._distance(parse_host_name(host)))
        results: list[ResolveResult] = []
        failure = OSError("no address of this node is known")
        node = parse_host_name(host)
        tunnel = await self.way_to(node) if self.way_to is not None else None
        for name, its_port in (*self.known(node), *([tunnel] if tunnel is not None else [])):
            try:
                results += await _look_up(host, name, its_port, family)
            except OSError as error:
                failure = error
        if not results:
            raise failure
        return results

    async def close(self) -> None:
        self._addresses.clear()


async def _look_up(host: str, name: str, port: int, family: int) -> list[ResolveResult]:
    """`name` is an IP address (no look-up is made) or a host name."""
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM, family=family)
    return [
        ResolveResult(hostname=host, host=str(address[0]), port=port, family=its_family, proto=protocol, flags=0)
        for its_family, _, protocol, _, address in found
    ]


class Payer(Protocol):
    """Pays nodes that serve no more without it."""

    def took(self, node: NodeID, path: str, byte_count: int) -> None:
        """So much came from a node. Must be quick."""
        ...

    def gave_up(self, node: NodeID, path: str, byte_count: int) -> None:
        """So much was asked of a node and given up by us; nobody knows how much of it was sent. Must be quick."""
        ...

    async def pay(self, node: NodeID, path: str) -> bool:
        """A request was refused until the node is paid; whether it was, so that it can be repeated."""
        ...


class PeerClient:
    """`async with PeerClient(key, network=...) as client`. Methods may be cancelled at any moment; a request cut off takes its
    connection with it. All raise PeerUnreachable, PeerTimeout, PeerRefused or PeerProtocolError, which name the peer.
    """

    def __init__(
        self,
        key: SigningKey | None,
        *,
        network: str,
        limits: ClientLimits | None = None,
        bandwidth: Bandwidth | None = None,
        distance: Distance | None = None,
        payer: Payer | None = None,
    ) -> None:
        """`distance` makes a network in one machine as slow as a wide one: each exchange waits for one round trip more, a new
        connection for two. Bytes flow as fast as ever."""
        self._peers: dict[NodeID, _Peer] = {}
        self._forgotten = Traffic()  # of peers that were dropped, so that totals stay true
        self._limits = limits or ClientLimits()
        self._bandwidth = bandwidth or Bandwidth()
        self._distance, self._payer = distance, payer
        self._book = AddressBook(self._limits, distance)
        self._network = network
        self._key = key

    async def __aenter__(self) -> Self:
        ignore_closed_connections(asyncio.get_running_loop())
        limits = self._limits
        connector = aiohttp.TCPConnector(
            ssl=client_context(self._key),
            resolver=self._book,
            use_dns_cache=False,
            limit=limits.connections_max,
            limit_per_host=limits.connections_per_peer_max,
            keepalive_timeout=limits.idle_timeout_s,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={NETWORK_HEADER: self._network, "Accept-Encoding": "identity"},
            skip_auto_headers=("User-Agent", "Accept"),
            auto_decompress=False,
            read_bufsize=READ_AHEAD_BYTES,
            max_line_size=HEADER_LINE_BYTES_MAX,
            max_field_size=HEADER_LINE_BYTES_MAX,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    def learn(self, node_id: NodeID, addresses: Sequence[Address]) -> None:
        """Where to dial a node: (IPv4, IPv6 or host name, port), in order of preference; replaces what was known.

        Raises:
            InputError: a port or host name that can't be.
        """
        self._book.learn(node_id, addresses)

    def known(self, node_id: NodeID) -> tuple[Address, ...]:
        return self._book.known(node_id)

    def add_way(self, way_to: WayTo) -> None:
        """A second transport: for connections that no address of a node gives, and to nodes without any."""
        self._book.way_to = way_to

    @property
    def counters(self) -> dict[NodeID, Traffic]:
        """Traffic by peer, live."""
        return {node_id: peer.traffic for node_id, peer in self._peers.items()}

    def total(self) -> Traffic:
        """Traffic with all peers together, a copy."""
        total = Traffic()
        for traffic in (self._forgotten, *(peer.traffic for peer in self._peers.values())):
            total.add(traffic)
        return total

    # ---- requests

    async def get(
        self, node_id: NodeID, path: str, *, range: tuple[int, int] | None = None, max_bytes: int, timeout_s: float
    ) -> bytes:
        """The body under `path`, of at most `max_bytes`; with `range` = (start, stop) exactly those bytes of it."""
        peer = self._peer(node_id)
        if range is None:
            return (await self._exchange(peer, "GET", path, None, None, max_bytes, timeout_s))[1]
        start, stop = range
        assert 0 <= start < stop
        headers = {"Range": f"bytes={start}-{stop - 1}"}
        status, body = await self._exchange(peer, "GET", path, headers, None, min(max_bytes, stop - start), timeout_s)
        if status != 206 or len(body) != stop - start:
            raise PeerProtocolError("the answer is not the range that was asked for", peer=peer.text)
        return body

    async def put(
        self,
        node_id: NodeID,
        path: str,
        body: bytes | memoryview,
        *,
        headers: Mapping[str, str] | None = None,
        max_bytes: int = 64 * KIB,
        timeout_s: float,
    ) -> bytes:
        """Store `body` under `path`; returns the answer's body, of at most `max_bytes`."""
        return (await self._exchange(self._peer(node_id), "PUT", path, headers, body, max_bytes, timeout_s))[1]

    async def post(self, node_id: NodeID, path: str, body: bytes | memoryview, *, max_bytes: int, timeout_s: float) -> bytes:
        """POST raw bytes, get raw bytes: for what has a format of its own. Not repeated on a lost connection: the peer may
        have acted."""
        return (await self._exchange(self._peer(node_id), "POST", path, None, body, max_bytes, timeout_s))[1]

    async def delete(self, node_id: NodeID, path: str, *, timeout_s: float) -> None:
        await self._exchange(self._peer(node_id), "DELETE", path, None, None, ERROR_BODY_BYTES_MAX, timeout_s)

    async def call(
        self, node_id: NodeID, path: str, message: Message, reply_type: type[Reply], *, max_bytes: int, timeout_s: float
    ) -> Reply:
        """POST a wire message, get one back. Not repeated on a lost connection."""
        body = await self.post(node_id, path, encode(message), max_bytes=max_bytes, timeout_s=timeout_s)
        try:
            return decode(body, reply_type, max_bytes=max_bytes)
        except FormatError as error:
            raise PeerProtocolError(error.message, peer=id_text(node_id)) from None

    # ---- one exchange

    async def _exchange(
        self,
        peer: _Peer,
        method: str,
        path: str,
        headers: Mapping[str, str] | None,
        body: bytes | memoryview | None,
        max_bytes: int,
        timeout_s: float,
    ) -> tuple[int, bytes]:
        """As `_attempt`; once more when the node wanted to be paid, and was."""
        payer = self._payer
        if payer is None:
            return await self._attempt(peer, method, path, headers, body, max_bytes, timeout_s)
        try:
            try:
                status, answer = await self._attempt(peer, method, path, headers, body, max_bytes, timeout_s)
            except PeerRefused as error:
                if error.status != PAYMENT_REQUIRED or not await payer.pay(peer.node_id, path):
                    raise
                status, answer = await self._attempt(peer, method, path, headers, body, max_bytes, timeout_s)
        except asyncio.CancelledError:
            if headers is not None and "Range" in headers:
                payer.gave_up(peer.node_id, path, max_bytes)  # it may have been read and sent
            raise
        payer.took(peer.node_id, path, len(answer))
        return status, answer

    async def _attempt(
        self,
        peer: _Peer,
        method: str,
        path: str,
        headers: Mapping[str, str] | None,
        body: bytes | memoryview | None,
        max_bytes: int,
        timeout_s: float,
    ) -> tuple[int, bytes]:
        """Status (2xx) and body of the answer; every failure translated."""
        if _PATH.fullmatch(path) is None:
            raise InputError(f"not a path: {path[:80]!r}")
        url = URL(peer.origin + path, encoded=True)
        data = None if body is None else _Outgoing(body, self._bandwidth, peer.traffic)
        peer.traffic.requests += 1
        done = False
        try:
            async with asyncio.timeout(timeout_s):
                if self._distance is not None:
                    await asyncio.sleep(self._distance(peer.node_id))
                async with self._session.request(method, url, headers=headers, data=data, allow_redirects=False) as response:
                    await self._check_head(peer, response)
                    answer = await self._body(peer, response, max_bytes)
            done = True
            return response.status, answer
        except TimeoutError as error:
            raise _timeout(peer, error, timeout_s) from None
        except aiohttp.ClientError as error:
            raise _translated(peer, error) from None
        finally:
            peer.traffic.failures += not done

    async def _check_head(self, peer: _Peer, response: aiohttp.ClientResponse) -> None:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise PeerProtocolError("the answer has a content encoding", peer=peer.text)
        if not 200 <= response.status < 300:
            raise await self._refusal(peer, response)
        if response.headers.get(NETWORK_HEADER) != self._network:
            raise PeerProtocolError("the peer belongs to another network", peer=peer.text)

    async def _refusal(self, peer: _Peer, response: aiohttp.ClientResponse) -> PeerRefused:
        try:
            reply = decode(await self._body(peer, response, ERROR_BODY_BYTES_MAX), ErrorReply)
        except (PeerProtocolError, FormatError):
            reply = ErrorReply(f"http-{response.status}", f"refused with status {response.status}")
        return PeerRefused(reply.message, peer=peer.text, status=response.status, remote_code=reply.code, hint=reply.hint)

    async def _body(self, peer: _Peer, response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
        """The whole body; more than `max_bytes`, announced or not, is a fault of the peer."""
        content = response.content
        declared = response.content_length
        try:
            if declared is not None and declared > max_bytes:
                raise _too_much(peer, max_bytes)
            if declared and self._bandwidth.down.is_open:
                return await read_sized(content, declared)
            pieces: list[bytes] = []
            size = 0
            while piece := await content.readany():
                size += len(piece)
                if size > max_bytes:
                    raise _too_much(peer, max_bytes)
                pieces.append(piece)
                await self._bandwidth.down.take(len(piece))
            return b"".join(pieces)
        finally:
            peer.traffic.received_bytes += content.total_bytes

    def _peer(self, node_id: NodeID) -> _Peer:
        peer = self._peers.get(node_id)
        if peer is None:
            peer = self._peers[node_id] = _Peer(node_id, id_text(node_id), "https://" + host_name(node_id))
            if len(self._peers) > self._limits.peers_max:
                self._forgotten.add(self._peers.pop(next(iter(self._peers))).traffic)
        return peer


@dataclass(slots=True)
class _Peer:
    """What is worth keeping about a peer; base32 in Python costs more than the rest of a request's preparation."""

    node_id: NodeID
    text: str
    origin: str
    traffic: Traffic = field(default_factory=Traffic)


class _Outgoing(aiohttp.Payload):
    """A request body that is written in one go, or in pieces when there is a cap, and counted as it is written."""

    def __init__(self, body: bytes | memoryview, bandwidth: Bandwidth, traffic: Traffic) -> None:
        super().__init__(body, content_type=OCTETS)
        self._body = body
        self._gate = bandwidth.up
        self._traffic = traffic
        self._size = len(body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return bytes(self._body).decode(encoding, errors)

    async def write(self, writer: aiohttp.abc.AbstractStreamWriter) -> None:
        if self._gate.is_open:
            self._traffic.sent_bytes += len(self._body)
            if len(self._body) > JOIN_BYTES_MAX:
                writer.send_headers()  # else they are joined with the body, which is copied for it
            await writer.write(self._body)
            return
        view = memoryview(self._body)
        for start in range(0, len(view), PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            await self._gate.take(len(piece))
            self._traffic.sent_bytes += len(piece)
            await writer.write(piece)
            await writer.drain()


def _timeout(peer: _Peer, error: TimeoutError, timeout_s: float) -> PeerTimeout | PeerUnreachable:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return PeerUnreachable("no connection in time", peer=peer.text)
    return PeerTimeout(f"no whole answer within {timeout_s:g} s", peer=peer.text)


def _translated(peer: _Peer, error: aiohttp.ClientError) -> PeerUnreachable | PeerProtocolError:
    """Whose fault a failure is. Somebody else answering at a node's address is not the node's fault."""
    if isinstance(error, aiohttp.ClientSSLError):
        return PeerUnreachable("what answers there has not this node's key", peer=peer.text, detail=str(error)[:200])
    if isinstance(error, aiohttp.ClientPayloadError) and isinstance(error.__cause__, ContentLengthError):
        return PeerUnreachable("went away in the middle of an answer", peer=peer.text)
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ClientResponseError):
        return PeerProtocolError(f"the answer is not HTTP as it should be: {error}"[:200], peer=peer.text)
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    return PeerUnreachable(f"cannot be reached: {cause}"[:200], peer=peer.text)


def _too_much(peer: _Peer, max_bytes: int) -> PeerProtocolError:
    return PeerProtocolError(f"the answer is larger than {max_bytes} bytes", peer=peer.text)

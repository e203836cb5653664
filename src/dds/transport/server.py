"""The server of a node: HTTP/1.1 over TLS 1.3, handlers injected, everything bounded.

Decides: when a request's body is read, how much memory it may take, what becomes of errors, how answers are written. Does not
decide what is served (routes.py holds the vocabulary; the runtime brings handlers), who is let in (connections.py) nor who the
peer is (tls.py).

Life of a request: headers are parsed by aiohttp within its limits; the route is found; room for the bodies is taken, or the
client is told 503; the body is read whole; the handler runs; head and body go out in one go.

Source: docs/spec/identity.md; RFC 9110, RFC 9112; benchmarks/transport.py for the choices that look odd.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from aiohttp import web

from dds.primitives.errors import DDSError, LimitError
from dds.primitives.ids import NodeID
from dds.primitives.keys import SigningKey
from dds.primitives.units import KIB
from dds.transport.bandwidth import PIECE_BYTES, Bandwidth
from dds.transport.bodies import JOIN_BYTES_MAX, BodyRoom, read_sized
from dds.transport.connections import Connection, Phase
from dds.transport.limits import HEADER_LINE_BYTES_MAX, HEADERS_MAX, ServerCounters, ServerLimits
from dds.transport.listener import Listener
from dds.transport.routes import NETWORK_HEADER, Body, Request, Response, Route, RouteTable, error_response, refusal
from dds.transport.tls import peer_of, server_context

READ_AHEAD_BYTES: Final = 64 * KIB  # of a body that has no room yet
LINGER_S: Final = 1.0  # how long the rest of a refused body is read and dropped, so that the refusal arrives
RETRY_AFTER_S: Final = 1
SHUTDOWN_TIMEOUT_S: Final = 0.1  # for connections whose requests are over already; aiohttp takes zero for ever
_NO_ROUTE: Final = "(none)"

_log = logging.getLogger(__name__)


class _Answered(web.StreamResponse):
    """What aiohttp is told when the answer has been written already."""

    def __init__(self, keep: bool) -> None:
        super().__init__()
        self._keep = keep

    @property
    def keep_alive(self) -> bool:
        return self._keep

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


_KEEP: Final = _Answered(True)
_CLOSE: Final = _Answered(False)


class _Refusal(Exception):
    """Carries an answer that ends a request early; never leaves this module."""

    def __init__(self, response: Response) -> None:
        self.response = response


class _HttpServer(web.Server):
    """aiohttp's protocol factory, which also knows the `Connection` behind each of its protocols."""

    def __init__(self, owner: PeerServer) -> None:
        super().__init__(
            owner._serve,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=owner._limits.idle_timeout_s,
            lingering_time=LINGER_S,
            max_line_size=HEADER_LINE_BYTES_MAX,
            max_field_size=HEADER_LINE_BYTES_MAX,
            max_headers=HEADERS_MAX,
            read_bufsize=READ_AHEAD_BYTES,
            logger=_QUIET_LOG,
        )
        self._owner = owner
        self.of: dict[web.RequestHandler, Connection] = {}

    def protocol_for(self, connection: Connection) -> web.RequestHandler:
        protocol = self()
        self.of[protocol] = connection
        return protocol

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        connection = self.of[handler]
        connection.abort = transport.abort
        connection.peer = peer_of(transport.get_extra_info("ssl_object"))
        connection.enter(Phase.FRESH, self._owner._now())

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._owner._listener.table.remove(self.of.pop(handler))


# aiohttp reports every malformed request of every stranger as an error, with a traceback.
_QUIET_LOG: Final = logging.getLogger(__name__ + ".http")
_QUIET_LOG.setLevel(logging.CRITICAL)


class PeerServer:
    """Serves `routes` as the node `key.public` in `network`. Errors of handlers: see routes.error_response."""

    def __init__(
        self,
        key: SigningKey,
        *,
        network: str,
        routes: Sequence[Route],
        limits: ServerLimits | None = None,
        bandwidth: Bandwidth | None = None,
    ) -> None:
        self.node_id = NodeID(key.public)
        self.counters = ServerCounters()
        self._limits = limits or ServerLimits()
        assert all(r.max_body_bytes + r.max_reply_bytes <= self._limits.bodies_bytes_max for r in routes)
        self._key = key
        self._network = network
        self._routes = RouteTable(routes)
        self._bandwidth = bandwidth or Bandwidth()
        self._room = BodyRoom(self._limits.bodies_bytes_max, self._limits.waiting_max, self._limits.waiting_timeout_s)
        self._requests: set[asyncio.Task[object]] = set()
        self._stopping = False
        self._date = (0, "")

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Bind `host` and serve; returns the port. Other hosts must be asked for by name.

        Raises:
            ConfigError: the address cannot be bound.
        """
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._http = _HttpServer(self)
        self._listener = Listener(
            server_context(self._key), self._limits, self.counters, self._http.protocol_for, lambda: self._room.is_pressed
        )
        return await self._listener.start(host, port)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Stop accepting, close quiet connections, give requests under way `grace_s` seconds, then close everything."""
        self._stopping = True
        await self._listener.close()
        for connection in self._listener.table:
            if connection.is_quiet:
                connection.abort()
        if self._requests:
            _, unfinished = await asyncio.wait(self._requests, timeout=grace_s)
            if unfinished:
                _log.warning("%d requests cut off by the stop", len(unfinished))
                for task in unfinished:
                    task.cancel()
                await asyncio.wait(unfinished)
        await self._http.shutdown(SHUTDOWN_TIMEOUT_S)

    # ---- one request

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = self._http.of.get(request.protocol)
        if connection is None or request.transport is None:  # the client left before its request was looked at
            return _CLOSE
        task = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        self.counters.requests_now = len(self._requests)
        try:
            return await self._answer(request, connection)
        except ConnectionError:  # while a body was read or written; there is nobody to tell
            return _CLOSE
        except Exception:  # a bug of ours, which aiohttp's muted log would hide
            _log.exception("unexpected error while answering %s", connection.address)
            return _CLOSE
        finally:
            self._requests.discard(task)
            self.counters.requests_now = len(self._requests)
            connection.enter(Phase.IDLE, self._now())

    async def _answer(self, request: web.BaseRequest, connection: Connection) -> web.StreamResponse:
        label, taken = _NO_ROUTE, 0
        try:
            try:
                route, params, query = self._route(request)
                label = f"{route.method} {route.path}"
                size = self._check(request, route, connection.peer)
                taken = await self._take_room(connection, size + route.max_reply_bytes)
                body = await self._read(request, connection, size) if size else b""
                asked = Request(params, query, request.headers, connection.peer, connection.address, body)
                response = await self._handle(route, asked, connection)
            except _Refusal as refused:
                response = refused.response
            held = max(taken, len(response.body))
            self._room.adjust(taken, held)
            taken = held
            self.counters.count_request(label, response.status)
            return await self._write(request, connection, response)
        finally:
            self._room.give_back(taken)
            self.counters.bodies_bytes_now = self._room.used

    def _route(self, request: web.BaseRequest) -> tuple[Route, dict[str, str], str]:
        path, _, query = request.raw_path.partition("?")
        method = "GET" if request.method == "HEAD" else request.method
        found = self._routes.find(method, path)
        if found is not None:
            return *found, query
        allowed = self._routes.methods(path)
        if allowed:
            raise _Refusal(
                refusal(405, "method", f"{request.method} is not for this path", headers={"Allow": ", ".join(allowed)})
            )
        raise _Refusal(refusal(404, "not-found", "nothing is served under this path"))

    def _check(self, request: web.BaseRequest, route: Route, peer: NodeID | None) -> int:
        """What can be refused on the headers alone; returns the most bytes the body can have."""
        if request.headers.get(NETWORK_HEADER, self._network) != self._network:
            raise _Refusal(refusal(421, "network", f"this node belongs to the network {self._network!r}"))
        if route.peer_required and peer is None:
            raise _Refusal(refusal(401, "unauthenticated", "this needs a client certificate", hint="see docs/spec/identity.md"))
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise _Refusal(refusal(415, "encoding", "bodies are sent as they are, without a content encoding"))
        declared = request.content_length
        if declared is None:
            return route.max_body_bytes if request.can_read_body else 0
        if declared > route.max_body_bytes:
            raise _Refusal(_too_large(route.max_body_bytes))
        return declared

    async def _take_room(self, connection: Connection, size: int) -> int:
        if not self._room.try_take(size):
            connection.enter(Phase.WAITING, self._now())
            try:
                await self._room.take(size)
            except LimitError as error:
                busy = refusal(503, "busy", error.message, headers={"Retry-After": str(RETRY_AFTER_S)})
                raise _Refusal(busy) from None
        self.counters.bodies_bytes_now = self._room.used
        return size

    async def _read(self, request: web.BaseRequest, connection: Connection, size_max: int) -> bytes:
        connection.enter(Phase.RECEIVING, self._now(), size_max)
        content = request.content
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            if request.content_length is not None and self._bandwidth.down.is_open:
                return await read_sized(content, size_max)
            return await self._read_pieces(request, size_max)
        except (web.RequestPayloadError, web.PayloadAccessError) as error:
            raise _Refusal(refusal(400, "body", f"the body is malformed: {error}")) from None
        finally:
            self.counters.received_bytes += content.total_bytes

    async def _read_pieces(self, request: web.BaseRequest, size_max: int) -> bytes:
        pieces: list[bytes] = []
        size = 0
        while piece := await request.content.readany():
            size += len(piece)
            if size > size_max:
                raise _Refusal(_too_large(size_max))
            pieces.append(piece)
            await self._bandwidth.down.take(len(piece))
        return b"".join(pieces)

    async def _handle(self, route: Route, request: Request, connection: Connection) -> Response:
        task = asyncio.current_task()
        assert task is not None
        given_up = False

        def give_up() -> None:
            nonlocal given_up
            given_up = task.cancel()

        connection.give_up = give_up
        connection.enter(Phase.HANDLING, self._now())
        try:
            return await route.handler(request)
        except DDSError as error:
            return error_response(error)
        except asyncio.CancelledError:
            if not given_up:
                raise
            task.uncancel()
            _log.error("%s %s took longer than %s s", route.method, route.path, self._limits.handler_timeout_s)
            return refusal(504, "timeout", "this took too long")
        except Exception:  # a bug of ours in one handler must not cost the others their connection
            _log.exception("unexpected error in %s %s", route.method, route.path)
            return refusal(500, "internal", "unexpected error; the node's log has it")
        finally:
            connection.give_up = None

    # ---- the answer

    async def _write(self, request: web.BaseRequest, connection: Connection, response: Response) -> web.StreamResponse:
        body = response.body if request.method != "HEAD" else b""
        keep = request.keep_alive and not self._stopping and "Upgrade" not in request.headers and request.method != "CONNECT"
        head = self._head(response, keep)
        connection.enter(Phase.SENDING, self._now(), len(body))
        if not self._bandwidth.up.is_open:
            await self._write_pieces(request, head, body)
        elif len(body) <= JOIN_BYTES_MAX:
            await request.writer.write(head + body)
        else:
            await request.writer.write(head)
            await request.writer.write(body)
            await request.writer.drain()
        self.counters.sent_bytes += len(body)
        return _KEEP if keep else _CLOSE

    async def _write_pieces(self, request: web.BaseRequest, head: bytes, body: Body) -> None:
        await request.writer.write(head)
        view = memoryview(body)
        for start in range(0, len(view), PIECE_BYTES):
            piece = view[start : start + PIECE_BYTES]
            await self._bandwidth.up.take(len(piece))
            await request.writer.write(piece)
            await request.writer.drain()

    def _head(self, response: Response, keep: bool) -> bytes:
        lines = [
            f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            f"Date: {self._http_date()}",
            f"{NETWORK_HEADER}: {self._network}",
            *(f"{name}: {value}" for name, value in response.headers.items()),
        ]
        if not keep:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")

    def _http_date(self) -> str:
        """RFC 9110 section 6.6.1, made once a second."""
        second = int(self._now())
        if self._date[0] != second:
            self._date = (second, formatdate(usegmt=True))
        return self._date[1]


def _too_large(size_max: int) -> Response:
    return refusal(413, "too-large", f"the body may have at most {size_max} bytes")

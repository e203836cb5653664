"""What a handler sees of HTTP: requests, responses, routes, single ranges, errors as statuses.

Decides: the small vocabulary between PeerServer and those who serve something with it, which status an error becomes, and how a
`Range` header is read. Does not touch a socket.

Source: docs/spec/identity.md; RFC 9110 sections 14 (range requests) and 15 (status codes).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl, unquote

from dds.primitives.errors import (
    ConfigError,
    CorruptError,
    DDSError,
    DiskFullError,
    FormatError,
    InputError,
    IntegrityError,
    LimitError,
    LocalError,
    NotFoundError,
    PaymentRequired,
    RemoteError,
    StorageError,
    UnavailableError,
)
from dds.primitives.ids import NodeID
from dds.primitives.units import KIB
from dds.wire.api import ErrorReply
from dds.wire.codec import Message, decode, encode

MSGPACK: Final = "application/msgpack"
OCTETS: Final = "application/octet-stream"
NETWORK_HEADER: Final = "DDS-Network"  # a request for another network is refused, an answer from another is no answer
QUERY_FIELDS_MAX: Final = 16

Body = bytes | bytearray | memoryview
Asked = TypeVar("Asked", bound=Message)


@dataclass(frozen=True, slots=True)
class Request:
    """One request, its body read whole and within the route's limit."""

    params: Mapping[str, str]  # what the `{names}` of the route's path stood for, percent-decoded
    query_string: str
    headers: Mapping[str, str]  # case does not matter
    peer: NodeID | None  # the client's proven identity; None for an anonymous reader
    address: str  # of the connection, for logs and limits; proves nothing
    body: bytes

    def query(self) -> dict[str, str]:
        """The query's fields; of a repeated field the last counts.

        Raises:
            InputError: more than `QUERY_FIELDS_MAX` fields.
        """
        try:
            return dict(parse_qsl(self.query_string, keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX))
        except ValueError:
            raise InputError(f"a query has at most {QUERY_FIELDS_MAX} fields") from None


@dataclass(frozen=True, slots=True)
class Response:
    """One answer. A body is sent as it is: `memoryview` (contiguous, of bytes) saves a copy. Headers must be clean ASCII."""

    status: int = 200
    body: Body = b""
    content_type: str = OCTETS
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """`path` is literal segments and `{names}`: `/v1/fragments/{root}`. A name matches one non-empty segment.

    `max_body_bytes` bounds the request's body. `max_reply_bytes` is room set aside for the answer's body while the request is
    served; a larger answer is sent all the same, but counts too late to hold anybody back. `peer_required` refuses anonymous
    clients with 401 before their body is read.
    """

    method: str
    path: str
    handler: Handler
    max_body_bytes: int = 0
    max_reply_bytes: int = 64 * KIB
    peer_required: bool = False


def rpc_route(
    path: str,
    message_type: type[Asked],
    handler: Callable[[Request, Asked], Awaitable[Message]],
    *,
    max_body_bytes: int,
    max_reply_bytes: int = 64 * KIB,
    peer_required: bool = False,
) -> Route:
    """A POST route that takes and gives wire messages; what does not decode is answered with 400."""

    async def handle(request: Request) -> Response:
        message = decode(request.body, message_type, max_bytes=max_body_bytes)
        return message_response(await handler(request, message))

    return Route("POST", path, handle, max_body_bytes, max_reply_bytes, peer_required)


def message_response(message: Message, status: int = 200) -> Response:
    return Response(status, encode(message), MSGPACK)


# ---- errors

_STATUS: Final[Sequence[tuple[type[DDSError], int]]] = (  # the first that fits
    (PaymentRequired, 402),
    (NotFoundError, 404),
    (IntegrityError, 422),
    (FormatError, 400),
    (InputError, 400),
    (LimitError, 429),
    (DiskFullError, 507),
    (LocalError, 500),
    (RemoteError, 502),
    (UnavailableError, 503),
)
_PRIVATE: Final = (StorageError, CorruptError, ConfigError)  # their messages name paths of this machine


def error_response(error: DDSError) -> Response:
    """The answer for an error that a handler raised."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if isinstance(error, _PRIVATE):
        return refusal(status, error.code, "this node has trouble with its own storage or configuration")
    return message_response(ErrorReply(error.code, error.message, error.hint), status)


def refusal(
    status: int, code: str, message: str, *, hint: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An error answer that is no DDSError: 401, 403, 409 and the like."""
    return Response(status, encode(ErrorReply(code, message, hint)), MSGPACK, headers or {})


# ---- ranges


class Span(NamedTuple):
    """Bytes [start, stop) of a body; `partial` says whether that was asked for."""

    start: int
    stop: int
    partial: bool


_RANGE: Final = re.compile(r"bytes=\s*(\d{1,19})?-(\d{1,19})?\s*", re.ASCII | re.IGNORECASE)


def requested_span(headers: Mapping[str, str], size: int) -> Span | None:
    """What a request wants of a body of `size` bytes; None when no byte of it is there (416).

    As RFC 9110 section 14.2 allows, a range that is malformed, in another unit, one of several or conditional is ignored: the
    whole body is the answer.
    """
    whole = Span(0, size, False)
    found = _RANGE.fullmatch(headers.get("Range", "")) if "If-Range" not in headers else None
    if found is None or (found.group(1) is None and found.group(2) is None):
        return whole
    if found.group(1) is None:
        length = min(int(found.group(2)), size)
        return Span(size - length, size, True) if length else None
    start = int(found.group(1))
    last = size - 1 if found.group(2) is None else int(found.group(2))
    if last < start and found.group(2) is not None:
        return whole
    return Span(start, min(last + 1, size), True) if start < size else None


async def ranged_response(
    request: Request, size: int, read: Callable[[int, int], Awaitable[Body]], content_type: str = OCTETS
) -> Response:
    """Answer with the part that was asked for of a body of `size` bytes; `read(start, stop)` fetches exactly that part."""
    span = requested_span(request.headers, size)
    if span is None:
        return refusal(416, "range", f"the body has {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    body = await read(span.start, span.stop)
    assert len(body) == span.stop - span.start
    if not span.partial:
        return Response(200, body, content_type, {"Accept-Ranges": "bytes"})
    return Response(206, body, content_type, {"Content-Range": f"bytes {span.start}-{span.stop - 1}/{size}"})


# ---- finding the route


class RouteTable:
    """Routes by method and number of segments; literal segments win over names in the order of registration."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes: dict[tuple[str, int], list[tuple[tuple[str, ...], Route]]] = {}
        self._methods: dict[int, set[str]] = {}
        for route in routes:
            pattern = tuple(route.path.split("/")[1:])
            self._routes.setdefault((route.method, len(pattern)), []).append((pattern, route))
            self._methods.setdefault(len(pattern), set()).add(route.method)

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The route for a raw request path (no query) and its parameters."""
        segments = path.split("/")[1:]
        for pattern, route in self._routes.get((method, len(segments)), ()):
            params = _match(pattern, segments)
            if params is not None:
                return route, params
        return None

    def methods(self, path: str) -> list[str]:
        """The methods under which `path` would be found."""
        candidates = self._methods.get(path.count("/"), set())
        return sorted(method for method in candidates if self.find(method, path) is not None)


def _match(pattern: Sequence[str], segments: Sequence[str]) -> dict[str, str] | None:
    params: dict[str, str] = {}
    for wanted, given in zip(pattern, segments, strict=True):
        if wanted.startswith("{"):
            if not given:
                return None
            params[wanted[1:-1]] = unquote(given) if "%" in given else given
        elif wanted != given:
            return None
    return params

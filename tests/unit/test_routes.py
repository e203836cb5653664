"""Ranges, routes and errors as a handler's author meets them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from dds.primitives.errors import (
    CorruptError,
    DDSError,
    DiskFullError,
    FormatError,
    InputError,
    IntegrityError,
    LimitError,
    NotFoundError,
    PeerTimeout,
    StorageError,
    UnavailableError,
)
from dds.transport.routes import (
    QUERY_FIELDS_MAX,
    Request,
    Response,
    Route,
    RouteTable,
    Span,
    error_response,
    ranged_response,
    requested_span,
    rpc_route,
)
from dds.wire.api import ErrorReply, HoldingReply, HoldingRequest
from dds.wire.codec import decode, encode

DATA = bytes(range(100))


def span(header: str, size: int = 100) -> Span | None:
    return requested_span(CIMultiDict({"range": header}), size)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-9", (0, 10)),
        ("bytes=90-", (90, 100)),
        ("bytes=90-4000", (90, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-4000", (0, 100)),
        ("BYTES=5-5", (5, 6)),
    ],
)
def test_a_single_range_is_honoured(header: str, expected: tuple[int, int]) -> None:
    assert span(header) == Span(*expected, partial=True)


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=9999999999999999999-"])
def test_a_range_without_a_byte_in_it_is_unsatisfiable(header: str) -> None:
    assert span(header) is None
    assert span("bytes=0-", size=0) is None
    assert span("bytes=-1", size=0) is None


@pytest.mark.parametrize(
    "header", ["", "bytes=9-0", "bytes=-", "bytes=0-1,5-6", "items=0-1", "bytes=a-b", "bytes=1-" + "9" * 20, "bytes=٣-٤"]
)
def test_what_is_no_single_range_is_ignored(header: str) -> None:
    assert span(header) == Span(0, 100, partial=False)


def test_a_conditional_range_is_ignored() -> None:
    assert requested_span({"Range": "bytes=0-1", "If-Range": '"x"'}, 100) == Span(0, 100, partial=False)


@given(st.text(max_size=40), st.integers(0, 1 << 40))
def test_any_range_header_gives_bytes_that_exist(header: str, size: int) -> None:
    for text in (header, "bytes=" + header):
        found = span(text, size)
        assert found is None or 0 <= found.start <= found.stop <= size


def request(body: bytes = b"", **headers: str) -> Request:
    return Request({}, "", CIMultiDict(headers), None, "127.0.0.1", body)


async def read(start: int, stop: int) -> bytes:
    return DATA[start:stop]


async def test_a_ranged_response_says_what_it_is_part_of() -> None:
    part = await ranged_response(request(Range="bytes=10-19"), 100, read)
    assert (part.status, part.body, part.headers["Content-Range"]) == (206, DATA[10:20], "bytes 10-19/100")
    whole = await ranged_response(request(), 100, read)
    assert (whole.status, whole.body) == (200, DATA)
    none = await ranged_response(request(Range="bytes=100-"), 100, read)
    assert (none.status, none.headers["Content-Range"]) == (416, "bytes */100")


async def nothing(_: Request) -> Response:
    return Response()


def test_paths_are_found_by_literals_and_names() -> None:
    table = RouteTable(
        [Route("GET", "/v1/node", nothing), Route("GET", "/v1/{x}", nothing), Route("PUT", "/v1/{x}/{y}", nothing)]
    )
    for method, path, expected in [
        ("GET", "/v1/node", ("/v1/node", {})),
        ("GET", "/v1/abc", ("/v1/{x}", {"x": "abc"})),
        ("PUT", "/v1/a%2Fb/%C3%A9", ("/v1/{x}/{y}", {"x": "a/b", "y": "é"})),
    ]:
        found = table.find(method, path)
        assert found is not None
        assert (found[0].path, found[1]) == expected
    for method, path in [
        ("POST", "/v1/node"),
        ("GET", "/v1/"),
        ("GET", "/v1/node/"),
        ("GET", "v1/node"),
        ("GET", ""),
        ("GET", "*"),
    ]:
        assert table.find(method, path) is None
    assert table.methods("/v1/node") == ["GET"]
    assert table.methods("/nowhere/at/all") == []


def test_a_query_has_few_fields() -> None:
    few = Request({}, "a=1&b=&a=2", {}, None, "", b"")
    assert few.query() == {"a": "2", "b": ""}
    with pytest.raises(InputError):
        Request({}, "&".join(f"x{n}=1" for n in range(QUERY_FIELDS_MAX + 1)), {}, None, "", b"").query()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFoundError("x"), 404),
        (InputError("x"), 400),
        (FormatError("x"), 400),
        (IntegrityError("x"), 422),
        (LimitError("x"), 429),
        (DiskFullError("x"), 507),
        (CorruptError("x"), 500),
        (UnavailableError("x"), 503),
        (PeerTimeout("x", peer="y"), 502),
        (DDSError("x"), 500),
    ],
)
def test_each_error_has_a_status_and_keeps_its_code(error: DDSError, status: int) -> None:
    response = error_response(error)
    assert response.status == status
    assert decode(bytes(response.body), ErrorReply).code == error.code


def test_errors_of_the_disk_tell_a_stranger_no_paths() -> None:
    response = error_response(StorageError("/home/alice/.dds/store: I/O error", hint="/home/alice"))
    assert b"alice" not in bytes(response.body)


async def test_an_rpc_route_refuses_what_does_not_decode() -> None:
    async def handler(_: Request, message: HoldingRequest) -> HoldingReply:
        return HoldingReply([[len(s)] for s in message.segments])

    route = rpc_route("/x", HoldingRequest, handler, max_body_bytes=100)
    answer = await route.handler(request(encode(HoldingRequest([b"abc"]))))
    assert decode(bytes(answer.body), HoldingReply) == HoldingReply([[3]])
    for raw in (b"", b"\xc1", b"\x91" * 90, b"\x91\xa1x", encode(HoldingRequest([bytes(200)]))):
        with pytest.raises(FormatError):
            await route.handler(request(raw))

"""A server among clients that stall, flood and talk nonsense: it stays up, in bounded memory, and serves honest requests."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest

from dds.primitives.errors import ConfigError, PeerRefused, PeerUnreachable
from dds.primitives.keys import SigningKey
from dds.primitives.units import KIB, MIB
from dds.transport.bandwidth import Bandwidth
from dds.transport.client import PeerClient
from dds.transport.limits import HEADERS_MAX, ServerLimits
from dds.transport.routes import Request, Response, Route
from dds.transport.server import PeerServer
from tests.e2e.transport.kit import (
    ATTACKER_KEY,
    CLIENT_KEY,
    DATA,
    GET_WHO,
    NETWORK,
    SERVER,
    SERVER_KEY,
    Served,
    anonymous_context,
    client_of,
    raw_exchange,
    serving,
    serving_elsewhere,
)
from tests.e2e.transport.test_peer_client import settled

HEAD = b"PUT /data HTTP/1.1\r\nHost: x\r\n"


@asynccontextmanager
async def opened(port: int, count: int, sent: bytes, *, tls: bool = True) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """`count` connections that send these bytes and then only listen."""
    writers: list[asyncio.StreamWriter] = []
    try:
        for _ in range(count):
            context = anonymous_context() if tls else None
            _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            writer.write(sent)
            writers.append(writer)
        yield writers
    finally:
        for writer in writers:
            writer.transport.abort()


async def honest(served: Served) -> None:
    """A newcomer without a warm connection reads and writes a whole MiB."""
    async with client_of(served.port) as client:
        assert await client.get(SERVER, "/data", max_bytes=MIB, timeout_s=20) == DATA
        assert await client.put(SERVER, "/mine", DATA, timeout_s=20) == str(MIB).encode()


# ---- ordinary service


async def test_only_the_host_that_was_named_is_bound() -> None:
    async with serving() as served:
        listening = [c for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN" and c.laddr[1] == served.port]
        assert [c.laddr[0] for c in listening] == ["127.0.0.1"]


async def test_a_taken_port_or_foreign_address_is_a_configuration_error() -> None:
    async with serving() as served:
        for host, port in [("127.0.0.1", served.port), ("192.0.2.1", 0), ("no-such-host.invalid", 0)]:
            with pytest.raises(ConfigError):
                await PeerServer(SERVER_KEY, network=NETWORK, routes=[]).start(host, port)


async def test_it_serves_over_ipv6() -> None:
    with contextlib.suppress(OSError):
        server = PeerServer(SERVER_KEY, network=NETWORK, routes=[Route("GET", "/x", _hello)])
        try:
            port = await server.start("::1", 0)
        except ConfigError:
            pytest.skip("no IPv6 here")
        async with PeerClient(CLIENT_KEY, network=NETWORK) as client:
            client.learn(SERVER, [("::1", port)])
            assert await client.get(SERVER, "/x", max_bytes=5, timeout_s=20) == b"hello"
        await server.stop(0)


async def _hello(request: Request) -> Response:
    return Response(200, b"hello")


async def test_requests_are_counted_by_route_and_status() -> None:
    async with serving() as served, client_of(served.port) as client:
        await client.get(SERVER, "/data", max_bytes=MIB, timeout_s=20)
        await client.put(SERVER, "/data", DATA[:500], timeout_s=20)
        for path in ("/nowhere", "/broken"):
            with pytest.raises(PeerRefused):
                await client.get(SERVER, path, max_bytes=10, timeout_s=20)
        counters = served.server.counters
        assert counters.requests == {
            ("GET /data", 200): 1,
            ("PUT /data", 201): 1,
            ("(none)", 404): 1,
            ("GET /broken", 500): 1,
        }
        assert counters.received_bytes == 500
        assert counters.sent_bytes >= MIB
        await settled(lambda: counters.requests_now == 0)
        assert counters.bodies_bytes_now == 0


async def test_an_unexpected_exception_is_logged_and_told_without_detail(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as served, client_of(served.port) as client:
        with caplog.at_level(logging.ERROR), pytest.raises(PeerRefused) as refused:
            await client.get(SERVER, "/broken", max_bytes=10, timeout_s=20)
        assert (refused.value.status, refused.value.remote_code) == (500, "internal")
        assert "secret" not in refused.value.message
        assert "secret detail" in caplog.text


async def test_a_request_for_another_network_is_refused() -> None:
    async with serving() as served, PeerClient(CLIENT_KEY, network="other") as client:
        client.learn(SERVER, [("127.0.0.1", served.port)])
        with pytest.raises(PeerRefused) as refused:
            await client.get(SERVER, "/who", max_bytes=32, timeout_s=20)
        assert refused.value.status == 421


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 404),
        (b"DELETE /data HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405),
        (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", 415),
        (b"GET /data HTTP/1.1\r\nHost: x\r\nRange: bytes=0-4\r\nConnection: close\r\n\r\n", 206),
        (b"HEAD /data HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
        (HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello", 100),
        (HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 201),
        (b"GET /who HTTP/1.0\r\n\r\n", 200),
    ],
)
async def test_plain_http_gets_plain_answers(sent: bytes, status: int) -> None:
    async with serving() as served:
        answer = await raw_exchange(served.port, anonymous_context(), sent)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        if sent.startswith(b"HEAD"):
            assert answer.endswith(b"\r\n\r\n")
            assert b"Content-Length: 1048576" in answer
        if status == 100:
            assert b"HTTP/1.1 201 " in answer


async def test_a_capped_server_keeps_to_its_rates() -> None:
    bandwidth = Bandwidth.capped(up_bytes_per_s=MIB, down_bytes_per_s=MIB)
    loop = asyncio.get_running_loop()
    async with serving(bandwidth=bandwidth) as served, client_of(served.port) as client:
        began = loop.time()
        assert await client.get(SERVER, "/data", range=(0, MIB // 2), max_bytes=MIB, timeout_s=60) == DATA[: MIB // 2]
        await client.put(SERVER, "/data", DATA[: MIB // 2], timeout_s=60)
        assert served.seen[-1].body == DATA[: MIB // 2]
        assert loop.time() - began > 0.4  # a quarter of a MiB may burst, each way


# ---- stopping


async def test_a_stop_lets_requests_under_way_finish() -> None:
    async with serving() as served, client_of(served.port) as client:
        under_way = asyncio.create_task(client.get(SERVER, "/slow", max_bytes=10, timeout_s=60))
        await settled(lambda: served.seen)
        stopping = asyncio.create_task(served.server.stop(grace_s=60))
        await settled(lambda: _refuses(served.port))
        served.release.set()
        assert await under_way == b"late"
        await asyncio.wait_for(stopping, 20)
        assert served.server.counters.connections_now == 0


def _refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


async def test_a_stop_cuts_what_outlives_its_grace() -> None:
    async with serving() as served, client_of(served.port) as client:
        under_way = asyncio.create_task(client.get(SERVER, "/slow", max_bytes=10, timeout_s=60))
        await settled(lambda: served.seen)
        await asyncio.wait_for(served.server.stop(grace_s=0.05), 20)
        with pytest.raises(PeerUnreachable):
            await under_way


# ---- hostile clients


async def test_an_oversized_body_is_refused_on_its_announcement() -> None:
    async with serving() as served:
        answer = await raw_exchange(served.port, anonymous_context(), HEAD + b"Content-Length: 99999999\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert served.server.counters.received_bytes == 0


async def test_an_oversized_body_without_a_length_is_refused_while_it_is_read() -> None:
    chunk = b"100000\r\n" + DATA + b"\r\n"
    async with serving() as served:
        sent = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 4
        answer = await raw_exchange(served.port, anonymous_context(), sent)
        assert answer.startswith(b"HTTP/1.1 413 ") or answer == b""  # the refusal may be lost to the reset
        assert served.server.counters.requests[("PUT /data", 413)] == 1
        assert served.server.counters.received_bytes < 2 * MIB
        assert served.seen == []
        await honest(served)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00garbage" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 10_000,
        b"\x16\x03\x01\xff\xff" + bytes(70_000),
    ],
)
async def test_garbage_instead_of_tls_is_dropped(sent: bytes) -> None:
    async with serving() as served:
        assert b"HTTP/1.1" not in await raw_exchange(served.port, None, sent)
        await honest(served)
        assert served.server.counters.handshakes_failed == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /who HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(10_000)) + b"\r\n",
        b"GET /who HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(HEADERS_MAX + 1)) + b"\r\n",
        b"GET /who HTTP/1.1\r\nHost: x\r\nX: " + b"y" * MIB + b"\r\n\r\n",
        b"GET /" + b"y" * MIB + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00\xff" * 5000 + b"\r\n\r\n",
        b"GET /who HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"GET /who HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /who HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PUT /data HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://elsewhere/who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
)
async def test_malformed_requests_are_refused_and_change_nothing(sent: bytes) -> None:
    async with serving() as served:
        answer = await raw_exchange(served.port, anonymous_context(), sent)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4"))
        assert served.seen == []
        await honest(served)


async def test_slow_headers_are_cut_off_and_hinder_nobody() -> None:
    limits = ServerLimits(headers_timeout_s=0.2)
    async with serving(limits) as served, opened(served.port, 30, b"GET /who HTTP/1.1\r\nX-Slow: "):
        await honest(served)
        await settled(lambda: served.server.counters.connections_timed_out == 30)
        await settled(lambda: served.server.counters.connections_now == 0)


async def test_half_open_connections_are_cut_off_and_hinder_nobody() -> None:
    limits = ServerLimits(handshake_timeout_s=0.3)
    async with serving(limits) as served, opened(served.port, 30, b"", tls=False):
        await settled(lambda: served.server.counters.connections_accepted == 30)
        await honest(served)
        await settled(lambda: served.server.counters.handshakes_failed == 30)
        await settled(lambda: served.server.counters.connections_now == 0)


async def test_a_crowd_at_the_connection_limit_makes_room_for_a_newcomer() -> None:
    limits = ServerLimits(connections_max=20, newcomer_patience_s=0.05, headers_timeout_s=600, handshake_timeout_s=600)
    async with serving(limits) as served:
        async with opened(served.port, 10, b"", tls=False), opened(served.port, 10, b"GET "):
            await settled(lambda: served.server.counters.connections_now == 20)
            await asyncio.sleep(0.1)  # longer than a newcomer's patience
            await honest(served)
            assert served.server.counters.connections_now <= 20
            assert served.server.counters.connections_displaced >= 1
        await settled(lambda: served.server.counters.connections_now == 0)


async def test_a_slow_body_is_cut_off_while_others_wait_for_its_room() -> None:
    limits = ServerLimits(
        bodies_bytes_max=4 * MIB, pressed_grace_s=0.1, pressed_bytes_per_s_min=100 * MIB, waiting_timeout_s=60
    )
    async with serving(limits) as served:
        async with opened(served.port, 3, HEAD + b"Content-Length: 1048576\r\n\r\nx"):
            await settled(lambda: served.server.counters.bodies_bytes_now > 3 * MIB)
            await honest(served)
            await settled(lambda: served.server.counters.transfers_cut == 3)
        await settled(lambda: served.server.counters.bodies_bytes_now == 0)


async def test_a_reader_that_does_not_read_is_cut_off_while_others_wait() -> None:
    limits = ServerLimits(
        bodies_bytes_max=4 * MIB, pressed_grace_s=0.1, pressed_bytes_per_s_min=100 * MIB, waiting_timeout_s=60
    )
    async with serving(limits) as served:
        stalled = []
        for _ in range(3):  # small receive buffers, so that the server's bytes stay with the server
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
            client.connect(("127.0.0.1", served.port))
            client.setblocking(False)
            _, writer = await asyncio.open_connection(sock=client, limit=KIB, ssl=anonymous_context(), server_hostname="x")
            writer.write(b"GET /data HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
            stalled.append(writer)
        await settled(lambda: served.server.counters.bodies_bytes_now > 2 * MIB)
        await honest(served)
        for writer in stalled:
            writer.transport.abort()
        await settled(lambda: served.server.counters.bodies_bytes_now == 0)


async def test_too_many_bodies_at_once_are_told_to_come_back() -> None:
    limits = ServerLimits(bodies_bytes_max=2 * MIB, waiting_max=1, waiting_timeout_s=60)
    request = HEAD + b"Content-Length: 1048576\r\n\r\n"
    async with serving(limits) as served, opened(served.port, 2, request):
        await settled(lambda: served.server.counters.requests_now == 2)
        answer = await raw_exchange(served.port, anonymous_context(), request)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1\r\n" in answer


async def test_a_hundred_large_uploads_at_once_stay_within_bounded_memory() -> None:
    """The server is a process of its own, so that the attackers' buffers don't count."""
    limits = ServerLimits(
        bodies_bytes_max=16 * MIB, pressed_grace_s=0.2, pressed_bytes_per_s_min=100 * MIB, waiting_timeout_s=60
    )
    with serving_elsewhere(limits) as (process, port):
        before = process.memory_info().rss
        async with opened(port, 100, HEAD + b"Content-Length: 1048576\r\n\r\n") as writers:
            for writer in writers:
                writer.write(bytes(900 * KIB))
            async with client_of(port) as client:
                assert await client.put(SERVER, "/mine", DATA, timeout_s=60) == str(MIB).encode()
            growth = process.memory_info().rss - before
        assert growth < 16 * MIB + 100 * 500 * KIB + 8 * MIB  # bodies, connections' buffers, the rest


async def test_pipelined_requests_do_not_multiply_memory() -> None:
    async with serving() as served:
        sent = b"GET /data HTTP/1.1\r\nHost: x\r\n\r\n" * 200
        async with opened(served.port, 1, sent):
            await settled(lambda: served.server.counters.sent_bytes > 4 * MIB or served.server.counters.requests_now == 1)
            assert served.server.counters.bodies_bytes_now <= 2 * MIB
            await honest(served)


async def test_a_client_that_leaves_in_mid_upload_leaves_nothing_behind() -> None:
    async with serving() as served:
        async with opened(served.port, 5, HEAD + b"Content-Length: 1048576\r\n\r\n" + bytes(5000)):
            await settled(lambda: served.server.counters.requests_now == 5)
        await settled(lambda: served.server.counters.requests_now == 0)
        assert served.server.counters.bodies_bytes_now == 0
        assert served.seen == []


async def test_a_handler_that_hangs_is_given_up() -> None:
    async with serving(ServerLimits(handler_timeout_s=0.1)) as served, client_of(served.port) as client:
        with pytest.raises(PeerRefused) as refused:
            await client.get(SERVER, "/slow", max_bytes=10, timeout_s=20)
        assert refused.value.status == 504


async def test_many_nodes_at_once_are_each_known_by_their_own_key() -> None:
    keys = [SigningKey(bytes(30) + bytes((7, n))) for n in range(20)]
    async with serving() as served:

        async def ask(key: SigningKey) -> bytes:
            async with client_of(served.port, key=key) as client:
                return await client.get(SERVER, "/who", max_bytes=32, timeout_s=20)

        assert await asyncio.gather(*map(ask, keys)) == [key.public for key in keys]


async def test_one_connection_cannot_be_two_peers() -> None:
    async with serving() as served, client_of(served.port, key=ATTACKER_KEY) as client:
        for _ in range(3):
            assert await client.get(SERVER, "/who", max_bytes=32, timeout_s=20) == ATTACKER_KEY.public
        answer = await raw_exchange(served.port, anonymous_context(), GET_WHO.replace(b"Host: x", b"Host: x\r\nDDS-Peer: a"))
        assert answer.endswith(b"anonymous")

"""A client among peers that lie, stall, flood and leave."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import pytest

from dds.primitives.errors import InputError, PeerProtocolError, PeerRefused, PeerTimeout, PeerUnreachable
from dds.primitives.ids import NodeID
from dds.primitives.units import KIB, MIB
from dds.transport.bandwidth import Bandwidth
from dds.transport.client import PeerClient
from dds.transport.limits import ClientLimits
from dds.wire.api import ErrorReply, HoldingReply, HoldingRequest
from dds.wire.codec import encode
from tests.e2e.transport.kit import (
    CLIENT_KEY,
    DATA,
    NETWORK,
    SERVER,
    Script,
    answering,
    client_of,
    scripted_server,
    serving,
)

OK = "HTTP/1.1 200 OK\nDDS-Network: test\n"


def open_sockets() -> int:
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    return sum(link.is_symlink() and os.readlink(link).startswith("socket:") for link in links)


async def settled(condition: object, timeout_s: float = 10.0) -> None:
    """Wait until a callable holds; closing sockets takes turns of the loop."""
    assert callable(condition)
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


# ---- honest peers


async def test_whole_bodies_and_ranges_arrive_exactly() -> None:
    async with serving() as served, client_of(served.port) as client:
        assert await client.get(SERVER, "/data", max_bytes=MIB, timeout_s=20) == DATA
        for span in [(0, 1), (5, 70_000), (MIB - 1, MIB), (0, MIB)]:
            assert await client.get(SERVER, "/data", range=span, max_bytes=MIB, timeout_s=20) == DATA[slice(*span)]


async def test_bytes_moved_are_counted_per_peer() -> None:
    async with serving() as served, client_of(served.port) as client:
        await client.get(SERVER, "/data", range=(0, 1000), max_bytes=MIB, timeout_s=20)
        await client.put(SERVER, "/data", DATA[:300], timeout_s=20)
        traffic = client.counters[SERVER]
        assert (traffic.requests, traffic.failures) == (2, 0)
        assert (traffic.sent_bytes, traffic.received_bytes) == (300, 1000 + len("300"))
        assert client.total() == traffic


@pytest.mark.parametrize("size", [0, 1, 64 * KIB, 200_000, MIB])
async def test_a_put_carries_every_byte_as_the_authenticated_peer(size: int) -> None:
    async with serving() as served, client_of(served.port) as client:
        for body in (DATA[:size], memoryview(DATA)[:size]):
            assert await client.put(SERVER, "/mine", body, timeout_s=20) == str(size).encode()
            assert served.seen[-1].body == DATA[:size]


async def test_a_range_past_the_end_is_refused_not_shortened() -> None:
    async with serving() as served, client_of(served.port) as client:
        with pytest.raises(PeerProtocolError):
            await client.get(SERVER, "/data", range=(MIB - 5, MIB + 5), max_bytes=MIB, timeout_s=20)
        with pytest.raises(PeerRefused) as refused:
            await client.get(SERVER, "/data", range=(MIB, MIB + 5), max_bytes=MIB, timeout_s=20)
        assert refused.value.status == 416


async def test_requests_to_one_peer_share_few_connections() -> None:
    limits = ClientLimits(connections_per_peer_max=3)
    async with serving() as served, client_of(served.port, limits=limits) as client:
        await asyncio.gather(*(client.get(SERVER, "/data", max_bytes=MIB, timeout_s=20) for _ in range(30)))
        assert served.server.counters.connections_accepted <= 3


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    limits = ClientLimits(idle_timeout_s=0.1)
    async with serving() as served, client_of(served.port, limits=limits) as client:
        await client.get(SERVER, "/who", max_bytes=32, timeout_s=20)
        await settled(lambda: served.server.counters.connections_now == 0)


async def test_a_newly_learned_address_counts_at_once() -> None:
    async with serving() as served, client_of(1) as client:
        with pytest.raises(PeerUnreachable):
            await client.get(SERVER, "/who", max_bytes=32, timeout_s=20)
        client.learn(SERVER, [("localhost", served.port)])
        assert len(await client.get(SERVER, "/who", max_bytes=32, timeout_s=20)) == 32


async def test_dead_addresses_before_the_living_one_are_passed_over() -> None:
    async with serving() as served, client_of(1) as client:
        client.learn(SERVER, [("127.0.0.1", 1), ("no-such-host.invalid", 443), ("127.0.0.1", served.port)])
        assert len(await client.get(SERVER, "/who", max_bytes=32, timeout_s=20)) == 32


# ---- dead and unknown peers


async def test_an_unknown_peer_and_a_closed_port_are_unreachable() -> None:
    async with client_of(1) as client:
        for node_id in (SERVER, NodeID(bytes(32))):
            with pytest.raises(PeerUnreachable):
                await client.get(node_id, "/who", max_bytes=32, timeout_s=20)


async def test_a_peer_that_accepts_but_never_shakes_hands_costs_the_connect_timeout() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    async with client_of(silent.getsockname()[1], limits=ClientLimits(connect_timeout_s=0.2)) as client:
        began = time.monotonic()
        with pytest.raises(PeerUnreachable):
            await client.get(SERVER, "/who", max_bytes=32, timeout_s=60)
        assert time.monotonic() - began < 10
    silent.close()


@pytest.mark.parametrize("addresses", [[("", 1)], [("x", 0)], [("x", 65536)], [("h" * 254, 1)]])
async def test_impossible_addresses_are_not_learned(addresses: list[tuple[str, int]]) -> None:
    async with client_of(1) as client:
        with pytest.raises(InputError):
            client.learn(SERVER, addresses)
        assert client.known(SERVER) == (("127.0.0.1", 1),)


async def test_the_address_book_forgets_the_oldest() -> None:
    async with PeerClient(CLIENT_KEY, network=NETWORK, limits=ClientLimits(peers_max=3)) as client:
        for n in range(5):
            client.learn(NodeID(bytes((n,)) * 32), [("127.0.0.1", 1)])
        assert [bool(client.known(NodeID(bytes((n,)) * 32))) for n in range(5)] == [False, False, True, True, True]


@pytest.mark.parametrize("path", ["", "x", "/a b", "/a\r\nX: y", "/\x00", "/é"])
async def test_a_path_cannot_smuggle_a_header(path: str) -> None:
    async with client_of(1) as client:
        with pytest.raises(InputError):
            await client.get(SERVER, path, max_bytes=1, timeout_s=20)


# ---- hostile peers


async def _fails_with(kind: type[Exception], script: Script, *, max_bytes: int = 1000, timeout_s: float = 20) -> PeerClient:
    async with scripted_server(script) as port, client_of(port) as client:
        with pytest.raises(kind):
            await client.get(SERVER, "/x", max_bytes=max_bytes, timeout_s=timeout_s)
        return client


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


async def drip_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    await drip(reader, writer)


async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(bytes(64 * KIB))
        await writer.drain()


async def flood_chunks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"10000\r\n" + bytes(64 * KIB) + b"\r\n")
        await writer.drain()


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x")
        await asyncio.sleep(0.02)


async def test_an_announced_body_above_the_limit_is_not_read() -> None:
    client = await _fails_with(PeerProtocolError, answering(OK + "Content-Length: 1001\n", bytes(1001)))
    assert client.counters[SERVER].received_bytes <= 1001


async def test_an_endless_chunked_body_ends_at_the_limit() -> None:
    script = answering(OK + "Transfer-Encoding: chunked\n", then=flood_chunks)
    client = await _fails_with(PeerProtocolError, script)
    assert client.counters[SERVER].received_bytes < MIB


async def test_an_endless_unframed_body_ends_at_the_limit() -> None:
    client = await _fails_with(PeerProtocolError, answering(OK + "Connection: close\n", then=flood))
    assert client.counters[SERVER].received_bytes < MIB


async def test_a_byte_at_a_time_is_bounded_by_the_total_timeout() -> None:
    began = time.monotonic()
    await _fails_with(PeerTimeout, answering(OK + "Content-Length: 1000\n", then=drip), timeout_s=0.3)
    await _fails_with(PeerTimeout, answering(OK + "Transfer-Encoding: chunked\n", b"ffff\r\n", then=drip), timeout_s=0.3)
    await _fails_with(PeerTimeout, drip_head, timeout_s=0.3)
    assert time.monotonic() - began < 15


async def test_a_silent_peer_is_bounded_by_the_total_timeout() -> None:
    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    await _fails_with(PeerTimeout, silence, timeout_s=0.3)


async def test_compressed_answers_are_refused_unread() -> None:
    for encoding in ("gzip", "br", "zstd", "deflate"):
        await _fails_with(PeerProtocolError, answering(f"{OK}Content-Encoding: {encoding}\nContent-Length: 3\n", b"xyz"))


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 200\x00OK\n",
        "\x16\x03\x01\n",
        "HTTP/9.9 200 OK\n",
        OK + "Content-Length: -5\n",
        OK + "Content-Length: 5, 6\n",
        OK + "Content-Length: 5\nTransfer-Encoding: chunked\n",
        OK + "X: " + "y" * 20_000 + "\n",
        OK + "".join(f"X{n}: y\n" for n in range(10_000)),
    ],
)
async def test_malformed_heads_are_a_fault_of_the_peer(head: str) -> None:
    await _fails_with(PeerProtocolError, answering(head, b"hello"))


async def test_broken_chunks_are_a_fault_of_the_peer() -> None:
    await _fails_with(PeerProtocolError, answering(OK + "Transfer-Encoding: chunked\n", b"5\r\nhello\r\n"))
    await _fails_with(PeerProtocolError, answering(OK + "Transfer-Encoding: chunked\n", b"zz\r\nhello\r\n"))


@pytest.mark.parametrize("head", [OK + "Content-Length: 500\n", ""])
async def test_a_peer_that_leaves_in_the_middle_is_unreachable_not_guilty(head: str) -> None:
    await _fails_with(PeerUnreachable, answering(head, b"hello") if head else hang_up)


async def test_a_redirect_is_not_followed() -> None:
    await _fails_with(PeerRefused, answering("HTTP/1.1 302 Found\nLocation: https://127.0.0.1:1/\nContent-Length: 0\n"))


async def test_an_answer_from_another_network_is_no_answer() -> None:
    await _fails_with(PeerProtocolError, answering("HTTP/1.1 200 OK\nContent-Length: 2\n", b"ok"))
    await _fails_with(PeerProtocolError, answering("HTTP/1.1 200 OK\nDDS-Network: other\nContent-Length: 2\n", b"ok"))


async def test_a_whole_body_is_no_answer_to_a_range() -> None:
    async with scripted_server(answering(OK + "Content-Length: 10\n", bytes(10))) as port, client_of(port) as client:
        with pytest.raises(PeerProtocolError):
            await client.get(SERVER, "/x", range=(0, 10), max_bytes=10, timeout_s=20)


async def test_a_refusal_keeps_the_peers_own_words() -> None:
    body = encode(ErrorReply("no-space", "the disk is full", "try another"))
    script = answering(f"HTTP/1.1 507 X\nContent-Length: {len(body)}\n", body)
    async with scripted_server(script) as port, client_of(port) as client:
        with pytest.raises(PeerRefused) as refused:
            await client.get(SERVER, "/x", max_bytes=0, timeout_s=20)
    error = refused.value
    assert (error.status, error.remote_code, error.message, error.hint) == (507, "no-space", "the disk is full", "try another")


@pytest.mark.parametrize("body", [b"", b"<html>", b"\x93\x01\x02\x03", bytes(100_000)])
async def test_a_refusal_with_a_senseless_body_is_still_a_refusal(body: bytes) -> None:
    script = answering(f"HTTP/1.1 500 X\nContent-Length: {len(body)}\n", body)
    async with scripted_server(script) as port, client_of(port) as client:
        with pytest.raises(PeerRefused) as refused:
            await client.get(SERVER, "/x", max_bytes=0, timeout_s=20)
    assert refused.value.remote_code == "http-500"


async def test_a_call_whose_reply_does_not_decode_is_a_fault_of_the_peer() -> None:
    for body in (b"", b"\xc1", b"\x91" * 50, encode(ErrorReply("a", "b"))):
        async with scripted_server(answering(f"{OK}Content-Length: {len(body)}\n", body)) as port, client_of(port) as client:
            with pytest.raises(PeerProtocolError):
                await client.call(SERVER, "/x", HoldingRequest([]), HoldingReply, max_bytes=1000, timeout_s=20)


# ---- cancelling


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
async def test_cancelled_transfers_leak_no_connection_and_stop_the_sender() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(OK + f"Content-Length: {1 << 40}\n", then=flood)(reader, writer)

    async with scripted_server(endless) as port, client_of(port) as client:
        before = open_sockets()
        for _ in range(3):
            tasks = [asyncio.create_task(client.get(SERVER, "/x", max_bytes=1 << 41, timeout_s=60)) for _ in range(5)]
            await settled(lambda: open_sockets() >= before + 10)  # both ends of five connections are in this process
            for task in tasks:
                task.cancel()
            assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*tasks, return_exceptions=True))
            await settled(lambda: open_sockets() <= before)
        assert client.counters[SERVER].failures == 15


async def test_cancelling_while_connecting_or_queueing_leaks_nothing() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    limits = ClientLimits(connections_per_peer_max=2)
    async with client_of(silent.getsockname()[1], limits=limits) as client:
        before = open_sockets()
        tasks = [asyncio.create_task(client.get(SERVER, "/x", max_bytes=1, timeout_s=60)) for _ in range(6)]
        await settled(lambda: open_sockets() >= before + 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await settled(lambda: open_sockets() <= before)
    silent.close()


async def test_one_cancelled_request_leaves_its_neighbours_alone() -> None:
    async with serving() as served, client_of(served.port) as client:
        slow = asyncio.create_task(client.get(SERVER, "/slow", max_bytes=10, timeout_s=60))
        await settled(lambda: served.seen)
        others = [asyncio.create_task(client.get(SERVER, "/data", max_bytes=MIB, timeout_s=20)) for _ in range(5)]
        slow.cancel()
        assert await asyncio.gather(*others) == [DATA] * 5


# ---- caps


async def test_a_capped_client_keeps_to_its_rates() -> None:
    bandwidth = Bandwidth.capped(up_bytes_per_s=MIB, down_bytes_per_s=MIB)
    async with serving() as served, PeerClient(CLIENT_KEY, network=NETWORK, bandwidth=bandwidth) as client:
        client.learn(SERVER, [("127.0.0.1", served.port)])
        began = time.monotonic()
        down = client.get(SERVER, "/data", range=(0, MIB // 2), max_bytes=MIB, timeout_s=60)
        up = client.put(SERVER, "/data", DATA[: MIB // 2], timeout_s=60)
        assert (await asyncio.gather(down, up))[0] == DATA[: MIB // 2]
        assert served.seen[-1].body == DATA[: MIB // 2]
        assert time.monotonic() - began > 0.2  # half a MiB each, a quarter of which may burst

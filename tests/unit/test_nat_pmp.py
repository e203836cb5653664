"""NAT-PMP's packets, and a gateway that refuses, lies or is silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dds.primitives.errors import FormatError, UnavailableError
from dds.transport.nat_pmp import (
    TCP,
    UDP,
    Granted,
    NatPmp,
    address_request,
    default_gateway,
    map_request,
    parse_address_reply,
    parse_map_reply,
)


def test_requests_are_the_bytes_of_rfc_6886() -> None:
    assert address_request().hex() == "0000"
    assert map_request(TCP, 4433, 4434, 7200).hex() == "00020000" + "1151" + "1152" + "00001c20"
    assert map_request(UDP, 4433, 0, 0).hex() == "00010000" + "1151" + "0000" + "00000000"


def test_replies_are_read_as_rfc_6886_says() -> None:
    assert parse_address_reply(bytes.fromhex("00800000" + "00000001" + "cb007105")) == "203.0.113.5"
    assert parse_map_reply(bytes.fromhex("00820000" + "00000001" + "1151" + "1152" + "00000e10"), TCP, 4433) == Granted(
        4434, 3600
    )


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "0082",
        "0081000000000001" + "1151115200000e10",
        "0182000000000001" + "1151115200000e10",
        "0082000000000001" + "1152111500000e10",
        "0082000000000001" + "1151000000000e10",
        "0082000000000001",
    ],
)
def test_what_is_no_reply_to_the_request_is_refused(raw: str) -> None:
    with pytest.raises(FormatError):
        parse_map_reply(bytes.fromhex(raw), TCP, 4433)


def test_a_refusal_says_why() -> None:
    with pytest.raises(UnavailableError, match="told to map no ports"):
        parse_map_reply(bytes.fromhex("00820002" + "00000001" + "1151" + "0000" + "00000000"), TCP, 4433)


def test_the_default_gateway_is_read_from_the_routing_table(tmp_path: Path) -> None:
    table = tmp_path / "route"
    head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n"
    table.write_text(
        head + "eth0\t004DA8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\neth0\t00000000\t014DA8C0\t0003\t0\t0\t0\t00000000\n"
    )
    assert default_gateway(table) == "192.168.77.1"
    table.write_text(head)
    assert default_gateway(table) is None
    assert default_gateway(tmp_path / "absent") is None


@asynccontextmanager
async def gateway(answer: Callable[[bytes], list[bytes]]) -> AsyncIterator[int]:
    class Gateway(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            for reply in answer(data):
                self.transport.sendto(reply, addr)  # type: ignore[attr-defined]

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Gateway, local_addr=("127.0.0.1", 0))
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


async def test_a_lost_request_is_sent_again_and_noise_is_passed_over() -> None:
    heard: list[bytes] = []

    def answer(data: bytes) -> list[bytes]:
        heard.append(data)
        reply = bytes.fromhex("00800000" + "00000001" + "cb007105")
        return [] if len(heard) == 1 else [b"\x00\x99noise", b"", reply]

    async with gateway(answer) as port:
        assert await NatPmp("127.0.0.1", port=port).external_address() == "203.0.113.5"
    assert heard == [address_request()] * 2


async def test_a_gateway_without_nat_pmp_is_an_error_that_says_so() -> None:
    async with gateway(lambda _: []) as port:
        pass  # nobody listens there any more
    with pytest.raises(UnavailableError, match="NAT-PMP"):
        await NatPmp("127.0.0.1", port=port).external_address()

"""NAT-PMP: asking the default gateway to pass a port on (RFC 6886). Two kinds of packet, over UDP.

Decides the packets and how often they are sent again. Does not decide what is mapped, nor for how long it is kept
(runtime/port_keeper.py). No library on PyPI does this and is maintained; PCP gateways answer version 0 as well (RFC 6887,
section 9).
"""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dds.primitives.errors import FormatError, UnavailableError

PORT: Final = 5351
TRIES_MAX: Final = 4
FIRST_WAIT_S: Final = 0.25  # doubled with each try: RFC 6886, section 3.1
UDP, TCP = 1, 2  # opcodes of a mapping request
_ADDRESS_REPLY: Final = struct.Struct(">BBHI4s")
_MAP_REQUEST: Final = struct.Struct(">BBHHHI")
_MAP_REPLY: Final = struct.Struct(">BBHIHHI")
_REFUSALS: Final = {
    1: "it does not know this version",
    2: "it is told to map no ports",
    3: "it has no address of its own",
    4: "it has no room left",
    5: "it does not know this request",
}


@dataclass(frozen=True, slots=True)
class Granted:
    """What the gateway granted; it may be another port and a shorter time than was asked for."""

    external_port: int
    lifetime_s: int


def address_request() -> bytes:
    return bytes((0, 0))


def map_request(opcode: int, internal_port: int, external_port: int, lifetime_s: int) -> bytes:
    return _MAP_REQUEST.pack(0, opcode, 0, internal_port, external_port, lifetime_s)


def parse_address_reply(raw: bytes) -> str:
    """The gateway's outer address.

    Raises:
        FormatError: not such a reply. UnavailableError: a refusal.
    """
    _check_head(raw, 128, _ADDRESS_REPLY.size)
    return str(ipaddress.IPv4Address(_ADDRESS_REPLY.unpack(raw)[4]))


def parse_map_reply(raw: bytes, opcode: int, internal_port: int) -> Granted:
    """
    Raises:
        FormatError: not the reply to that request. UnavailableError: a refusal.
    """
    _check_head(raw, 128 + opcode, _MAP_REPLY.size)
    _, _, _, _, internal, external, lifetime_s = _MAP_REPLY.unpack(raw)
    if internal != internal_port or not external:
        raise FormatError("a NAT-PMP reply about another port")
    return Granted(external, lifetime_s)


def _check_head(raw: bytes, opcode: int, size: int) -> None:
    if len(raw) < 4 or raw[0] != 0 or raw[1] != opcode:
        raise FormatError("not the NAT-PMP reply that was waited for")
    result = int.from_bytes(raw[2:4], "big")
    if result:
        raise UnavailableError(f"the gateway refuses to map a port: {_REFUSALS.get(result, f'result {result}')}")
    if len(raw) != size:
        raise FormatError(f"a NAT-PMP reply of {len(raw)} bytes")


def default_gateway(routes: Path = Path("/proc/net/route")) -> str | None:
    """The IPv4 default gateway, where the system says so (Linux)."""
    try:
        lines = routes.read_text().splitlines()[1:]
    except OSError:
        return None
    for fields in (line.split() for line in lines):
        if len(fields) > 3 and fields[1] == "00000000" and int(fields[3], 16) & 2:
            return str(ipaddress.IPv4Address(int(fields[2], 16).to_bytes(4, "little")))
    return None


class NatPmp:
    """Requests to one gateway."""

    def __init__(self, gateway: str, *, port: int = PORT) -> None:
        self._gateway, self._port = gateway, port

    async def external_address(self) -> str:
        """
        Raises:
            UnavailableError: no answer, or a refusal.
        """
        return parse_address_reply(await self._ask(address_request(), 128))

    async def map(self, opcode: int, internal_port: int, external_port: int, lifetime_s: int) -> Granted:
        """Map `internal_port`, or with a lifetime of 0 no longer.

        Raises:
            UnavailableError: no answer, or a refusal.
        """
        raw = await self._ask(map_request(opcode, internal_port, external_port, lifetime_s), 128 + opcode)
        if not lifetime_s:
            return Granted(0, 0)
        return parse_map_reply(raw, opcode, internal_port)

    async def _ask(self, request: bytes, reply_opcode: int) -> bytes:
        loop = asyncio.get_running_loop()
        address = (self._gateway, self._port)
        transport, protocol = await loop.create_datagram_endpoint(lambda: _Replies(reply_opcode), remote_addr=address)
        try:
            wait_s = FIRST_WAIT_S
            for _ in range(TRIES_MAX):
                transport.sendto(request)
                try:
                    async with asyncio.timeout(wait_s):
                        return await asyncio.shield(protocol.reply)
                except TimeoutError:
                    wait_s *= 2
        except OSError as error:
            raise UnavailableError(f"the gateway {self._gateway} takes no NAT-PMP: {error.strerror}") from None
        finally:
            transport.close()
        raise UnavailableError(f"the gateway {self._gateway} does not answer NAT-PMP")


class _Replies(asyncio.DatagramProtocol):
    """Keeps the first datagram with the opcode that is waited for; the socket takes only the gateway's."""

    def __init__(self, opcode: int) -> None:
        self._opcode = opcode
        self.reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, _addr: object) -> None:
        if len(data) > 1 and data[1] == self._opcode and not self.reply.done():
            self.reply.set_result(data)

    def error_received(self, error: Exception) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)

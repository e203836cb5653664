"""Keeps a node's ports mapped at its router, so that a node at home can be dialled.

Decides which way is tried (NAT-PMP, which answers at once or never; then UPnP), for how long a mapping is asked, when it is
asked for again, and which addresses are told. What cannot be had is logged and tried again later; the node runs all the same,
and is reached over iroh where that is on. Source: docs/spec/nat.md; RFC 6886, section 3.3.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from dds.primitives.errors import DDSError
from dds.transport.nat_pmp import TCP, UDP, NatPmp, default_gateway
from dds.transport.upnp import Upnp
from dds.wire.discovery import format_address

log = logging.getLogger("dds.nat")

LIFETIME_S: Final = 7200  # what RFC 6886 recommends
RETRY_S: Final = 600.0
RENEW_S_MIN: Final = 30.0  # a router that grants less is not asked more often
RELEASE_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Port:
    """One to be mapped."""

    protocol: str  # "TCP" or "UDP"
    number: int


@dataclass(frozen=True, slots=True)
class Mapped:
    port: Port
    host: str  # the router's outer address
    external_port: int
    lifetime_s: int


class Router(Protocol):
    """One way to ask."""

    async def map(self, port: Port) -> Mapped: ...

    async def unmap(self, mapped: Mapped) -> None: ...


class PmpRouter:
    """NAT-PMP at the default gateway."""

    def __init__(self, gateway: str) -> None:
        self._pmp = NatPmp(gateway)

    async def map(self, port: Port) -> Mapped:
        host = await self._pmp.external_address()
        opcode = TCP if port.protocol == "TCP" else UDP
        granted = await self._pmp.map(opcode, port.number, port.number, LIFETIME_S)
        return Mapped(port, host, granted.external_port, granted.lifetime_s)

    async def unmap(self, mapped: Mapped) -> None:
        await self._pmp.map(TCP if mapped.port.protocol == "TCP" else UDP, mapped.port.number, 0, 0)


class UpnpRouter:
    """UPnP, wherever a gateway answers."""

    def __init__(self, upnp: Upnp) -> None:
        self._upnp = upnp

    async def map(self, port: Port) -> Mapped:
        host = await self._upnp.external_address()
        await self._upnp.map(port.protocol, port.number, port.number, LIFETIME_S)
        return Mapped(port, host, port.number, LIFETIME_S)

    async def unmap(self, mapped: Mapped) -> None:
        await self._upnp.unmap(mapped.port.protocol, mapped.external_port)


class PortKeeper:
    """Use `run` as a background job; cancelling it gives the mappings back."""

    def __init__(self, ports: Sequence[Port], changed: Callable[[list[Mapped]], None], routers: Sequence[Router]) -> None:
        """`changed` is told of the mappings whenever they are others than before."""
        self._ports, self._changed, self._routers = tuple(ports), changed, tuple(routers)
        self.mapped: list[Mapped] = []
        self._router: Router | None = None

    async def run(self) -> None:
        try:
            while True:
                pause_s = await self._renew()
                await asyncio.sleep(pause_s)  # a lease runs out by the clock alone
        finally:
            await self._release()

    async def _renew(self) -> float:
        """Map everything (anew); seconds until that is due again."""
        for router in self._routers if self._router is None else (self._router,):
            mapped: list[Mapped] = []
            try:
                for port in self._ports:
                    mapped.append(await router.map(port))
            except DDSError as error:
                log.info("no port is mapped: %s", error.message)
                await self._give_back(router, mapped)
                continue
            if (problem := _not_outside(mapped)) is not None:
                log.warning("the router maps ports, but %s", problem)
                await self._give_back(router, mapped)
                continue
            self._router = router
            if [(each.host, each.external_port) for each in mapped] != [
                (each.host, each.external_port) for each in self.mapped
            ]:
                self.mapped = mapped
                log.info("reached from outside at %s", ", ".join(format_address(e.host, e.external_port) for e in mapped))
                self._changed(mapped)
            return max(RENEW_S_MIN, min(each.lifetime_s for each in mapped) / 2)
        if self._router is not None:  # the one that did it so far has failed: look again for any
            self._router = None
            if self.mapped:
                self.mapped = []
                self._changed([])
            return RENEW_S_MIN
        return RETRY_S

    async def _release(self) -> None:
        mapped, self.mapped = self.mapped, []
        if self._router is not None:
            await self._give_back(self._router, mapped)

    async def _give_back(self, router: Router, mapped: Sequence[Mapped]) -> None:
        for each in mapped:
            with contextlib.suppress(DDSError, TimeoutError):
                async with asyncio.timeout(RELEASE_S):
                    await router.unmap(each)


def _not_outside(mapped: Sequence[Mapped]) -> str | None:
    """Why nobody outside can reach that address: a router behind another router maps ports all the same."""
    for host in {each.host for each in mapped}:
        try:
            if not ipaddress.ip_address(host).is_global:
                return f"its own outer address {host} is a private one: there is another router before it"
        except ValueError:
            return f"it says that its outer address is {host[:64]!r}"
    return None


def default_routers() -> list[Router]:
    gateway = default_gateway()
    return [*([PmpRouter(gateway)] if gateway is not None else []), UpnpRouter(Upnp())]

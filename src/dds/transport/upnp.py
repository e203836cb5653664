"""UPnP IGD: asking a home router to pass a port on, through miniupnpc.

Decides nothing but how the library is called: it blocks, so it runs in a thread, and what it raises becomes errors of ours.
Source: UPnP Forum, WANIPConnection:1 and :2; docs/spec/nat.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, TypeVar

from dds.primitives.errors import ConfigError, UnavailableError

DISCOVER_MS: Final = 2_000  # how long gateways have to answer the search
DESCRIPTION: Final = "dds"
T = TypeVar("T")


class Upnp:
    """The first gateway that is found, kept for later requests."""

    def __init__(self, *, interface: str = "") -> None:
        """`interface`: the name or address of the one to search on; empty: the system's choice."""
        self._interface = interface
        self._gateway: Any = None

    async def external_address(self) -> str:
        """
        Raises:
            UnavailableError: no gateway, or it does not say. ConfigError: miniupnpc is not installed.
        """
        address = await self._run(lambda gateway: gateway.externalipaddress())
        if not address:
            raise UnavailableError("the gateway has no outer address")
        return str(address)

    async def map(self, protocol: str, internal_port: int, external_port: int, lifetime_s: int) -> None:
        """Map `external_port` to `internal_port` of this machine; "TCP" or "UDP".

        Raises:
            UnavailableError, ConfigError
        """
        await self._run(
            lambda gateway: gateway.addportmapping(
                external_port, protocol, gateway.lanaddr, internal_port, DESCRIPTION, "", lifetime_s
            )
        )

    async def unmap(self, protocol: str, external_port: int) -> None:
        """
        Raises:
            UnavailableError, ConfigError
        """
        await self._run(lambda gateway: gateway.deleteportmapping(external_port, protocol))

    async def _run(self, work: Callable[[Any], T]) -> T:
        return await asyncio.to_thread(self._blocking, work)

    def _blocking(self, work: Callable[[Any], T]) -> T:
        try:
            if self._gateway is None:
                self._gateway = _discover(self._interface)
            return work(self._gateway)
        except Exception as error:  # the library raises bare Exception for everything that a router says
            if isinstance(error, ConfigError):
                raise
            self._gateway = None
            raise UnavailableError(f"no UPnP gateway maps a port: {error}") from None


def _discover(interface: str) -> Any:
    try:
        import miniupnpc
    except ImportError:
        hint = "pip install 'echonet-dds[nat]', or set nat = \"off\""
        raise ConfigError("miniupnpc is not installed", hint=hint) from None
    found = miniupnpc.UPnP(multicastif=interface) if interface else miniupnpc.UPnP()
    found.discoverdelay = DISCOVER_MS
    found.discover()
    found.selectigd()
    return found

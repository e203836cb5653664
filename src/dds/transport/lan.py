"""Nodes of the same network on the local network: multicast DNS and DNS-SD (RFC 6762, RFC 6763) by `zeroconf`.

Decides the service's name and fields, on which interface it is spoken, what of an answer is well-formed, and how much a
stranger on the LAN can make us keep. Does not believe or dial anybody: a find says "ask there", and whoever answers must prove
its NodeID (runtime/lan.py). Source: docs/spec/discovery.md, "On the LAN"; docs/adr/0028-lan-discovery.md.

IPv4 only. Only addresses of private ranges are taken from an answer: nobody on the LAN can have us dial the internet.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dds.primitives.errors import ConfigError, InputError
from dds.primitives.ids import ID_TEXT_CHARS, NodeID, id_text, parse_id
from dds.wire.discovery import ADDRESSES_MAX, format_address

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, ServiceStateChange, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

log = logging.getLogger("dds.lan")

SERVICE: Final = "_dds._tcp.local."
FIELDS_VERSION: Final = "1"
FINDS_MAX: Final = 64  # nodes remembered of a LAN; the oldest goes first
RESOLVING_MAX: Final = 8  # names whose address and fields are asked for at the same time
NAMES_WAITING_MAX: Final = 256  # names that wait for that; more are not looked at until they are said again
RESOLVE_MS: Final = 3000
CACHED_NAMES_MAX: Final = 4096  # zeroconf keeps whatever is said on the LAN: beyond it we stop listening for a while
WATCH_S: Final = 5.0
DEAF_S: Final = 300.0

Found = Callable[["LanNode"], None]


@dataclass(frozen=True, slots=True)
class LanNode:
    """Who says on the LAN that it is there; nothing of it is proven."""

    node_id: NodeID
    addresses: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class LanService:
    """What a node says of itself."""

    node_id: NodeID
    port: int


class Lan:
    """Says on one interface, or all, that we are there, and hears who else is.

    Args:
        network: nodes of other networks are not told of.
        interface: an IPv4 address of this machine; empty or unspecified: all interfaces.
        on_found: called in the event loop, once for each node and change of its addresses.
        service: what to say of ourselves; None: only listen.
    """

    def __init__(self, network: str, interface: str, on_found: Found, service: LanService | None = None) -> None:
        self._network, self._on_found, self._service = network, on_found, service
        self._interface = "" if _is_unspecified(interface) else interface
        self._found: dict[NodeID, LanNode] = {}
        self._turns = asyncio.Semaphore(RESOLVING_MAX)
        self._resolving: dict[str, asyncio.Task[None]] = {}
        self._parts: tuple[AsyncZeroconf, AsyncServiceBrowser] | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def found(self) -> list[LanNode]:
        return list(self._found.values())

    async def start(self) -> None:
        """
        Raises:
            ConfigError: multicast cannot be spoken on the interface.
        """
        await self._open()
        self._watch = asyncio.create_task(self._stay_bounded())

    async def stop(self) -> None:
        """Say that we are gone, and listen no more."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._close()

    async def _open(self) -> None:
        from zeroconf import Error as ZeroconfError
        from zeroconf import InterfaceChoice, IPVersion
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

        if ":" in self._interface:
            raise ConfigError(f"LAN discovery speaks IPv4 only, not on {self._interface}", hint="set lan = false")
        interfaces = [self._interface] if self._interface else InterfaceChoice.All
        where = self._interface or "any interface"
        try:
            speaker = AsyncZeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only)
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"the LAN cannot be spoken to on {where}: {error}", hint="set lan = false") from None
        browser = AsyncServiceBrowser(speaker.zeroconf, [SERVICE], handlers=[self._on_change])
        self._parts = speaker, browser
        if self._service is None:
            return
        try:
            await (await speaker.async_register_service(self._info(self._service)))
        except (ZeroconfError, OSError) as error:
            raise ConfigError(f"this node cannot be announced on {where}: {error!r}", hint="set lan = false") from None

    async def _close(self) -> None:
        parts, self._parts = self._parts, None
        for task in self._resolving.values():
            task.cancel()
        await asyncio.gather(*self._resolving.values(), return_exceptions=True)
        if parts is not None:
            speaker, browser = parts
            await browser.async_cancel()
            if self._service is not None:
                await speaker.async_unregister_all_services()
            await speaker.async_close()

    async def _stay_bounded(self) -> None:
        """Whoever floods the LAN with names silences us for a while, and fills nothing."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self._parts is not None and len(self._parts[0].zeroconf.cache.cache) > CACHED_NAMES_MAX:
                log.warning("more than %d names are said on the LAN: not listening for %d s", CACHED_NAMES_MAX, DEAF_S)
                await self._close()
                await self._open_again()

    async def _open_again(self) -> None:
        """After a while, and after another one where the interface is away just then."""
        while self._parts is None:
            await asyncio.sleep(DEAF_S)
            try:
                await self._open()
            except ConfigError as error:
                log.warning("still not on the LAN: %s", error)
                await self._close()

    def _info(self, service: LanService) -> ServiceInfo:
        from zeroconf import ServiceInfo

        hosts = [self._interface] if self._interface else [each for each in _own_addresses() if _may_dial(each, "")]
        name = id_text(service.node_id)
        return ServiceInfo(
            SERVICE,
            f"{name}.{SERVICE}",
            parsed_addresses=hosts[:ADDRESSES_MAX],
            port=service.port,
            properties={"v": FIELDS_VERSION, "network": self._network},
            server=f"{name}.local.",
        )

    def _on_change(self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        """Called by zeroconf, in the event loop."""
        node = _node_in(name)
        if node is None or state_change.name == "Removed" or (self._service is not None and node == self._service.node_id):
            return
        if name in self._resolving or len(self._resolving) >= NAMES_WAITING_MAX:
            return
        task = self._resolving[name] = asyncio.create_task(self._resolve(zeroconf, name, node))
        task.add_done_callback(lambda _: self._resolving.pop(name, None))

    async def _resolve(self, zeroconf: Zeroconf, name: str, node: NodeID) -> None:
        from zeroconf.asyncio import AsyncServiceInfo

        info = AsyncServiceInfo(SERVICE, name)
        async with self._turns:
            if not await info.async_request(zeroconf, RESOLVE_MS):
                return
        find = self._read(info, node)
        if find is not None and self._found.get(node) != find:
            self._found[node] = find
            if len(self._found) > FINDS_MAX:
                del self._found[next(iter(self._found))]
            log.info("found on the LAN: %s at %s", id_text(node), [format_address(*each) for each in find.addresses])
            self._on_found(find)

    def _read(self, info: Any, node: NodeID) -> LanNode | None:
        """A stranger's answer, if it is well-formed and of our network."""
        fields, port = info.properties, info.port
        if fields.get(b"v") != FIELDS_VERSION.encode() or fields.get(b"network") != self._network.encode():
            return None
        hosts = [host for host in info.parsed_addresses()[: 4 * ADDRESSES_MAX] if _may_dial(host, self._interface)]
        if not hosts or not isinstance(port, int) or not 0 < port < 65_536:
            return None
        return LanNode(node, tuple((host, port) for host in hosts[:ADDRESSES_MAX]))


def _node_in(name: str) -> NodeID | None:
    label = name[: -len(SERVICE) - 1] if name.endswith("." + SERVICE) else ""
    if len(label) != ID_TEXT_CHARS:
        return None
    try:
        return NodeID(parse_id(label, "NodeID"))
    except InputError:
        return None


def _is_unspecified(host: str) -> bool:
    return not host or ipaddress.ip_address(host).is_unspecified


def _may_dial(host: str, interface: str) -> bool:
    """Private IPv4 addresses; this machine itself only for who speaks on its loopback."""
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        return False
    if address.is_loopback:
        return bool(interface) and ipaddress.ip_address(interface).is_loopback
    return address.is_private and not (address.is_unspecified or address.is_multicast)


def _own_addresses() -> list[str]:
    import psutil

    found = psutil.net_if_addrs()
    return [address.address for name in sorted(found) for address in found[name] if address.family is socket.AF_INET]

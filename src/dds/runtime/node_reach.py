"""How a node behind a router is reached: ports mapped at the router, an iroh endpoint beside them.

Decides what of it runs, from the configuration, and what the node's record then says. The ways themselves are port_keeper.py
and transport/iroh_link.py. A node with neither costs nothing here. Source: docs/spec/nat.md.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from dds.primitives.ids import NodeID
from dds.primitives.keys import SigningKey
from dds.protocol.peers import PeerTable
from dds.storage.home import NodeConfig
from dds.transport.client import PeerClient
from dds.wire.discovery import ADDRESSES_MAX, format_address

if TYPE_CHECKING:
    from dds.runtime.port_keeper import Mapped
    from dds.transport.iroh_link import IrohLink


class NodeReach:
    """`changed` is called when the node is to be dialled elsewhere than before."""

    def __init__(self, key: SigningKey, config: NodeConfig, table: PeerTable, changed: Callable[[], None]) -> None:
        """
        Raises:
            ConfigError: what the configuration asks for is not installed.
        """
        self._key, self._config, self._table, self._changed = key, config, table, changed
        self._outer: list[str] = []  # addresses at the router
        self._link = self._make_link() if config.iroh else None

    def _make_link(self) -> IrohLink:
        """Imported here: the library is optional, and 19 MB."""
        from dds.transport.iroh_link import IrohLink

        return IrohLink(self._key, self._hints, relays=self._config.iroh_relays)

    def _hints(self, node: NodeID) -> list[str]:
        peer = self._table.get(node)
        return [] if peer is None or peer.record is None else peer.record.iroh

    async def start(self, client: PeerClient, port: int) -> None:
        """Be reached at the server's `port`, and let `client` reach others.

        Raises:
            ConfigError: the address or a relay cannot be used.
        """
        if self._link is not None:
            await self._link.start(self._config.host, self._config.iroh_port)
            self._link.serve((_own_address(self._config.host), port))
            client.add_way(self._link.way_to)

    async def stop(self) -> None:
        if self._link is not None:
            await self._link.stop()

    def jobs(self, port: int, dht_port: int) -> dict[str, Callable[[], Awaitable[None]]]:
        """What is to be run in the background."""
        if self._config.nat == "off":
            return {}
        from dds.runtime.port_keeper import Port, PortKeeper, default_routers

        ports = (Port("TCP", port), Port("UDP", dht_port))
        return {"ports": lambda: PortKeeper(ports, self._mapped, default_routers()).run()}

    def _mapped(self, mapped: list[Mapped]) -> None:
        self._outer = [format_address(each.host, each.external_port) for each in mapped if each.port.protocol == "TCP"]
        self._changed()

    def addresses(self, own: list[str]) -> list[str]:
        """What others dial, best first: what the operator wrote, then the router's."""
        return list(dict.fromkeys([*self._outer, *own]))[:ADDRESSES_MAX] if not self._config.advertised else own

    @property
    def iroh(self) -> list[str]:
        return [] if self._link is None else self._link.addresses[:ADDRESSES_MAX]


def _own_address(host: str) -> str:
    """Where this machine dials itself."""
    address = ipaddress.ip_address(host)
    if not address.is_unspecified:
        return host
    return "::1" if address.version == 6 else "127.0.0.1"

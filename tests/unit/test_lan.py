"""Finding nodes on the LAN: two real speakers on the loopback, and what a stranger there can do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from zeroconf import IPVersion, ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from dds.primitives.errors import ConfigError
from dds.primitives.ids import NodeID, id_text
from dds.runtime.lan import LanPeers
from dds.runtime.network import open_network
from dds.storage.home import ClientConfig
from dds.transport import lan as lan_module
from dds.transport.client import PeerClient
from dds.transport.lan import SERVICE, Lan, LanNode, LanService
from dds.transport.routes import Request, Response, Route
from dds.transport.server import PeerServer
from dds.wire.api import PeersReply
from dds.wire.codec import encode
from tests.discovery_samples import node_id, signing_key
from tests.lan_multicast import LOOPBACK, need_multicast

pytestmark = pytest.mark.xdist_group("lan")  # they would hear each other

NETWORK = "lan-test"
FOUND_S = 30.0


@pytest.fixture(autouse=True)
def multicast() -> None:
    need_multicast()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(FOUND_S):
        while not condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def speaking(network: str, service: LanService | None = None) -> AsyncIterator[Lan]:
    lan = Lan(network, LOOPBACK, lambda _: None, service)
    try:
        await lan.start()
        yield lan
    finally:
        await lan.stop()


@asynccontextmanager
async def stranger(*services: tuple[str, str, int, dict[str, str]]) -> AsyncIterator[None]:
    """Says (name, address, port, fields) on the loopback, as anybody can."""
    speaker = AsyncZeroconf(interfaces=[LOOPBACK], ip_version=IPVersion.V4Only)
    try:
        for name, address, port, fields in services:
            info = ServiceInfo(
                SERVICE, f"{name}.{SERVICE}", parsed_addresses=[address], port=port, properties=fields, server=f"{name}.local."
            )
            speaker.zeroconf.registry.async_add(info)
        for name, *_ in services:
            registered = speaker.zeroconf.registry.async_get_info_name(f"{name}.{SERVICE}".lower())
            assert registered is not None
            await speaker.async_update_service(registered)  # said at once, and again while it is open
        yield
    finally:
        await speaker.async_close()


async def test_node_is_found_by_nodes_and_clients_of_its_network_and_by_no_others() -> None:
    async with (
        speaking(NETWORK, LanService(node_id(1), 4001)) as first,
        speaking(NETWORK, LanService(node_id(2), 4002)) as second,
        speaking(NETWORK) as client,
        speaking("another") as other,
    ):
        await until(lambda: first.found and second.found and len(client.found) == 2)
        assert first.found == [LanNode(node_id(2), ((LOOPBACK, 4002),))]
        assert second.found == [LanNode(node_id(1), ((LOOPBACK, 4001),))]
        assert {each.node_id for each in client.found} == {node_id(1), node_id(2)}
        assert other.found == []


async def test_stranger_cannot_have_us_dial_the_internet_nor_be_heard_with_malformed_fields() -> None:
    good = {"v": "1", "network": NETWORK}
    async with (
        stranger(
            (id_text(node_id(1)), "203.0.114.9", 443, good),
            (id_text(node_id(2)), LOOPBACK, 4002, {"v": "2", "network": NETWORK}),
            (id_text(node_id(3)), LOOPBACK, 4003, {"network": NETWORK}),
            ("not-a-node", LOOPBACK, 4004, good),
            (id_text(node_id(5)), LOOPBACK, 4005, good),
        ),
        speaking(NETWORK) as client,
    ):
        await until(lambda: client.found)
        await until(lambda: not client._resolving)
        assert client.found == [LanNode(node_id(5), ((LOOPBACK, 4005),))]


async def test_names_without_end_displace_the_oldest_and_fill_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan_module, "FINDS_MAX", 4)
    names = [(id_text(node_id(at)), LOOPBACK, 4000 + at, {"v": "1", "network": NETWORK}) for at in range(1, 9)]
    heard: list[NodeID] = []
    lan = Lan(NETWORK, LOOPBACK, lambda find: heard.append(find.node_id))
    async with stranger(*names):
        await lan.start()
        await until(lambda: len(heard) > 4)
        assert len(lan.found) <= 4
        await lan.stop()


async def test_whoever_floods_the_cache_is_not_listened_to_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan_module, "CACHED_NAMES_MAX", 3)
    monkeypatch.setattr(lan_module, "WATCH_S", 0.05)
    names = [(id_text(node_id(at)), LOOPBACK, 4000 + at, {"v": "1", "network": NETWORK}) for at in range(1, 9)]
    async with stranger(*names), speaking(NETWORK) as lan:
        await until(lambda: lan._parts is None)


async def test_who_was_silenced_listens_again_even_if_the_interface_was_away_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan_module, "CACHED_NAMES_MAX", 3)
    monkeypatch.setattr(lan_module, "WATCH_S", 0.05)
    monkeypatch.setattr(lan_module, "DEAF_S", 0.05)
    names = [(id_text(node_id(at)), LOOPBACK, 4000 + at, {"v": "1", "network": NETWORK}) for at in range(1, 9)]
    async with speaking(NETWORK) as lan:
        opened, failures = lan._open, [ConfigError("the interface is away")] * 2

        async def away_at_first() -> None:
            if failures:
                raise failures.pop()
            await opened()

        monkeypatch.setattr(lan, "_open", away_at_first)
        async with stranger(*names):
            await until(lambda: lan._parts is None)
        await until(lambda: not failures and lan._parts is not None)


async def test_interface_that_is_not_there_is_a_clear_error() -> None:
    for host in ("::1", "203.0.113.77"):
        with pytest.raises(ConfigError, match="LAN"):
            await Lan(NETWORK, host, lambda _: None).start()


async def test_who_does_not_prove_its_id_costs_a_dial_and_displaces_no_known_address() -> None:
    async def peers(_: Request) -> Response:
        return Response(body=encode(PeersReply([b"a record", b"another"])))

    offered: list[tuple[bytes, NodeID]] = []
    server = PeerServer(signing_key(1), network=NETWORK, routes=[Route("GET", "/v1/peers", peers)])
    port = await server.start(LOOPBACK, 0)
    async with PeerClient(None, network=NETWORK) as client:
        client.learn(node_id(2), [(LOOPBACK, 9)])
        looking = LanPeers(client, NETWORK, LOOPBACK, lambda raw, sender: offered.append((raw, sender)))
        liar = (id_text(node_id(2)), LOOPBACK, port, {"v": "1", "network": NETWORK})
        async with stranger(liar):
            looking.start()
            await until(lambda: looking.found)
            async with speaking(NETWORK, LanService(node_id(1), port)):
                assert await looking.wait_for_first(FOUND_S)
        await looking.stop()
        assert looking.answered == [node_id(1)]
        assert offered == [(b"a record", node_id(1)), (b"another", node_id(1))]
        assert client.known(node_id(2))[0] == (LOOPBACK, 9)
    await server.stop(1.0)


async def test_client_without_bootstrap_says_that_nobody_is_on_the_lan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dds.runtime.network.LAN_WAIT_S", 0.3)
    config = ClientConfig("nobody-is-here", lan=True, lan_host=LOOPBACK)
    with pytest.raises(Exception, match="on the LAN"):
        async with open_network(signing_key(1), config):
            pass

"""The peer host over real sockets: a TCP server per node that answers probes and peer exchanges, and real DHT nodes."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import psutil
import pytest

from dds.primitives.errors import InputError, PeerUnreachable
from dds.primitives.ids import NodeID, id_text
from dds.protocol.peers import FROM_DHT, Health, PeerPolicy, PeerTable, Verdict
from dds.runtime.peers import (
    BootstrapPeer,
    PeerHost,
    PeerHostConfig,
    format_bootstrap,
    parse_bootstrap,
    wall_clock_ms,
)
from dds.transport.dht import DHTNode, ValueType
from dds.wire.discovery import (
    NODE,
    NODE_LIFETIME_MS,
    NodeRecord,
    format_address,
    node_bucket,
    node_place,
    open_record,
    seal,
)
from tests.dht_network import dht_network
from tests.discovery_samples import NETWORK, node_id, node_record, signed_node, signing_key

QUICK = PeerHostConfig(publish_gap_s=0.05, exchange_every_s=0.3, bootstrap_retry_s=0.05, request_timeout_s=1.0)


class Site:
    """One node: its server, its peer host, and the number of questions that it was asked."""

    def __init__(self, number: int, *, dht: DHTNode | None = None, config: PeerHostConfig = QUICK) -> None:
        self.key = signing_key(number)
        self.node_id = node_id(number)
        self.table = PeerTable(NETWORK, self.node_id, number.to_bytes(32, "big"), PeerPolicy(retry_ms_min=100))
        self.dht = dht
        self.config = config
        self.asked = 0
        self.region = "eu-west"
        self.port = 0
        self.host: PeerHost

    async def start(self, bootstrap: list[BootstrapPeer], *, client: bool = False) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        self.host = PeerHost(
            self.key,
            self.table,
            probe=self._probe,
            fetch_peers=self._fetch,
            describe=None if client else self._describe,
            dht=self.dht,
            bootstrap=bootstrap,
            config=self.config,
        )
        await self.host.start()

    async def stop(self) -> None:
        await self.host.stop()
        await self.stop_serving()

    async def stop_serving(self) -> None:
        self.server.close()
        await self.server.wait_closed()

    @property
    def as_bootstrap(self) -> BootstrapPeer:
        return BootstrapPeer(self.node_id, "127.0.0.1", self.port)

    def _describe(self) -> NodeRecord:
        dht = "" if self.dht is None else format_address("127.0.0.1", self.dht.port)
        addresses = [format_address("127.0.0.1", self.port)]
        return msgspec.structs.replace(node_record(self.key, dht=dht), addresses=addresses, region=self.region)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        question = await reader.read(1)
        for record in self.host.shared() if question == b"p" else []:
            writer.write(struct.pack(">I", len(record)) + record)
        writer.close()

    async def _ask(self, peer: NodeID, question: bytes) -> bytes:
        try:
            host, port = self.host.addresses_of(peer)[0]
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(question)
            answer = await reader.read()
            writer.close()
        except OSError as error:
            raise PeerUnreachable(str(error), peer=id_text(peer)) from None
        return answer

    async def _probe(self, peer: NodeID) -> float:
        began = time.monotonic()
        await self._ask(peer, b"?")
        return time.monotonic() - began

    async def _fetch(self, peer: NodeID) -> list[bytes]:
        answer, records = await self._ask(peer, b"p"), []
        while answer:
            length = struct.unpack_from(">I", answer)[0]
            records.append(answer[4 : 4 + length])
            answer = answer[4 + length :]
        return records


@asynccontextmanager
async def running(*sites: Site, client: bool = False) -> AsyncIterator[None]:
    """Start the sites, all but the first with the first as bootstrap."""
    try:
        await sites[0].start([])
        for site in sites[1:]:
            await site.start([sites[0].as_bootstrap], client=client)
        yield
    finally:
        for site in sites:
            await site.stop()


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def test_bootstrap_address_survives_parsing_and_formatting() -> None:
    for host in ("127.0.0.1", "2001:db8::1", "node.example.org"):
        peer = BootstrapPeer(node_id(1), host, 4433)
        assert parse_bootstrap(f" {format_bootstrap(peer)}\n") == peer


@pytest.mark.parametrize("text", ["", "host:1", "@host:1", "abc@host:1", f"{id_text(node_id(1))}@host", "a@b@c:1"])
def test_malformed_bootstrap_address_is_an_input_error(text: str) -> None:
    with pytest.raises(InputError):
        parse_bootstrap(text)


async def test_nodes_find_each_other_through_one_bootstrap_node_without_a_dht() -> None:
    sites = [Site(number) for number in range(1, 6)]
    async with running(*sites):
        for site in sites[1:]:
            assert await site.host.wait_for_peers(1, 5) >= 1
            sites[0].host.offer(site.host.own_record(), site.node_id)
        for site in sites:
            assert await site.host.wait_for_peers(4, 10) == 4
            assert len(site.table) == 4


async def test_nodes_join_the_dht_through_signed_records_and_hear_of_all_others() -> None:
    dhts = [DHTNode(NETWORK) for _ in range(6)]
    sites = [Site(number, dht=dht) for number, dht in enumerate(dhts, 1)]
    for dht in dhts:
        await dht.start("127.0.0.1")
    try:
        async with running(*sites):
            for site in sites:
                assert await site.host.wait_for_peers(5, 10) == 5
    finally:
        for dht in dhts:
            assert await dht.stop()


async def test_changed_description_reaches_the_others_and_replaces_the_old_one() -> None:
    async with dht_network(2, NETWORK) as dhts:
        one, two = Site(1, dht=dhts[0]), Site(2, dht=dhts[1])
        async with running(one, two):
            assert await two.host.wait_for_peers(1, 5) == 1
            # The table takes no second change of a node's within two seconds.
            await asyncio.sleep(2.1)
            one.region = "us-east"
            one.host.changed()

            def region() -> str | None:
                peer = two.table.get(one.node_id)
                return None if peer is None or peer.record is None else peer.record.region

            await until(lambda: region() == "us-east")


async def test_client_learns_peers_and_publishes_nothing() -> None:
    async with dht_network(2, NETWORK) as dhts:
        node, client = Site(1, dht=dhts[0]), Site(2, dht=dhts[1])
        async with running(node, client, client=True):
            assert await client.host.wait_for_peers(1, 5) == 1
            with pytest.raises(InputError):
                client.host.own_record()
            assert [open_record(raw, NODE, NETWORK).node_id for raw in client.host.shared()] == [node.node_id]
            await asyncio.sleep(0.2)
            assert node.table.get(client.node_id) is None


async def test_dead_peer_is_found_out_by_probes_and_recovers() -> None:
    one, two = Site(1), Site(2)
    async with running(one, two):
        await until(lambda: two.table.counts()[Health.HEALTHY] == 1)
        await one.stop_serving()
        for _ in range(2):
            two.host.report(one.node_id, False)
        assert two.table.counts()[Health.SUSPECT] == 1
        asked = one.asked
        one.server = await asyncio.start_server(one._serve, "127.0.0.1", one.port)
        await until(lambda: two.table.counts()[Health.HEALTHY] == 1)
        assert one.asked > asked


async def test_strangers_records_on_the_bucket_keys_are_ignored_and_cost_little() -> None:
    now_ms = wall_clock_ms()
    honest, stranger = signing_key(50), signing_key(51)
    place = node_place(NETWORK, node_bucket(NodeID(honest.public)))
    async with dht_network(3, NETWORK) as dhts:
        site = Site(1, dht=dhts[0])
        async with running(site):
            put = dhts[2].put
            for at in range(300):
                await put(place.key, b"\x01" + at.to_bytes(300, "big"), ValueType.NODE)
            expired = signed_node(stranger, seq=now_ms - NODE_LIFETIME_MS)
            foreign = signed_node(stranger, seq=now_ms, network="another")
            forged = bytearray(signed_node(stranger, seq=now_ms))
            forged[-1] ^= 1
            for raw in (expired, foreign, bytes(forged), signed_node(honest, seq=now_ms)):
                await put(place.key, seal(place, NODE, raw), ValueType.NODE)
            await until(lambda: site.table.get(NodeID(honest.public)) is not None)
            assert len(site.table) == 1


async def test_own_record_is_renewed_before_it_gets_old() -> None:
    now = [wall_clock_ms()]
    site = Site(1)
    host = PeerHost(
        site.key, site.table, probe=site._probe, fetch_peers=site._fetch, describe=site._describe, clock_ms=lambda: now[0]
    )
    site.port = 1
    first = host.own_record()
    now[0] += NODE_LIFETIME_MS // 3 - 1
    assert host.own_record() == first
    now[0] += 1
    second = open_record(host.own_record(), NODE, NETWORK)
    assert (second.seq, second.expires_ms) == (now[0], now[0] + NODE_LIFETIME_MS)
    assert host.shared(5) == [host.own_record()]
    assert host.offer(host.own_record(), FROM_DHT) is Verdict.STALE


async def test_twenty_idle_nodes_cost_next_to_nothing() -> None:
    """Lesson: every node polling every other once a second burned half a machine at 20 nodes."""
    idle = PeerHostConfig(publish_gap_s=0.05)
    async with dht_network(20, NETWORK) as dhts:
        sites = [Site(number, dht=dht, config=idle) for number, dht in enumerate(dhts, 1)]
        async with running(*sites):
            for site in sites:
                assert await site.host.wait_for_peers(19, 15) == 19
            await asyncio.sleep(1.0)
            for site in sites:
                for peer in site.table:
                    site.host.report(peer.node_id, True, 0.001)
            asked, before = sum(site.asked for site in sites), psutil.Process().cpu_times()
            await asyncio.sleep(3.0)
            after = psutil.Process().cpu_times()
            assert sum(site.asked for site in sites) - asked <= 5
            assert (after.user + after.system - before.user - before.system) / 3.0 < 0.15

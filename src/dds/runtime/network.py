"""A client's view of the network: connections, known nodes, what the DHT says, and how each node has behaved.

Starts from the bootstrap list: a few of those nodes are asked for the signed records of all they know (one request each); the
DHT is joined only when something must be looked up or announced. Nothing learned here is believed beyond being asked: records
are signed by whom they are about, and bytes are checked by their hashes elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from dds.placement.draw import WEIGHT_MAX, Candidate
from dds.placement.roles import storage_role
from dds.primitives.cid import CID
from dds.primitives.errors import DDSError, FormatError, UnavailableError
from dds.primitives.ids import NodeID, SegmentID, id_text
from dds.primitives.keys import SigningKey
from dds.primitives.units import MIB
from dds.protocol.edge_choice import EdgeChoice
from dds.protocol.ranking import NodeRanking
from dds.runtime.lan import LanPeers
from dds.runtime.tasks import gather_all
from dds.storage.home import ClientConfig, parse_host_port, parse_node_address
from dds.transport.client import PeerClient
from dds.transport.dht import DHTNode, ValueType
from dds.wire.api import PEERS_REPLY_BYTES_MAX, PeersReply
from dds.wire.codec import Message, decode
from dds.wire.discovery import (
    CONTENT_ANNOUNCE,
    CONTENT_PROVIDER,
    HOLDERS_MAX,
    NODE,
    PROVIDER_LIFETIME_MS,
    RECORD_VERSION,
    SEGMENT_PROVIDER,
    ContentAnnounce,
    ContentProvider,
    Kind,
    NodeRecord,
    Place,
    R,
    content_place,
    is_current,
    open_record,
    parse_address,
    seal,
    segment_place,
    sign_record,
    unseal,
)

if TYPE_CHECKING:
    from dds.runtime.ledger_client import LedgerClient
    from dds.runtime.purse import Purse
    from dds.transport.iroh_link import IrohLink

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)

PEX_ASKED_MAX: Final = 3  # bootstrap nodes asked for their peers
PEX_TIMEOUT_S: Final = 3.0
LAN_WAIT_S: Final = 5.0  # for a first node of the LAN, where no bootstrap node is named
NODES_MAX: Final = 4096
DHT_TIMEOUT_S: Final = 3.0
DHT_VALUES_MAX: Final = 48
DHT_WAYS_IN_MAX: Final = 8
ANNOUNCE_TIMEOUT_S: Final = 5.0
ANNOUNCING_ENDS_S: Final = 6.0  # how long `stop` waits for announcements under way
ORIGIN_LIFETIME_MS: Final = 15 * 60_000  # an origin goes when the network has the content, and its record soon after
EDGE_ROLE: Final = "ecn"


@dataclass(frozen=True, slots=True)
class ContentProviders:
    """Whom the DHT names for a content; nothing of it is proven."""

    holders: list[NodeID]  # of its manifest
    origins: list[NodeID]  # serve its blocks themselves; the latest word first


class Network:
    """Use `open_network`. `client` and `ranking` are shared by everything that asks nodes."""

    def __init__(
        self,
        key: SigningKey,
        config: ClientConfig,
        client: PeerClient,
        dht: DHTNode | None = None,
        purse: Purse | None = None,
    ) -> None:
        """`dht`: a node that has joined already and stays joined; without it one is made at the first use. `purse`: what
        `client` pays nodes with."""
        self.key, self.name, self.client = key, config.network, client
        self.ranking = NodeRanking(self.is_near)
        self.edge_choice = EdgeChoice()
        self.purse = purse
        self.turn = 0  # spreads small reads over their copies
        self._config = config
        self._nodes: dict[NodeID, NodeRecord] = {}
        self._bootstrap: list[NodeID] = []
        self._given_dht = dht
        self._lan: LanPeers | None = None
        self._dht: asyncio.Task[DHTNode | None] | None = None
        self._announcing: set[asyncio.Task[None]] = set()
        self._link: IrohLink | None = None
        self._ledgers: dict[str, LedgerClient] = {}

    def ledger(self, address: str) -> LedgerClient:
        """The session's one client of the ledger at "NODEID@host:port": its nonces are handed out in one place. Imported here:
        who asks no ledger carries nothing of it.

        Raises:
            InputError: not an address.
        """
        from dds.runtime.ledger_client import ledger_at

        if address not in self._ledgers:
            self._ledgers[address] = ledger_at(address, self.client, self.name)
        return self._ledgers[address]

    # -- starting and stopping --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Learn who is there.

        Raises:
            UnavailableError: none of the bootstrap nodes answers, and nobody on the LAN.
        """
        if self._config.lan:
            self._lan = LanPeers(self.client, self.name, self._config.lan_host, lambda raw, _: self._learn(raw))
            self._lan.start()
        for text in self._config.bootstrap:
            node, host, port = parse_node_address(text)
            self.client.learn(node, [(host, port)])
            self._bootstrap.append(node)
        await self.refresh()
        if self._config.iroh:
            await self._start_link()

    async def _start_link(self) -> None:
        """The library is optional, and 19 MB: imported where it is asked for."""
        from dds.transport.iroh_link import IrohLink

        self._link = IrohLink(
            self.key, lambda node: self._nodes[node].iroh if node in self._nodes else (), relays=self._config.iroh_relays
        )
        await self._link.start(self._config.host)
        self.client.add_way(self._link.way_to)

    async def refresh(self) -> None:
        """Ask bootstrap nodes, in turn until PEX_ASKED_MAX have answered, for the node records that they know."""
        waiting = list(self._bootstrap)
        answered = 0
        while waiting and answered < PEX_ASKED_MAX:
            batch, waiting = waiting[: PEX_ASKED_MAX - answered], waiting[PEX_ASKED_MAX - answered :]
            answered += sum(await gather_all([self._exchange_peers(node) for node in batch]))
        if not answered and self._lan is not None and await self._lan.wait_for_first(LAN_WAIT_S):
            return
        if not answered and self._lan is not None and not self._bootstrap:
            raise UnavailableError(
                f"no node of network {self.name!r} answers on the LAN",
                hint="is one running there, with lan = true in its node.toml? `dds doctor`",
            )
        if self._bootstrap and not answered:
            raise UnavailableError(
                f"none of the {len(self._bootstrap)} bootstrap nodes of network {self.name!r} answers",
                hint="is the network up? `dds devnet status`, `dds doctor`",
            )

    async def _exchange_peers(self, node: NodeID) -> bool:
        try:
            reply = await self.fetch(node, "/v1/peers", PeersReply, max_bytes=PEERS_REPLY_BYTES_MAX, timeout_s=PEX_TIMEOUT_S)
        except DDSError as error:
            log.info("bootstrap node %s does not answer: %s", id_text(node), error.message)
            return False
        for raw in reply.records:
            self._learn(raw)
        return True

    def _learn(self, raw: bytes) -> None:
        with contextlib.suppress(FormatError):
            record = open_record(raw, NODE, self.name)
            node = NodeID(record.node_id)
            known = self._nodes.get(node)
            fresh = known is None or record.seq > known.seq
            if fresh and is_current(record, NODE, self.now_ms()) and (known or len(self._nodes) < NODES_MAX):
                self._nodes[node] = record
                self.client.learn(node, [parse_address(address) for address in record.addresses])

    def learn(self, records: Sequence[bytes]) -> None:
        """Signed node records from elsewhere; what does not hold is passed over."""
        for raw in records:
            self._learn(raw)

    async def stop(self) -> None:
        """Wait for announcements under way, but not for long; then leave the DHT."""
        if self._announcing:
            _, late = await asyncio.wait(self._announcing, timeout=ANNOUNCING_ENDS_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._link is not None:
            await self._link.stop()
        if self._lan is not None:
            await self._lan.stop()
        if self._dht is not None:
            dht = await self._dht
            if dht is not None and dht is not self._given_dht:
                await dht.stop()

    # -- who is there -----------------------------------------------------------------------------------------------------

    def known_nodes(self) -> list[NodeID]:
        return list(dict.fromkeys([*self._nodes, *self._bootstrap]))

    def candidates(self, class_name: str) -> list[Candidate]:
        """Nodes that keep this class for others and have room, weighted by it."""
        now, role = self.now_ms(), storage_role(class_name)
        return [
            Candidate(node, r.region, r.operator, r.subnet, min(max(r.free_bytes // MIB, 1), WEIGHT_MAX))
            for node, r in self._nodes.items()
            if role in r.roles and r.free_bytes > 0 and is_current(r, NODE, now)
        ]

    def labels(self, node: NodeID) -> tuple[str, str]:
        """(region, operator) as the node declares them; unknown nodes count as one of their own."""
        record = self._nodes.get(node)
        return (record.region, record.operator) if record else (id_text(node), id_text(node))

    def is_near(self, node: NodeID) -> bool:
        """Whether the node says that it stands in our region."""
        record = self._nodes.get(node)
        return record is not None and record.region == self._config.region

    def edges(self) -> list[tuple[NodeID, bool]]:
        """Nodes that cache for readers, and whether each is near."""
        now = self.now_ms()
        return [
            (node, record.region == self._config.region)
            for node, record in self._nodes.items()
            if EDGE_ROLE in record.roles and is_current(record, NODE, now)
        ]

    def lied(self, node: NodeID) -> None:
        """A node sent wrong bytes: others are preferred, and it is not paid for them."""
        self.ranking.lied(node)
        if self.purse is not None:
            self.purse.lied(node)

    def distance_s(self, node: NodeID) -> float:
        """Of a simulated network: seconds of a round trip that are added to what this machine takes."""
        record = self._nodes.get(node)
        return self._config.simulated_rtt_ms / 1000 if record is not None and record.region != self._config.region else 0.0

    def describe(self, node: NodeID) -> str:
        """For people: the start of the NodeID and where it says it is."""
        record = self._nodes.get(node)
        return id_text(node)[:12] + (f" ({record.region}, {record.addresses[0]})" if record and record.addresses else "")

    # -- requests ---------------------------------------------------------------------------------------------------------

    async def fetch(self, node: NodeID, path: str, kind: type[M], *, max_bytes: int, timeout_s: float) -> M:
        """GET a message.

        Raises:
            RemoteError: the peer's fault or absence.
            FormatError: what came is not such a message.
        """
        raw = await self.client.get(node, path, max_bytes=max_bytes, timeout_s=timeout_s)
        return decode(raw, kind, max_bytes=max_bytes)

    def received_bytes(self) -> int:
        return self.client.total().received_bytes

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    # -- the DHT ----------------------------------------------------------------------------------------------------------

    async def dht(self) -> DHTNode | None:
        """Our DHT node, joined at the first use; None where there is no way in."""
        if self._dht is None:
            self._dht = asyncio.create_task(self._join())
        return await asyncio.shield(self._dht)

    async def _join(self) -> DHTNode | None:
        ways_in = [parse_host_port(text) for text in self._config.dht_bootstrap] or self._lan_ways_in()
        if self._given_dht is not None or not ways_in:
            return self._given_dht
        dht = DHTNode(self.name)
        try:
            await dht.start("127.0.0.1" if _all_loopback(ways_in) else "0.0.0.0", 0, ways_in)  # noqa: S104 - a DHT client must be reachable
        except DDSError as error:
            log.warning("the DHT cannot be joined: %s", error.message)
            return None
        return dht

    def _lan_ways_in(self) -> list[tuple[str, int]]:
        """Of the nodes that the LAN led to, as their verified records say."""
        if self._lan is None:
            return []
        records = [self._nodes[node] for node in self._lan.answered if node in self._nodes]
        return [parse_address(record.dht) for record in records if record.dht][:DHT_WAYS_IN_MAX]

    async def _values(self, place: Place) -> list[bytes]:
        """What the DHT has at a place: sealed, unverified, bounded in number."""
        dht = await self.dht()
        if dht is None:
            return []
        try:
            return await dht.get(place.key, limit=DHT_VALUES_MAX, timeout_s=DHT_TIMEOUT_S)
        except DDSError:
            return []

    def _records(self, place: Place, values: Sequence[bytes], kind: Kind[R]) -> list[R]:
        """The verified, current records of one kind among `values`, newest first."""
        records = [record for value in values if (record := self._opened(place, value, kind)) is not None]
        return sorted(records, key=lambda record: -record.seq)

    def _opened(self, place: Place, value: bytes, kind: Kind[R]) -> R | None:
        opened = unseal(place, value)
        if opened is None or opened[0] != kind.code:
            return None
        with contextlib.suppress(FormatError):
            record = open_record(opened[1], kind, self.name)
            return record if is_current(record, kind, self.now_ms()) else None
        return None

    async def content_providers(self, content: CID) -> ContentProviders:
        """Whom announcements name as holders of the content's manifest, publishers' word first, and as its origins."""
        place = content_place(self.name, content)
        values = await self._values(place)
        announces = self._records(place, values, CONTENT_ANNOUNCE)
        holders = [NodeID(holder) for record in announces if record.content == content for holder in record.holders]
        origins: list[NodeID] = []
        for provider in self._records(place, values, CONTENT_PROVIDER):
            if provider.content != content:
                continue
            if provider.kind == "edge":  # has blocks, not the manifest; readers know the edges near them by their records
                continue
            if provider.kind != "origin":
                holders.append(self._provider(provider.node_id, provider.addresses))
            elif provider.node_id not in origins:  # the newest says where it is now: a put's origin moves with every put
                origins.append(NodeID(provider.node_id))
                self.client.learn(origins[-1], [parse_address(address) for address in provider.addresses])
        return ContentProviders(list(dict.fromkeys(holders)), origins)

    async def segment_holders(self, segment_id: SegmentID) -> list[tuple[int, NodeID]]:
        """(fragment index, node) as the nodes themselves announce."""
        place = segment_place(self.name, segment_id)
        records = self._records(place, await self._values(place), SEGMENT_PROVIDER)
        return [(r.index, self._provider(r.node_id, r.addresses)) for r in records if r.segment_id == segment_id]

    def _provider(self, node_id: bytes, addresses: Sequence[str]) -> NodeID:
        node = NodeID(node_id)
        if not self.client.known(node):
            self.client.learn(node, [parse_address(address) for address in addresses])
        return node

    async def announce(self, content: CID, holders: Sequence[NodeID]) -> None:
        """Say in the DHT who holds the manifest. Goes on in the background; `stop` waits for it."""
        self.in_background(self._announce(content, holders))

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run an announcement that nobody waits for before `stop`."""
        task = asyncio.create_task(work)
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)

    async def _announce(self, content: CID, holders: Sequence[NodeID]) -> None:
        now = self.now_ms()
        record = ContentAnnounce(
            version=RECORD_VERSION,
            network=self.name,
            content=content,
            publisher=self.key.public,
            holders=list(holders[:HOLDERS_MAX]),
            seq=now,
            expires_ms=now + PROVIDER_LIFETIME_MS,
        )
        place = content_place(self.name, content)
        value = seal(place, CONTENT_ANNOUNCE, sign_record(self.key, CONTENT_ANNOUNCE, record))
        dht = await self.dht()
        if dht is None:
            return
        try:
            await dht.put(place.key, value, ValueType.PROVIDER, timeout_s=ANNOUNCE_TIMEOUT_S)
        except DDSError as error:
            log.warning("the announcement did not get through: %s", error.message)

    @property
    def origin_host(self) -> str | None:
        """The address that this home serves its own puts from; None when it is one that others on this network can't dial."""
        host = self._config.host
        ways_in = [parse_host_port(text) for text in self._config.dht_bootstrap]
        return host if not _all_loopback([(host, 0)]) or _all_loopback(ways_in) else None

    async def announce_origin(self, content: CID, address: str) -> None:
        """Say in the DHT that this home serves the blocks of `content` at `address`, for ORIGIN_LIFETIME_MS."""
        dht = await self.dht()
        if dht is not None:
            await put_origin_record(dht, self.key, self.name, content, [address])


async def put_origin_record(dht: DHTNode, key: SigningKey, network: str, content: CID, addresses: list[str]) -> None:
    """Announce the owner of `key` as an origin of `content`. What does not get through is logged: it is renewed soon."""
    now = time.time_ns() // 1_000_000
    until = now + ORIGIN_LIFETIME_MS
    record = ContentProvider(RECORD_VERSION, network, content, key.public, "origin", addresses, now, until)
    place = content_place(network, content)
    value = seal(place, CONTENT_PROVIDER, sign_record(key, CONTENT_PROVIDER, record))
    try:
        await dht.put(place.key, value, ValueType.PROVIDER, timeout_s=ANNOUNCE_TIMEOUT_S)
    except DDSError as error:
        log.warning("the announcement of an origin did not get through: %s", error.message)


def _all_loopback(addresses: Sequence[tuple[str, int]]) -> bool:
    return all(host.startswith("127.") or host in ("::1", "localhost") for host, _ in addresses)


@asynccontextmanager
async def open_network(key: SigningKey, config: ClientConfig, purse: Purse | None = None) -> AsyncIterator[Network]:
    """A started network; left cleanly whatever happens inside. Nodes that want to be paid are paid from `purse`."""
    known: list[Network] = []
    distance = (lambda node: known[0].distance_s(node)) if config.simulated_rtt_ms else None
    async with PeerClient(key, network=config.network, distance=distance, payer=purse) as client:
        network = Network(key, config, client, purse=purse)
        if purse is not None:
            purse.start(client, network.ledger(config.ledger) if config.ledger else None)
        known.append(network)
        try:
            await network.start()
            yield network
        finally:
            if purse is not None:
                await purse.settle()
            await network.stop()

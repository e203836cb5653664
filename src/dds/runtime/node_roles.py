"""What a node does beside keeping fragments, made from its configuration: origin, edge, witness and prover, paid server, payer.

Decides which parts a node has, and what each is made of. A part is imported only where the configuration asks for it, so that a
node carries nothing of what it does not do. Does not decide when they start and stop (node.py), nor what they do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dds.primitives.ids import NodeID
from dds.primitives.keys import SigningKey
from dds.runtime.announce import Announcer
from dds.runtime.dialback import DialbackHost, DialbackParts
from dds.runtime.metrics import Registry
from dds.runtime.node_peers import PeerQuestions
from dds.runtime.peers import PeerHost
from dds.storage.fragment_store import FragmentStore
from dds.storage.home import ClientConfig, Home, NodeConfig, NodeHome, parse_host_port
from dds.transport.bandwidth import Bandwidth
from dds.transport.client import Distance, PeerClient
from dds.transport.dht import DHTNode
from dds.transport.routes import Route

if TYPE_CHECKING:
    from dds.runtime.edge import Edge
    from dds.runtime.node_audits import NodeAudits
    from dds.runtime.origin import Origin
    from dds.runtime.purse import Purse
    from dds.runtime.reading_meter import PaidMeter

WITNESS_DIRECTORY: Final = "witness"
STORING_ROLES: Final = frozenset({"ssn", "asn"})


@dataclass(frozen=True, slots=True)
class Ground:
    """What every part stands on."""

    config: NodeConfig
    files: NodeHome
    key: SigningKey
    seed: bytes  # 32 secret bytes of this node, for draws of its own
    store: FragmentStore
    pool: Executor  # for whatever waits for the disk
    metrics: Registry
    bandwidth: Bandwidth
    dht: DHTNode
    client: PeerClient
    peers: PeerHost
    questions: PeerQuestions
    announcer: Announcer
    purse: Purse | None
    addresses: Callable[[], list[str]]  # where the node is dialled, now
    distance: Distance | None  # of a simulated network

    @property
    def stores(self) -> bool:
        """Whether the node keeps fragments for others."""
        return not STORING_ROLES.isdisjoint(self.config.roles)


def make_purse(config: NodeConfig, files: NodeHome, key: SigningKey) -> Purse | None:
    """Of a node that pays for what it reads."""
    if not config.ledger or not config.reading_deposit:
        return None
    from dds.runtime.purse import Purse, PurseTerms

    terms = PurseTerms(config.reading_deposit, config.reading_price_max)
    return Purse(key, config.network, files.purse_file, terms, config.ledger)


def make_dialback(ground: Ground) -> DialbackHost:
    parts = DialbackParts(
        ground.key,
        ground.config.network,
        ground.peers.table,
        ground.client,
        ground.questions.learn,
        ground.peers.report,
        ground.peers.own_record,
        ground.bandwidth,
        ground.distance,
        tunnelled=ground.config.iroh,
    )
    return DialbackHost(parts)


def make_origin(ground: Ground) -> tuple[Origin | None, list[Route]]:
    if "origin" not in ground.config.roles:
        return None, []
    from dds.runtime.origin import Origin, OriginParts
    from dds.runtime.origin_routes import OriginRoutes

    parts = OriginParts(ground.key, ground.dht, ground.bandwidth, ground.addresses)
    origin = Origin(Home(ground.files.root.parent), ground.config, parts)
    return origin, OriginRoutes(origin).routes()


def make_edge(ground: Ground, meter: PaidMeter | None) -> tuple[Edge | None, list[Route]]:
    """`meter`: keeps the accounts of those who read."""
    if "ecn" not in ground.config.roles:
        return None, []
    from dds.runtime.edge import Edge, EdgeParts
    from dds.runtime.edge_routes import EdgeRoutes
    from dds.runtime.network import Network

    config = ground.config
    known = ClientConfig(config.network, region=config.region, simulated_rtt_ms=config.simulated_rtt_ms)
    network = Network(ground.key, known, ground.client, ground.dht, ground.purse)

    def with_peers() -> Network:
        network.learn(ground.peers.shared())
        return network

    edge = Edge(ground.files.edge_dir, config, EdgeParts(ground.pool, ground.announcer, with_peers, ground.seed))
    return edge, EdgeRoutes(edge, meter).routes()


def make_audits(ground: Ground) -> NodeAudits | None:
    """Proving what is held and, for a witness, judging what others prove: of a node that names a ledger."""
    config = ground.config
    if not config.ledger:
        return None
    from dds.runtime.ledger_client import ledger_at
    from dds.runtime.node_audits import AuditParts, NodeAudits

    def learn(node: NodeID) -> None:
        """A witness that stores proves that to itself too."""
        if node == ground.key.public:
            ground.client.learn(node, [parse_host_port(address) for address in ground.addresses()])
        else:
            ground.questions.learn(node)

    ledger = ledger_at(config.ledger, ground.client, config.network)
    parts = AuditParts(ground.key, config.network, ledger, ground.client, learn, ground.pool, ground.metrics)
    witness_dir = ground.files.root / WITNESS_DIRECTORY if "witness" in config.roles else None
    store = ground.store if ground.stores else None
    return NodeAudits(parts, store=store, witness_dir=witness_dir, settle_epochs=config.settle_epochs)


def make_meter(ground: Ground, audits: NodeAudits | None) -> PaidMeter | None:
    """Of a node that is paid for reads: without a ledger, or at a price of nothing, it serves for nothing."""
    config = ground.config
    if audits is None or not config.read_price:
        return None
    from dds.protocol.reading_account import ReadingPolicy
    from dds.runtime.reading_meter import PaidMeter

    return PaidMeter(
        ground.key,
        config.network,
        ReadingPolicy(config.read_price, config.free_read_bytes_per_day, config.read_debt_bytes_max),
        ground.files.root,
        audits.ledger,
        ground.pool,
        lambda: time.time_ns() // 1_000_000,
        redeem_epochs=config.settle_epochs,
    )

"""The peer table: which nodes are known, how far each has proved itself, and whom to probe next.

Decides: which signed node records are kept (bounded against floods and Sybils), each peer's state (healthy, suspect, offline,
lost) from the outcomes of requests, and the times of probes. Does not dial anybody (runtime/peers.py) and does not place or
repair. Source: docs/spec/discovery.md, "The peer table"; sampling after Bortnikov et al., Brahms, Computer Networks 53 (2009).

A peer is *proven* once a request to it succeeded under its own key. Proven peers are never displaced by unproven ones, however
many of those arrive. Unproven ones have a quota per source (the DHT, or the peer that told of them); over the quota, those
stay whose hash under a secret seed is smallest: arriving often, or late, helps nobody, so a source that sends a thousand
Sybils for each honest node spoils its own quota and no other's.

States, by outcomes of real requests and of probes; nobody is declared dead on hearsay:

    suspect --(HEALTHY_AFTER successes in a row; 1 if it never failed)--> healthy
    healthy --(SUSPECT_AFTER failures in a row)--> suspect --(failing for offline_after_ms)--> offline
    offline --(failing for lost_after_ms)--> lost;    offline, lost --(1 success)--> suspect
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from dds.primitives.errors import FormatError
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import NodeID
from dds.wire.discovery import NODE, Claim, NodeRecord, is_current, is_signed, parse_record

PEERS_MAX: Final = 4096
UNPROVEN_PER_SOURCE_MAX: Final = 256
UNPROVEN_FROM_DHT_MAX: Final = 1024
REFRESH_MS_MIN: Final = 2_000  # a peer's record may change this often; faster changes are not looked at
SUSPECT_AFTER: Final = 2
HEALTHY_AFTER: Final = 2
LATENCY_WEIGHT: Final = 0.25  # of the newest sample in the moving average
FROM_DHT: Final = b"dht"


class Health(StrEnum):
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    OFFLINE = "offline"
    LOST = "lost"


class Verdict(StrEnum):
    """What became of a record that was offered."""

    ADDED = "added"
    REFRESHED = "refreshed"
    STALE = "stale"  # the same or a newer one is known
    FLOODED = "flooded"  # changes too often
    FULL = "full"  # no room for an unproven peer from this source
    EXPIRED = "expired"
    FORGED = "forged"
    MALFORMED = "malformed"


@dataclass(frozen=True)
class PeerPolicy:
    """Times of health and probing; the devnet preset shortens them."""

    offline_after_ms: int = 60_000
    lost_after_ms: int = 6 * 3_600_000
    forget_after_ms: int = 7 * 86_400_000  # a proven peer that has been failing for so long is dropped
    probe_every_ms: int = 5 * 60_000  # at the least; see probe_spacing_ms
    probe_spacing_ms: int = 3_000  # one node never probes more often than this on the average, however many peers it has
    retry_ms_min: int = 2_000
    retry_ms_max: int = 10 * 60_000


@dataclass
class Peer:
    """One known node. `record` is None for a pinned node of which only the address was given."""

    node_id: NodeID
    addresses: tuple[str, ...]
    record: NodeRecord | None = None
    raw: bytes = b""
    health: Health = Health.SUSPECT
    source: bytes = FROM_DHT
    pinned: bool = False
    learned_ms: int = 0
    last_ok_ms: int | None = None
    failing_since_ms: int | None = None
    failures: int = 0  # in a row
    successes: int = 0  # in a row
    latency_s: float | None = None  # moving average
    next_probe_ms: int = 0
    priority: bytes = field(default=b"", repr=False)

    @property
    def proven(self) -> bool:
        return self.last_ok_ms is not None

    @property
    def seq(self) -> int:
        return -1 if self.record is None else self.record.seq


class PeerTable:
    """All known peers of one node. Time comes in as an argument.

    Args:
        network: records of other networks are refused.
        own_id: never kept as a peer.
        seed: 32 secret bytes of this node, for sampling and jitter.
    """

    def __init__(self, network: str, own_id: NodeID, seed: bytes, policy: PeerPolicy = PeerPolicy()) -> None:
        self.network = network
        self.own_id = own_id
        self.policy = policy
        self._seed = seed
        self._peers: dict[NodeID, Peer] = {}
        self._unproven: dict[bytes, set[NodeID]] = {}
        self._worst: dict[bytes, NodeID] = {}  # per source, the unproven peer that would go first; absent: not known
        self._probes: list[tuple[int, NodeID]] = []

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers.values()))

    def get(self, node_id: NodeID) -> Peer | None:
        return self._peers.get(node_id)

    def pin(self, node_id: NodeID, addresses: Iterable[str], now_ms: int) -> None:
        """Keep a node (bootstrap, the ledger's list) whatever strangers send; never evicted, never forgotten."""
        if node_id == self.own_id:
            return
        peer = self._peers.get(node_id)
        if peer is None:
            peer = self._peers[node_id] = Peer(node_id, tuple(addresses), learned_ms=now_ms)
            self._plan(peer, now_ms)
        self._count(peer, False)
        peer.pinned = True

    def offer(self, raw: bytes, source: bytes, now_ms: int) -> Verdict:
        """Consider a signed node record that `source` sent (FROM_DHT, or the NodeID of the peer that told of it).

        The signature is checked last, and only where the record would be kept: a flood costs its sender more than us.
        """
        try:
            claim = parse_record(raw, NODE, self.network)
        except FormatError:
            return Verdict.MALFORMED
        if not is_current(claim.record, NODE, now_ms):
            return Verdict.EXPIRED
        node_id = NodeID(claim.signer)
        known = self._peers.get(node_id)
        if node_id == self.own_id or (known is not None and claim.record.seq <= known.seq):
            return Verdict.STALE
        if known is not None and known.record is not None and claim.record.seq < known.seq + REFRESH_MS_MIN:
            return Verdict.FLOODED
        priority = tagged_hash(b"dds/peer-sample/v1", self._seed, node_id)
        if known is None and not self._has_room(source, priority):
            return Verdict.FULL
        if not is_signed(claim, NODE, self.network):
            return Verdict.FORGED
        if known is not None:
            known.record, known.raw, known.addresses = claim.record, claim.raw, tuple(claim.record.addresses)
            return Verdict.REFRESHED
        self._insert(claim, source, priority, now_ms)
        return Verdict.ADDED

    def _insert(self, claim: Claim[NodeRecord], source: bytes, priority: bytes, now_ms: int) -> None:
        self._make_room(source)
        node_id = NodeID(claim.signer)
        addresses = tuple(claim.record.addresses)
        peer = Peer(node_id, addresses, claim.record, claim.raw, source=source, learned_ms=now_ms, priority=priority)
        self._peers[node_id] = peer
        self._count(peer, True)
        self._plan(peer, now_ms)

    def outcome(self, node_id: NodeID, ok: bool, now_ms: int, latency_s: float | None = None) -> Health | None:
        """A request to the peer, or a probe of it, succeeded or failed. Its new state; None if it is not known."""
        peer = self._peers.get(node_id)
        if peer is None:
            return None
        if ok:
            self._succeeded(peer, now_ms, latency_s)
        else:
            self._failed(peer, now_ms)
        self._plan(peer, now_ms)
        return peer.health

    def _succeeded(self, peer: Peer, now_ms: int, latency_s: float | None) -> None:
        never_failed = peer.failing_since_ms is None and peer.health is Health.SUSPECT
        if not peer.proven:
            self._count(peer, False)
        peer.successes += 1
        peer.failures = 0
        peer.last_ok_ms = now_ms
        if latency_s is not None:
            old = peer.latency_s
            peer.latency_s = latency_s if old is None else old + LATENCY_WEIGHT * (latency_s - old)
        match peer.health:
            case Health.OFFLINE | Health.LOST:
                peer.health, peer.successes = Health.SUSPECT, 1
            case Health.SUSPECT if never_failed or peer.successes >= HEALTHY_AFTER:
                peer.health, peer.failing_since_ms = Health.HEALTHY, None
            case _:
                pass

    def _failed(self, peer: Peer, now_ms: int) -> None:
        if peer.failures == 0:
            peer.failing_since_ms = now_ms
        peer.failures += 1
        peer.successes = 0
        failing_ms = now_ms - (now_ms if peer.failing_since_ms is None else peer.failing_since_ms)
        if peer.health is Health.HEALTHY and peer.failures >= SUSPECT_AFTER:
            peer.health = Health.SUSPECT
        if peer.health is Health.SUSPECT and peer.failures >= SUSPECT_AFTER and failing_ms >= self.policy.offline_after_ms:
            peer.health = Health.OFFLINE
        if peer.health is Health.OFFLINE and failing_ms >= self.policy.lost_after_ms:
            peer.health = Health.LOST

    def expire(self, now_ms: int) -> list[NodeID]:
        """Drop unproven peers whose record has expired, and proven ones that failed for too long. Who went."""
        gone = [peer for peer in self._peers.values() if not peer.pinned and self._is_over(peer, now_ms)]
        for peer in gone:
            self._remove(peer)
        return [peer.node_id for peer in gone]

    def _is_over(self, peer: Peer, now_ms: int) -> bool:
        if peer.proven:
            failing_since_ms = peer.failing_since_ms if peer.failures else None
            return failing_since_ms is not None and now_ms - failing_since_ms > self.policy.forget_after_ms
        return peer.record is None or peer.record.expires_ms <= now_ms

    def candidates(self, now_ms: int, *, role: str | None = None) -> list[Peer]:
        """Peers worth dialling: healthy before suspect, proven before heard-of, faster before slower.

        A proven peer stays a candidate when its record has expired (the DHT may be what failed); an unproven one does not.
        """
        usable = [
            peer
            for peer in self._peers.values()
            if peer.health in (Health.HEALTHY, Health.SUSPECT)
            and (peer.proven or peer.pinned or (peer.record is not None and peer.record.expires_ms > now_ms))
            and (role is None or (peer.record is not None and role in peer.record.roles))
        ]
        usable.sort(key=_preference)
        return usable

    def to_share(self, now_ms: int, limit: int, *, draw: bytes = b"") -> list[bytes]:
        """Signed records for another node: a draw among proven peers whose records are current, then unproven ones."""
        current = [peer for peer in self._peers.values() if peer.record is not None and peer.record.expires_ms > now_ms]
        current.sort(key=lambda peer: (not peer.proven, tagged_hash(b"dds/peer-share/v1", self._seed, draw, peer.node_id)))
        return [peer.raw for peer in current[:limit]]

    def due_probes(self, now_ms: int, limit: int) -> list[NodeID]:
        """Whom to probe now. Each is planned anew when its outcome is known, or after the longest pause."""
        due: list[NodeID] = []
        while self._probes and len(due) < limit and self._probes[0][0] <= now_ms:
            at, node_id = heapq.heappop(self._probes)
            peer = self._peers.get(node_id)
            if peer is None or peer.next_probe_ms != at:
                continue
            due.append(node_id)
            self._set_probe(peer, now_ms + self.policy.retry_ms_max)
        return due

    def next_probe_ms(self) -> int | None:
        while self._probes:
            at, node_id = self._probes[0]
            peer = self._peers.get(node_id)
            if peer is not None and peer.next_probe_ms == at:
                return at
            heapq.heappop(self._probes)
        return None

    def counts(self) -> dict[Health, int]:
        counts = dict.fromkeys(Health, 0)
        for peer in self._peers.values():
            counts[peer.health] += 1
        return counts

    def _plan(self, peer: Peer, now_ms: int) -> None:
        """The next probe: soon and then ever later while failing; when all is well, so seldom that it costs nothing.

        Any real request's outcome postpones it, so that a busy node probes nobody.
        """
        policy = self.policy
        relaxed = max(policy.probe_every_ms, policy.probe_spacing_ms * len(self._peers))
        if peer.health is Health.LOST:
            pause = max(policy.retry_ms_max, relaxed)
        elif peer.failures:
            pause = min(policy.retry_ms_min << min(peer.failures - 1, 20), policy.retry_ms_max)
        elif peer.health is Health.HEALTHY:
            pause = relaxed
        elif peer.proven:
            pause = policy.retry_ms_min
        else:
            pause = min(policy.probe_spacing_ms * len(self._unproven.get(peer.source, ())), policy.retry_ms_max)
        drawn = tagged_hash(b"dds/probe-jitter/v1", self._seed, now_ms.to_bytes(8, "big"), peer.node_id)
        self._set_probe(peer, now_ms + pause * 3 // 4 + int.from_bytes(drawn[:8], "big") % (pause // 2 + 1))

    def _set_probe(self, peer: Peer, at_ms: int) -> None:
        peer.next_probe_ms = at_ms
        heapq.heappush(self._probes, (at_ms, peer.node_id))
        if len(self._probes) > 2 * len(self._peers) + 64:
            self._probes = [(each.next_probe_ms, each.node_id) for each in self._peers.values()]
            heapq.heapify(self._probes)

    def _has_room(self, source: bytes, priority: bytes) -> bool:
        if len(self._unproven.get(source, ())) >= _quota(source):
            return priority < self._first_to_go(source).priority
        return len(self._peers) < PEERS_MAX or bool(self._unproven)

    def _make_room(self, source: bytes) -> None:
        if len(self._unproven.get(source, ())) >= _quota(source):
            self._remove(self._first_to_go(source))
        elif len(self._peers) >= PEERS_MAX:
            largest = max(self._unproven, key=lambda each: (len(self._unproven[each]), each))
            self._remove(self._first_to_go(largest))

    def _first_to_go(self, source: bytes) -> Peer:
        if source not in self._worst:
            self._worst[source] = max(self._unproven[source], key=lambda node_id: self._peers[node_id].priority)
        return self._peers[self._worst[source]]

    def _remove(self, peer: Peer) -> None:
        self._count(peer, False)
        del self._peers[peer.node_id]

    def _count(self, peer: Peer, unproven: bool) -> None:
        self._worst.pop(peer.source, None)
        members = self._unproven.setdefault(peer.source, set())
        if unproven:
            members.add(peer.node_id)
            return
        members.discard(peer.node_id)
        if not members:
            del self._unproven[peer.source]


def _quota(source: bytes) -> int:
    return UNPROVEN_FROM_DHT_MAX if source == FROM_DHT else UNPROVEN_PER_SOURCE_MAX


def _preference(peer: Peer) -> tuple[bool, bool, float, bytes]:
    latency = float("inf") if peer.latency_s is None else peer.latency_s
    return peer.health is not Health.HEALTHY, not peer.proven, latency, peer.node_id

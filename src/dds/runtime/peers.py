"""The host of the peer table: says who we are, hears who the others are, probes and swaps peers, all of it seldom.

Decides: how often and how much (PeerHostConfig). Does not judge peers or records (protocol/peers.py), and dials nobody itself:
probing and peer exchange are callables that the node or client injects. Source: docs/spec/discovery.md, "The peer host".

Idle cost is a design goal: no all-to-all polling. A node speaks when its own record is due, when the table says that a peer
should be probed (at most one per `probe_spacing_ms` on the average), and for one peer exchange every few minutes; outcomes of
real requests (`report`) make most probes unnecessary.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from dds.primitives.errors import DDSError, FormatError, InputError, RemoteError
from dds.primitives.ids import NodeID, id_text, parse_id
from dds.primitives.keys import SigningKey
from dds.protocol.peers import FROM_DHT, Health, PeerTable, Verdict
from dds.transport.dht import DHTNode, ValueType
from dds.wire.api import PEERS_MAX as SHARED_PEERS_MAX
from dds.wire.discovery import (
    NODE,
    NODE_BUCKETS,
    NODE_LIFETIME_MS,
    NodeRecord,
    format_address,
    node_bucket,
    node_place,
    parse_address,
    parse_record,
    seal,
    sign_record,
    unseal,
)

log = logging.getLogger("dds.peers")

Probe = Callable[[NodeID], Awaitable[float]]  # seconds it took; raises RemoteError
FetchPeers = Callable[[NodeID], Awaitable[list[bytes]]]  # signed node records; raises RemoteError

INBOX_MAX = 1024  # records from the DHT that wait to be looked at; more are dropped
INBOX_BATCH = 32
DHT_BOOTSTRAPS_MAX = 8


@dataclass(frozen=True)
class BootstrapPeer:
    node_id: NodeID
    host: str
    port: int


@dataclass(frozen=True)
class PeerHostConfig:
    publish_every_s: float = 300.0  # a third of a node record's life
    publish_again_s: float = 15.0  # after the first: at the start our DHT node knew few of those that lie next to the key
    publish_gap_s: float = 3.0  # the least between two records, however often we change
    exchange_every_s: float = 120.0
    exchange_pause_s_max: float = 1200.0  # with every exchange that teaches nothing, the pause doubles up to this
    bootstrap_retry_s: float = 1.0
    request_timeout_s: float = 10.0
    probes_at_once: int = 4
    inbox_pause_s: float = 0.05  # between batches of INBOX_BATCH records: bounds what a flood can cost


def parse_bootstrap(text: str) -> BootstrapPeer:
    """Parse `ID@host:port`.

    Raises:
        InputError: malformed.
    """
    node_id, at, address = text.strip().partition("@")
    if not at:
        raise InputError(f"not a bootstrap address: {text[:160]!r}", hint="write it as ID@host:port")
    try:
        host, port = parse_address(address)
    except FormatError as error:
        raise InputError(error.message, hint="write it as ID@host:port, an IPv6 host in brackets") from None
    return BootstrapPeer(NodeID(parse_id(node_id, "node id")), host, port)


def format_bootstrap(peer: BootstrapPeer) -> str:
    return f"{id_text(peer.node_id)}@{format_address(peer.host, peer.port)}"


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class PeerHost:
    """Runs one node's (or client's) view of the network.

    Args:
        describe: the own record's fields; `seq` and `expires_ms` are filled in here. None: a client, which only listens.
        dht: a started DHT node, or None where peer exchange alone must do.
        probe, fetch_peers: how to ask a peer; their outcomes are reported to the table here.
    """

    def __init__(
        self,
        key: SigningKey,
        table: PeerTable,
        *,
        probe: Probe,
        fetch_peers: FetchPeers,
        describe: Callable[[], NodeRecord] | None = None,
        dht: DHTNode | None = None,
        bootstrap: Sequence[BootstrapPeer] = (),
        config: PeerHostConfig = PeerHostConfig(),
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self.table = table
        self._key = key
        self._probe = probe
        self._fetch_peers = fetch_peers
        self._describe = describe
        self._dht = dht
        self._bootstrap = tuple(bootstrap)
        self._config = config
        self._clock_ms = clock_ms
        self._own: tuple[NodeRecord, bytes] | None = None
        self._joined_through: set[str] = set()
        self._inbox: asyncio.Queue[bytes] = asyncio.Queue(INBOX_MAX)
        self._changed = asyncio.Event()
        self._planned = asyncio.Event()
        self._learned = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin listening, publishing, probing and exchanging. Returns at once; see `wait_for_peers`."""
        now_ms = self._clock_ms()
        for peer in self._bootstrap:
            self.table.pin(peer.node_id, (format_address(peer.host, peer.port),), now_ms)
        loops: list[Coroutine[Any, Any, None]] = [self._read_inbox(), self._probe_loop(), self._exchange_loop()]
        if self._dht is not None:
            for bucket in range(NODE_BUCKETS):
                self._dht.listen(node_place(self.table.network, bucket).key, self._on_value(bucket))
            if self._describe is not None:
                loops.append(self._publish_loop())
        for each in loops:
            task = asyncio.create_task(each)
            task.add_done_callback(_log_failure)
            self._tasks.append(task)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def report(self, node_id: NodeID, ok: bool, latency_s: float | None = None) -> Health | None:
        """The outcome of a real request: the cheapest probe there is. Only the peer's own faults and silences are failures."""
        before = self.table.get(node_id)
        was = None if before is None else before.health
        health = self.table.outcome(node_id, ok, self._clock_ms(), latency_s)
        if health is not was:
            log.info("peer %s: %s -> %s", id_text(node_id), was, health)
        self._planned.set()
        return health

    def offer(self, raw: bytes, source: NodeID | bytes) -> Verdict:
        """A signed node record from anywhere: the DHT, an exchange, a peer that dialled us."""
        verdict = self.table.offer(raw, source, self._clock_ms())
        if verdict in (Verdict.ADDED, Verdict.REFRESHED):
            self._planned.set()
            self._learned.set()
            self._join_dht(raw)
        return verdict

    def own_record(self) -> bytes:
        """Our signed node record, at most a third of its life old.

        Raises:
            InputError: a client has none.
        """
        if self._describe is None:
            raise InputError("a client has no node record")
        now_ms = self._clock_ms()
        if self._own is None or now_ms - self._own[0].seq >= NODE_LIFETIME_MS // 3:
            self._renew(now_ms)
        assert self._own is not None
        return self._own[1]

    def shared(self, limit: int = SHARED_PEERS_MAX) -> list[bytes]:
        """Records for a peer that asks: our own first, then a fresh draw of those we know."""
        own = [] if self._describe is None else [self.own_record()]
        return own + self.table.to_share(self._clock_ms(), limit - len(own), draw=secrets.token_bytes(8))

    def addresses_of(self, node_id: NodeID) -> list[tuple[str, int]]:
        """Where a node says it can be dialled; empty if it is not known."""
        peer = self.table.get(node_id)
        return [] if peer is None else [parse_address(address) for address in peer.addresses]

    def changed(self) -> None:
        """Our own description has changed: publish soon."""
        self._changed.set()

    async def wait_for_peers(self, count: int, timeout_s: float) -> int:
        """Wait until the records of `count` peers worth dialling are known, or the time is over. How many there are."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._known_peers() < count:
                    self._learned.clear()
                    await self._learned.wait()
        return self._known_peers()

    def _known_peers(self) -> int:
        return sum(peer.record is not None for peer in self.table.candidates(self._clock_ms()))

    def _on_value(self, bucket: int) -> Callable[[bytes], None]:
        place = node_place(self.table.network, bucket)

        def on_value(value: bytes) -> None:
            opened = unseal(place, value)
            if opened is not None and opened[0] == NODE.code and not self._inbox.full():
                self._inbox.put_nowait(opened[1])

        return on_value

    async def _read_inbox(self) -> None:
        while True:
            batch = [await self._inbox.get()]
            while not self._inbox.empty() and len(batch) < INBOX_BATCH:
                batch.append(self._inbox.get_nowait())
            for raw in batch:
                self.offer(raw, FROM_DHT)
            await asyncio.sleep(self._config.inbox_pause_s)

    def _renew(self, now_ms: int) -> None:
        assert self._describe is not None
        seq = now_ms if self._own is None else max(now_ms, self._own[0].seq + 1)
        record = msgspec.structs.replace(self._describe(), seq=seq, expires_ms=seq + NODE_LIFETIME_MS)
        self._own = record, sign_record(self._key, NODE, record)

    async def _publish_loop(self) -> None:
        assert self._dht is not None
        place = node_place(self.table.network, node_bucket(NodeID(self._key.public)))
        retry_s, pause_s = self._config.publish_gap_s, self._config.publish_again_s
        while True:
            self._changed.clear()
            self._renew(self._clock_ms())
            ok = await self._dht.put(place.key, seal(place, NODE, self.own_record()), ValueType.NODE)
            await asyncio.sleep(self._config.publish_gap_s)
            if ok or not len(self.table):  # the first node of a network has nobody to tell; OpenDHT keeps it for the next
                retry_s = self._config.publish_gap_s
                await _wait(self._changed, pause_s * _jitter())
                pause_s = self._config.publish_every_s
            else:
                await _wait(self._changed, retry_s * _jitter())
                retry_s = min(retry_s * 2, self._config.publish_every_s)

    async def _probe_loop(self) -> None:
        slots = asyncio.Semaphore(self._config.probes_at_once)
        async with asyncio.TaskGroup() as group:
            while True:
                self._planned.clear()
                now_ms = self._clock_ms()
                for node_id in self.table.due_probes(now_ms, self._config.probes_at_once):
                    await slots.acquire()
                    group.create_task(self._probe_one(node_id, slots))
                self.table.expire(now_ms)
                next_ms = self.table.next_probe_ms()
                pause_s = 60.0 if next_ms is None else min(max(next_ms - self._clock_ms(), 0) / 1000, 60.0)
                await _wait(self._planned, pause_s)

    async def _probe_one(self, node_id: NodeID, slots: asyncio.Semaphore) -> None:
        try:
            latency_s = await self._ask(node_id, self._probe)
        finally:
            slots.release()
        if latency_s is not None:
            self.report(node_id, True, latency_s)

    async def _exchange_loop(self) -> None:
        bootstrap = [peer.node_id for peer in self._bootstrap if peer.node_id != self._key.public]
        await self._exchange_with(bootstrap)
        pause_s = self._config.bootstrap_retry_s
        while bootstrap and not any(peer.proven for peer in self.table):
            await asyncio.sleep(pause_s * _jitter())
            pause_s = min(pause_s * 2, self._config.exchange_every_s)
            await self._exchange_with(bootstrap)
        pause_s = self._config.exchange_every_s
        while True:
            await asyncio.sleep(pause_s * _jitter())
            candidates = self.table.candidates(self._clock_ms())
            learned = await self._exchange_with([secrets.choice(candidates).node_id] if candidates else bootstrap)
            pause_s = self._config.exchange_every_s if learned else min(pause_s * 2, self._config.exchange_pause_s_max)

    async def _exchange_with(self, node_ids: Sequence[NodeID]) -> int:
        """Ask these peers whom they know. How many of those were new."""
        answers = await asyncio.gather(*(self._ask(node_id, self._fetch_peers) for node_id in node_ids))
        learned = 0
        for node_id, records in zip(node_ids, answers, strict=True):
            if records is not None:
                learned += sum(self.offer(raw, node_id) is Verdict.ADDED for raw in records[:SHARED_PEERS_MAX])
                self.report(node_id, True)
        return learned

    async def _ask(self, node_id: NodeID, question: Callable[[NodeID], Awaitable[Any]]) -> Any:
        """The answer, or None after a failure, which is the peer's unless the error says that it is ours."""
        try:
            async with asyncio.timeout(self._config.request_timeout_s):
                return await question(node_id)
        except (RemoteError, TimeoutError) as error:
            log.debug("peer %s: %s", id_text(node_id), error)
            self.report(node_id, False)
        except DDSError as error:
            log.warning("cannot ask peer %s: %s", id_text(node_id), error)
        return None

    def _join_dht(self, raw: bytes) -> None:
        """Verified records are the way into the DHT: it is never joined through an address that nobody signed."""
        if self._dht is None or not self._dht.running or len(self._joined_through) >= DHT_BOOTSTRAPS_MAX:
            return
        address = parse_record(raw, NODE, self.table.network).record.dht
        if address and address not in self._joined_through:
            self._joined_through.add(address)
            self._dht.bootstrap(*parse_address(address))


def _jitter() -> float:
    """A factor around 1, so that nodes that started together do not act together."""
    return 0.75 + secrets.randbelow(1024) / 2048


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the peer host's task ended", exc_info=error)

"""The storage node daemon: opens what a node is made of, in order, and closes it in the opposite order.

Decides the order of starting and stopping, what counts as ready and what is reported. Does not decide what a request means
(node_routes.py, node_service.py), what is done in the background and when (upkeep.py), nor who the peers are (peers.py).

Starting: log, key, store (with its recovery), DHT, port, peers, announcements, an origin's jobs, upkeep; then state.json is
written and the starter is told. Stopping: state.json goes, jobs are left as a restart can take them up, no new connections,
requests under way get their grace, the background work ends, the DHT is left, the store is closed.

Source: docs/operate/node.md.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from dds import __version__
from dds.primitives.errors import ConfigError
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import NodeID, id_text
from dds.primitives.keys import SigningKey
from dds.primitives.units import MIB
from dds.protocol.peers import PeerTable
from dds.runtime.announce import Announcer, AnnouncerConfig
from dds.runtime.lan import LanPeers
from dds.runtime.let_go import keep_without_ledger
from dds.runtime.logs import event, log_to_file, stop_logging
from dds.runtime.metrics import Registry
from dds.runtime.node_announce import announce_all_held, open_announce_queue, still_held
from dds.runtime.node_metrics import TimedFileOps, add_node_metrics
from dds.runtime.node_peers import PeerQuestions
from dds.runtime.node_reach import NodeReach
from dds.runtime.node_roles import Ground, make_audits, make_dialback, make_edge, make_meter, make_origin, make_purse
from dds.runtime.node_routes import NodeFaces, NodeRoutes
from dds.runtime.node_service import NodeService, Receipted
from dds.runtime.peers import PeerHost, parse_bootstrap
from dds.runtime.popularity import PopularityCounter
from dds.runtime.signals import stop_requests
from dds.runtime.staging import STAGED_SHARE_OF_CAPACITY, StagingQuota
from dds.runtime.supervisor import every, supervise
from dds.runtime.upkeep import StoreKeeper, pace_for
from dds.storage.fragment_store import FragmentStore, StoreConfig
from dds.storage.home import (
    Home,
    NodeConfig,
    NodeHome,
    NodeState,
    parse_host_port,
    private_directory,
    write_node_config,
)
from dds.storage.keyfile import load_or_create_key
from dds.transport.bandwidth import Bandwidth
from dds.transport.client import PeerClient
from dds.transport.dht import DHTNode
from dds.transport.lan import LanService
from dds.transport.limits import ServerLimits
from dds.transport.server import PeerServer
from dds.wire.discovery import RECORD_VERSION, NodeRecord, format_address
from dds.wire.manifest import Manifest

STOP_GRACE_S: Final = 8.0  # for requests under way; a devnet waits 10 s before it kills
STORE_THREADS: Final = 4
MEMORY_BYTES_MIN: Final = 16 * MIB  # room for two of the largest requests
FREE_STEP_BYTES: Final = 64 * MIB  # the published free space is rounded down to this, so that records change seldom
PURSE_SETTLES_S: Final = 60.0  # how often nodes are paid what they are owed for reads of ours
ANNOUNCING: Final = AnnouncerConfig(puts_per_s=4.0, puts_per_s_max=10, first_after_s=5.0)

_log: Final = logging.getLogger("dds.node")


async def run_node(config: NodeConfig, home: Path, *, ready: Callable[[], None]) -> None:
    """Serve as the node whose files lie in `home` until SIGTERM or SIGINT; a second signal ends the process at once.

    `ready` is called once everything is up. Returns after a clean stop.

    Raises:
        ConfigError: a configuration, key, port or store that cannot be used.
        StorageError: the disk failed while the store was opened.
    """
    files = NodeHome(private_directory(home))
    log = log_to_file(files.log_file, config.log_level)
    try:
        with stop_requests() as asked:
            async with open_node(config, files) as node:
                node.say_ready()
                ready()
                await asked.wait()
                event(_log, logging.INFO, "stopping", node=id_text(node.node_id))
        event(_log, logging.INFO, "stopped")
    except BaseException as error:
        event(_log, logging.ERROR, "node failed", error=error)
        raise
    finally:
        stop_logging(log)


@asynccontextmanager
async def open_node(config: NodeConfig, files: NodeHome) -> AsyncIterator[Node]:
    """A node that serves; left in good order whatever happens inside.

    Raises:
        ConfigError, StorageError
    """
    _check_config(config, files)
    async with AsyncExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(STORE_THREADS, thread_name_prefix="store"))
        key = load_or_create_key(files.key_file)
        metrics = Registry()
        store = await _open_store(config, files, pool, metrics, stack)
        node = Node(config, files, key, store, pool, metrics)
        await node.start(stack)
        yield node


def _check_config(config: NodeConfig, files: NodeHome) -> None:
    if "origin" in config.roles and files.root != Home(files.root.parent).node.root:
        raise ConfigError(
            f"an origin belongs to a home, and {files.root} is not the node of one", hint="dds node init --role origin"
        )
    if config.memory_bytes_max < MEMORY_BYTES_MIN:
        raise ConfigError(f"memory_bytes_max is {config.memory_bytes_max}", hint=f"at least {MEMORY_BYTES_MIN}")
    try:
        address = ipaddress.ip_address(config.host)
    except ValueError:
        raise ConfigError(f"host must be an IP address of this machine, not {config.host!r}") from None
    if address.is_unspecified and not config.advertised:
        raise ConfigError(f"a node bound to {config.host} must say where it is dialled", hint="set `advertised` in node.toml")


async def _open_store(
    config: NodeConfig, files: NodeHome, pool: ThreadPoolExecutor, metrics: Registry, stack: AsyncExitStack
) -> FragmentStore:
    loop = asyncio.get_running_loop()
    shape = StoreConfig(config.capacity_bytes, trash_window_ms=config.trash_window_s * 1000)
    ops = TimedFileOps(metrics.histogram("dds_fsync_seconds", "Time of one sync of a file or directory."))
    store = await loop.run_in_executor(pool, lambda: FragmentStore(files.store_dir, shape, ops=ops))
    stack.push_async_callback(loop.run_in_executor, pool, store.close)
    return store


class Node:
    """One node's parts. Use `open_node`."""

    def __init__(
        self,
        config: NodeConfig,
        files: NodeHome,
        key: SigningKey,
        store: FragmentStore,
        pool: ThreadPoolExecutor,
        metrics: Registry,
    ) -> None:
        self.config, self.files, self.store, self.metrics = config, files, store, metrics
        self.node_id = NodeID(key.public)
        self.stats = store.stats()  # as of the last look
        self.addresses: list[str] = []
        self._key, self._pool = key, pool
        self._started_s, self._started_ms = time.monotonic(), time.time_ns() // 1_000_000
        self._ready = False
        self.lan: LanPeers | None = None
        seed = tagged_hash(b"dds/node-seed/v1", key.seed)
        bandwidth = Bandwidth.capped(up_bytes_per_s=config.upload_bytes_per_s, down_bytes_per_s=config.download_bytes_per_s)
        self.quota = StagingQuota(
            total_bytes_max=config.capacity_bytes // STAGED_SHARE_OF_CAPACITY, ttl_s=store.config.staged_ttl_ms / 1000
        )
        self.dht = DHTNode(config.network)
        distance = self._distance_s if config.simulated_rtt_ms else None
        self._purse = make_purse(config, files, key)
        self._client = PeerClient(key, network=config.network, bandwidth=bandwidth, distance=distance, payer=self._purse)
        self.peers = self._peer_host(seed)
        self._reach = NodeReach(key, config, self.peers.table, self._addresses_changed)
        self.announcer = self._announcer(seed)
        ground = Ground(
            config=config,
            files=files,
            key=key,
            seed=seed,
            store=store,
            pool=pool,
            metrics=metrics,
            bandwidth=bandwidth,
            dht=self.dht,
            client=self._client,
            peers=self.peers,
            questions=self._questions,
            announcer=self.announcer,
            purse=self._purse,
            addresses=lambda: self.addresses,
            distance=distance,
        )
        self._stores = ground.stores
        self._audits = make_audits(ground)
        self._meter = make_meter(ground, self._audits)
        self._popularity = PopularityCounter(store, files.root) if self._stores else None
        self._let_go = None if self._audits is None else self._audits.letting_go(store, files.root, self.announcer)
        self.origin, origin_routes = make_origin(ground)
        self.edge, edge_routes = make_edge(ground, self._meter)
        self.dialback = make_dialback(ground)
        self.routes = self._routes()
        self.routes.serve_blocks(*(part.block for part in (self.origin, self.edge) if part is not None))
        if self.edge is not None:
            self.routes.count_contents(self.edge.popularity.served_bytes)
        routes = [*self.routes.routes(stores=self._stores), *origin_routes, *edge_routes, *self.dialback.routes()]
        for part in (self._audits, self._meter):
            routes += [] if part is None else part.routes()
        self.server = PeerServer(
            key,
            network=config.network,
            routes=routes,
            limits=ServerLimits(bodies_bytes_max=config.memory_bytes_max),
            bandwidth=bandwidth,
        )

    def _peer_host(self, seed: bytes) -> PeerHost:
        table = PeerTable(self.config.network, self.node_id, seed)
        questions = self._questions = PeerQuestions(self._client, table)
        return PeerHost(
            self._key,
            table,
            probe=questions.probe,
            fetch_peers=questions.fetch_peers,
            describe=self._describe,
            dht=self.dht,
            bootstrap=[parse_bootstrap(text) for text in self.config.bootstrap],
        )

    def _announcer(self, seed: bytes) -> Announcer:
        return Announcer(
            self._key,
            self.config.network,
            self.dht,
            lambda: open_announce_queue(self.files.root),
            lambda: self.addresses,
            seed,
            held=lambda announcements: still_held(self.store, announcements),
            config=ANNOUNCING,
        )

    def _distance_s(self, node: NodeID) -> float:
        """Of a simulated network: seconds of a round trip that are added to what this machine takes."""
        peer = self.peers.table.get(node)
        region = peer.record.region if peer is not None and peer.record is not None else self.config.region
        return self.config.simulated_rtt_ms / 1000 if region != self.config.region else 0.0

    def _routes(self) -> NodeRoutes:
        service = NodeService(self.store, self._key, self.config.network)
        faces = NodeFaces(
            self.peers.own_record,
            self.peers.shared,
            self.health,
            self.metrics_page,
            self._committed,
            self._published,
            None if self._audits is None else self._audits.admission(),
            self._meter,
            self._popularity,
            None if self._let_go is None else self._let_go.committed,
        )
        return NodeRoutes(service, self._pool, self.quota, faces)

    # ---- starting

    async def start(self, stack: AsyncExitStack) -> None:
        """Start all parts; `stack` stops them. The server stops first, so that nothing is missing to requests under way."""
        await self.dht.start(
            self.config.host, self.config.dht_port, [parse_host_port(text) for text in self.config.dht_bootstrap]
        )
        stack.push_async_callback(self.dht.stop)
        await stack.enter_async_context(self._client)
        if self._purse is not None:
            stack.push_async_callback(self._purse.close)
            self._purse.start(self._client, None if self._audits is None else self._audits.ledger)
        stack.push_async_callback(self.peers.stop)
        stack.push_async_callback(self.announcer.stop)
        if self._meter is not None:
            stack.push_async_callback(self._meter.close)
        if self._popularity is not None:
            stack.push_async_callback(self._popularity.stop)
        if self._let_go is not None:
            stack.callback(self._let_go.close)
        port = await self.server.start(self.config.host, self.config.port)
        stack.push_async_callback(self.server.stop, STOP_GRACE_S)
        self._keep_ports(port)
        stack.push_async_callback(self._reach.stop)
        await self._reach.start(self._client, port)
        await self.announcer.start()
        await self.peers.start()
        if self.config.lan:
            service = LanService(self.node_id, port)
            self.lan = LanPeers(self._client, self.config.network, self.config.host, self.peers.offer, service)
            stack.push_async_callback(self.lan.stop)
            self.lan.start()
        if self.origin is not None:
            stack.push_async_callback(self.origin.stop)
            await self.origin.start()
        if self.edge is not None:
            await self.edge.start()
            stack.push_async_callback(self.edge.stop)
            self.edge.add_metrics(self.metrics)
        add_node_metrics(self)
        background = asyncio.create_task(self._background())
        stack.push_async_callback(_cancel, background)
        stack.callback(self.files.state_file.unlink, missing_ok=True)

    async def _background(self) -> None:
        """Everything that a node does unasked. A failing part is logged, counted and begun again, and hinders no other."""
        failures = self.metrics.counter(
            "dds_background_failures_total", "Background tasks that failed and began again.", "task"
        )
        of_free = partial(keep_without_ledger, self.store, self.announcer)
        recheck = of_free if self._let_go is None else self._let_go.recheck
        pace = pace_for(self.config.trash_window_s)
        keeper = StoreKeeper(self.store, pace, self.metrics, on_sweep=self._look_again, recheck=recheck)
        jobs = {**keeper.jobs(), "announce": lambda: announce_all_held(self.store, self.announcer)}
        jobs |= self._reach.jobs(self.config.port, self.config.dht_port)
        if self.edge is not None:
            jobs |= self.edge.jobs()
        if self._audits is not None:
            jobs |= self._audits.jobs()
        if self._meter is not None:
            jobs |= self._meter.jobs()
        if (purse := self._purse) is not None:
            jobs["purse"] = lambda: every(PURSE_SETTLES_S, purse.settle)
        if self._popularity is not None:
            jobs["popularity"] = self._popularity.run
        if self._let_go is not None:
            jobs["let-go"] = self._let_go.run
        try:
            async with asyncio.TaskGroup() as group:
                for name, work in jobs.items():
                    group.create_task(supervise(name, work, on_failure=lambda name: failures.add(1, name)))
        finally:
            keeper.close()

    def say_ready(self) -> None:
        """From now on the node is found: state.json is there, /healthz says 200."""
        self._ready = True
        own, dht = format_address(self.config.host, self.config.port), format_address(self.dht.host, self.dht.port)
        state = NodeState(os.getpid(), id_text(self.node_id), own, dht, self._started_ms, self.config.roles)
        self.files.write_state(state)
        event(_log, logging.INFO, "ready", node=state.id, address=own, dht=dht, version=__version__, pid=state.pid)

    def _keep_ports(self, port: int) -> None:
        """Ports that were chosen at the first start stay: others remember them."""
        chosen = replace(self.config, port=port, dht_port=self.dht.port)
        if chosen != self.config:
            write_node_config(self.files.config_file, chosen)
            self.config = chosen
        self.addresses = self._reach.addresses(list(chosen.advertised) or [format_address(chosen.host, port)])

    def _addresses_changed(self) -> None:
        """The router passes our port on now, or no longer: everybody is told."""
        self._keep_ports(self.config.port)
        self.peers.changed()
        self.announcer.addresses_changed()

    # ---- what the node says of itself

    def health(self) -> dict[str, object]:
        return {
            "ready": self._ready and self.dht.running,
            "node": id_text(self.node_id),
            "network": self.config.network,
            "version": __version__,
            "dht": self.dht.running,
            "peers": len(self.peers.table),
            **({} if self.lan is None else {"lan": len(self.lan.answered)}),
            "uptime_s": round(time.monotonic() - self._started_s, 1),
            "free_bytes": self.stats.free_bytes,
            **({} if self.origin is None else {"origin": self.origin.summary()}),
            **({} if self.edge is None else {"edge": self.edge.summary()}),
        }

    async def metrics_page(self) -> str:
        await self._look()
        return self.metrics.render()

    def _describe(self) -> NodeRecord:
        config = self.config
        return NodeRecord(
            version=RECORD_VERSION,
            network=config.network,
            node_id=self.node_id,
            addresses=self.addresses,
            roles=list(config.roles),
            region=config.region,
            operator=config.operator,
            subnet=config.subnet,
            free_bytes=self._free_bytes(),
            capacity_bytes=config.capacity_bytes,
            price=0,
            software=f"dds/{__version__}",
            dht=format_address(self.dht.host, self.dht.port),
            iroh=self._reach.iroh,
            seq=0,  # seq and expires_ms are filled in when it is signed
            expires_ms=0,
        )

    def _free_bytes(self) -> int:
        free = self.stats.free_bytes if self._stores else 0
        return free // FREE_STEP_BYTES * FREE_STEP_BYTES

    async def _look(self) -> None:
        """Ask the store what it holds now, in a thread: it waits for the writer's turn."""
        self.stats = await asyncio.get_running_loop().run_in_executor(self._pool, self.store.stats)

    async def _look_again(self) -> None:
        before = self._free_bytes()
        await self._look()
        self.quota.expire(asyncio.get_running_loop().time())
        if self._free_bytes() != before:
            self.peers.changed()

    # ---- news from requests

    def _committed(self, done: Receipted) -> None:
        segment_id, manifest = done.encoding.segment_id, done.manifest
        rows = () if manifest is None else manifest.body.segments + manifest.meta.segments
        hinted = any(row.segment_id == segment_id and self.node_id in row.holders for row in rows)
        self.announcer.announce_segment(segment_id, done.index, hinted=hinted)
        if done.manifest is not None:
            self._published(done.manifest)

    def _published(self, manifest: Manifest) -> None:
        self.announcer.announce_content(manifest.content, "manifest")


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task

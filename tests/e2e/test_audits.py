"""Audits over real connections: a ledger host, storing nodes, witnesses. A node without its data gets no pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from dds.engines.embedded import EmbeddedEngine
from dds.engines.replica import Replica
from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisNode, GenesisOperator
from dds.ledger.params import devnet_params
from dds.ledger.records import EPOCHS, SEGMENTS, STANDINGS, Assignment, EpochRecord, Holding, Segment, Standing, number_key
from dds.ledger.rules import inventory
from dds.primitives.ids import NodeID, id_text
from dds.primitives.keys import SigningKey
from dds.primitives.money import TOKEN
from dds.runtime.ledger_client import ledger_at
from dds.runtime.ledger_host import LedgerHost
from dds.runtime.metrics import Registry
from dds.runtime.node_audits import AuditParts, NodeAudits
from dds.runtime.tasks import cancel_all
from dds.storage.fragment_store import FragmentStore
from dds.transport.client import PeerClient
from dds.transport.server import PeerServer
from dds.wire.discovery import parse_address
from dds.wire.segment import ENCODING_TAG
from dds.wire.signed import sign
from tests.audit_kit import Sample, runs_of, sample
from tests.discovery_samples import NETWORK
from tests.node_sites import PUBLISHER, Site, sites

EPOCH_MS = 1_500
HOST_KEY = SigningKey(b"L" * 32)
WITNESS_KEYS = [SigningKey(bytes([200 + number]) * 32) for number in range(2)]
ONE = sample()


def genesis(storers: list[Site]) -> Genesis:
    """Storing nodes have the numbers 0, 1, ..., witnesses those behind."""
    now_ms = time.time_ns() // 1_000_000
    keys = [*(site.key for site in storers), *WITNESS_KEYS]
    operators = [SigningKey(bytes([number + 1]) * 32).public for number in range(len(keys))]
    return Genesis(
        GENESIS_VERSION,
        NETWORK,
        devnet_params(now_ms, EPOCH_MS),
        operators=tuple(GenesisOperator(account, 1000 * TOKEN, ("r",)) for account in operators),
        nodes=tuple(
            GenesisNode(
                node_id=key.public,
                operator=operator,
                payout=operator,
                roles=("witness",) if key in WITNESS_KEYS else ("ssn",),
                region="r",
                subnet="s",
                capacity_bytes=1 << 30,
                ask_price=1000,
                term_epochs_max=1000,
                pool=TOKEN,
            )
            for key, operator in zip(keys, operators, strict=True)
        ),
    )


def assign(replica: Replica, what: Sample, holders: int) -> None:
    """Index i to node i, active from the first epoch: what reserving, storing and registering come to."""
    state, runs = replica._state, runs_of(what.encoding)
    assignments = []
    for index in range(what.encoding.width):
        records = [record for _, record in what.encoding.fragments_of(index)]
        size, leaves = sum(record.size for record in records), sum(record.leaf_count for record in records)
        if index >= holders:
            assignments.append(Assignment())
            continue
        assignments.append(Assignment(index, int(Holding.ACTIVE), size, leaves))
        node = state.node(index)
        state.put_node(replace(node, assignments=1, promised_bytes=size))
        inventory.set_leaves(state, index, what.segment_id, index, leaves)
    segment = Segment(what.encoding.root(), bytes(32), bytes(32), 1000, 2, runs, 0, tuple(assignments), (), 0)
    state.put(SEGMENTS, what.segment_id, segment)
    state.keep()


def fill(store: FragmentStore, what: Sample, index: int) -> None:
    fragments = [row[index] for row in what.fragments if index < len(row)]
    upload, owner = bytes(16), PUBLISHER.public
    store.stage_many(upload, owner, fragments)
    store.commit(upload, owner, what.encoding, sign(PUBLISHER, ENCODING_TAG, NETWORK, what.encoding.encode()), index)


def empty(store: FragmentStore) -> None:
    """The bytes are gone, the files are still there."""
    for path in store.home.packs.iterdir():
        path.write_bytes(bytes(path.stat().st_size))


@dataclass
class Net:
    host: LedgerHost
    storers: list[Site]
    address: str
    directory: Path
    addresses: dict[NodeID, str] = field(default_factory=dict)
    running: dict[str, AsyncExitStack] = field(default_factory=dict)

    def standing(self, number: int) -> Standing:
        return self.host.replica.find(STANDINGS, number_key(number)) or Standing()

    def record(self, epoch: int) -> EpochRecord | None:
        return self.host.replica.find(EPOCHS, number_key(epoch))

    async def start_storer(self, site: Site) -> None:
        self.addresses[site.node_id] = site.address
        await self._start(f"storer {site.number}", site.key, store=site.store)

    async def start_witness(self, number: int) -> None:
        await self._start(f"witness {number}", WITNESS_KEYS[number], witness_dir=self.directory / f"witness-{number}")

    async def stop(self, name: str) -> None:
        await self.running.pop(name).aclose()

    async def _start(
        self, name: str, key: SigningKey, *, store: FragmentStore | None = None, witness_dir: Path | None = None
    ) -> None:
        stack = self.running[name] = AsyncExitStack()
        client = await stack.enter_async_context(PeerClient(key, network=NETWORK))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        ledger = ledger_at(self.address, client, NETWORK)

        def learn(node: NodeID) -> None:
            client.learn(node, [parse_address(self.addresses[node])])

        parts = AuditParts(key, NETWORK, ledger, client, learn, pool, Registry())
        audits = NodeAudits(parts, store=store, witness_dir=witness_dir, settle_epochs=24)
        if witness_dir is not None:
            server = PeerServer(key, network=NETWORK, routes=audits.routes())
            self.addresses[NodeID(key.public)] = f"127.0.0.1:{await server.start()}"
            stack.push_async_callback(server.stop, 0.0)
        tasks = [asyncio.ensure_future(job()) for job in audits.jobs().values()]
        stack.push_async_callback(cancel_all, tasks)


@asynccontextmanager
async def network(directory: Path, storers: int) -> AsyncIterator[Net]:
    async with AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(sites(directory, storers))
        began = genesis(nodes)
        replica = Replica.open(directory / "ledger", began)
        stack.callback(replica.close)
        assign(replica, ONE, storers)
        host = LedgerHost(HOST_KEY, EmbeddedEngine(replica), began)
        port = await host.start(stack)
        net = Net(host, nodes, f"{id_text(HOST_KEY.public)}@127.0.0.1:{port}", directory)
        for number in range(len(WITNESS_KEYS)):
            await net.start_witness(number)
        for site in nodes:
            fill(site.store, ONE, site.number)
            await net.start_storer(site)
        try:
            yield net
        finally:
            for name in list(net.running):
                await net.stop(name)


async def until(what: Callable[[], bool], *, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():
            await asyncio.sleep(0.05)


@pytest.mark.e2e
async def test_a_node_without_its_data_gets_no_pass_and_loses_the_assignment(tmp_path: Path) -> None:
    async with network(tmp_path, 3) as net:
        empty(net.storers[2].store)

        def states() -> list[int]:
            segment = net.host.replica.find(SEGMENTS, ONE.segment_id)
            assert segment is not None
            return [assignment.state for assignment in segment.assignments[:3]]

        await until(lambda: all(net.standing(number).passed >= 2 for number in (0, 1)))
        await until(lambda: states()[2] == Holding.FREED)
        assert net.standing(2).passed == 0 and net.standing(2).judged > 0
        assert states()[:2] == [Holding.ACTIVE, Holding.ACTIVE]


@pytest.mark.e2e
async def test_a_node_that_is_away_misses_and_loses_nothing_yet(tmp_path: Path) -> None:
    async with network(tmp_path, 2) as net:
        await net.stop("storer 1")
        await net.storers[1].stop()
        await until(lambda: net.standing(1).judged >= 1 and net.standing(0).passed >= 1)
        assert net.standing(1).passed == 0
        segment = net.host.replica.find(SEGMENTS, ONE.segment_id)
        assert segment is not None and segment.assignments[1].state == Holding.ACTIVE


@pytest.mark.e2e
async def test_a_witness_started_anew_reveals_what_it_committed_to_and_reports_on(tmp_path: Path) -> None:
    async with network(tmp_path, 1) as net:

        def committed() -> int | None:
            """The latest epoch that both witnesses committed a secret for."""
            last = net.host.replica.epoch
            records = ((epoch, net.record(epoch)) for epoch in range(last, -1, -1))
            return next(
                (epoch for epoch, record in records if record and len(record.commits) == 2 and all(record.commits)), None
            )

        await until(lambda: committed() is not None)
        epoch = committed()
        assert epoch is not None
        await net.stop("witness 0")
        await net.start_witness(0)
        await until(lambda: (record := net.record(epoch)) is not None and record.revealed == 0b11)
        later = epoch + 3
        await until(lambda: (record := net.record(later)) is not None and record.reported == 0b11)

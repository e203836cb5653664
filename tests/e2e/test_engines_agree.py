"""The same 10,000 transactions on every engine, with a crash half-way, make one app hash."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from dds.engines.abci import AbciEngine
from dds.engines.embedded import EmbeddedEngine
from dds.engines.nats import NatsEngine
from dds.engines.nats_log import NatsLog
from dds.engines.port import Engine
from dds.engines.replica import Replica
from dds.ledger.genesis import Genesis
from dds.primitives.keys import SigningKey
from tests.comet_net import Member, comet_net, needs_cometbft, wait_until
from tests.ledger_workload import NETWORK, ROUND_TXS, SENDERS, TXS_EACH, busy_genesis, rounds
from tests.nats_cluster import Cluster, nats_cluster

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("ledger-engines")]

HOSTS = tuple(SigningKey(bytes([number]) * 32) for number in (1, 2))
CAUGHT_UP_S = 60.0


@dataclass(frozen=True)
class Expected:
    """What the embedded engine made of the workload."""

    genesis: Genesis
    rounds: list[list[bytes]]
    root: bytes


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    genesis, sent = busy_genesis(time.time_ns() // 1_000_000), rounds()
    assert len({raw for txs in sent for raw in txs}) == len(SENDERS) * TXS_EACH == 10_000
    path = tmp_path_factory.mktemp("embedded") / "ledger.db"
    return Expected(genesis, sent, asyncio.run(embedded_root(path, genesis, sent)))


async def embedded_root(path: Path, genesis: Genesis, sent: Sequence[Sequence[bytes]]) -> bytes:
    engine = EmbeddedEngine(Replica.open(path, genesis))
    await engine.start()
    try:
        began = engine.head().root
        for txs in sent:
            await all_succeed(engine, txs)
        assert engine.head().root != began and engine.head().epoch == 0
        return engine.head().root
    finally:
        await engine.stop()


async def all_succeed(engine: Engine, txs: Sequence[bytes]) -> None:
    outcomes = await engine.submit(txs)
    assert Counter((outcome.code, outcome.message) for outcome in outcomes) == {("", ""): ROUND_TXS}


@asynccontextmanager
async def nats_host(cluster: Cluster, path: Path, genesis: Genesis, key: SigningKey) -> AsyncIterator[NatsEngine]:
    sequencers = [each.public for each in HOSTS]
    replica = Replica.open(path, genesis, engine="nats")
    engine = NatsEngine(replica, key, sequencers, NatsLog([cluster.address], NETWORK))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with nats_cluster(tmp_path / "servers") as running:
        yield running


async def test_nats_makes_the_embedded_root_though_its_leader_is_killed_half_way(
    expected: Expected, cluster: Cluster, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        engine, follower = [
            await stack.enter_async_context(nats_host(cluster, tmp_path / f"host-{number}", expected.genesis, key))
            for number, key in enumerate(HOSTS)
        ]
        for number, txs in enumerate(expected.rounds):
            leader = await cluster.leader(f"dds-ledger-{NETWORK}") if number == len(expected.rounds) // 2 else None
            final = asyncio.create_task(all_succeed(engine, txs))
            if leader is not None:
                await asyncio.to_thread(leader.kill)
            await final
        await caught_up(follower, engine.head().height)
        late = await stack.enter_async_context(nats_host(cluster, tmp_path / "late", expected.genesis, HOSTS[1]))
        # the last one has it from the log alone, which two servers still have
        assert [each.head().root for each in (engine, follower, late)] == [expected.root] * 3


async def caught_up(engine: Engine, height: int) -> None:
    async with asyncio.timeout(CAUGHT_UP_S):
        while engine.head().height < height:
            await asyncio.sleep(0.02)


@needs_cometbft
async def test_cometbft_makes_the_embedded_root_though_a_validator_is_killed_half_way(expected: Expected) -> None:
    with comet_net(4, expected.genesis) as members:
        first, *others = members
        for member in others:
            member.start_app()
        async with abci_engine(first, expected.genesis) as engine:
            for member in members:
                member.start_comet()
            await asyncio.to_thread(wait_until, lambda: first.height > 0, 40, "the first block")
            for number, txs in enumerate(expected.rounds):
                final = asyncio.create_task(all_succeed(engine, txs))
                if number == len(expected.rounds) // 2:
                    await asyncio.to_thread(members[3].kill)
                await final
            members[3].start_app()
            members[3].start_comet()
            have_all = partial(at_least, members, engine.head().height)
            await asyncio.to_thread(wait_until, have_all, CAUGHT_UP_S, "all four to have every block")
            assert await asyncio.to_thread(roots, members) == {expected.root}


@asynccontextmanager
async def abci_engine(member: Member, genesis: Genesis) -> AsyncIterator[AbciEngine]:
    replica = await asyncio.to_thread(Replica.open, member.store, genesis, engine="abci")
    engine = AbciEngine(replica, listen=member.node.proxy_app, rpc=member.node.rpc, submit_timeout_s=60)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def at_least(members: Sequence[Member], height: int) -> bool:
    return all(member.height >= height for member in members)


def roots(members: Sequence[Member]) -> set[bytes]:
    return {member.committed()[1] for member in members}

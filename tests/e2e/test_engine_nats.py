"""The ledger over three real NATS servers: one order, nothing acknowledged lost, nobody ahead of the log."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from dds.engines import nats as nats_engine
from dds.engines.embedded import EmbeddedEngine, system_time_ms
from dds.engines.nats import CLOCK_AHEAD_MS_MAX, NatsEngine
from dds.engines.nats_log import NatsLog
from dds.engines.port import Outcome
from dds.engines.replica import Replica
from dds.ledger.machine import RULES, TxResult
from dds.ledger.records import ACCOUNTS
from dds.ledger.state import State
from dds.primitives.errors import ConfigError, CorruptError, UnavailableError
from dds.primitives.ids import id_text
from dds.primitives.keys import SigningKey
from dds.runtime.ledger_engines import open_engine
from dds.storage.ledger_home import LedgerConfig
from dds.wire.ledger import Transfer, Tx
from dds.wire.ledger_block import Block, sign_block
from tests.nats_cluster import Cluster, nats_cluster
from tests.nats_host import ANNA, BERT, EPOCH_MS, FUNDS, KEYS, small_genesis, transfer

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("ledger-engines")]

NEXT_ACK_S_MAX = 25.0
MAJORITY_BACK_S = 30.0
CAUGHT_UP_S = 10.0
STARTED_MS = system_time_ms()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with nats_cluster(tmp_path_factory.mktemp("nats")) as running:
        yield running


class Ledger:
    """Hosts of one network on the cluster, started on demand."""

    def __init__(self, cluster: Cluster, network: str, directory: Path, stack: AsyncExitStack) -> None:
        self.cluster, self.network, self.directory, self._stack = cluster, network, directory, stack

    @property
    def subject(self) -> str:
        return f"dds.ledger.{self.network}"

    def log(self) -> NatsLog:
        return NatsLog([self.cluster.address], self.network)

    async def host(
        self, number: int, *, name: str = "", epoch_ms: int = EPOCH_MS, log: NatsLog | None = None, clock_ahead_ms: int = 0
    ) -> NatsEngine:
        """A started host; `number` chooses its key, `name` its directory."""
        directory = self.directory / (name or f"host-{number}")
        directory.mkdir(exist_ok=True)
        genesis = small_genesis(self.network, STARTED_MS, epoch_ms)
        replica = Replica.open(directory / "ledger.db", genesis, engine="nats")
        sequencers = [key.public for key in KEYS]
        engine = NatsEngine(
            replica, KEYS[number], sequencers, log or self.log(), now_ms=lambda: system_time_ms() + clock_ahead_ms
        )
        await engine.start()
        self._stack.push_async_callback(engine.stop)
        return engine

    def transfers(self, first: int, count: int, sender: SigningKey = ANNA) -> list[bytes]:
        return [transfer(self.network, nonce, sender=sender) for nonce in range(first, first + count)]


@pytest.fixture
async def ledger(cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Ledger]:
    async with AsyncExitStack() as stack:
        yield Ledger(cluster, request.node.name[:60], tmp_path, stack)


async def at_height(engine: NatsEngine, height: int) -> None:
    async with asyncio.timeout(CAUGHT_UP_S):
        while engine.replica.height < height:
            await asyncio.sleep(0.02)


async def together(*engines: NatsEngine) -> None:
    """Until all have applied what any of them has."""
    height = max(engine.replica.height for engine in engines)
    for engine in engines:
        await at_height(engine, height)


def history(engine: NatsEngine) -> list[tuple[int, int, bytes, tuple[bytes, ...]]]:
    return [(height, block.time_ms, block.root, block.txs) for height, block in engine.replica.blocks()]


def funds(engine: NatsEngine, account: SigningKey) -> int:
    found = engine.replica.find(ACCOUNTS, account.public)
    return 0 if found is None else found.balance


def assert_same(*engines: NatsEngine) -> None:
    first, *others = engines
    for other in others:
        assert history(other) == history(first)
        assert other.replica.root == first.replica.root


async def test_two_followers_apply_the_same_blocks_to_the_same_root(ledger: Ledger) -> None:
    anna, bert = await ledger.host(0), await ledger.host(1)
    outcomes = await anna.submit(ledger.transfers(0, 40))
    assert all(outcome.ok and outcome.height > 0 for outcome in outcomes)
    assert all(outcome.ok for outcome in await bert.submit(ledger.transfers(0, 5, BERT)))
    await together(anna, bert)
    assert_same(anna, bert)
    assert funds(bert, BERT) == FUNDS + 40 - 5


async def test_the_embedded_engine_makes_the_same_root_of_the_same_transactions(ledger: Ledger) -> None:
    anna = await ledger.host(0)
    for first in range(0, 30, 3):
        await anna.submit(ledger.transfers(first, 3))
    genesis = small_genesis(ledger.network, STARTED_MS)
    embedded = EmbeddedEngine(Replica.open(ledger.directory / "embedded.db", genesis))
    await embedded.start()
    try:
        await embedded.submit(ledger.transfers(0, 30))
        assert (embedded.replica.height, anna.replica.height) == (1, 10)
        assert embedded.replica.root == anna.replica.root
    finally:
        await embedded.stop()


async def test_a_configured_host_takes_part(ledger: Ledger) -> None:
    sequencers = tuple(id_text(key.public) for key in KEYS)
    config = LedgerConfig(engine="nats", nats_servers=(ledger.cluster.address,), nats_sequencers=sequencers)
    anna = await ledger.host(0)
    other = open_engine(config, ledger.directory / "other.db", small_genesis(ledger.network, STARTED_MS), KEYS[1])
    await other.start()
    try:
        (outcome,) = await other.submit(ledger.transfers(0, 1))
        assert (outcome.ok, other.head().height, other.head().engine) == (True, 1, "nats")
        await at_height(anna, 1)
        assert other.head().root == anna.head().root
    finally:
        await other.stop()


async def test_two_hosts_at_once_apply_every_transaction_exactly_once_in_one_order(ledger: Ledger) -> None:
    anna, bert = await ledger.host(0), await ledger.host(1)
    mine, theirs = ledger.transfers(0, 40), ledger.transfers(0, 40, BERT)

    async def one_by_one(engine: NatsEngine, raws: list[bytes]) -> list[Outcome]:
        return [outcome for raw in raws for outcome in await engine.submit([raw])]

    # each host has one sender's transactions, and the first sender's go to both hosts
    answers = await asyncio.gather(one_by_one(anna, mine), one_by_one(bert, theirs), one_by_one(bert, mine))
    assert all(outcome.ok for outcome in answers[1])
    for first, second in zip(answers[0], answers[2], strict=True):
        assert {first.code, second.code} == {"", "bad-nonce"}  # whoever came second found it used up
    await together(anna, bert)
    assert_same(anna, bert)
    done = [raw for _, block in anna.replica.blocks() for raw, code in zip(block.txs, block.codes, strict=True) if not code]
    assert sorted(done) == sorted(mine + theirs)


async def test_what_waits_while_a_block_is_durable_and_not_told_of_yet_is_answered(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna = await ledger.host(0)
    apply = anna._apply

    def late(height: int, block: Block | None) -> tuple[TxResult, ...]:
        results = apply(height, block)
        time.sleep(0.03)  # in the engine's own thread: the block is on disk, and nobody knows
        return results

    monkeypatch.setattr(anna, "_apply", late)

    async def some_time_after(at_s: float, raw: bytes) -> Outcome:
        await asyncio.sleep(at_s)  # so that some come while the block before is in that state
        return (await anna.submit([raw]))[0]

    raws = ledger.transfers(0, 30)
    async with asyncio.timeout(15):
        outcomes = await asyncio.gather(*(some_time_after(0.005 * at, raw) for at, raw in enumerate(raws)))
    # Requests side by side have no order: one that overtook its sender's earlier nonce is answered too, with a refusal.
    assert {outcome.code for outcome in outcomes} <= {"", "bad-nonce"}
    assert sum(outcome.ok for outcome in outcomes) == FUNDS - funds(anna, ANNA) > 0


async def test_a_stale_sequencer_is_refused(ledger: Ledger) -> None:
    anna = await ledger.host(0)
    await anna.submit(ledger.transfers(0, 1))
    log = ledger.log()
    await log.open()
    try:
        stale = sign_block(KEYS[1], ledger.network, 1, STARTED_MS, anna.replica.root, [])
        assert not await log.append(stale, after=0)
        assert log.last == 1
    finally:
        await log.close()


class Unanswered(NatsLog):
    """The first append is stored, and its answer is lost."""

    lost = 0

    async def append(self, payload: bytes, *, after: int) -> bool:
        stored = await super().append(payload, after=after)
        if not self.lost:
            self.lost += 1
            raise UnavailableError("the answer was lost")
        return stored


async def test_an_append_whose_answer_was_lost_is_applied_once(ledger: Ledger) -> None:
    log = Unanswered([ledger.cluster.address], ledger.network)
    anna = await ledger.host(0, log=log)
    (outcome,) = await anna.submit(ledger.transfers(0, 1))
    assert log.lost == 1 and outcome == anna.replica.outcome_of(ledger.transfers(0, 1)[0])
    assert (outcome.ok, outcome.height, funds(anna, BERT)) == (True, 1, FUNDS + 1)
    assert [len(block.txs) for _, block in anna.replica.blocks()] == [1]


async def test_a_host_with_an_empty_disk_replays_to_the_same_root(ledger: Ledger) -> None:
    anna = await ledger.host(0)
    for first in range(0, 80, 4):
        await anna.submit(ledger.transfers(first, 4))
    late = await ledger.host(1, name="empty")
    assert late.replica.height == anna.replica.height == 20
    assert_same(anna, late)


async def test_a_host_killed_between_apply_and_commit_reopens_and_continues(ledger: Ledger) -> None:
    anna, directory = await ledger.host(0), ledger.directory / "mortal"
    directory.mkdir()
    argv = [
        sys.executable,
        "-m",
        "tests.nats_host",
        ledger.cluster.address,
        ledger.network,
        str(STARTED_MS),
        str(directory),
        "4",
    ]
    child = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    said, _ = await child.communicate()
    assert (child.returncode, said.split()) == (-signal.SIGKILL, [b"1", b"2", b"3"])

    reopened = await ledger.host(2, name="mortal")
    await at_height(reopened, 4)  # the block that it had applied and not committed is in the log
    unanswered = reopened.replica.outcome_of(ledger.transfers(3, 1)[0])
    assert unanswered is not None and (unanswered.ok, unanswered.height) == (True, 4)
    assert (await reopened.submit(ledger.transfers(4, 1)))[0].ok
    await together(anna, reopened)
    assert_same(anna, reopened)
    assert funds(reopened, BERT) == FUNDS + 5


async def test_a_transaction_that_meets_a_bug_never_gets_into_the_log(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    anna = await ledger.host(0)
    rule = RULES[Transfer]

    def broken(state: State, tx: Tx, body: Transfer) -> None:
        if body.amount == 13:
            raise RuntimeError
        rule(state, tx, body)

    monkeypatch.setitem(RULES, Transfer, broken)
    bad = transfer(ledger.network, 1, 13)
    first, second, third = await anna.submit([*ledger.transfers(0, 1), bad, *ledger.transfers(0, 1, BERT)])
    assert (first.ok, third.ok) == (True, True)
    assert (second.code, second.height) == ("internal", 0)
    assert bad not in [raw for _, block in anna.replica.blocks() for raw in block.txs]


async def test_an_epoch_ends_without_any_transaction(ledger: Ledger) -> None:
    anna, bert = await ledger.host(0, epoch_ms=500), await ledger.host(1, epoch_ms=500)
    begun = anna.replica.epoch
    async with asyncio.timeout(CAUGHT_UP_S):
        while min(anna.replica.epoch, bert.replica.epoch) < begun + 3:
            await asyncio.sleep(0.05)
    assert all(not block.txs for _, block in anna.replica.blocks())
    assert anna.replica.height <= anna.replica.epoch + 1  # not one block an epoch from each host


async def test_entries_of_strangers_are_empty_blocks_for_everyone(ledger: Ledger) -> None:
    anna, bert = await ledger.host(0), await ledger.host(1)
    await anna.submit(ledger.transfers(0, 1))
    moved = transfer(ledger.network, 1, 500)
    stranger, root, now = SigningKey(b"s" * 32), anna.replica.root, anna.replica.time_ms
    await ledger.cluster.publish_raw(ledger.subject, b"\x00 no block")
    await ledger.cluster.publish_raw(ledger.subject, sign_block(stranger, ledger.network, 3, now, root, [moved]))
    await ledger.cluster.publish_raw(ledger.subject, sign_block(KEYS[1], "other", 4, now, root, [moved]))
    await ledger.cluster.publish_raw(ledger.subject, sign_block(KEYS[1], ledger.network, 17, now, root, [moved]))
    far = STARTED_MS + 10 * CLOCK_AHEAD_MS_MAX
    await ledger.cluster.publish_raw(ledger.subject, sign_block(KEYS[1], ledger.network, 6, far, root, [moved]))
    await at_height(anna, 6)
    (outcome,) = await bert.submit(ledger.transfers(0, 1, BERT))
    assert (outcome.ok, outcome.height) == (True, 7)
    await together(anna, bert)
    assert_same(anna, bert)
    assert [len(block.txs) for _, block in anna.replica.blocks()] == [1, 0, 0, 0, 0, 0, 1]
    assert funds(anna, ANNA) == FUNDS - 1 + 1


async def test_a_host_whose_clock_is_far_ahead_stops_and_moves_no_epoch(ledger: Ledger) -> None:
    anna = await ledger.host(0)
    hasty = await ledger.host(1, clock_ahead_ms=2 * CLOCK_AHEAD_MS_MAX)
    with pytest.raises(UnavailableError, match="clock"):
        await hasty.submit(ledger.transfers(0, 1))
    assert isinstance(hasty.fault, ConfigError)
    (outcome,) = await anna.submit(ledger.transfers(0, 1))
    assert (outcome.ok, outcome.height, anna.replica.epoch) == (True, 2, 0)


async def test_a_host_with_another_state_stops_instead_of_going_on_beside_the_log(ledger: Ledger) -> None:
    anna = await ledger.host(0)
    await anna.submit(ledger.transfers(0, 1))
    with pytest.raises(CorruptError, match="follows root"):
        await ledger.host(1, epoch_ms=EPOCH_MS * 2)  # another genesis under the same name
    assert (await anna.submit(ledger.transfers(1, 1)))[0].ok


async def test_a_key_that_is_no_sequencers_is_refused_at_once(ledger: Ledger) -> None:
    genesis = small_genesis(ledger.network, STARTED_MS)
    replica = Replica.open(ledger.directory / "ledger.db", genesis, engine="nats")
    try:
        with pytest.raises(ConfigError, match="sequencers"):
            NatsEngine(replica, SigningKey(b"s" * 32), [key.public for key in KEYS], ledger.log())
    finally:
        replica.close()


async def test_the_leader_killed_half_way_loses_nothing_acknowledged(ledger: Ledger) -> None:
    anna, bert = await ledger.host(0), await ledger.host(1)
    acknowledged: list[tuple[bytes, Outcome]] = []

    async def submit(first: int, count: int) -> None:
        for raw in ledger.transfers(first, count):
            acknowledged.extend([(raw, outcome) for outcome in await anna.submit([raw])])

    await submit(0, 20)
    leader = await ledger.cluster.leader(f"dds-ledger-{ledger.network}")
    leader.kill()
    killed = time.monotonic()
    try:
        await submit(20, 1)
        next_ack_s = time.monotonic() - killed
        print(f"next acknowledgement {next_ack_s:.1f} s after the leader was killed")
        await submit(21, 19)
        await together(anna, bert)
    finally:
        leader.start()
    assert next_ack_s < NEXT_ACK_S_MAX
    assert len(acknowledged) == 40
    for raw, outcome in acknowledged:
        assert outcome.ok and outcome == anna.replica.outcome_of(raw) == bert.replica.outcome_of(raw)
    assert_same(anna, bert)
    assert funds(bert, BERT) == FUNDS + 40


async def test_without_a_majority_nothing_is_final_and_nothing_is_lost(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_engine, "SUBMIT_S", 2.0)
    anna, bert = await ledger.host(0), await ledger.host(1)
    await anna.submit(ledger.transfers(0, 1))
    killed = ledger.cluster.servers[:2]
    for server in killed:
        server.kill()
    try:
        with pytest.raises(UnavailableError, match="not in the ledger's log"):
            await anna.submit(ledger.transfers(1, 1))
        assert anna.replica.height == 1
    finally:
        for server in killed:
            server.start()
    monkeypatch.setattr(nats_engine, "SUBMIT_S", MAJORITY_BACK_S)
    (outcome,) = await bert.submit(ledger.transfers(0, 1, BERT))  # another host, while the first one's block may still come
    assert outcome.ok
    await anna.submit(ledger.transfers(1, 1))
    await together(anna, bert)
    assert_same(anna, bert)
    assert (funds(bert, ANNA), funds(bert, BERT)) == (FUNDS - 2 + 1, FUNDS - 1 + 2)

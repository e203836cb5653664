"""Ledgers kept by real CometBFT validators: they agree, go on without one, take it back, and stop who disagrees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from dds.engines.abci import AbciEngine
from dds.engines.comet_rpc import CometRpc
from dds.engines.replica import Replica
from dds.ledger.genesis import Genesis
from dds.ledger.records import ACCOUNTS, Account
from dds.primitives.errors import LedgerRefused, UnavailableError
from dds.primitives.ids import id_text
from dds.primitives.keys import SigningKey
from dds.runtime.ledger_client import open_ledger
from dds.runtime.ledger_engines import open_engine
from dds.runtime.ledger_host import LedgerHost
from dds.storage.ledger_home import LedgerConfig
from dds.wire.ledger import Transfer, sign_tx
from tests.comet_net import KEYS, NETWORK, Member, comet_net, genesis_now, needs_cometbft, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("ledger-engines"), needs_cometbft]


@asynccontextmanager
async def engine_of(member: Member, genesis: Genesis, submit_timeout_s: float = 40) -> AsyncIterator[AbciEngine]:
    """The member's application, in this process."""
    replica = await asyncio.to_thread(Replica.open, member.store, genesis, engine="abci")
    engine = AbciEngine(replica, listen=member.node.proxy_app, rpc=member.node.rpc, submit_timeout_s=submit_timeout_s)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def ready(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """`wait_until` beside an engine that this loop runs."""
    await asyncio.to_thread(wait_until, holds, seconds, what)


def transfers(first: int, count: int) -> list[bytes]:
    """Of every key `count`, from nonce `first` on."""
    return [
        sign_tx(key, NETWORK, nonce, Transfer(KEYS[(at + 1) % len(KEYS)].public, 1 + at))
        for nonce in range(first, first + count)
        for at, key in enumerate(KEYS)
    ]


async def common_root(members: Sequence[Member]) -> bytes:
    """The root of members once all are at one height; they must agree on it."""
    seen: list[tuple[int, bytes]] = []

    def at_one_height() -> bool:
        seen[:] = [member.committed() for member in members]
        return len({height for height, _ in seen}) == 1

    await ready(at_one_height, 30, "all to be at one height")
    (root,) = {root for _, root in seen}
    return root


async def test_three_validators_go_on_without_the_fourth_which_comes_back_to_the_same_root(tmp_path: Path) -> None:
    genesis = genesis_now(epoch_ms=3_600_000)  # one epoch, so that the root is the transactions' alone
    with comet_net(4, genesis) as members:
        first, *others = members
        for member in others:
            member.start_app()
        async with engine_of(first, genesis) as engine:
            for member in members:
                member.start_comet()
            await ready(lambda: first.height > 0, 40, "the first block")
            assert all(outcome.ok for outcome in await engine.submit(transfers(0, 14)))
            await asyncio.to_thread(members[3].kill)
            went_on = await engine.submit(transfers(14, 14))
            assert all(outcome.ok for outcome in went_on)
            members[3].start_app()
            members[3].start_comet()
            last = went_on[-1].height
            await ready(lambda: all(member.height >= last for member in members), 40, "the fourth to catch up")
            assert await common_root(members) == root_of_one_block(tmp_path / "alone", genesis, transfers(0, 28))


def root_of_one_block(path: Path, genesis: Genesis, raws: Sequence[bytes]) -> bytes:
    """What a replica without CometBFT makes of the same transactions."""
    alone = Replica.open(path, genesis)
    assert all(result.ok for result in alone.apply(1, genesis.params.genesis_ms, raws).results)
    alone.commit()
    alone.close()
    return alone.root


async def test_a_validator_whose_application_diverges_halts_until_it_replays_and_the_others_go_on() -> None:
    genesis = genesis_now()
    with comet_net(4, genesis) as members:
        *honest, liar = members
        for member in honest[1:]:
            member.start_app()
        liar.start_app("diverge", 6)
        async with engine_of(honest[0], genesis) as engine:
            for member in members:
                member.start_comet()
            await ready(lambda: honest[0].height >= 8, 40, "blocks behind the divergence")
            assert all(outcome.ok for outcome in await engine.submit(transfers(0, 2)))
            await ready(lambda: "CONSENSUS FAILURE" in liar.log_text(), 20, "the liar to halt")
            assert "wrong Block.Header.AppHash" in liar.log_text()
            assert liar.height < 8 and await common_root(honest)
            await asyncio.to_thread(liar.kill)
            await asyncio.to_thread(liar.forget)
            liar.start_app()
            liar.start_comet()
            assert await common_root(members)


async def test_an_application_killed_between_finalize_and_commit_replays_to_the_same_root(tmp_path: Path) -> None:
    genesis = genesis_now()
    with comet_net(1, genesis) as (member,):
        member.start_app("die", 2)
        member.start_comet()
        await ready(lambda: member.height > 0, 40, "the first block")
        in_the_block, *later = transfers(0, 1)
        rpc = CometRpc(member.node.rpc)
        await rpc.broadcast([in_the_block])
        await rpc.close()
        await ready(lambda: member.processes["app"].poll() is not None, 20, "the application to die")
        member.kill()
        async with engine_of(member, genesis) as engine:
            before = engine.head()
            assert engine.replica.outcome_of(in_the_block) is None, "the block was not committed"
            member.start_comet()
            await ready(lambda: member.height > before.height, 40, "the chain to go on")
            assert all(outcome.ok for outcome in await engine.submit(later))
            replayed = engine.replica.outcome_of(in_the_block)
            assert replayed is not None and replayed.ok and replayed.height == before.height + 1
            again = await asyncio.to_thread(replayed_roots, engine, tmp_path / "again", genesis)
            assert again == [record.root for _, record in engine.replica.blocks()][: len(again)]
            assert len(again) > before.height + 1


def replayed_roots(engine: AbciEngine, path: Path, genesis: Genesis) -> list[bytes]:
    """What a replica that never crashed makes of the same blocks."""
    fresh = Replica.open(path, genesis)
    roots = []
    for height, record in engine.replica.blocks():
        fresh.apply(height, record.time_ms, record.txs)
        fresh.commit()
        roots.append(fresh.root)
    fresh.close()
    return roots


async def test_outcomes_say_what_became_of_each_transaction() -> None:
    genesis = genesis_now()
    with comet_net(1, genesis) as (member,):
        async with engine_of(member, genesis) as engine:
            member.start_comet()
            await ready(lambda: member.height > 0, 40, "the first block")
            good = sign_tx(KEYS[0], NETWORK, 0, Transfer(KEYS[1].public, 5))
            too_much = sign_tx(KEYS[0], NETWORK, 1, Transfer(KEYS[1].public, 10**9))
            after = sign_tx(KEYS[0], NETWORK, 2, Transfer(KEYS[1].public, 5))
            gap = sign_tx(KEYS[0], NETWORK, 9, Transfer(KEYS[1].public, 5))
            outcomes = await engine.submit([good, too_much, after, gap, b"garbage"])
            assert [outcome.code for outcome in outcomes] == ["", "insufficient-balance", "", "bad-nonce", "format"]
            assert [outcome.height > 0 for outcome in outcomes] == [True, True, True, False, False]
            assert [event.name for event in outcomes[0].events] == [event.name for event in outcomes[2].events] != []


async def test_the_same_bytes_count_once_and_one_sender_is_told_so() -> None:
    genesis = genesis_now()
    with comet_net(1, genesis) as (member,):
        async with engine_of(member, genesis) as engine:
            member.start_comet()
            await ready(lambda: member.height > 0, 40, "the first block")
            raw = sign_tx(KEYS[0], NETWORK, 0, Transfer(KEYS[1].public, 5))
            at_once = [outcome for (outcome,) in await asyncio.gather(*(engine.submit([raw]) for _ in range(5)))]
            (later,) = await engine.submit([raw])
            assert [outcome for outcome in at_once if outcome.ok] == [engine.replica.outcome_of(raw)]
            assert {outcome.code for outcome in (*at_once, later)} == {"", "bad-nonce"} and not later.ok


async def test_a_client_of_a_host_over_cometbft_sees_the_same_ledger_as_over_any_engine() -> None:
    genesis = genesis_now()
    with comet_net(1, genesis) as (member,):
        key = SigningKey(b"h" * 32)
        config = LedgerConfig(engine="abci", abci_listen=member.node.proxy_app, abci_rpc=member.node.rpc)
        async with AsyncExitStack() as stack:
            host = LedgerHost(key, open_engine(config, member.store, genesis, key), genesis)
            port = await host.start(stack)
            member.start_comet()
            ledger = await stack.enter_async_context(open_ledger(f"{id_text(host.node_id)}@127.0.0.1:{port}", network=NETWORK))
            await ready(lambda: member.height > 0, 40, "the first block")
            bodies = [Transfer(KEYS[1].public, 10**9 if number == 30 else 1) for number in range(60)]
            outcomes = await ledger.submit_many(KEYS[0], bodies)
            assert [number for number, outcome in enumerate(outcomes) if isinstance(outcome, LedgerRefused)] == [30]
            assert await ledger.find(ACCOUNTS, KEYS[0].public) == Account(10**6 - 59, 60)
            assert (await ledger.head()).engine == "abci"


async def test_without_cometbft_submit_says_so_and_reads_go_on() -> None:
    genesis = genesis_now()
    with comet_net(1, genesis) as (member,):
        async with engine_of(member, genesis, submit_timeout_s=5) as engine:
            with pytest.raises(UnavailableError, match="does not answer"):
                await engine.submit(transfers(0, 1))
            assert engine.head().height == 0 and engine.replica.find(ACCOUNTS, KEYS[0].public) is not None


async def test_cometbft_with_another_genesis_does_not_start() -> None:
    genesis = genesis_now()
    with comet_net(1, genesis) as (member,):
        async with engine_of(member, genesis_now(epoch_ms=3_000)):
            member.start_comet()
            await ready(lambda: member.processes["comet"].poll() is not None, 40, "CometBFT to end")
            assert "is of another ledger" in member.log_text()

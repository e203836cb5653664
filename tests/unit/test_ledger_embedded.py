"""The sequencer of one operator: order, blocks, epochs that end by themselves, and a disk that says no."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dds.engines.embedded import EmbeddedEngine, system_time_ms
from dds.engines.replica import Replica
from dds.ledger import machine
from dds.ledger.records import ACCOUNTS, CHAIN
from dds.ledger.state import State
from dds.primitives.errors import LimitError, StorageError, UnavailableError
from dds.wire.ledger import Transfer, Tx
from dds.wire.ledger_api import BLOCK_TXS_MAX
from tests.ledger_kit import ANNA, BERT, FUNDS, START_MS, small_genesis, transfer


class Clock:
    def __init__(self) -> None:
        self.ms = START_MS

    def __call__(self) -> int:
        return self.ms


class FailingDisk(sqlite3.Connection):
    """Says that the disk is full while `full` is set."""

    full = False

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if FailingDisk.full and sql == "COMMIT":
            raise sqlite3.OperationalError("database or disk is full")
        return super().execute(sql, *values)


@asynccontextmanager
async def running(path: Path, clock: Clock | None = None) -> AsyncIterator[EmbeddedEngine]:
    replica = Replica.open(path / "ledger.sqlite", small_genesis(epoch_ms=200), factory=FailingDisk)
    engine = EmbeddedEngine(replica, now_ms=clock or Clock())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def test_an_answer_means_that_it_is_durable(tmp_path: Path) -> None:
    async with running(tmp_path) as engine:
        (outcome,) = await engine.submit([transfer(0, 5)])
        assert outcome.ok and outcome.height == 1 == engine.head().height
        assert [event.delta for event in outcome.events] == [-5, 5]
    again = Replica.open(tmp_path / "ledger.sqlite", small_genesis(epoch_ms=200))
    assert again.height == 1 and again.recompute_root() == again.root
    again.close()


async def test_transactions_of_many_callers_share_a_block_and_keep_their_order(tmp_path: Path) -> None:
    async with running(tmp_path) as engine:
        answers = await asyncio.gather(*(engine.submit([transfer(nonce)]) for nonce in range(100)))
        assert {outcome.code for (outcome,) in answers} == {""}
        assert engine.head().height == 1


async def test_a_block_holds_at_most_its_bound(tmp_path: Path) -> None:
    async with running(tmp_path) as engine:
        outcomes = await engine.submit([transfer(nonce) for nonce in range(BLOCK_TXS_MAX + 1)])
        assert [outcomes[0].height, outcomes[-2].height, outcomes[-1].height] == [1, 1, 2]
        assert all(outcome.ok for outcome in outcomes)


async def test_what_changes_nothing_is_answered_and_not_kept(tmp_path: Path) -> None:
    async with running(tmp_path) as engine:
        outcomes = await engine.submit([b"nonsense", transfer(0), transfer(0)])
        assert [outcome.code for outcome in outcomes] == ["format", "", "bad-nonce"]
        block = engine.replica.block(1)
        assert block is not None and len(block.txs) == 1
        assert [outcome.height for outcome in await engine.submit([b"nonsense"])] == [0]
        assert engine.head().height == 1


async def test_an_epoch_ends_though_nobody_sends_anything(tmp_path: Path) -> None:
    replica = Replica.open(tmp_path / "ledger.sqlite", small_genesis(genesis_ms=system_time_ms(), epoch_ms=100))
    engine = EmbeddedEngine(replica)
    await engine.start()
    async with asyncio.timeout(10):
        while engine.head().epoch < 3:
            await asyncio.sleep(0.02)
    chain = replica.find(CHAIN)
    await engine.stop()
    assert chain is not None and chain.epoch >= 3
    assert replica.height <= chain.epoch, "one block an epoch, no more"


async def test_time_never_runs_back(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, clock) as engine:
        clock.ms += 150
        await engine.submit([transfer(0)])
        clock.ms -= 100
        await engine.submit([transfer(1)])
        assert (engine.head().time_ms, engine.head().height) == (START_MS + 150, 2)


async def test_a_full_disk_refuses_and_takes_nothing_and_is_got_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as engine:
        monkeypatch.setattr(FailingDisk, "full", True)
        with pytest.raises(StorageError, match="full"):
            await engine.submit([transfer(0, 5)])
        assert engine.head().height == 0
        monkeypatch.setattr(FailingDisk, "full", False)
        assert [outcome.code for outcome in await engine.submit([transfer(0, 7)])] == [""]
        account = engine.replica.find(ACCOUNTS, ANNA.public)
        assert account is not None and account.balance == FUNDS - 7
        assert engine.replica.recompute_root() == engine.replica.root


async def test_a_bug_in_a_rule_costs_its_transaction_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = machine.RULES[Transfer]

    def buggy(state: State, tx: Tx, body: Transfer) -> None:
        sound(state, tx, body)
        if body.amount == 13:
            raise RuntimeError

    monkeypatch.setitem(machine.RULES, Transfer, buggy)
    async with running(tmp_path) as engine:
        raws = [transfer(0, 1), transfer(1, 13), transfer(0, 2, sender=BERT, to=ANNA.public)]
        assert [outcome.code for outcome in await engine.submit(raws)] == ["", "internal", ""]
        account = engine.replica.find(ACCOUNTS, ANNA.public)
        assert account is not None and (account.balance, account.nonce) == (FUNDS + 1, 1)


async def test_what_came_before_the_stop_is_answered_and_nothing_after(tmp_path: Path) -> None:
    async with running(tmp_path) as engine:
        asked = asyncio.create_task(engine.submit([transfer(nonce) for nonce in range(600)]))
        await asyncio.sleep(0)
        await engine.stop()
        assert all(outcome.ok for outcome in await asked)
        with pytest.raises(UnavailableError):
            await engine.submit([transfer(600)])


async def test_a_caller_that_gave_up_holds_up_nobody(tmp_path: Path) -> None:
    async with running(tmp_path) as engine:
        gone = asyncio.create_task(engine.submit([transfer(0)]))
        await asyncio.sleep(0)
        gone.cancel()
        assert [outcome.code for outcome in await engine.submit([transfer(1)])] == [""]


async def test_the_queue_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dds.engines.embedded.QUEUE_TXS_MAX", 3)
    async with running(tmp_path) as engine:
        asked = asyncio.create_task(engine.submit([transfer(0), transfer(1)]))
        await asyncio.sleep(0)
        with pytest.raises(LimitError):
            await engine.submit([transfer(2), transfer(3)])
        assert all(outcome.ok for outcome in await asked)

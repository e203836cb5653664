"""Several programs and several puts use one account at once: every body is done exactly once, over a real host."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from dds.engines.embedded import EmbeddedEngine, system_time_ms
from dds.engines.port import Outcome
from dds.engines.replica import Replica
from dds.ledger.records import ACCOUNTS, CONTRACTS, Account, contract_id
from dds.primitives.errors import LedgerRefused
from dds.primitives.ids import id_text
from dds.primitives.keys import SigningKey
from dds.runtime.ledger_client import LedgerClient, TxDone, open_ledger
from dds.runtime.ledger_host import LedgerHost
from dds.wire.ledger import AnyBody, OpenContract, TopUp, Transfer
from tests.ledger_kit import ANNA, BERT, FUNDS, NETWORK, small_genesis

HOST_KEY = SigningKey(b"h" * 32)
PROCESSES, EACH = 2, 40

# Equal bodies, one by one and several at once: what two programs of one home would send.
PROGRAM = f"""
import asyncio, sys
from dds.runtime.ledger_client import open_ledger
from dds.wire.ledger import AnyBody, OpenContract, TopUp, Transfer
from tests.ledger_kit import ANNA, BERT, NETWORK

async def main() -> None:
    async with open_ledger(sys.argv[1], network=NETWORK) as ledger:
        await ledger.head()
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range({EACH} // 4):
            await asyncio.gather(*(ledger.submit(ANNA, Transfer(BERT.public, 1)) for _ in range(4)))

asyncio.run(main())
"""


@asynccontextmanager
async def hosted(path: Path, engine_type: type[EmbeddedEngine] = EmbeddedEngine) -> AsyncIterator[tuple[Replica, str]]:
    genesis = small_genesis(genesis_ms=system_time_ms(), epoch_ms=60_000)
    replica = Replica.open(path / "ledger.sqlite", genesis)
    host = LedgerHost(HOST_KEY, engine_type(replica), genesis)
    async with AsyncExitStack() as stack:
        port = await host.start(stack)
        yield replica, f"{id_text(host.node_id)}@127.0.0.1:{port}"


class Forgetful(EmbeddedEngine):
    """Every fifth answer is late: who asked does not wait for it, and asks again."""

    answers = 0

    async def submit(self, raws: Sequence[bytes]) -> list[Outcome]:
        outcomes = await super().submit(raws)
        self.answers += 1
        if self.answers % 5 == 0:
            await asyncio.sleep(0.6)
        return outcomes


async def test_two_processes_that_hammer_one_account_have_every_transfer_done_once(tmp_path: Path) -> None:
    async with hosted(tmp_path) as (replica, address):
        programs = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", PROGRAM, address, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path.cwd()
            )
            for _ in range(PROCESSES)
        ]
        for program in programs:
            assert program.stdout is not None
            assert await asyncio.wait_for(program.stdout.readline(), 60) == b"ready\n"
        async with asyncio.timeout(120):
            await asyncio.gather(*(program.communicate(b"go\n") for program in programs))
        assert [program.returncode for program in programs] == [0] * PROCESSES
        sent = PROCESSES * EACH
        assert replica.find(ACCOUNTS, ANNA.public) == Account(FUNDS - sent, sent)


async def test_lost_answers_of_two_clients_are_never_taken_for_each_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal bodies, equal nonces and answers that do not arrive: each finds out what became of its own."""
    monkeypatch.setattr("dds.runtime.ledger_client.SUBMIT_TIMEOUT_S", 0.3)
    monkeypatch.setattr("dds.runtime.ledger_client.SEND_PAUSE_S", 0.01)
    monkeypatch.setattr("dds.runtime.ledger_client.SEND_ATTEMPTS_MAX", 12)
    async with hosted(tmp_path, Forgetful) as (replica, address), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(open_ledger(address, network=NETWORK)) for _ in range(2)]

        async def hammer(client: LedgerClient) -> list[TxDone]:
            return [await client.submit(ANNA, Transfer(BERT.public, 1)) for _ in range(15)]

        done = [each for part in await asyncio.gather(*map(hammer, clients)) for each in part]
        assert len({each.tx_id for each in done}) == 30
        assert replica.find(ACCOUNTS, ANNA.public) == Account(FUNDS - 30, 30)


async def test_what_one_call_sends_keeps_its_order_while_another_uses_the_account(tmp_path: Path) -> None:
    """No contract can be topped up that is not there: the second never fails because the first came too late."""
    async with hosted(tmp_path) as (replica, address), AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(open_ledger(address, network=NETWORK)) for _ in range(2)]

        async def open_and_pay(client: LedgerClient, ks: Iterable[int]) -> None:
            for k in ks:
                name = f"custom-{k}-1"
                pair: list[AnyBody] = [OpenContract(name, k, 1, 48, 2_000, 1), TopUp(contract_id(ANNA.public, name), 1)]
                outcomes = await client.submit_many(ANNA, pair)
                assert not any(isinstance(outcome, LedgerRefused) for outcome in outcomes), outcomes

        await asyncio.gather(open_and_pay(one, range(2, 22)), open_and_pay(two, range(22, 42)))
        found = [replica.find(CONTRACTS, contract_id(ANNA.public, f"custom-{k}-1")) for k in range(2, 42)]
        assert [contract.escrow for contract in found if contract is not None] == [2] * 40


async def test_callers_at_once_share_blocks(tmp_path: Path) -> None:
    async with hosted(tmp_path) as (_, address), open_ledger(address, network=NETWORK) as ledger:
        done = await asyncio.gather(*(ledger.submit(ANNA, Transfer(BERT.public, 1)) for _ in range(50)))
        assert len({each.height for each in done}) <= 3


async def test_who_is_cancelled_while_waiting_has_sent_nothing_and_holds_nobody_up(tmp_path: Path) -> None:
    async with hosted(tmp_path) as (replica, address), open_ledger(address, network=NETWORK) as ledger:
        first = asyncio.create_task(ledger.submit(ANNA, Transfer(BERT.public, 1)))
        await asyncio.sleep(0)  # it is under way
        second = asyncio.create_task(ledger.submit(ANNA, Transfer(BERT.public, 10)))
        third = asyncio.create_task(ledger.submit(ANNA, Transfer(BERT.public, 100)))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, third)
        assert second.cancelled()
        assert replica.find(ACCOUNTS, BERT.public) == Account(FUNDS + 101)

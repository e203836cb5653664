"""A ledger behind its host: transactions in, proven entries out, over real connections."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from dds.engines.embedded import EmbeddedEngine, system_time_ms
from dds.engines.port import Outcome
from dds.engines.replica import Replica
from dds.ledger.records import ACCOUNTS, PARAMS, Account
from dds.primitives.errors import LedgerRefused, PeerProtocolError, PeerRefused, PeerUnreachable
from dds.primitives.ids import id_text
from dds.primitives.keys import SigningKey
from dds.runtime.ledger_client import LedgerClient, open_ledger
from dds.runtime.ledger_host import LedgerHost
from dds.wire.ledger import Transfer, sign_tx
from dds.wire.ledger_api import EntriesReply, ProvenEntry, SubmitReply, SubmitRequest, sign_head
from tests.ledger_kit import ANNA, BERT, FUNDS, NETWORK, small_genesis

HOST_KEY = SigningKey(b"h" * 32)
STRANGER = SigningKey(b"s" * 32)


@asynccontextmanager
async def hosted(path: Path, engine_type: type[EmbeddedEngine] = EmbeddedEngine) -> AsyncIterator[tuple[LedgerHost, str]]:
    """A host and its address."""
    genesis = small_genesis(genesis_ms=system_time_ms(), epoch_ms=60_000)
    host = LedgerHost(HOST_KEY, engine_type(Replica.open(path / "ledger.sqlite", genesis)), genesis)
    async with AsyncExitStack() as stack:
        port = await host.start(stack)
        yield host, f"{id_text(host.node_id)}@127.0.0.1:{port}"


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[tuple[LedgerHost, str]]:
    async with hosted(tmp_path) as served:
        yield served


@pytest.fixture
async def ledger(host: tuple[LedgerHost, str]) -> AsyncIterator[LedgerClient]:
    async with open_ledger(host[1], network=NETWORK) as client:
        yield client


async def test_a_transaction_is_done_and_its_effect_is_proven(ledger: LedgerClient) -> None:
    done = await ledger.submit(ANNA, Transfer(BERT.public, 5))
    assert [event.delta for event in done.events] == [-5, 5] and done.height == 1
    assert await ledger.find(ACCOUNTS, ANNA.public) == Account(FUNDS - 5, 1)
    assert await ledger.find(ACCOUNTS, STRANGER.public) is None
    head = await ledger.head()
    assert (head.height, head.engine, head.network) == (1, "embedded", NETWORK)


async def test_a_refusal_says_why_and_uses_the_nonce_up(ledger: LedgerClient) -> None:
    with pytest.raises(LedgerRefused) as refused:
        await ledger.submit(ANNA, Transfer(BERT.public, FUNDS + 1))
    assert refused.value.refusal == "insufficient-balance" and "are needed" in refused.value.message
    await ledger.submit(ANNA, Transfer(BERT.public, 1))
    assert await ledger.find(ACCOUNTS, ANNA.public) == Account(FUNDS - 1, 2)


async def test_who_has_no_account_is_refused(ledger: LedgerClient) -> None:
    with pytest.raises(LedgerRefused) as refused:
        await ledger.submit(STRANGER, Transfer(BERT.public, 1))
    assert refused.value.refusal == "no-such-account"


async def test_concurrent_callers_with_one_key_do_not_meet_in_a_nonce(ledger: LedgerClient) -> None:
    await asyncio.gather(*(ledger.submit(ANNA, Transfer(BERT.public, 1)) for _ in range(10)))
    assert await ledger.find(ACCOUNTS, ANNA.public) == Account(FUNDS - 10, 10)


async def test_two_clients_with_one_key_both_come_through(host: tuple[LedgerHost, str], ledger: LedgerClient) -> None:
    async with open_ledger(host[1], network=NETWORK) as other:
        for client in (ledger, other, ledger, ledger, other):
            await client.submit(ANNA, Transfer(BERT.public, 1))
    assert await ledger.find(ACCOUNTS, ANNA.public) == Account(FUNDS - 5, 5)


async def test_many_at_once_each_have_their_own_outcome(ledger: LedgerClient) -> None:
    bodies = [Transfer(BERT.public, FUNDS if number == 3 else 1) for number in range(600)]
    outcomes = await ledger.submit_many(ANNA, bodies)
    assert [number for number, outcome in enumerate(outcomes) if isinstance(outcome, LedgerRefused)] == [3]
    assert await ledger.find(ACCOUNTS, BERT.public) == Account(FUNDS + 599)


async def test_the_same_bytes_sent_again_happen_once(ledger: LedgerClient) -> None:
    raw = sign_tx(ANNA, NETWORK, 0, Transfer(BERT.public, 5))
    replies = [
        await ledger._call("/v1/ledger/txs", SubmitRequest([raw], again), SubmitReply, 1 << 20, 5)
        for again in (False, True, False)
    ]
    first, again, anew = (reply.outcomes[0] for reply in replies)
    assert first == again and first.code == "" and anew.code == "bad-nonce"
    assert await ledger.find(ACCOUNTS, BERT.public) == Account(FUNDS + 5)


class SlowOnce(EmbeddedEngine):
    """Its first answer does not arrive."""

    lost = False

    async def submit(self, raws: Sequence[bytes]) -> list[Outcome]:
        outcomes = await super().submit(raws)
        if not SlowOnce.lost:
            SlowOnce.lost = True
            await asyncio.sleep(1)
        return outcomes


async def test_a_lost_answer_is_asked_for_again_and_the_transaction_happens_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dds.runtime.ledger_client.SUBMIT_TIMEOUT_S", 0.3)
    async with hosted(tmp_path, SlowOnce) as (_, address), open_ledger(address, network=NETWORK) as ledger:
        done = await ledger.submit(ANNA, Transfer(BERT.public, 5))
        assert SlowOnce.lost and [event.delta for event in done.events] == [-5, 5]
        assert await ledger.find(ACCOUNTS, ANNA.public) == Account(FUNDS - 5, 1)


async def test_events_are_found_page_by_page(ledger: LedgerClient) -> None:
    done = await ledger.submit_many(ANNA, [Transfer(BERT.public, amount) for amount in range(1, 11)])
    of_bert = [event async for event in ledger.all_events(account=BERT.public, limit=3)]
    assert [event.event.delta for event in of_bert] == list(range(1, 11))
    last = done[-1]
    assert not isinstance(last, LedgerRefused)
    assert {event.tx_name for event in await ledger.events(tx_id=last.tx_id)} == {"transfer"}


async def test_all_changes_of_a_balance_are_events(ledger: LedgerClient) -> None:
    for amount in (5, FUNDS * 2, 7):
        await ledger.submit_many(ANNA, [Transfer(BERT.public, amount)])
    for key in (ANNA, BERT):
        account = await ledger.find(ACCOUNTS, key.public)
        assert account is not None
        assert sum([each.event.delta async for each in ledger.all_events(account=key.public)]) == account.balance - FUNDS


async def test_genesis_and_blocks_are_to_be_had_for_a_replay(ledger: LedgerClient, tmp_path: Path) -> None:
    await ledger.submit(ANNA, Transfer(BERT.public, 5))
    genesis = await ledger.genesis()
    assert await ledger.find(PARAMS) == genesis.params
    replayed = Replica.open(tmp_path / "replayed.sqlite", genesis)
    block = await ledger.block(1)
    replayed.apply(1, block.time_ms, block.txs)
    assert replayed.root_next == block.root == (await ledger.head()).root
    replayed.close()
    with pytest.raises(PeerRefused) as missing:
        await ledger.block(2)
    assert missing.value.status == 404


async def test_health_and_metrics_say_how_the_ledger_is(host: tuple[LedgerHost, str], ledger: LedgerClient) -> None:
    await ledger.submit(ANNA, Transfer(BERT.public, 5))
    health = json.loads(await ledger._get("/healthz", 4096, 5))
    assert (health["ready"], health["height"], health["engine"], health["epochs_behind"]) == (True, 1, "embedded", 0)
    page = (await ledger._get("/metrics", 1 << 20, 5)).decode()
    assert "dds_ledger_height 1" in page and 'dds_ledger_txs_total{result="done"} 1' in page


async def test_answers_that_prove_nothing_are_not_believed(host: tuple[LedgerHost, str], ledger: LedgerClient) -> None:
    """A host that lies about a value, leaves one out, signs with another key, or goes back."""
    await ledger.submit(ANNA, Transfer(BERT.public, 5))
    replica = host[0].replica
    key = ACCOUNTS.key(ANNA.public)
    proven = replica.prove_many([key])
    (value, proof) = proven.entries[0]
    good, stranger = sign_head(HOST_KEY, proven.head), sign_head(STRANGER, proven.head)

    def lie(head: bytes, value: bytes | None) -> None:
        async def answer(*_: object) -> EntriesReply:
            return EntriesReply(head, [ProvenEntry(value, proof)])

        ledger._call = answer  # type: ignore[assignment,method-assign]

    lie(good, value)
    assert await ledger.find(ACCOUNTS, ANNA.public) == Account(FUNDS - 5, 1)

    def other(**changes: object) -> bytes:
        return sign_head(HOST_KEY, replace(proven.head, **changes))

    for head, said in (
        (good, None),
        (good, b"\x92\x01\x01"),
        (stranger, value),
        (b"nonsense", value),
        (other(height=0), value),
        (other(root=bytes(32)), value),
        (other(genesis_hash=bytes(32)), value),
        (other(network="other"), value),
    ):
        lie(head, said)
        with pytest.raises(PeerProtocolError):
            await ledger.find(ACCOUNTS, ANNA.public)


async def test_a_host_that_answers_for_fewer_transactions_is_at_fault(ledger: LedgerClient) -> None:
    async def answer(*_: object) -> SubmitReply:
        return SubmitReply([])

    ledger._call = answer  # type: ignore[assignment,method-assign]
    with pytest.raises(PeerProtocolError):
        await ledger._send([b"x"])


async def test_a_host_that_is_away_is_a_remote_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dds.runtime.ledger_client.SEND_PAUSE_S", 0.01)
    async with hosted(tmp_path) as (_, address):
        pass
    async with open_ledger(address, network=NETWORK) as ledger:
        with pytest.raises(PeerUnreachable, match="cannot be reached"):
            await ledger.head()

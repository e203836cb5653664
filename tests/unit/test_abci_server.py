"""The application socket without CometBFT: what each call may change, and what bad bytes come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from dds.engines.abci_app import Application
from dds.engines.abci_pb2 import (
    Empty,
    Request,
    RequestCheckTx,
    RequestEcho,
    RequestFinalizeBlock,
    RequestInfo,
    RequestInitChain,
    RequestPrepareProposal,
    RequestProcessProposal,
    RequestQuery,
    Response,
)
from dds.engines.abci_server import AbciServer
from dds.engines.abci_wire import FRAME_BYTES_MAX
from dds.engines.replica import Replica
from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount
from dds.ledger.params import Params
from dds.ledger.records import ACCOUNTS
from dds.ledger.tree import verify_proof
from dds.primitives.errors import ConfigError
from dds.primitives.keys import SigningKey
from dds.primitives.varint import encode_varint
from dds.wire.codec import decode
from dds.wire.ledger import Transfer, sign_tx
from dds.wire.ledger_api import Proof
from tests.abci_client import AbciClient, Recorder, connected, request_frame, serving

ANNA, BERT = SigningKey(b"a" * 32), SigningKey(b"b" * 32)
NETWORK = "test"
GENESIS = Genesis(GENESIS_VERSION, NETWORK, Params(), (GenesisAccount(ANNA.public, 1000), GenesisAccount(BERT.public, 1000)))
ACCEPT, REJECT = 1, 2


def pay(nonce: int, amount: int = 1, key: SigningKey = ANNA) -> bytes:
    return sign_tx(key, NETWORK, nonce, Transfer(BERT.public, amount))


def check(raw: bytes) -> Request:
    return Request(check_tx=RequestCheckTx(tx=raw))


async def is_closed(client: AbciClient) -> bool:
    return await client.reader.read() == b""


# -- who may change what ----------------------------------------------------------------------------------------------------


async def test_only_commit_makes_a_block_durable(tmp_path: Path) -> None:
    async with serving(tmp_path / "ledger", GENESIS) as (replica, address), connected(address) as client:
        genesis_root = await client.begin(GENESIS)
        assert genesis_root == replica.root
        answer = await client.finalize(1, [pay(0), pay(1, 10**6), pay(7)])
        assert [(each.code, each.codespace) for each in answer.tx_results] == [
            (0, ""),
            (1, "insufficient-balance"),
            (1, "bad-nonce"),
        ]
        assert (replica.height, replica.root) == (0, genesis_root)
        await client.commit()
        assert (replica.height, replica.root) == (1, answer.app_hash) and answer.app_hash != genesis_root


async def test_a_block_finalized_twice_counts_once(tmp_path: Path) -> None:
    async with serving(tmp_path / "ledger", GENESIS) as (replica, address), connected(address) as client:
        await client.begin(GENESIS)
        other = await client.finalize(1, [pay(0, 400)])
        once, again = await client.finalize(1, [pay(0, 300)]), await client.finalize(1, [pay(0, 300)])
        assert once.app_hash == again.app_hash != other.app_hash
        await client.commit()
        account = replica.find(ACCOUNTS, ANNA.public)
        assert account is not None and (account.balance, account.nonce) == (700, 1)


async def test_info_after_a_restart_tells_the_last_commit(tmp_path: Path) -> None:
    async with serving(tmp_path / "ledger", GENESIS) as (_, address), connected(address) as client:
        await client.begin(GENESIS)
        committed = await client.finalize(1, [pay(0)])
        await client.commit()
        await client.finalize(2, [pay(1)])
    async with serving(tmp_path / "ledger", GENESIS) as (_, address), connected(address) as client:
        (answer,) = await client.ask(Request(info=RequestInfo(version="0.38.25")))
        assert (answer.info.last_block_height, answer.info.last_block_app_hash) == (1, committed.app_hash)


async def test_the_mempool_takes_what_will_use_its_nonce_and_nothing_else(tmp_path: Path) -> None:
    watcher = Recorder()
    async with serving(tmp_path / "ledger", GENESIS, watcher) as (replica, address), connected(address) as client:
        root = replica.root
        raws = [pay(0), pay(1, 10**6), pay(2), pay(2), b"garbage"]
        answers = [answer.check_tx for answer in await client.ask(*map(check, raws))]
        assert [answer.codespace for answer in answers] == ["", "", "", "bad-nonce", "format"]
        assert watcher.refusals == [(raws[3], "bad-nonce"), (raws[4], "format")]
        await client.finalize(1, raws[:3])
        await client.commit()
        assert replica.root != root and watcher.heights == [1]
        (stale,) = await client.ask(check(pay(2)))
        assert stale.check_tx.codespace == "bad-nonce"


async def test_a_proposal_leaves_out_what_would_only_stand_in_the_block(tmp_path: Path) -> None:
    async with serving(tmp_path / "ledger", GENESIS) as (replica, address), connected(address) as client:
        txs = [pay(0), b"garbage", pay(5), pay(1, 10**6), pay(2)]
        (answer,) = await client.ask(Request(prepare_proposal=RequestPrepareProposal(max_tx_bytes=1 << 20, txs=txs)))
        assert list(answer.prepare_proposal.txs) == [txs[0], txs[3], txs[4]]
        room = len(pay(0)) + 3  # its own bytes, a tag and a length of two bytes
        for bytes_max, count in ((room - 1, 0), (room, 1), (2 * room - 1, 1)):
            tight = RequestPrepareProposal(max_tx_bytes=bytes_max, txs=[pay(0), pay(1)])
            (answer,) = await client.ask(Request(prepare_proposal=tight))
            assert len(answer.prepare_proposal.txs) == count
        assert replica.height == 0


async def test_a_proposal_with_bytes_that_are_no_transaction_is_rejected(tmp_path: Path) -> None:
    forged = pay(0)[:-1] + bytes([pay(0)[-1] ^ 1])
    async with serving(tmp_path / "ledger", GENESIS) as (_, address), connected(address) as client:
        proposals: tuple[list[bytes], ...] = ([], [pay(0), pay(9)], [pay(0), b"garbage"], [forged], [b""])
        answers = await client.ask(*(Request(process_proposal=RequestProcessProposal(txs=txs)) for txs in proposals))
        verdicts = [answer.process_proposal.status for answer in answers]
        assert verdicts == [ACCEPT, ACCEPT, REJECT, REJECT, REJECT]


async def test_a_query_answers_an_entry_that_its_proof_shows(tmp_path: Path) -> None:
    async with serving(tmp_path / "ledger", GENESIS) as (replica, address), connected(address) as client:
        for key in (ACCOUNTS.key(ANNA.public), ACCOUNTS.key(b"nobody" + bytes(26))):
            (answer,) = await client.ask(Request(query=RequestQuery(path="/entry", data=key)))
            proof = decode(answer.query.proof_ops.ops[0].data, Proof)
            assert verify_proof(proof, key, answer.query.value or None, replica.root)
        wrong = [RequestQuery(path="/x"), RequestQuery(path="/entry"), RequestQuery(path="/entry", data=b"k", height=5)]
        answers = await client.ask(*(Request(query=query) for query in wrong))
        assert [answer.query.codespace for answer in answers] == ["no-such-path", "no-such-key", "no-such-height"]


async def test_a_chain_of_another_genesis_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path / "ledger", GENESIS) as (_, address), connected(address) as client:
        (answer,) = await client.ask(Request(init_chain=RequestInitChain(chain_id="dds-1", app_state_bytes=b'"00"')))
        assert "of another ledger" in answer.exception.error and await is_closed(client)


@pytest.mark.parametrize(
    "request_", [Request(finalize_block=RequestFinalizeBlock(height=2)), Request(commit=Empty())], ids=["gap", "commit"]
)
async def test_what_has_no_truthful_answer_ends_the_connection_and_changes_nothing(tmp_path: Path, request_: Request) -> None:
    async with serving(tmp_path / "ledger", GENESIS) as (replica, address):
        async with connected(address) as client:
            (answer,) = await client.ask(request_)
            assert answer.WhichOneof("value") == "exception" and await is_closed(client)
        async with connected(address) as client:
            await client.finalize(1, [pay(0)])
            await client.commit()
        assert replica.height == 1


async def test_what_needs_no_ledger_is_answered(tmp_path: Path) -> None:
    kinds = ["list_snapshots", "offer_snapshot", "load_snapshot_chunk", "apply_snapshot_chunk", "extend_vote", "flush"]
    async with serving(tmp_path / "ledger", GENESIS) as (_, address), connected(address) as client:
        answers = await client.ask(*(Request(**{kind: Empty()}) for kind in kinds))  # type: ignore[arg-type]
        assert [answer.WhichOneof("value") for answer in answers] == kinds
        assert (answers[1].offer_snapshot.status, answers[3].apply_snapshot_chunk.status) == (3, 2)


# -- the socket -------------------------------------------------------------------------------------------------------------


async def test_answers_come_in_the_order_of_the_requests(tmp_path: Path) -> None:
    async with serving(tmp_path / "ledger", GENESIS) as (_, address), connected(address) as client:
        requests = [request for number in range(300) for request in (_echo(str(number)), check(pay(number)))]
        answers = await client.ask(*requests, Request(flush=Empty()))
        assert [answer.echo.message for answer in answers[:-1:2]] == [str(number) for number in range(300)]
        assert {answer.WhichOneof("value") for answer in answers[1:-1:2]} == {"check_tx"}
        assert answers[-1].WhichOneof("value") == "flush"


async def test_a_request_may_come_byte_by_byte(tmp_path: Path) -> None:
    async with serving(tmp_path / "ledger", GENESIS) as (_, address), connected(address) as client:
        for byte in request_frame(_echo("x" * 200)):
            client.writer.write(bytes([byte]))
            await client.writer.drain()
        assert (await client.read()).echo.message == "x" * 200


@pytest.mark.parametrize(
    "garbage",
    [
        encode_varint(FRAME_BYTES_MAX + 1),
        b"\xff" * 9,
        b"\x00",
        encode_varint(3) + b"\xff\xff\xff",
        b"\x05\xfa\x7f\x02hi",
        b"\x02\x22\x00",
        b"GET / HTTP/1.1\r\n\r\n" * 9,
    ],
    ids=["too long", "endless length", "empty", "no protobuf", "of no known kind", "set_option of old", "http"],
)
async def test_bad_bytes_end_their_connection_after_what_came_before_was_answered(tmp_path: Path, garbage: bytes) -> None:
    async with serving(tmp_path / "ledger", GENESIS) as (_, address), connected(address) as other:
        async with connected(address) as client:
            client.writer.write(request_frame(_echo("before")) + garbage)
            assert (await client.read()).echo.message == "before"
            assert await is_closed(client)
        assert [answer.echo.message for answer in await other.ask(_echo("still"))] == ["still"]


async def test_more_connections_than_cometbft_makes_are_closed(tmp_path: Path) -> None:
    async with serving(tmp_path / "ledger", GENESIS) as (_, address):
        opened = [connected(address) for _ in range(17)]
        clients = [await each.__aenter__() for each in opened]
        await clients[15].ask(_echo("the sixteenth"))
        assert await is_closed(clients[16])
        for each in opened:
            await each.__aexit__(None, None, None)


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1", "http://127.0.0.1:1", "unix://" + "/x" * 60, "tcp://127.0.0.1:x", "tcp://0.0.0.0:1"]
)
async def test_an_address_that_cannot_be_bound_is_said(tmp_path: Path, address: str) -> None:
    replica = Replica.open(tmp_path / "ledger", GENESIS)
    server = AbciServer(Application(replica, Recorder()), address)
    with pytest.raises(ConfigError):
        await server.start()
    await server.stop()
    replica.close()


def _echo(text: str) -> Request:
    return Request(echo=RequestEcho(message=text))


def test_every_kind_of_request_has_its_kind_of_answer() -> None:
    assert {field.name for field in Response.DESCRIPTOR.oneofs_by_name["value"].fields} - {"exception"} == {
        field.name for field in Request.DESCRIPTOR.oneofs_by_name["value"].fields
    }

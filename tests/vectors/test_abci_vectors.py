"""ABCI frames against CometBFT's own code: tests/vectors/abci.json was printed by tests/vectors/abci_go/main.go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dds.engines.abci_pb2 import (
    Empty,
    ExecTxResult,
    ProofOp,
    ProofOps,
    Request,
    RequestCheckTx,
    RequestFinalizeBlock,
    RequestInitChain,
    RequestPrepareProposal,
    RequestProcessProposal,
    RequestQuery,
    Response,
    ResponseCheckTx,
    ResponseEcho,
    ResponseException,
    ResponseFinalizeBlock,
    ResponseInfo,
    ResponseInitChain,
    ResponsePrepareProposal,
    ResponseQuery,
    ResponseVerdict,
)
from dds.engines.abci_wire import Frames, frame, milliseconds

VECTORS = json.loads(Path(__file__).with_name("abci.json").read_text())
REQUESTS = {vector["name"]: bytes.fromhex(vector["frame"]) for vector in VECTORS["requests"]}
RESPONSES = {vector["name"]: bytes.fromhex(vector["frame"]) for vector in VECTORS["responses"]}


def fill(first: int, count: int) -> bytes:
    return bytes((first + at) % 256 for at in range(count))


TXS = [fill(7, 300), b"", fill(9, 3)]
OURS = {
    "exception": Response(exception=ResponseException(error="cannot")),
    "echo": Response(echo=ResponseEcho(message="héllo")),
    "flush": Response(flush=Empty()),
    "info": Response(
        info=ResponseInfo(
            data="dds", version="1.2.3", app_version=1, last_block_height=1 << 33, last_block_app_hash=fill(8, 32)
        )
    ),
    "init_chain": Response(init_chain=ResponseInitChain(app_hash=fill(8, 32))),
    "query": Response(
        query=ResponseQuery(
            key=fill(5, 33),
            value=fill(6, 70),
            proof_ops=ProofOps(ops=[ProofOp(type="dds/bucket-tree/v1", key=fill(5, 33), data=fill(7, 200))]),
            height=77,
        )
    ),
    "query_refused": Response(query=ResponseQuery(code=1, log="no", height=77, codespace="no-such-path")),
    "check_tx": Response(check_tx=ResponseCheckTx(code=1, log="the next nonce is 4", codespace="bad-nonce")),
    "commit": Response(commit=Empty()),
    "list_snapshots": Response(list_snapshots=Empty()),
    "offer_snapshot": Response(offer_snapshot=ResponseVerdict(status=3)),
    "load_snapshot_chunk": Response(load_snapshot_chunk=Empty()),
    "apply_snapshot_chunk": Response(apply_snapshot_chunk=ResponseVerdict(status=2)),
    "prepare_proposal": Response(prepare_proposal=ResponsePrepareProposal(txs=TXS)),
    "process_proposal_accept": Response(process_proposal=ResponseVerdict(status=1)),
    "process_proposal_reject": Response(process_proposal=ResponseVerdict(status=2)),
    "extend_vote": Response(extend_vote=Empty()),
    "verify_vote_extension": Response(verify_vote_extension=ResponseVerdict(status=1)),
    "finalize_block": Response(
        finalize_block=ResponseFinalizeBlock(
            tx_results=[
                ExecTxResult(),
                ExecTxResult(code=1, log="has 5, needs 6", codespace="insufficient-balance"),
                ExecTxResult(),
            ],
            app_hash=fill(8, 32),
        )
    ),
}


def read(name: str) -> Request:
    frames = Frames()
    frames.feed(REQUESTS[name])
    (request,) = frames.requests()
    assert request.WhichOneof("value") == name
    return request


@pytest.mark.parametrize("name", RESPONSES)
def test_an_answer_has_the_bytes_that_cometbft_would_write(name: str) -> None:
    assert frame(OURS[name]) == RESPONSES[name]


def test_every_kind_of_request_is_known_and_what_nobody_reads_is_skipped() -> None:
    assert {read(name).WhichOneof("value") for name in REQUESTS} == {
        field.name for field in Request.DESCRIPTOR.oneofs_by_name["value"].fields
    }


def test_a_block_is_read_as_cometbft_wrote_it() -> None:
    for request in (read("finalize_block").finalize_block, read("process_proposal").process_proposal):
        assert isinstance(request, RequestFinalizeBlock | RequestProcessProposal)
        assert (list(request.txs), request.height, milliseconds(request.time)) == (TXS, 77, 1_700_000_000_123)
    prepare = read("prepare_proposal").prepare_proposal
    assert isinstance(prepare, RequestPrepareProposal)
    assert (prepare.max_tx_bytes, list(prepare.txs), milliseconds(prepare.time)) == (4 << 20, TXS, 1_700_000_000_123)


def test_the_rest_that_is_read_is_read_as_cometbft_wrote_it() -> None:
    check: RequestCheckTx = read("check_tx").check_tx
    assert check.tx == fill(6, 200)
    init: RequestInitChain = read("init_chain").init_chain
    assert (init.chain_id, init.app_state_bytes, init.initial_height) == ("dds-1", b'"ab"', 1)
    query: RequestQuery = read("query").query
    assert (query.data, query.path, query.height) == (fill(5, 33), "/entry", 1 << 40)
    assert read("echo").echo.message == "héllo"

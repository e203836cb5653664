"""What CometBFT asks of an application, answered by a Replica: ABCI 2.0 of v0.38.

Decides which call may do what: only FinalizeBlock changes the state, only Commit makes it durable, everything else looks. A
block that was finalized but not committed is forgotten when it is finalized again, so a restart of either side replays to the
same root. Knows no socket; one thread at a time.
Source: CometBFT v0.38, spec/abci; docs/spec/ledger.md, "Blocks".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from dds import __version__
from dds.engines.abci_pb2 import (
    Empty,
    ExecTxResult,
    ProofOp,
    ProofOps,
    Request,
    RequestCheckTx,
    RequestEcho,
    RequestFinalizeBlock,
    RequestInitChain,
    RequestPrepareProposal,
    RequestProcessProposal,
    RequestQuery,
    Response,
    ResponseCheckTx,
    ResponseEcho,
    ResponseFinalizeBlock,
    ResponseInfo,
    ResponseInitChain,
    ResponsePrepareProposal,
    ResponseQuery,
    ResponseVerdict,
)
from dds.engines.abci_wire import milliseconds
from dds.engines.replica import Replica
from dds.ledger.genesis import Genesis
from dds.ledger.machine import BlockResult, TxResult
from dds.primitives.errors import ConfigError, InputError
from dds.primitives.varint import encode_varint
from dds.wire.codec import encode
from dds.wire.ledger_api import KEY_BYTES_MAX, genesis_hash

APP_VERSION: Final = 1
REFUSED: Final = 1  # the code of every refusal; which one it is stands in `codespace`
ACCEPT: Final = 1
REJECT_PROPOSAL: Final = 2
REJECT_SNAPSHOT: Final = 3  # of offer_snapshot: we have none of our own format to take
ABORT_SNAPSHOT: Final = 2  # of apply_snapshot_chunk
ENTRY_PATH: Final = "/entry"
PROOF_TYPE: Final = "dds/bucket-tree/v1"


class Watcher(Protocol):
    """Who waits for transactions; called from the application's thread."""

    def refused(self, raw: bytes, refusal: TxResult) -> None:
        """It is not, or no longer, in the mempool."""

    def committed(self, height: int, txs: Sequence[bytes], result: BlockResult) -> None:
        """The block is durable."""


@dataclass(frozen=True, slots=True)
class _Block:
    height: int
    txs: Sequence[bytes]
    result: BlockResult


def chain_id(genesis: Genesis) -> str:
    """What validators sign under: it follows from the genesis, so votes for one ledger say nothing about another."""
    return f"dds-{genesis_hash(encode(genesis)).hex()[:32]}"


def app_state(genesis: Genesis) -> str:
    """CometBFT's genesis document carries this as `app_state`: the JSON string of our genesis' hash."""
    return genesis_hash(encode(genesis)).hex()


class Application:
    def __init__(self, replica: Replica, watcher: Watcher) -> None:
        self._replica = replica
        self._watcher = watcher
        self._block: _Block | None = None  # finalized, not committed

    def answer(self, request: Request) -> Response:
        """
        Raises:
            DDSError: it can't be answered truthfully; the caller ends the connection, and CometBFT stops.
        """
        kind = request.WhichOneof("value")
        assert kind is not None, "frames without a known request are refused before"
        return _HANDLERS[kind](self, request)

    # -- consensus ----------------------------------------------------------------------------------------------------------

    def _init_chain(self, request: RequestInitChain) -> ResponseInitChain:
        genesis = self._replica.genesis
        stated = request.app_state_bytes.decode(errors="replace").strip()
        if stated != f'"{app_state(genesis)}"' or request.chain_id != chain_id(genesis):
            raise ConfigError(
                f"CometBFT's genesis is of another ledger: it says {request.chain_id} and {stated[:80]}, "
                f'ours are {chain_id(genesis)} and "{app_state(genesis)}"'
            )
        if request.initial_height not in (0, 1) or self._replica.height != 0:
            raise ConfigError(f"the chain begins at {request.initial_height}, our ledger is at {self._replica.height}")
        return ResponseInitChain(app_hash=self._replica.root)

    def _prepare_proposal(self, request: RequestPrepareProposal) -> ResponsePrepareProposal:
        """Without what would only stand in the block: bytes that are no transaction, nonces that do not fit."""
        txs = _within(request.txs, request.max_tx_bytes)
        return ResponsePrepareProposal(txs=self._replica.fitting(milliseconds(request.time), txs))

    def _process_proposal(self, request: RequestProcessProposal) -> ResponseVerdict:
        """Whether every transaction is one, signed and canonical. That depends on its bytes alone: all say the same."""
        problems = self._replica.screen(list(request.txs))
        return ResponseVerdict(status=REJECT_PROPOSAL if any(problems) else ACCEPT)

    def _finalize_block(self, request: RequestFinalizeBlock) -> ResponseFinalizeBlock:
        if self._block is not None:
            self._replica.abandon()
            self._block = None
        if request.height != self._replica.height + 1:
            raise InputError(f"asked to finalize block {request.height} on top of {self._replica.height}")
        txs = list(request.txs)
        result = self._replica.apply(request.height, milliseconds(request.time), txs)
        self._block = _Block(request.height, txs, result)
        return ResponseFinalizeBlock(
            tx_results=[_exec_result(each) for each in result.results], app_hash=self._replica.root_next
        )

    def _commit(self) -> Empty:
        if self._block is None:
            raise InputError("asked to commit, with no block finalized")
        block, self._block = self._block, None
        self._replica.commit()
        self._watcher.committed(block.height, block.txs, block.result)
        return Empty()

    # -- mempool ------------------------------------------------------------------------------------------------------------

    def _check_tx(self, request: RequestCheckTx) -> ResponseCheckTx:
        """Whatever will use its nonce up belongs into a block, also where its rule refuses it: as on every engine."""
        refusal = self._replica.admit(request.tx)
        if refusal is None:
            return ResponseCheckTx()
        self._watcher.refused(request.tx, refusal)
        return ResponseCheckTx(code=REFUSED, codespace=refusal.code, log=refusal.message)

    # -- queries ------------------------------------------------------------------------------------------------------------

    def _info(self) -> ResponseInfo:
        return ResponseInfo(
            data="dds",
            version=__version__,
            app_version=APP_VERSION,
            last_block_height=self._replica.height,
            last_block_app_hash=self._replica.root if self._replica.height else b"",
        )

    def _query(self, request: RequestQuery) -> ResponseQuery:
        """An entry of the state by its key, with its proof under the present root; an absent one has no value."""
        height = self._replica.height
        if request.path != ENTRY_PATH:
            return ResponseQuery(code=REFUSED, codespace="no-such-path", log=f"the only path is {ENTRY_PATH}", height=height)
        if request.height not in (0, height):
            return ResponseQuery(code=REFUSED, codespace="no-such-height", log=f"only height {height} is kept", height=height)
        if not 0 < len(request.data) <= KEY_BYTES_MAX:
            log = f"a key has 1 to {KEY_BYTES_MAX} bytes, not {len(request.data)}"
            return ResponseQuery(code=REFUSED, codespace="no-such-key", log=log, height=height)
        ((value, proof),) = self._replica.prove_many([request.data]).entries
        op = ProofOp(type=PROOF_TYPE, key=request.data, data=encode(proof))
        return ResponseQuery(key=request.data, value=value or b"", proof_ops=ProofOps(ops=[op]), height=height)

    def _echo(self, request: RequestEcho) -> ResponseEcho:
        return ResponseEcho(message=request.message)


Handler = Callable[[Application, Request], Response]

_HANDLERS: Final[dict[str, Handler]] = {
    "echo": lambda app, request: Response(echo=app._echo(request.echo)),
    "flush": lambda _app, _request: Response(flush=Empty()),
    "info": lambda app, _request: Response(info=app._info()),
    "init_chain": lambda app, request: Response(init_chain=app._init_chain(request.init_chain)),
    "query": lambda app, request: Response(query=app._query(request.query)),
    "check_tx": lambda app, request: Response(check_tx=app._check_tx(request.check_tx)),
    "commit": lambda app, _request: Response(commit=app._commit()),
    "prepare_proposal": lambda app, request: Response(prepare_proposal=app._prepare_proposal(request.prepare_proposal)),
    "process_proposal": lambda app, request: Response(process_proposal=app._process_proposal(request.process_proposal)),
    "finalize_block": lambda app, request: Response(finalize_block=app._finalize_block(request.finalize_block)),
    # Votes carry nothing of ours, and an honest node's vote is never refused.
    "extend_vote": lambda _app, _request: Response(extend_vote=Empty()),
    "verify_vote_extension": lambda _app, _request: Response(verify_vote_extension=ResponseVerdict(status=ACCEPT)),
    # A new validator replays the blocks.
    "list_snapshots": lambda _app, _request: Response(list_snapshots=Empty()),
    "offer_snapshot": lambda _app, _request: Response(offer_snapshot=ResponseVerdict(status=REJECT_SNAPSHOT)),
    "load_snapshot_chunk": lambda _app, _request: Response(load_snapshot_chunk=Empty()),
    "apply_snapshot_chunk": lambda _app, _request: Response(apply_snapshot_chunk=ResponseVerdict(status=ABORT_SNAPSHOT)),
}


def _exec_result(result: TxResult) -> ExecTxResult:
    """Only the code is hashed into the next block; `log` and `codespace` are for people."""
    return ExecTxResult(code=0 if result.ok else REFUSED, codespace=result.code, log=result.message)


def _within(txs: Iterable[bytes], bytes_max: int) -> list[bytes]:
    """As many of the first as fit, counted as CometBFT does: as a protobuf list."""
    kept, used = [], 0
    for raw in txs:
        used += 1 + len(encode_varint(len(raw))) + len(raw)
        if used > bytes_max:
            break
        kept.append(raw)
    return kept

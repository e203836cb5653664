"""Applying blocks: who is asked to judge a transaction, in which order things happen at an epoch's end.

Decides the life of a transaction (parse, signature, nonce, rule, kept or taken back) and of an epoch. The rules themselves are
in `rules/`. A transaction whose signature and nonce hold is used up even when its rule refuses it, so that nobody can replay it
later; when a rule makes a mistake of ours, that is an outcome too, the same on every machine. Time is the block's; nothing
depends on where one block ends and the next begins: an epoch in which nothing happened is the same whether blocks ticked
through it or not.
Source: docs/spec/ledger.md, "Blocks".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from msgspec.structs import replace

from dds.ledger.events import Event
from dds.ledger.faults import Refused
from dds.ledger.records import ACCOUNTS
from dds.ledger.rules import (
    contracts,
    emission,
    endowments,
    evidence,
    inventory,
    market,
    nodes,
    operators,
    reencoding,
    reservations,
    retrieval,
    segments,
    sponsors,
    transfer,
    witnesses,
)
from dds.ledger.state import State
from dds.primitives.errors import FormatError
from dds.wire.ledger import (
    AddReceipts,
    Bond,
    CancelContract,
    CancelReservations,
    Deposit,
    DrainPool,
    Endow,
    ExtendSegments,
    FundPool,
    OpenContract,
    RedeemVouchers,
    Redraw,
    Reencode,
    RegisterNode,
    RegisterSegments,
    ReleaseBond,
    ReportLoss,
    RequestWithdrawal,
    Reserve,
    RetireNode,
    SetAsk,
    SetContract,
    Settle,
    SpendEndowment,
    Sponsor,
    SubmitEvidence,
    TopUp,
    Transfer,
    Tx,
    Unbond,
    Unsponsor,
    Withdraw,
    WithdrawEscrow,
    WitnessReport,
    open_tx,
)

Rule = Callable[[State, Tx, Any], None]  # (state, transaction, its body)
EpochStep = Callable[
    [State, int, int], None
]  # (state, the epoch that ends, the epoch that begins; more than one later after a pause)

RULES: Final[dict[type, Rule]] = {
    Transfer: transfer.transfer,
    Bond: operators.bond,
    Unbond: operators.unbond,
    ReleaseBond: operators.release_bond,
    FundPool: operators.fund_pool,
    DrainPool: operators.drain_pool,
    RegisterNode: nodes.register_node,
    SetAsk: nodes.set_ask,
    RetireNode: nodes.retire_node,
    OpenContract: contracts.open_contract,
    SetContract: contracts.set_contract,
    TopUp: contracts.top_up,
    WithdrawEscrow: contracts.withdraw_escrow,
    CancelContract: contracts.cancel_contract,
    Reserve: reservations.reserve,
    CancelReservations: reservations.cancel_reservations,
    RegisterSegments: segments.register_segments,
    AddReceipts: segments.add_receipts,
    Sponsor: sponsors.sponsor,
    Unsponsor: sponsors.unsponsor,
    ExtendSegments: sponsors.extend_segments,
    Settle: sponsors.settle_segments,
    Redraw: reservations.redraw,
    ReportLoss: segments.report_loss,
    Reencode: reencoding.reencode,
    Deposit: retrieval.deposit,
    RequestWithdrawal: retrieval.request_withdrawal,
    Withdraw: retrieval.withdraw,
    RedeemVouchers: retrieval.redeem_vouchers,
    Endow: endowments.endow,
    SpendEndowment: endowments.spend_endowment,
    WitnessReport: witnesses.witness_report,
    SubmitEvidence: evidence.submit_evidence,
}

EPOCH_STEPS: Final[tuple[EpochStep, ...]] = (
    witnesses.close_epoch,
    inventory.freeze,
    market.clear,
    emission.grow,
    witnesses.open_epoch,
)

OK: Final = ""
INTERNAL: Final = "internal"
MISTAKES: Final = (ArithmeticError, AssertionError, LookupError, TypeError, ValueError)  # of ours; deterministic ones


@dataclass(frozen=True, slots=True)
class Context:
    """What a block knows of the world. Height and hash name it; only its time means anything to the rules."""

    height: int
    time_ms: int
    block_hash: bytes = b""


@dataclass(frozen=True, slots=True)
class TxResult:
    code: str  # OK, or why it was refused
    message: str
    events: tuple[Event, ...] = ()

    @property
    def ok(self) -> bool:
        return self.code == OK


@dataclass(frozen=True, slots=True)
class BlockResult:
    results: tuple[TxResult, ...]
    events: tuple[Event, ...]  # of the epoch's change, before the first transaction


def apply_block(state: State, network: str, txs: Sequence[bytes], context: Context) -> BlockResult:
    """Apply a block on top of `state`; the caller takes `state.changes()`, or abandons it."""
    began = begin_block(state, context)
    return BlockResult(tuple(apply_raw(state, network, raw) for raw in txs), began)


def begin_block(state: State, context: Context) -> tuple[Event, ...]:
    """Let the epochs end that the block's time has left behind."""
    present = state.params.epoch_of(context.time_ms)  # a block's time may not run back; where it does, the epoch stays
    for beginning in (state.epoch + 1, present):  # of a pause the first boundary alone: it judges what was said before
        ending = state.epoch
        if ending < beginning <= present:
            for step in EPOCH_STEPS:
                step(state, ending, beginning)
            state.set_chain(epoch=beginning)
    return tuple(state.keep())


def apply_raw(state: State, network: str, raw: bytes) -> TxResult:
    """One signed transaction."""
    try:
        tx = open_tx(raw, network)
    except FormatError as error:
        return TxResult(error.code, error.message)
    return apply_tx(state, tx)


def apply_tx(state: State, tx: Tx) -> TxResult:
    """One transaction whose signature holds."""
    try:
        _use_nonce(state, tx)
    except Refused as refusal:
        state.drop()
        return TxResult(refusal.code, refusal.message)
    state.keep()
    try:
        RULES[type(tx.body)](state, tx, tx.body)
    except Refused as refusal:
        state.drop()
        return TxResult(refusal.code, refusal.message)
    except MISTAKES as mistake:  # the same everywhere, so it is an outcome too: a chain must not stop for a transaction
        state.drop()
        return TxResult(INTERNAL, f"a mistake in the ledger's rules: {type(mistake).__name__}")
    return TxResult(OK, "", tuple(state.keep()))


def _use_nonce(state: State, tx: Tx) -> None:
    account = state.get(ACCOUNTS, tx.sender, "no-such-account", "account")
    if tx.nonce != account.nonce:
        raise Refused("bad-nonce", f"the account's next nonce is {account.nonce}, not {tx.nonce}")
    state.put(ACCOUNTS, tx.sender, replace(account, nonce=account.nonce + 1))

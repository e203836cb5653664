"""Paying for reads: deposits, and the vouchers that nodes redeem from them.

Decides what a batch of vouchers pays and when a deposit can be taken out again. Prices are no rule: nodes and readers agree on
them between themselves (`retrieval_price` is what clients offer by default, an edge node may ask more), and the sum of it is in
the voucher. Nothing holds a deposit for one node: what it is promised to several, the first to redeem gets.
Source: docs/spec/ledger.md, "Retrieval".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from msgspec.structs import replace

from dds.ledger.faults import Refused, require
from dds.ledger.money import credit, debit
from dds.ledger.params import Params
from dds.ledger.records import DEPOSITS, PAID, DepositEntry, Paid
from dds.ledger.state import State
from dds.primitives.errors import FormatError
from dds.primitives.hashing import sha256, tagged_hash
from dds.primitives.money import format_tokens, mul_div_ceil
from dds.primitives.units import KIB
from dds.wire.ledger import Deposit, RedeemVouchers, RequestWithdrawal, Tx, Withdraw
from dds.wire.vouchers import Grant, Voucher, grant_name, open_grant, open_voucher


def retrieval_cost(params: Params, byte_count: int) -> int:
    """Base units for reading so many bytes at the default price, ceiled."""
    return mul_div_ceil(byte_count, params.retrieval_price, KIB)


def direct_key(payer: bytes, node_id: bytes) -> bytes:
    """The id in PAID of what a payer's own vouchers paid this node."""
    return payer + node_id


def grant_key(name: bytes, node_id: bytes = b"") -> bytes:
    """The id in PAID of what a grant's vouchers paid this node; without one, all nodes together."""
    return tagged_hash(b"dds/grant-paid/v1", name, node_id)


# -- deposits ---------------------------------------------------------------------------------------------------------------


def deposit(state: State, tx: Tx, body: Deposit) -> None:
    require(body.amount > 0, "nothing-to-move", "a deposit is at least one base unit")
    debit(state, tx.sender, body.amount, "deposit", detail="for retrieval vouchers")
    entry = _deposit_of(state, tx.sender)
    _put_deposit(state, tx.sender, replace(entry, amount=entry.amount + body.amount))


def request_withdrawal(state: State, tx: Tx, body: RequestWithdrawal) -> None:
    """Move part of a deposit to what is leaving. There is one clock: asking again starts it anew for all of it."""
    entry = _deposit_of(state, tx.sender)
    require(body.amount > 0, "nothing-to-move", "a withdrawal is at least one base unit")
    require(
        entry.amount >= body.amount,
        "insufficient-deposit",
        f"the deposit has {format_tokens(entry.amount)}, not {format_tokens(body.amount)}",
    )
    release = state.epoch + state.params.withdrawal_epochs
    moved = replace(entry, amount=entry.amount - body.amount, leaving=entry.leaving + body.amount, release_epoch=release)
    _put_deposit(state, tx.sender, moved)
    state.emit("withdrawal-asked", account=tx.sender, amount=body.amount, detail=f"can be withdrawn in epoch {release}")


def withdraw(state: State, tx: Tx, body: Withdraw) -> None:
    entry = _deposit_of(state, tx.sender)
    require(entry.leaving > 0, "nothing-to-withdraw", "no part of the deposit was asked back, or vouchers took it")
    require(
        state.epoch >= entry.release_epoch,
        "too-early",
        f"nodes may redeem vouchers until epoch {entry.release_epoch}; this is {state.epoch}",
    )
    _put_deposit(state, tx.sender, replace(entry, leaving=0, release_epoch=0))
    credit(state, tx.sender, entry.leaving, "withdrawn", detail="retrieval deposit")


# -- vouchers ---------------------------------------------------------------------------------------------------------------


def redeem_vouchers(state: State, tx: Tx, body: RedeemVouchers) -> None:
    """Pay each voucher as far as it is new and covered; a batch that pays nothing at all is refused."""
    _require_ascending(body.vouchers, "vouchers")
    _require_ascending(body.grants, "grants")
    network = state.chain.network
    paid = 0
    try:
        grants = {grant_name(grant): grant for grant in (open_grant(raw, network) for raw in body.grants)}
        for raw in body.vouchers:
            voucher, grant = open_voucher(raw, network, grants)
            paid += _redeem(state, voucher, grant, sha256(raw))
    except FormatError as error:
        raise Refused("bad-voucher", error.message) from None
    require(paid > 0, "nothing-to-pay", f"{len(body.vouchers)} vouchers, all paid before or without a deposit behind them")


def _redeem(state: State, voucher: Voucher, grant: Grant | None, evidence: bytes) -> int:
    """What the voucher paid."""
    number = state.node_number(voucher.node_id)
    if number is None:
        raise Refused("no-such-node", f"no node {voucher.node_id.hex()[:16]} is registered")
    require(voucher.epoch <= state.epoch, "too-early", f"a voucher of epoch {voucher.epoch}; this is {state.epoch}")
    if grant:
        last = grant.expires_epoch
        require(
            state.epoch <= last, "grant-expired", f"its vouchers could be redeemed until epoch {last}; this is {state.epoch}"
        )
    entry = _deposit_of(state, voucher.payer)
    amount = min(_owed(state, voucher, grant), entry.amount + entry.leaving)
    if amount:
        for key in _paid_keys(voucher):
            state.put(PAID, key, Paid(_paid(state, key) + amount))
        _take(state, voucher, amount, number, evidence)
        detail = f"voucher of payer {voucher.payer.hex()[:16]} up to {format_tokens(voucher.cumulative)}"
        credit(state, state.node(number).payout, amount, "retrieval", node=number, detail=detail, evidence=evidence)
    return amount


def _owed(state: State, voucher: Voucher, grant: Grant | None) -> int:
    """What it promises beyond what was paid on it already."""
    owed = max(0, voucher.cumulative - _paid(state, _paid_keys(voucher)[0]))
    return min(owed, grant.amount - _paid(state, grant_key(voucher.grant))) if grant else owed


def _paid_keys(voucher: Voucher) -> tuple[bytes, ...]:
    """Where its payments are counted: this node's first, then a grant's total."""
    if voucher.grant:
        return grant_key(voucher.grant, voucher.node_id), grant_key(voucher.grant)
    return (direct_key(voucher.payer, voucher.node_id),)


def _take(state: State, voucher: Voucher, amount: int, number: int, evidence: bytes) -> None:
    """Out of the deposit: what stays first, then what is leaving, so that a withdrawal fails last."""
    entry = _deposit_of(state, voucher.payer)
    staying = min(entry.amount, amount)
    left = replace(entry, amount=entry.amount - staying, leaving=entry.leaving - (amount - staying))
    _put_deposit(state, voucher.payer, left)
    detail = "grant " + voucher.grant.hex()[:16] if voucher.grant else "own vouchers"
    state.emit("deposit-spent", account=voucher.payer, amount=amount, node=number, detail=detail, evidence=evidence)


# -- entries ----------------------------------------------------------------------------------------------------------------


def _paid(state: State, key: bytes) -> int:
    found = state.find(PAID, key)
    return found.amount if found else 0


def _deposit_of(state: State, account: bytes) -> DepositEntry:
    return state.find(DEPOSITS, account) or DepositEntry()


def _put_deposit(state: State, account: bytes, entry: DepositEntry) -> None:
    if entry.amount or entry.leaving:
        state.put(DEPOSITS, account, entry)
    else:
        state.delete(DEPOSITS, account)


def _require_ascending(raws: Sequence[bytes], what: str) -> None:
    ascending = all(first < second for first, second in pairwise(raws))
    require(ascending, "not-ascending", f"the {what} are not in ascending order, each once")

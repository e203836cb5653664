"""What can be done in a living ledger: one generator a kind of transaction, each looking at the state first.

A move gives a key and a body that the ledger must take as it is now, or None where there is nothing to do. `spoil` breaks a
good one. Decisions come from a `Random`, so a seed is a whole history.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

import msgspec

from dds.ledger.machine import TxResult
from dds.ledger.records import (
    SEGMENTS,
    Holding,
)
from dds.wire import ledger as wire
from tests.ledger_moves_money import (
    Attempt,
    bond,
    cancel_contract,
    deposit,
    drain_pool,
    endow,
    fund_pool,
    open_contract,
    redeem_vouchers,
    register_node,
    release_bond,
    request_withdrawal,
    retire_node,
    set_ask,
    set_contract,
    spend_endowment,
    top_up,
    transfer,
    unbond,
    withdraw,
    withdraw_escrow,
)
from tests.ledger_moves_storing import (
    add_receipts,
    cancel_reservations,
    extend_segments,
    redraw,
    reencode,
    register_segments,
    report_loss,
    reserve,
    settle,
    sponsor,
    unsponsor,
)
from tests.ledger_moves_watching import report_of, submit_evidence, witness_report
from tests.ledger_world import World

Move = Callable[[World, Random], Attempt | None]


# -- all of them ------------------------------------------------------------------------------------------------------------

MOVES: Final[dict[str, tuple[Move, int]]] = {  # with how often
    "Transfer": (transfer, 2),
    "Bond": (bond, 2),
    "Unbond": (unbond, 2),
    "ReleaseBond": (release_bond, 2),
    "FundPool": (fund_pool, 3),
    "DrainPool": (drain_pool, 1),
    "RegisterNode": (register_node, 1),
    "SetAsk": (set_ask, 4),
    "RetireNode": (retire_node, 1),
    "OpenContract": (open_contract, 4),
    "SetContract": (set_contract, 2),
    "TopUp": (top_up, 3),
    "WithdrawEscrow": (withdraw_escrow, 1),
    "CancelContract": (cancel_contract, 1),
    "Reserve": (reserve, 7),
    "CancelReservations": (cancel_reservations, 1),
    "RegisterSegments": (register_segments, 8),
    "AddReceipts": (add_receipts, 5),
    "Sponsor": (sponsor, 4),
    "Unsponsor": (unsponsor, 2),
    "ExtendSegments": (extend_segments, 4),
    "Settle": (settle, 5),
    "Redraw": (redraw, 4),
    "ReportLoss": (report_loss, 1),
    "Reencode": (reencode, 9),
    "Deposit": (deposit, 2),
    "RequestWithdrawal": (request_withdrawal, 1),
    "Withdraw": (withdraw, 2),
    "RedeemVouchers": (redeem_vouchers, 3),
    "Endow": (endow, 2),
    "SpendEndowment": (spend_endowment, 2),
    "WitnessReport": (witness_report, 3),
    "SubmitEvidence": (submit_evidence, 1),
}
MAY_BE_REFUSED: Final = {  # the draw is not foreseen, nor what of an escrow came from an endowment
    "Reserve": {"not-enough-nodes"},
    "Redraw": {"not-enough-nodes"},
    "ExtendSegments": {"not-endowed"},
    "WithdrawEscrow": {"endowed"},
}


def act(w: World, rng: Random, name: str) -> TxResult | None:
    """A transaction of this kind that must be taken; None where there is nothing to do."""
    attempt = MOVES[name][0](w, rng)
    if attempt is None:
        return None
    result = w.send(*attempt)
    assert result.ok or result.code in MAY_BE_REFUSED.get(name, ()), f"{name}: {result.code}: {result.message}: {attempt[1]}"
    return result


def spoil(w: World, rng: Random, name: str) -> TxResult | None:
    """One with something wrong in it, or by somebody else. It may be good all the same."""
    attempt = MOVES[name][0](w, rng)
    if attempt is None:
        return None
    key, body = attempt
    how = rng.randrange(8)
    if how == 0:
        return w.send(key, body, nonce_off=rng.choice((1, 7)))
    if how == 1:
        return w.send(rng.choice([*w.operators, *w.publishers, *w.nodes]), body)
    if how == 2 and w.send(key, body).ok:
        return w.send(key, body)  # the same again
    return w.send(key, _broken(rng, body))


def _broken(rng: Random, body: Any) -> Any:
    fields = [field for field in body.__struct_fields__ if field != "node_id"]
    if not fields:
        return body
    field = rng.choice(fields)
    return msgspec.structs.replace(body, **{field: _other(rng, field, getattr(body, field))})


def _other(rng: Random, field: str, value: Any) -> Any:
    match value:
        case int():
            return _other_number(rng, field, value)
        case bytes():
            return rng.randbytes(len(value)) if value else bytes(32)
        case [bytes() | int() | str(), *_]:
            return rng.choice(([*value, value[-1]], [value[0]] * 2, [_other(rng, field, value[0]), *value[1:]]))
        case [first, *rest]:
            return rng.choice(([first, first, *rest], [_broken(rng, first), *rest]))
        case _:
            return value


def _other_number(rng: Random, field: str, value: int) -> int:
    match field:
        case "count" | "k":
            return rng.choice((1, 64))
        case "width" | "m" | "loss_tolerance" | "index":
            return rng.choice((1, value + 1, 120))
        case "term_epochs" | "epochs" | "epoch":
            return max(1, rng.choice((value + 1, value - 1, value + 3, 1 << 39)))
        case "node":
            return rng.choice((value + 1, 999_999))
        case "slot_bytes":
            return rng.choice((1, value + 1, 1 << 20))
        case _:
            return rng.choice((0, value + 1, 1 << 59))


# -- longer steps -----------------------------------------------------------------------------------------------------------


def audit_round(w: World, rng: Random) -> None:
    """The committee reports: some nodes were absent, some witnesses are silent, some see a loss."""
    record = w.epoch_record(w.epoch)
    if record is None:
        return
    absent = frozenset(number for number in range(record.node_count) if (w.epoch // 6 + number * 7) % 9 == 0)
    silent = set(rng.sample(record.committee, rng.choice((0, 0, 0, 1, 2)) if len(record.committee) > 2 else 0))
    lost = _some_loss(w, rng)
    for number in record.committee:
        place = record.committee.index(number)
        now = w.epoch_record(w.epoch)
        assert now is not None
        if number in silent or now.reported >> place & 1:
            continue
        key, body = report_of(w, rng, number, w.epoch, absent)
        result = w.send(key, msgspec.structs.replace(body, losses=lost) if lost and body.is_vote else body)
        assert result.ok, (result.code, result.message)


def _some_loss(w: World, rng: Random) -> list[wire.LossFound]:
    held = [
        wire.LossFound(each.node, name, index)
        for name, segment in w.all(SEGMENTS)
        for index, each in enumerate(segment.assignments)
        if each.state == Holding.ACTIVE
    ]
    return [rng.choice(held)] if held and rng.random() < 0.15 else []


def next_epoch(w: World, rng: Random) -> None:
    if rng.random() < 0.9:
        audit_round(w, rng)
    w.end_block(1)


def pause(w: World, rng: Random) -> None:
    if rng.random() < 0.5:
        audit_round(w, rng)
    w.end_block(rng.choice((2, 3, 5, 9, 30)))


def settle_in(w: World, rng: Random) -> None:
    """A world in which something is stored already."""
    for name in ("OpenContract", "OpenContract", "OpenContract", "Deposit", "Endow"):
        act(w, rng, name)
    for _ in range(4):
        act(w, rng, "Reserve")
        act(w, rng, "RegisterSegments")
    w.end_block(1)


def play(seed: int, steps: int) -> World:
    """A whole history. What was done least is tried more often, so that nothing is left out."""
    rng, w = Random(seed), World()
    settle_in(w, rng)
    names, weights = list(MOVES), [weight for _, weight in MOVES.values()]
    for _ in range(steps):
        least = min(names, key=lambda name: w.done[name])
        step(w, rng, least if rng.random() < 0.1 else rng.choices(names, weights)[0])
    w.end_block()
    return w


def step(w: World, rng: Random, name: str) -> None:
    """A transaction, and now and then the end of a block or an epoch before it."""
    chance = rng.random()
    if chance < 0.07:
        next_epoch(w, rng)
    elif chance < 0.075:
        pause(w, rng)
    elif chance < 0.27:
        w.end_block()
    (spoil if rng.random() < 0.3 else act)(w, rng, name)

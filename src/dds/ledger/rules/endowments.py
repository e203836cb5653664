"""Endowments: a pool of money that pays a contract's rent for as long as it lasts.

Decides how fast a pool may be spent. Storage gets cheaper by d a year, so a pool of one year's rent / d lasts for ever; at most
a multiple of d is spent in a year, so that a wrong price or a shock drains no pool at once. It guesses no future: d is a
parameter, and where d is wrong the pool ends.
Source: docs/spec/ledger.md, "Endowments".
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from dds.ledger.faults import Refused, require
from dds.ledger.money import debit
from dds.ledger.params import EPOCHS_PER_YEAR, RATE_DIVISOR, Params
from dds.ledger.records import CONTRACTS, ENDOWMENTS, Contract, Endowment
from dds.ledger.state import State
from dds.placement.roles import storage_role
from dds.primitives.errors import InputError
from dds.primitives.money import MILLION, mul_div_ceil
from dds.wire.ledger import Endow, SpendEndowment, Tx

YEAR_PPM: Final = EPOCHS_PER_YEAR * MILLION
FRACTION_BITS: Final = 192  # of fixed-point numbers: errors stay far below a base unit for any pool and pause


# -- what clients ask -------------------------------------------------------------------------------------------------------


def endowment_quote(bytes_all_fragments: int, reference: int, decline_ppm: int) -> int:
    """The pool that pays this rent for ever if storage gets cheaper by `decline_ppm` a year: n b ref 8766 / d, ceiled.

    Raises:
        InputError: prices that never fall need an endless pool.
    """
    if decline_ppm <= 0:
        raise InputError("no pool lasts for ever when storage gets no cheaper")
    return mul_div_ceil(bytes_all_fragments * reference, YEAR_PPM, decline_ppm * RATE_DIVISOR)


def coverage_ppm(pool: int, bytes_all_fragments: int, reference: int, decline_ppm: int) -> int:
    """The pool as a share of its quote, floored; a million where there is nothing to pay for."""
    quote = endowment_quote(bytes_all_fragments, reference, decline_ppm)
    return pool * MILLION // quote if quote else MILLION


def epoch_cost(params: Params, contract: Contract, reference: int) -> int:
    """What extending everything that the contract sponsors by one epoch is charged: rent, fee and repair reserve, ceiled."""
    rent = mul_div_ceil(contract.rent_bytes, min(reference, contract.price_max), RATE_DIVISOR)
    return mul_div_ceil(rent, MILLION + params.fee_ppm + params.repair_reserve_ppm, MILLION)


# -- how fast a pool is spent -----------------------------------------------------------------------------------------------


def spendable(pool: int, cost: int, epochs: int, year_share_ppm: int) -> int:
    """What `epochs` epochs take from a pool, each min(cost, the year's share of what is left / 8766), floored.

    While the cost is the smaller one it is exact. After that the pool shrinks geometrically: that part is rounded down by at
    most one base unit an epoch and two, and is never more than epoch by epoch would have been.
    """
    share = min(year_share_ppm, YEAR_PPM)
    at_cost = min(epochs, _epochs_at_cost(pool, cost, share))
    spent = at_cost * cost
    left = pool - spent
    if at_cost < epochs:
        spent += max(0, left - _left_at_share(left, epochs - at_cost, share))
    return spent


def _epochs_at_cost(pool: int, cost: int, share: int) -> int:
    """In how many epochs the cost is at most the share of what is left then: t with cost <= share (pool - t cost) / year."""
    if cost == 0:
        return 1 << 62
    room = share * pool - cost * YEAR_PPM
    return room // (share * cost) + 1 if room >= 0 and share else 0


def _left_at_share(pool: int, epochs: int, share: int) -> int:
    """At least what is left after so many epochs that each take their floored share: each floor leaves less than one unit."""
    one = 1 << FRACTION_BITS
    keep = _power_up(mul_div_ceil(YEAR_PPM - share, one, YEAR_PPM), epochs)
    return mul_div_ceil(pool, keep, one) + epochs


def _power_up(base: int, exponent: int) -> int:
    """base^exponent in fixed point, rounded up."""
    one = 1 << FRACTION_BITS
    result = one
    while exponent:
        if exponent & 1:
            result = mul_div_ceil(result, base, one)
        base = mul_div_ceil(base, base, one)
        exponent >>= 1
    return result


# -- rules ------------------------------------------------------------------------------------------------------------------


def endow(state: State, tx: Tx, body: Endow) -> None:
    """Add to a contract's pool. What the past allows is spent first: new money pays for no epoch that is over."""
    require(body.amount > 0, "nothing-to-move", "an endowment is at least one base unit")
    _living_contract(state, body.contract)
    if state.find(ENDOWMENTS, body.contract):
        spend_due(state, body.contract)
    debit(state, tx.sender, body.amount, "endowed", contract=body.contract, detail="into the contract's endowment")
    pool = state.find(ENDOWMENTS, body.contract) or Endowment(spent_through=state.epoch)
    state.put(ENDOWMENTS, body.contract, replace(pool, pool=pool.pool + body.amount, given=pool.given + body.amount))


def spend_endowment(state: State, tx: Tx, body: SpendEndowment) -> None:
    """An epoch that allows nothing is over all the same: what was not needed then is not caught up later."""
    _living_contract(state, body.contract)
    endowment = state.get(ENDOWMENTS, body.contract, "no-endowment", "endowment of contract")
    require(
        endowment.spent_through < state.epoch, "too-early", f"every epoch before {state.epoch} was spent for; wait for its end"
    )
    spend_due(state, body.contract)


def spend_due(state: State, contract_id: bytes) -> None:
    """Move what the epochs since the last time allow from a contract's pool into its escrow; nothing where there is no pool.

    A cancelled contract gets nothing: its escrow is its publisher's.

    To be called before a contract's `rent_bytes` change, so that each epoch is spent for at its own cost.
    """
    endowment = state.find(ENDOWMENTS, contract_id)
    if endowment is None or endowment.spent_through >= state.epoch:
        return
    contract = state.get(CONTRACTS, contract_id, "no-such-contract", "contract")
    if contract.cancelled_epoch >= 0:
        return
    epochs = state.epoch - endowment.spent_through
    cost = epoch_cost(state.params, contract, state.chain.lane(storage_role(contract.class_name)).reference)
    amount = spendable(endowment.pool, cost, epochs, state.params.spend_multiple * state.params.cost_decline_ppm)
    left = replace(endowment, pool=endowment.pool - amount, spent=endowment.spent + amount, spent_through=state.epoch)
    state.put(ENDOWMENTS, contract_id, left)
    paid_in = replace(contract, escrow=contract.escrow + amount, endowed=contract.endowed + amount)
    state.put(CONTRACTS, contract_id, paid_in)
    if amount:
        state.emit("endowment", contract=contract_id, amount=amount, detail=f"rent of {epochs} epochs, from the pool to escrow")


def give_back(state: State, contract_id: bytes) -> None:
    """What a contract that ends has not used of its endowment's money goes back into the pool: it is not its publisher's."""
    contract, pool = state.find(CONTRACTS, contract_id), state.find(ENDOWMENTS, contract_id)
    if contract is None or pool is None or not contract.endowed:
        return
    amount = contract.endowed
    state.put(CONTRACTS, contract_id, replace(contract, escrow=contract.escrow - amount, endowed=0))
    state.put(ENDOWMENTS, contract_id, replace(pool, pool=pool.pool + amount, spent=pool.spent - amount))
    state.emit("endowment-returned", contract=contract_id, amount=amount, detail="not used when the contract was cancelled")


def _living_contract(state: State, contract_id: bytes) -> None:
    contract = state.get(CONTRACTS, contract_id, "no-such-contract", "contract")
    if contract.cancelled_epoch >= 0:
        raise Refused("contract-cancelled", f"the contract was cancelled in epoch {contract.cancelled_epoch}")

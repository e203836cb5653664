"""A contract's escrow: what of it is free, and how rent is taken from it.

Decides what a payment of rent costs on top (fee, repair reserve), where the fee goes, and how much subsidy the fee's burned
part entitles to. Which rent is due is the callers' business (segments.py, sponsors.py).
Source: docs/spec/ledger.md, "Contracts" and "Storage pay, fees, emission".
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from dds.ledger import money, rent
from dds.ledger.faults import require
from dds.ledger.records import CONTRACTS, Contract
from dds.ledger.rules.endowments import spend_due
from dds.ledger.state import State
from dds.primitives.money import format_tokens, share_ppm


@dataclass(frozen=True, slots=True)
class Paid:
    """What a sponsor has then, in base units."""

    prepaid: int
    reserve: int
    subsidy: int  # what its assignments may earn from emission at most


def find_contract(state: State, contract_id: bytes) -> Contract:
    """
    Raises:
        Refused: there is no such contract.
    """
    return state.get(CONTRACTS, contract_id, "no-such-contract", "contract")


def living_contract(state: State, contract_id: bytes) -> Contract:
    """
    Raises:
        Refused: there is no such contract, or it is cancelled.
    """
    contract = find_contract(state, contract_id)
    cancelled = contract.cancelled_epoch
    require(cancelled < 0, "contract-cancelled", f"the contract was cancelled in epoch {cancelled}")
    return contract


def own_contract(state: State, contract_id: bytes, sender: bytes) -> Contract:
    """
    Raises:
        Refused: there is no such contract, it is cancelled, or another's.
    """
    contract = living_contract(state, contract_id)
    require(contract.publisher == sender, "not-the-publisher", f"contract {contract_id.hex()[:16]} is another publisher's")
    return contract


def require_escrow(contract: Contract, amount: int) -> None:
    """
    Raises:
        Refused: what is not earmarked for reservations is less than `amount`.
    """
    free = contract.escrow - contract.reserved
    missing = format_tokens(max(0, amount - free))
    text = f"the escrow has {format_tokens(free)} free, {format_tokens(amount)} are needed: {missing} are missing"
    require(free >= amount, "insufficient-escrow", text)


def require_price(contract: Contract, price: int) -> None:
    """
    Raises:
        Refused: the contract does not pay so much.
    """
    text = f"the price is {price} a MiB-epoch, the contract's limit {contract.price_max}"
    require(price <= contract.price_max, "price-above-limit", text)


def pay_rent(state: State, contract_id: bytes, amount: int, segment_id: bytes) -> Paid:
    """Take rent, fee and repair reserve from a contract's escrow.

    Raises:
        Refused: the escrow does not cover it.
    """
    params, contract = state.params, find_contract(state, contract_id)
    cost = rent.quote_rent(params, amount)
    require_escrow(contract, cost.total)
    endowed = max(0, contract.endowed - cost.total)  # an endowment's money first: rent is what it is for
    state.put(CONTRACTS, contract_id, replace(contract, escrow=contract.escrow - cost.total, endowed=endowed))
    burned = rent.fee_burned(params, cost.fee)
    about = {"contract": contract_id, "segment": segment_id}
    state.emit("rent", amount=cost.rent, detail="paid in advance", **about)
    state.emit("repair-reserve", amount=cost.reserve, detail="comes back if it is not spent", **about)
    state.emit("fee", amount=cost.fee - burned, detail="to the treasury", **about)
    state.set_chain(
        treasury=state.chain.treasury + cost.fee - burned, burned_for_subsidy=state.chain.burned_for_subsidy + burned
    )
    money.burn(state, burned, "fee-burned", detail="half of the fee" if 2 * burned == cost.fee else "of the fee", **about)
    return Paid(cost.rent, cost.reserve, share_ppm(burned, params.subsidy_ppm))


def count_sponsored(state: State, contract_id: bytes, segments: int, rent_bytes: int) -> None:
    """A contract sponsors so many segments and bytes more; both may be negative. What its endowment owes is spent before."""
    if find_contract(state, contract_id).cancelled_epoch < 0:
        spend_due(state, contract_id)
    contract = find_contract(state, contract_id)
    changed = replace(contract, segments=contract.segments + segments, rent_bytes=contract.rent_bytes + rent_bytes)
    state.put(CONTRACTS, contract_id, changed)

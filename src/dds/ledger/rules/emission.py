"""Emission: how much money may come to be, and how thin the subsidies of an epoch are spread.

Decides the budget that `money.mint` draws from, as a function of the epoch alone: after e epochs the share 1 - (1 - r)^e of
what genesis left below the cap may have been minted, so pauses change nothing and a budget that was not used is not lost. What
earns it is settlement.py's. Source: docs/spec/ledger.md, "Storage pay, fees, emission".
"""

from __future__ import annotations

from typing import Final

from dds.ledger.params import SHARES, Params
from dds.ledger.state import State
from dds.primitives.money import MILLION

FRACTION_BITS: Final = 128  # of the fixed-point power: its error stays below a base unit


def grow(state: State, ending: int, beginning: int) -> None:
    """Epoch step: the budget of the epoch that begins, and the share of the subsidies due that it covers."""
    chain = state.chain
    budget = max(0, released(state.params, chain.genesis_supply, beginning) - chain.minted)
    due = chain.subsidy_due
    scale = min(MILLION, budget * MILLION // due) if due else MILLION
    state.set_chain(emission_budget=budget, subsidy_scale_ppm=scale)


def released(params: Params, genesis_supply: int, epoch: int) -> int:
    """What may have been minted in all when `epoch` begins: at most cap - genesis supply, never less than the epoch before."""
    room = params.supply_cap - genesis_supply
    one = 1 << FRACTION_BITS
    kept = _power((SHARES - min(params.emission_rate, SHARES)) * one // SHARES, epoch)
    return room * (one - kept) >> FRACTION_BITS


def _power(base: int, exponent: int) -> int:
    """base^exponent in fixed point."""
    result = 1 << FRACTION_BITS
    while exponent:
        if exponent & 1:
            result = result * base >> FRACTION_BITS
        base, exponent = base * base >> FRACTION_BITS, exponent >> 1
    return result

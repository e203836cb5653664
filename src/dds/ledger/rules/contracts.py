"""Standing contracts: opened, topped up, changed, cancelled by their publishers.

Decides what an escrow takes in and gives back. What it pays for is decided in segments.py and sponsors.py: a cancelled
contract's sponsorships end at the next touch of each segment. Source: docs/spec/ledger.md, "Contracts".
"""

from __future__ import annotations

from msgspec.structs import replace

from dds.ledger.faults import require
from dds.ledger.money import credit, debit
from dds.ledger.records import CONTRACTS, Contract, contract_id
from dds.ledger.rules.endowments import give_back
from dds.ledger.rules.funding import find_contract, living_contract, own_contract, require_escrow
from dds.ledger.state import State
from dds.primitives.money import format_tokens
from dds.primitives.units import N_MAX
from dds.wire.ledger import CancelContract, OpenContract, SetContract, TopUp, Tx, WithdrawEscrow


def open_contract(state: State, tx: Tx, body: OpenContract) -> None:
    """One a publisher and class. A cancelled one opens anew when no segment and no reservation of it is left."""
    identifier = contract_id(tx.sender, body.class_name)
    require(body.k + body.m <= N_MAX, "too-wide", f"k + m is {body.k + body.m}, the most is {N_MAX}")
    old = state.find(CONTRACTS, identifier)
    if old is not None:
        require(old.cancelled_epoch >= 0, "contract-exists", f"there is a contract for class {body.class_name} already")
        require(
            old.segments == 0 and old.reserved == 0,
            "contract-in-use",
            f"the cancelled contract still has {old.segments} segments and {old.reserved} base units reserved; settle them",
        )
    debit(state, tx.sender, body.deposit, "escrowed", contract=identifier, detail=f"contract of class {body.class_name} opened")
    opened = Contract(
        publisher=tx.sender,
        class_name=body.class_name,
        k=body.k,
        m=body.m,
        term_epochs=body.term_epochs,
        price_max=body.price_max,
        escrow=body.deposit,
        opened_epoch=state.epoch,
        reservations=old.reservations if old else 0,  # goes on, so that no reservation id comes twice
        swept=old.swept if old else 0,
    )
    state.put(CONTRACTS, identifier, opened)
    state.emit("contract-opened", contract=identifier, detail=body.class_name)


def set_contract(state: State, tx: Tx, body: SetContract) -> None:
    """For what is reserved and extended from now on; what is paid for stays as it is."""
    contract = own_contract(state, body.contract, tx.sender)
    state.put(CONTRACTS, body.contract, replace(contract, term_epochs=body.term_epochs, price_max=body.price_max))
    detail = f"term {body.term_epochs} epochs, price at most {body.price_max} a MiB-epoch"
    state.emit("contract-changed", contract=body.contract, detail=detail)


def top_up(state: State, tx: Tx, body: TopUp) -> None:
    require(body.amount > 0, "nothing-to-move", "a top-up is at least one base unit")
    contract = living_contract(state, body.contract)
    debit(state, tx.sender, body.amount, "escrowed", contract=body.contract, detail="top-up")
    state.put(CONTRACTS, body.contract, replace(contract, escrow=contract.escrow + body.amount))


def withdraw_escrow(state: State, tx: Tx, body: WithdrawEscrow) -> None:
    """Neither what is earmarked for open reservations nor what an endowment gave."""
    require(body.amount > 0, "nothing-to-move", "a withdrawal is at least one base unit")
    contract = own_contract(state, body.contract, tx.sender)
    require_escrow(contract, body.amount)
    own = contract.escrow - contract.endowed
    require(
        body.amount <= own,
        "endowed",
        f"{format_tokens(contract.endowed)} of the escrow came from the endowment, for rent; {format_tokens(own)} are free",
    )
    state.put(CONTRACTS, body.contract, replace(contract, escrow=contract.escrow - body.amount))
    credit(state, tx.sender, body.amount, "refund", contract=body.contract, detail="withdrawn from escrow")


def cancel_contract(state: State, tx: Tx, body: CancelContract) -> None:
    """The escrow returns at once, an endowment's part of it to its pool.

    What was paid in advance for later epochs comes back when each segment is touched after this one.
    """
    own_contract(state, body.contract, tx.sender)
    give_back(state, body.contract)
    contract = find_contract(state, body.contract)
    state.put(CONTRACTS, body.contract, replace(contract, escrow=0, cancelled_epoch=state.epoch))
    credit(state, tx.sender, contract.escrow, "refund", contract=body.contract, detail="contract cancelled")
    state.emit("contract-cancelled", contract=body.contract, detail=f"{contract.segments} segments end with this epoch")

"""Moving money from account to account."""

from __future__ import annotations

from dds.ledger.faults import require
from dds.ledger.money import credit, debit
from dds.ledger.state import State
from dds.wire.ledger import Transfer, Tx


def transfer(state: State, tx: Tx, body: Transfer) -> None:
    require(body.amount > 0, "nothing-to-move", "a transfer moves at least one base unit")
    debit(state, tx.sender, body.amount, "sent", detail="transfer")
    credit(state, body.to, body.amount, "received", detail="transfer")

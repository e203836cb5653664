"""What the puts of one session count on in their contracts' escrow.

Several puts at once pay from one escrow. What one of them found there, or moved there, and has not reserved yet is no deposit
for the next one and nothing for a failing one to withdraw. Decides nothing else; the ledger alone knows what is in the escrow,
and puts of other programs, which are not in these books, show as its refusals (contract_desk.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Claim:
    """One put's, in base units."""

    amount: int = 0  # agreed on, and not reserved yet
    unsent: int = 0  # of it: not in the escrow yet

    @property
    def in_escrow(self) -> int:
        return max(0, self.amount - self.unsent)


class EscrowClaims:
    """By contract; one of these a session."""

    def __init__(self) -> None:
        self._claims: dict[bytes, list[Claim]] = {}

    def enter(self, contract: bytes, claim: Claim) -> None:
        self._claims.setdefault(contract, []).append(claim)

    def leave(self, contract: bytes, claim: Claim) -> None:
        """Of no effect for one that is not there."""
        left = [each for each in self._claims.pop(contract, ()) if each is not claim]
        if left:
            self._claims[contract] = left

    def of_others(self, contract: bytes, own: Claim) -> int:
        """What is in the contract's escrow, and others count on."""
        return sum(each.in_escrow for each in self._claims.get(contract, ()) if each is not own)

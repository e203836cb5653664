"""What paying for a put is told in: the offer that somebody accepts, the nodes reserved for a segment, what was spent so far.

Records only. What is asked of the ledger, and when, is contract_desk.py's.
Source: docs/spec/ledger.md, "Contracts", "Segments, assignments, sponsors".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dds.placement.draw import Draw
from dds.protocol.quote import PutQuote


@dataclass(frozen=True, slots=True)
class Offer:
    """A quote, and how it will be paid."""

    quote: PutQuote  # an upper bound: at a price that is a little above the present one
    price: int  # now, per MiB-epoch
    price_max: int
    reference: int
    escrow: int  # in the standing contract now, without what other puts of this session count on
    balance: int
    deposit: int  # what will be moved into escrow
    epoch_ms: int


@dataclass(frozen=True, slots=True)
class Reserved:
    """A segment's drawn nodes; `id` is what their receipts must name."""

    id: bytes
    ticket: bytes  # proves it to the nodes
    proven_s: float  # when, by the loop's clock
    price: int  # per MiB-epoch
    draw: Draw
    bends: tuple[str, ...]


@dataclass(slots=True)
class Spent:
    """What this put has cost so far, in base units."""

    rent: int = 0
    fee: int = 0
    reserve: int = 0
    deposited: int = 0
    segments: int = 0
    sponsored: int = 0

    @property
    def total(self) -> int:
        return self.rent + self.fee + self.reserve


Confirm = Callable[[Offer], bool]


def accept(_offer: Offer) -> bool:
    """For programs: their limit is `price_max`."""
    return True

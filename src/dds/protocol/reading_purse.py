"""A reader's purse: what it promises a node for what it read there.

Decides how much the next voucher says. It is cumulative and never less than the one before; it is never more than the node
asks, than the bytes that were read and not promised for come to, nor than the money that is at hand; and nothing is promised
to a node whose price is above the reader's limit. Does not decide when a voucher is sent,
nor where the money is (runtime/purse.py).
Pure; money in base units. Source: docs/spec/retrieval.md, "Paying for reads".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from dds.primitives.errors import PaymentRequired
from dds.primitives.money import AMOUNT_MAX
from dds.primitives.units import KIB, MIB
from dds.wire.retrieval import ReadingTerms

SETTLED_BYTES_MIN: Final = MIB  # a debt of less waits for the next session


@dataclass(frozen=True, slots=True)
class Tab:
    """What one node may still ask: `promised` is cumulative, `bytes` were read there and not promised for."""

    promised: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """The tab once the voucher is signed, and what that costs beyond the one before; `short` is what the purse lacked."""

    tab: Tab
    amount: int
    short: int


def next_promise(tab: Tab, terms: ReadingTerms, *, price_max: int, at_hand: int, by_others: int = 0) -> Step:
    """`at_hand`: money that no other promise counts on. `by_others`: what the reader's other payers have promised this node.

    Raises:
        PaymentRequired: the node asks more than the reader is willing to pay.
    """
    if terms.price > price_max:
        raise PaymentRequired(
            f"asks {terms.price:,} base units per KiB and this home pays at most {price_max:,}",
            hint="raise reading_price_max in config.toml, or read elsewhere",
        )
    asked = max(0, min(terms.owed, AMOUNT_MAX) - by_others - tab.promised)
    wanted = min(asked, tab.bytes * terms.price // KIB)
    amount = min(wanted, max(0, at_hand))
    bytes_paid = -(-amount * KIB // terms.price) if amount else 0
    return Step(Tab(tab.promised + amount, tab.bytes - bytes_paid), amount, wanted - amount)


def is_worth_settling(terms: ReadingTerms) -> bool:
    """Whether what is owed at the end of a session is more than small change."""
    return (terms.owed - terms.paid) * KIB >= SETTLED_BYTES_MIN * terms.price > 0

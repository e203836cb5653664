"""Why an account, a node, a contract or a transaction has what it has: events turned into lines that add up.

Decides which events tell of whom and how each reads; `NAMES` holds every name that a rule gives to an event. Knows no rule and
no disk: whoever calls has the events. An account's deltas sum to its balance change, so what is missing shows as a difference.
Source: docs/spec/ledger.md, "Accounts".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from dds.ledger.events import Event
from dds.primitives.money import format_tokens

NAMES: Final[dict[str, str]] = {
    # accounts
    "sent": "sent to another account",
    "received": "received from another account",
    # operators and nodes
    "bonded": "put into the operator's bond",
    "unbonding": "bond that began to leave",
    "bond-released": "bond taken out",
    "pool-funded": "put into a node's collateral pool",
    "pool-drained": "taken out of a node's collateral pool",
    "node-registered": "the node was registered",
    "node-retiring": "the node takes nothing new",
    "node-back": "the node takes assignments again",
    "node-faulted": "the node lost its assignments",
    "jailed": "the operator was jailed",
    # contracts
    "contract-opened": "the contract was opened",
    "contract-changed": "the contract's terms were changed",
    "contract-cancelled": "the contract was cancelled",
    "escrowed": "put into the contract's escrow",
    "refund": "returned from a contract to its publisher",
    "reserved": "earmarked in the escrow for a reservation",
    "unreserved": "free in the escrow again",
    "rent": "rent, paid ahead for a segment",
    "repair-reserve": "put aside for the segment's repair",
    "fee": "fee, to the treasury",
    "fee-burned": "fee, burned",
    "returned": "returned from a segment to the contract's escrow",
    # segments
    "segment-registered": "the segment was registered",
    "segment-reencoded": "the segment was stored anew in another encoding, under another contract",
    "segment-ended": "the segment ended",
    "sponsored": "the contract began to sponsor the segment",
    "unsponsored": "the contract stopped sponsoring the segment",
    "extended": "the segment is paid for longer",
    "redrawn": "a new node was drawn",
    "locked": "collateral locked for an assignment",
    "freed": "an assignment ended and its collateral is free",
    # pay and punishment
    "pay": "rent earned by proven storage",
    "subsidy": "new money for proven storage",
    "withheld": "not earned: the proof was missing",
    "slash": "collateral taken",
    "slash-bond": "bond taken",
    "slash-share": "the reporter's part of what was taken",
    "slash-to-repair": "taken, into the repair reserve",
    "slash-burned": "taken, and burned",
    # witnesses
    "witness-report": "a witness reported what it saw",
    "epoch-unknown": "too few witnesses reported: nobody paid, nobody punished",
    # retrieval
    "deposit": "put into the retrieval deposit",
    "withdrawal-asked": "asked back from the retrieval deposit",
    "withdrawn": "taken back from the retrieval deposit",
    "deposit-spent": "paid for reads out of the deposit",
    "retrieval": "earned by serving reads",
    # endowments and the market
    "endowed": "given to an endowment",
    "endowment": "moved from the endowment into the contract's escrow",
    "endowment-returned": "back from a cancelled contract's escrow into its endowment",
    "price": "the market's price changed",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One event as told to people."""

    epoch: int
    name: str
    what: str  # the name in words
    delta: int  # change of an account's balance, base units
    amount: int  # what moved where no balance changed
    reason: str
    evidence: bytes
    place: str  # of what: node, contract, segment and index, as far as the event says

    def text(self) -> str:
        """`epoch 7  +1.5 ECHO  earned by serving reads: voucher of ... [node 3] (evidence 0a1b...)`"""
        money = _signed(self.delta) if self.delta else format_tokens(self.amount) if self.amount else "-"
        reason = f": {self.reason}" if self.reason else ""
        place = f" [{self.place}]" if self.place else ""
        evidence = f" (evidence {self.evidence.hex()[:16]})" if self.evidence else ""
        return f"epoch {self.epoch}  {money}  {self.what}{reason}{place}{evidence}"


@dataclass(frozen=True, slots=True)
class Total:
    """All events of one name."""

    name: str
    what: str
    count: int
    delta: int
    amount: int


@dataclass(frozen=True, slots=True)
class Explanation:
    lines: tuple[Line, ...]  # in the order of the events
    totals: tuple[Total, ...]  # by name
    balance_change: int  # the sum of the deltas

    def unexplained(self, before: int, after: int) -> int:
        """What the balance moved by beyond these lines: 0 when every event was there. Meaningful for one account's lines."""
        return after - before - self.balance_change


def explain_account(events: Iterable[Event], account: bytes) -> Explanation:
    """What changed this account's balance, or moved money that is its own."""
    return _explain(events, lambda event: event.account == account)


def explain_node(events: Iterable[Event], number: int) -> Explanation:
    """What was paid, withheld or taken for this node, whichever account it went to."""
    return _explain(events, lambda event: event.node == number)


def explain_contract(events: Iterable[Event], contract: bytes) -> Explanation:
    """What went into this contract and what it paid for."""
    return _explain(events, lambda event: event.contract == contract)


def explain_tx(events: Iterable[Event]) -> Explanation:
    """All that one transaction did."""
    return _explain(events, lambda event: True)


def earned_by_node(events: Iterable[Event], number: int, account: bytes) -> int:
    """What this node brought to `account` (its payout's, say): the part of the account's balance change that is its own."""
    return sum(event.delta for event in events if (event.node, event.account) == (number, account))


def line_of(event: Event) -> Line:
    """A name that this release does not know stands for itself: events of a newer ledger are shown all the same."""
    return Line(
        epoch=event.epoch,
        name=event.name,
        what=NAMES.get(event.name, event.name),
        delta=event.delta,
        amount=event.amount,
        reason=event.detail,
        evidence=event.evidence,
        place=_place(event),
    )


def _explain(events: Iterable[Event], concerns: Callable[[Event], bool]) -> Explanation:
    lines = tuple(line_of(event) for event in events if concerns(event))
    by_name: dict[str, list[Line]] = {}
    for line in lines:
        by_name.setdefault(line.name, []).append(line)
    return Explanation(lines, tuple(_total(by_name[name]) for name in sorted(by_name)), sum(line.delta for line in lines))


def _total(lines: list[Line]) -> Total:
    first = lines[0]
    return Total(first.name, first.what, len(lines), sum(line.delta for line in lines), sum(line.amount for line in lines))


def _place(event: Event) -> str:
    parts = (
        f"node {event.node}" if event.node >= 0 else "",
        f"contract {event.contract.hex()[:16]}" if event.contract else "",
        f"segment {event.segment.hex()[:16]}" if event.segment else "",
        f"index {event.index}" if event.index >= 0 else "",
    )
    return ", ".join(part for part in parts if part)


def _signed(delta: int) -> str:
    return ("+" if delta > 0 else "") + format_tokens(delta)

"""Paying nodes for the epochs they proved: who owes how much, and what is withheld.

Decides amounts only; who holds and who sponsors is others' business (holding.py, sponsors.py). An epoch is closed when no
report on it can come any more: at epoch `now` that is every epoch before now - 1. Settling twice pays once: what was settled is
remembered by assignment. Source: docs/spec/ledger.md, "Storage pay, fees, emission".

Each sponsor pays for its stripes at its own price; a stripe's rent is split evenly among those who sponsor it in that epoch.
Amounts are floored, and what is lost by that is carried to the next time: however often somebody has a segment settled, its
nodes earn the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import lcm
from typing import Final

from msgspec.structs import replace

from dds.ledger import money, rent
from dds.ledger.params import RATE_DIVISOR
from dds.ledger.records import STANDINGS, Assignment, Holding, Segment, SponsorEntry, Standing, number_key
from dds.ledger.rules.standing import passes_in
from dds.ledger.state import State
from dds.primitives.money import MILLION

SPLIT: Final = lcm(*range(1, 9))  # 840: bytes are counted in 840ths, so that up to eight sponsors share a stripe exactly

UNIT: Final = SPLIT * RATE_DIVISOR  # numerators in one base unit


@dataclass(slots=True)
class _Account:
    """What one sponsor owes for one assignment: numerators, floored when they are paid."""

    due: int = 0  # 1/(840 * 2^20) base units, had every epoch been passed
    earned: int = 0  # for the epochs that were
    epochs: int = 0
    passed: int = 0
    scaled: int = 0  # sum over the epochs passed of the subsidy's scale, in ppm
    judged: bool = True

    @property
    def detail(self) -> str:
        if not self.judged:
            return f"{self.epochs} epochs that were not judged yet, in full"
        return f"{self.passed} of {self.epochs} epochs passed"


def closed_before(state: State) -> int:
    """The first epoch that is not closed yet."""
    return max(0, state.epoch - 1)


def settle(state: State, segment_id: bytes, segment: Segment, indices: Sequence[int] | None = None) -> Segment:
    """Pay the active assignments (all, or those at `indices`) for every closed epoch; the caller keeps the segment."""
    until = closed_before(state)
    for index in range(len(segment.assignments)) if indices is None else indices:
        assignment = segment.assignments[index]
        if assignment.state == Holding.ACTIVE and assignment.settled_epoch < until:
            sponsors = _pay(state, segment_id, segment, index, until)
            settled = replace(assignment, settled_epoch=until)
            segment = replace(segment, sponsors=sponsors, assignments=put_at(segment.assignments, index, settled))
    return segment


def settle_unjudged(state: State, segment_id: bytes, segment: Segment) -> Segment:
    """After `settle`: pay the active assignments in full for the epochs that have no verdict yet, the present one too.

    For a segment whose publisher ends its assignments before their time: who holds it loses no rent by that. New money is for
    proven epochs only, so these bring no subsidy.
    """
    until = state.epoch + 1
    for index, assignment in enumerate(segment.assignments):
        if assignment.state == Holding.ACTIVE and assignment.settled_epoch < until:
            sponsors = _pay(state, segment_id, segment, index, until, judged=False)
            segment = replace(segment, sponsors=sponsors)
    return segment


def put_at(assignments: tuple[Assignment, ...], index: int, new: Assignment) -> tuple[Assignment, ...]:
    return (*assignments[:index], new, *assignments[index + 1 :])


def with_carry(entry: SponsorEntry, index: int, amount: int) -> SponsorEntry:
    """The sponsor owing `amount` numerators to the holder of `index`, which are less than a base unit."""
    known = entry.carries + (0,) * (index + 1 - len(entry.carries))
    carries = (*known[:index], amount, *known[index + 1 :])
    return replace(entry, carries=carries if any(carries) else ())


def carried(entry: SponsorEntry) -> int:
    """Base units, rounded up, that a sponsor owes from earlier to all holders together."""
    return -(-sum(entry.carries) // UNIT)


def _pay(
    state: State, segment_id: bytes, segment: Segment, index: int, until: int, *, judged: bool = True
) -> tuple[SponsorEntry, ...]:
    """The sponsors with what is left of their money."""
    number = segment.assignments[index].node
    accounts = _accounts(state, segment, index, until, judged)
    sponsors = []
    for entry, account in zip(segment.sponsors, accounts, strict=True):
        if account.epochs:
            account.earned += entry.carries[index] if index < len(entry.carries) else 0
            entry = with_carry(entry, index, account.earned % UNIT)
            entry = _pay_by(state, segment_id, segment, index, number, entry, account)
        sponsors.append(entry)
    return tuple(sponsors)


def _accounts(state: State, segment: Segment, index: int, until: int, judged: bool) -> list[_Account]:
    """By sponsor; what is not judged counts as passed, and for no subsidy."""
    assignment = segment.assignments[index]
    standing = state.find(STANDINGS, number_key(assignment.node)) or Standing()
    accounts = [_Account(judged=judged) for _ in segment.sponsors]
    for first, end in _spans(segment.sponsors, assignment.settled_epoch, until):
        shares = _shares(segment, index, first)
        passed, scaled = passes_in(standing, first, end) if judged else (end - first, 0)
        for account, entry, share in zip(accounts, segment.sponsors, shares, strict=True):
            if share:
                account.due += share * entry.price * (end - first)
                account.earned += share * entry.price * passed
                account.epochs += end - first
                account.passed += passed
                account.scaled += scaled
    return accounts


def _spans(sponsors: Sequence[SponsorEntry], first: int, until: int) -> Iterator[tuple[int, int]]:
    """[first, until) cut where a sponsor begins or ends: within a span the same ones pay."""
    edges = {edge for entry in sponsors for edge in (entry.start_epoch, entry.end_epoch) if first < edge < until}
    return pairwise(sorted({first, until} | edges))


def _shares(segment: Segment, index: int, epoch: int) -> list[int]:
    """The bytes of `index`, in 840ths, that each sponsor pays for in `epoch`."""
    paying = [entry.stripes if entry.start_epoch <= epoch < entry.end_epoch else 0 for entry in segment.sponsors]
    if len(paying) == 1:
        return [SPLIT * rent.stripes_bytes(segment.stripes, index, ~paying[0])] if paying[0] else [0]
    shares = [0] * len(paying)
    for number, run in rent.shapes(segment.stripes):
        payers = [at for at, stripes in enumerate(paying) if stripes >> number & 1] if index < run.k + run.m else []
        for at in payers:
            shares[at] += run.slot_bytes * (SPLIT // len(payers))
    return shares


def _pay_by(
    state: State, segment_id: bytes, segment: Segment, index: int, number: int, entry: SponsorEntry, account: _Account
) -> SponsorEntry:
    """Pay one node what one sponsor owes it, and the subsidy on it; the sponsor with what is left."""
    payout = state.node(number).payout
    amount = min(account.earned // UNIT, entry.prepaid)
    withheld = max(0, account.due // UNIT - amount)
    about = {"node": number, "contract": entry.contract, "segment": segment_id, "index": index, "detail": account.detail}
    money.credit(state, payout, amount, "pay", **about)
    if account.passed < account.epochs and withheld:
        state.emit("withheld", amount=withheld, **about)
    subsidy = min(_subsidy(segment, index, entry, account.scaled), entry.subsidy, state.chain.emission_budget)
    money.mint(state, payout, subsidy, "subsidy", **about)
    return replace(entry, prepaid=entry.prepaid - amount, subsidy=entry.subsidy - subsidy)


def _subsidy(segment: Segment, index: int, entry: SponsorEntry, scaled: int) -> int:
    """Its rate, split by bytes among all assignments that the payment was for: those who miss leave theirs unminted."""
    everything = rent.sponsored_bytes(segment.stripes, entry.stripes)
    own = rent.stripes_bytes(segment.stripes, index, ~entry.stripes)
    return entry.subsidy_rate * own * scaled // (everything * MILLION)

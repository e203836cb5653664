"""Models beside a living ledger: what must be true of every transaction, block and epoch, whatever the rules say of themselves.

Kept apart from the rules on purpose: it adds up events and records, counts votes anew, and knows no rule's code.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from dds.ledger import rent
from dds.ledger.audit_money import check_state
from dds.ledger.events import Event
from dds.ledger.machine import TxResult
from dds.ledger.params import Params
from dds.ledger.records import ACCOUNTS, CHAIN, EPOCHS, SEGMENTS, Account, Assignment, Holding, Segment, number_key
from dds.wire.ledger import AnyBody

Changed = Mapping[bytes, tuple[Any, Any]]  # by key: the record before and after
Place = tuple[bytes, int]  # segment id, index
Life = tuple[int, int, int]  # a serial number, the node, the first epoch


class Watch:
    """`tables` are the ledger's entries by table, kept up to date by the caller."""

    def __init__(self, tables: Mapping[bytes, Mapping[bytes, Any]]) -> None:
        self.tables = tables
        self.collateral: Counter[Place] = Counter()  # by events: locked - freed - slashed
        self.paid: Counter[Life] = Counter()
        self.lives: dict[Place, Life] = {}  # the active one
        self.worth: dict[Life, tuple[int, int]] = {}  # most bytes, and most price, that it was ever worth
        self.born = 0
        self.votes: dict[int, Counter[int]] = defaultdict(Counter)  # epoch -> node -> votes
        self.reports: Counter[int] = Counter()
        self.needed: dict[int, int] = {}
        self.last_epoch = 0
        self.happened: Counter[str] = Counter()  # events, by name
        self.least_scale = 10**6  # ppm: how little of the subsidies due an epoch's emission covered

    # -- one step -----------------------------------------------------------------------------------------------------------

    def transaction(self, sender: bytes, body: AnyBody, result: TxResult, changed: Changed) -> None:
        if not result.ok:
            self._nothing_but_the_nonce(sender, body, result, changed)
        self._balances(result.events, changed)
        self._events(result.events)
        self._segments(result.events, changed)

    def boundary(self, events: Iterable[Event], changed: Changed) -> None:
        events = list(events)
        self._balances(events, changed)
        self._events(events)
        self._segments(events, changed)
        self._epochs_only_grow()

    def vote(self, epoch: int, passed: bytes, needed: int) -> None:
        self.reports[epoch] += 1
        self.needed[epoch] = needed
        bits = int.from_bytes(passed, "little")
        self.votes[epoch].update(number for number in range(bits.bit_length()) if bits >> number & 1)

    def block(self, params: Params) -> None:
        problems = check_state((prefix + key, each) for prefix, table in self.tables.items() for key, each in table.items())
        assert problems == [], problems
        segments: Mapping[bytes, Segment] = self.tables[SEGMENTS.prefix]
        self._collateral_is_what_events_say(segments)
        for segment in segments.values():
            _every_sponsor_can_pay(segment)
        chain = self.tables[CHAIN.prefix][b""]
        assert chain.minted * 10**6 <= chain.burned_for_subsidy * params.subsidy_ppm

    # -- what is checked ----------------------------------------------------------------------------------------------------

    def _nothing_but_the_nonce(self, sender: bytes, body: AnyBody, result: TxResult, changed: Changed) -> None:
        assert result.events == (), (body, result)
        for key, (before, after) in changed.items():
            assert key == ACCOUNTS.key(sender), f"refused ({result.code}), yet {key!r} changed: {body}"
            assert before.balance == after.balance and before.nonce + 1 == after.nonce

    def _balances(self, events: Iterable[Event], changed: Changed) -> None:
        """The events of an account sum to its balance's change."""
        told: Counter[bytes] = Counter()
        for event in events:
            told[event.account] += event.delta
        moved: Counter[bytes] = Counter()
        for key, (before, after) in changed.items():
            if key[:1] == ACCOUNTS.prefix:
                moved[key[1:]] = (after or Account()).balance - (before or Account()).balance
        assert {k: v for k, v in told.items() if v} == {k: v for k, v in moved.items() if v}

    def _events(self, events: Iterable[Event]) -> None:
        for event in events:
            self.happened[event.name] += 1
            place = event.segment, event.index
            if event.name == "slash" and event.index >= 0:
                assert event.amount == self.collateral[place] * _taken_ppm(event.detail) // 10**6, event
            if event.name == "locked":
                self.collateral[place] += event.amount
            elif event.name == "freed" or (event.name == "slash" and event.index >= 0):
                self.collateral[place] -= event.amount
            elif event.name == "pay":
                self._pay(place, event)

    def _pay(self, place: Place, event: Event) -> None:
        """Never more than its bytes cost in the epochs that a quorum saw it pass."""
        life = self.lives[place]
        assert life[1] == event.node, f"{event} pays another than {life}"
        self.paid[life] += event.delta
        size, price = self.worth[life]
        closed = range(life[2], self.tables[CHAIN.prefix][b""].epoch - 1)
        passed = sum(self._has_passed(epoch, event.node) for epoch in closed)
        assert self.paid[life] << 20 <= size * price * passed, f"{event}: {passed} of {closed} passed, {self.paid[life]} paid"

    def _has_passed(self, epoch: int, node: int) -> bool:
        return epoch in self.needed and self.votes[epoch][node] >= self.needed[epoch]

    def _segments(self, events: Iterable[Event], changed: Changed) -> None:
        """Keep the lives of assignments: each is let go once, and said to be."""
        freed: Counter[Place] = Counter()
        for key, (before, after) in changed.items():
            if key[:1] == SEGMENTS.prefix:
                freed += self._one_segment(key[1:], before, after)
        assert freed == Counter((event.segment, event.index) for event in events if event.name == "freed")

    def _one_segment(self, segment_id: bytes, before: Segment | None, after: Segment | None) -> Counter[Place]:
        """How often each index was let go."""
        old = before.assignments if before else ()
        new = after.assignments if after else ()
        freed: Counter[Place] = Counter()
        for index in range(max(len(old), len(new))):
            place = segment_id, index
            was = old[index] if index < len(old) else Assignment()
            now = new[index] if index < len(new) else Assignment()
            same = (was.node, was.draw) == (now.node, now.draw)
            freed[place] += was.state != Holding.FREED and not same
            if was.state == Holding.ACTIVE and not same:
                del self.lives[place]
            if now.state == Holding.ACTIVE:
                assert after is not None
                self._live(place, now, max([after.price, *(entry.price for entry in after.sponsors)]))
            if same:
                assert was.settled_epoch <= now.settled_epoch, f"{place} is settled again"
        return freed

    def _live(self, place: Place, assignment: Assignment, price: int) -> None:
        if place not in self.lives:
            self.born += 1
            self.lives[place] = self.born, assignment.node, assignment.first_epoch
        life = self.lives[place]
        size, most = self.worth.get(life, (0, 0))
        self.worth[life] = max(size, assignment.bytes), max(most, price)

    def _collateral_is_what_events_say(self, segments: Mapping[bytes, Segment]) -> None:
        held: Counter[Place] = Counter()
        for segment_id, segment in segments.items():
            for index, each in enumerate(segment.assignments):
                held[segment_id, index] = each.collateral
        assert {k: v for k, v in held.items() if v} == {k: v for k, v in self.collateral.items() if v}

    def _epochs_only_grow(self) -> None:
        chain = self.tables[CHAIN.prefix][b""]
        now, self.least_scale = chain.epoch, min(self.least_scale, chain.subsidy_scale_ppm)
        assert now >= self.last_epoch
        self.last_epoch = now
        if now:
            assert number_key(now) in self.tables[EPOCHS.prefix], "every epoch that begins has a committee"


def _taken_ppm(reason: str) -> int:
    """Of an assignment's collateral, by the spec's table of faults."""
    shares = {"loss reported": 250_000, "loss found": 500_000, "down for": 250_000, "invalid-answer": 10**6, "conflicting": 10**6}
    return next(ppm for begins, ppm in shares.items() if reason.startswith(begins))


def _every_sponsor_can_pay(segment: Segment) -> None:
    """All that may still be earned, each sponsor alone: escrow >= claimable + remaining."""
    for entry in segment.sponsors:
        owed = 0
        for index, each in enumerate(segment.assignments):
            if each.state == Holding.ACTIVE:
                size = rent.stripes_bytes(segment.stripes, index, ~entry.stripes)
                owed += size * entry.price * max(0, entry.end_epoch - max(entry.start_epoch, each.settled_epoch))
        assert owed <= entry.prepaid << 20, f"{entry} owes {owed >> 20}"

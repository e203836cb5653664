"""Models beside a living ledger: what must be true of every transaction, block and epoch, whatever the rules say of themselves.

Kept apart from the rules on purpose: it adds up events and records, counts votes anew, and knows no rule's code.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

from dds.ledger import rent
from dds.ledger.audit_money import check_state
from dds.ledger.events import Event
from dds.ledger.machine import TxResult
from dds.ledger.params import Params
from dds.ledger.records import (
    ACCOUNTS,
    CHAIN,
    CONTRACTS,
    EPOCHS,
    NODES,
    SEGMENTS,
    Account,
    Assignment,
    Holding,
    NodeStatus,
    Segment,
    SponsorEntry,
    Table,
    V,
    number_key,
)
from dds.ledger.rules.inventory import total_leaves
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
        self.open: dict[int, tuple[int, bytes]] = {}  # not closed yet: quorum, and the bitmap of who had something to prove
        self.lost: dict[int, set[int]] = defaultdict(set)  # by epoch: whose loss a quorum found
        self.passed: dict[int, set[int]] = defaultdict(set)
        self.last_epoch = 0
        self.happened: Counter[str] = Counter()  # events, by name
        self.least_scale = 10**6  # ppm: how little of the subsidies due an epoch's emission covered

    # -- one step -----------------------------------------------------------------------------------------------------------

    def transaction(self, sender: bytes, body: AnyBody, result: TxResult, changed: Changed) -> None:
        if not result.ok:
            self._nothing_but_the_nonce(sender, body, result, changed)
        self._balances(result.events, changed)
        self._fair_pay(result.events, changed)
        self._events(result.events)
        self._segments(result.events, changed)

    def boundary(self, events: Iterable[Event], changed: Changed) -> None:
        events = list(events)
        self._balances(events, changed)
        self._close(changed)
        self._events(events)
        self._segments(events, changed)
        self._epochs_only_grow()

    def vote(self, epoch: int, passed: bytes, needed: int, audited: bytes) -> None:
        self.reports[epoch] += 1
        self.open[epoch] = needed, audited
        self.votes[epoch].update(_numbers(passed))

    def _close(self, changed: Changed) -> None:
        """Verdicts, counted anew: a quorum of passes, no quorum on a loss, and not caught before."""
        now = self.tables[CHAIN.prefix][b""].epoch
        for epoch in sorted(epoch for epoch in self.open if epoch <= now - 2):
            needed, audited = self.open.pop(epoch)
            if self.reports[epoch] >= needed:
                fit = {number for number in _numbers(audited) if self.votes[epoch][number] >= needed}
                self.passed[epoch] = {each for each in fit - self.lost[epoch] if not self._was_caught(each, epoch, changed)}

    def _was_caught(self, number: int, epoch: int, changed: Changed) -> bool:
        key = number_key(number)
        after = self.tables[NODES.prefix][key]
        before, _ = changed.get(NODES.key(key), (after, after))
        caught_now = after.status == NodeStatus.FAULTED and after.fault_epoch <= epoch
        return bool(before.status == NodeStatus.FAULTED or caught_now)

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
            if event.name == "freed" and event.detail.startswith("loss found in epoch "):
                self.lost[int(event.detail.split()[4])].add(event.node)
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
        if event.detail.endswith(
            "not judged yet, in full"
        ):  # a segment that is re-encoded: its last epochs, the present one too
            passed += len(range(max(life[2], closed.stop), closed.stop + 2))
        assert self.paid[life] << 20 <= size * price * passed, f"{event}: {passed} of {closed} passed, {self.paid[life]} paid"

    def _fair_pay(self, events: Iterable[Event], changed: Changed) -> None:
        """Who is settled gets all of what its sponsors owe, but for less than a base unit, which it gets the next time."""
        paid: Counter[Place] = Counter()
        for event in events:
            if event.name == "pay":
                paid[event.segment, event.index] += event.delta
        for key, (before, after) in changed.items():
            if key[:1] == SEGMENTS.prefix and before is not None:
                self._settled(key[1:], before, after, paid)
        assert not +paid, f"paid beside what is due: {paid}"

    def _settled(self, segment_id: bytes, before: Segment, after: Segment | None, paid: Counter[Place]) -> None:
        closed = max(0, self.tables[CHAIN.prefix][b""].epoch - 1)
        ends = {entry.contract: self._end_of(entry) for entry in before.sponsors}
        staying = {entry.contract for entry in after.sponsors} if after else set()
        anew = after is not None and after.former is not None and after.former != before.former
        gone = [contract for contract in ends if contract not in staying]
        assert anew or all(ends[contract] <= closed for contract in gone), "a sponsor left too early"
        for index, was in enumerate(before.assignments):
            now = after.assignments[index] if after and index < len(after.assignments) else Assignment()
            same = not anew and (was.node, was.draw) == (now.node, now.draw)
            if was.state != Holding.ACTIVE or (same and now.settled_epoch == was.settled_epoch):
                continue
            epochs = [epoch for epoch in range(was.settled_epoch, closed) if self._has_passed(epoch, was.node)]
            if anew and not self._is_caught(was.node):  # whoever ends it early pays for what no verdict is known of
                epochs += range(max(was.settled_epoch, closed), closed + 2)
            due = _carried(before, index)
            for epoch in epochs:
                for contract, amount in self._due(before, ends, index, epoch).items():
                    due[contract] += amount
            got = paid.pop((segment_id, index), 0)
            assert got == sum(int(each) for each in due.values()), f"{due} due, {got} paid: {index} of {before}"
            left, stays = _carried(after, index) if after else {}, same and now.state == Holding.ACTIVE
            begun = {entry.contract: entry.start_epoch for entry in before.sponsors}
            again = (
                {entry.contract for entry in after.sponsors if entry.start_epoch != begun.get(entry.contract)}
                if after
                else set()
            )
            for each in left.keys() & due.keys() - again:
                assert left[each] == (due[each] % 1 if stays else 0), f"{due} due, {left} carried"

    def _is_caught(self, node: int) -> bool:
        return bool(self.tables[NODES.prefix][number_key(node)].status == NodeStatus.FAULTED)

    def _end_of(self, entry: SponsorEntry) -> int:
        cancelled: int = self.tables[CONTRACTS.prefix][entry.contract].cancelled_epoch
        return entry.end_epoch if cancelled < 0 else min(entry.end_epoch, max(entry.start_epoch, cancelled) + 1)

    def _due(self, segment: Segment, ends: Mapping[bytes, int], index: int, epoch: int) -> dict[bytes, Fraction]:
        """For one epoch, by sponsor: its part of each stripe's bytes, at its own price."""
        paying = [entry for entry in segment.sponsors if entry.start_epoch <= epoch < ends[entry.contract]]
        due, stripe = {entry.contract: Fraction() for entry in paying}, 0
        for run in segment.stripes:
            for _ in range(run.count):
                payers = [entry for entry in paying if entry.stripes >> stripe & 1]
                for entry in payers if index < run.k + run.m else ():
                    due[entry.contract] += Fraction(run.slot_bytes * entry.price, len(payers) << 20)
                stripe += 1
        return due

    def _has_passed(self, epoch: int, node: int) -> bool:
        return node in self.passed[epoch]

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
        # Re-encoding may give an index to the very node that was too late with it before: that is another assignment.
        encoded_as_before = before is None or after is None or before.reservation == after.reservation
        freed: Counter[Place] = Counter()
        for index in range(max(len(old), len(new))):
            place = segment_id, index
            was = old[index] if index < len(old) else Assignment()
            now = new[index] if index < len(new) else Assignment()
            same = encoded_as_before and (was.node, was.draw) == (now.node, now.draw)
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

    def _inventories_are_what_segments_say(self) -> None:
        leaves: Counter[int] = Counter()
        for segment in self.tables[SEGMENTS.prefix].values():
            for each in segment.assignments:
                leaves[each.node] += each.leaf_count * (each.state == Holding.ACTIVE)
        numbers = range(self.tables[CHAIN.prefix][b""].nodes)
        assert {number: total_leaves(self, number) for number in numbers} == {number: leaves[number] for number in numbers}

    def find(self, table: Table[V], identifier: bytes = b"") -> V | None:
        """What a reader of the ledger asks."""
        found: V | None = self.tables[table.prefix].get(identifier)
        return found

    def _epochs_only_grow(self) -> None:
        chain = self.tables[CHAIN.prefix][b""]
        now, self.least_scale = chain.epoch, min(self.least_scale, chain.subsidy_scale_ppm)
        if now == self.last_epoch:
            return
        assert now > self.last_epoch
        self.last_epoch = now
        self._inventories_are_what_segments_say()
        assert number_key(now) in self.tables[EPOCHS.prefix], "every epoch that begins has a committee"
        assert all(segment.sponsors for segment in self.tables[SEGMENTS.prefix].values()), "what nobody sponsors stays"


def _numbers(bitmap: bytes) -> list[int]:
    bits = int.from_bytes(bitmap, "little")
    return [number for number in range(bits.bit_length()) if bits >> number & 1]


def _carried(segment: Segment, index: int) -> dict[bytes, Fraction]:
    """By sponsor: what it owes the holder of `index` since earlier, less than a base unit."""
    owed = {entry.contract: entry.carries[index] if index < len(entry.carries) else 0 for entry in segment.sponsors}
    return {contract: Fraction(numerators, 840 << 20) for contract, numerators in owed.items()}


def _taken_ppm(reason: str) -> int:
    """Of an assignment's collateral, by the spec's table of faults."""
    shares = {
        "loss reported": 250_000,
        "loss found": 500_000,
        "down for": 250_000,
        "invalid-answer": 10**6,
        "conflicting": 10**6,
    }
    return next((ppm for begins, ppm in shares.items() if reason.startswith(begins)), 0)


def _every_sponsor_can_pay(segment: Segment) -> None:
    """All that may still be earned, each sponsor alone: escrow >= claimable + remaining."""
    for entry in segment.sponsors:
        owed = Fraction(sum(entry.carries), 840)
        for index, each in enumerate(segment.assignments):
            if each.state == Holding.ACTIVE:
                size = rent.stripes_bytes(segment.stripes, index, ~entry.stripes)
                owed += size * entry.price * max(0, entry.end_epoch - max(entry.start_epoch, each.settled_epoch))
        assert owed <= entry.prepaid << 20, f"{entry} owes {float(owed / (1 << 20))}"

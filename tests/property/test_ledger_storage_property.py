"""Whatever publishers, nodes and witnesses do, in whatever order: no unit is lost, and inventories are what segments say."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from dds.ledger import rent
from dds.ledger.records import RESERVATIONS, SEGMENTS, Holding, Segment, reservation_id
from dds.ledger.rules import inventory
from dds.primitives.hashing import sha256
from dds.primitives.keys import SigningKey
from dds.wire.ledger import (
    AddReceipts,
    CancelContract,
    CancelReservations,
    ExtendSegments,
    Loss,
    Redraw,
    RegisterSegments,
    ReportLoss,
    Reserve,
    Settle,
    Sponsor,
    Unsponsor,
)
from tests.ledger_committee import small_params
from tests.ledger_storage import SLOT, Storage

names = st.sampled_from([b"one", b"two", b"three"])
publishers = st.sampled_from([0, 1])
done: Counter[str] = Counter()


class Machine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.ledger = Storage(params=small_params(reservation_epochs=4))
        self.open_reservations: list[bytes] = []
        self.frozen: dict[int, set[tuple[bytes, int, int]]] = {}
        for at in range(2):
            self.ledger.open(self.key(at), term=6)

    def key(self, at: int) -> SigningKey:
        return (self.ledger.anna, self.ledger.bert)[at]

    def send(self, key: SigningKey, body: Any) -> bool:
        result = self.ledger.send(key, body)
        done[type(body).__name__] += result.ok
        return result.ok

    def segments(self) -> dict[bytes, Segment]:
        decode = msgspec.msgpack.decode
        prefix = SEGMENTS.prefix
        return {key[1:]: decode(raw, type=Segment) for key, raw in self.ledger.base.items() if key[:1] == prefix}

    @rule(name=names, at=publishers, without=st.sets(st.integers(0, 2)))
    def store(self, name: bytes, at: int, without: set[int]) -> None:
        contract = self.ledger.contract_id(self.key(at))
        identifier = reservation_id(contract, self.ledger.contract(self.key(at)).reservations)
        if not self.send(self.key(at), Reserve(contract, 1, 3, 1, 2 * SLOT)):
            return  # the contract is cancelled, or too many nodes are suspended
        self.open_reservations.append(identifier)
        chosen = self.ledger.reservation(identifier).chosen
        receipts = [self.ledger.receipt(i, each, identifier, name) for i, each in enumerate(chosen) if i not in without]
        if self.send(self.key(at), RegisterSegments([self.ledger.entry(identifier, receipts, name)])):
            self.open_reservations.remove(identifier)

    @rule(at=publishers)
    def cancel_reservation(self, at: int) -> None:
        if self.open_reservations and self.send(self.key(at), CancelReservations([self.open_reservations[0]])):
            self.open_reservations.pop(0)

    @rule(name=names, at=publishers, stripes=st.integers(1, 3))
    def sponsor(self, name: bytes, at: int, stripes: int) -> None:
        contract = self.ledger.contract_id(self.key(at))
        self.send(self.key(at), Sponsor(contract, sha256(name), stripes.to_bytes(8, "little")))

    @rule(name=names, at=publishers)
    def unsponsor(self, name: bytes, at: int) -> None:
        self.send(self.key(at), Unsponsor(self.ledger.contract_id(self.key(at)), [sha256(name)]))

    @rule(name=names, at=publishers, epochs=st.integers(1, 5))
    def extend(self, name: bytes, at: int, epochs: int) -> None:
        self.send(self.key(at), ExtendSegments(self.ledger.contract_id(self.key(at)), [sha256(name)], epochs))

    @rule(wanted=st.sets(names, min_size=1))
    def settle(self, wanted: set[bytes]) -> None:
        self.send(self.ledger.bert, Settle(sorted(sha256(name) for name in wanted)))

    @rule(name=names, index=st.integers(0, 2))
    def lose(self, name: bytes, index: int) -> None:
        segment = self.ledger.state.find(SEGMENTS, sha256(name))
        if segment is not None and segment.assignments[index].state == Holding.ACTIVE:
            node = self.ledger.nodes[segment.assignments[index].node]
            self.send(node, ReportLoss([Loss(sha256(name), index)]))

    @rule(name=names, index=st.integers(0, 2))
    def redraw(self, name: bytes, index: int) -> None:
        segment = self.ledger.state.find(SEGMENTS, sha256(name))
        if segment is not None:
            freed = [i for i, each in enumerate(segment.assignments) if each.state == Holding.FREED]
            self.send(self.ledger.bert, Redraw(sha256(name), freed or [index]))

    @rule(name=names, index=st.integers(0, 2))
    def add_receipt(self, name: bytes, index: int) -> None:
        segment = self.ledger.state.find(SEGMENTS, sha256(name))
        if segment is not None and segment.assignments[index].state == Holding.PENDING:
            self.send(self.ledger.bert, AddReceipts(sha256(name), [self.ledger.late_receipt(index, name)]))

    @rule()
    def cancel(self) -> None:
        """Bert's only, and not at once: Anna goes on."""
        if self.ledger.epoch > 2:
            self.send(self.ledger.bert, CancelContract(self.ledger.contract_id(self.ledger.bert)))

    @rule(epochs=st.integers(1, 3), absent=st.sets(st.integers(4, 9), max_size=2))
    def pass_epochs(self, epochs: int, absent: set[int]) -> None:
        for _ in range(epochs):
            self.ledger.report_all(self.ledger.epoch, [number for number in self.ledger.storing if number not in absent])
            self.model_freeze()
            self.ledger.to_epoch(self.ledger.epoch + 1)

    def model_freeze(self) -> None:
        self.frozen = defaultdict(set)
        for segment_id, segment in self.segments().items():
            for index, each in enumerate(segment.assignments):
                if each.state == Holding.ACTIVE:
                    self.frozen[each.node].add((segment_id, index, each.leaf_count))

    @invariant()
    def every_sum_is_right(self) -> None:
        self.ledger.assert_sound()

    @invariant()
    def subsidies_stay_below_what_was_burned_for_them(self) -> None:
        chain = self.ledger.state.chain
        assert chain.minted * 10 <= chain.burned_for_subsidy * 9

    @invariant()
    def each_sponsor_alone_could_pay_all_that_may_still_be_earned(self) -> None:
        for segment in self.segments().values():
            for entry in segment.sponsors:
                owed = 0
                for index, each in enumerate(segment.assignments):
                    size = rent.stripes_bytes(segment.stripes, index, ~entry.stripes)
                    epochs = max(0, entry.end_epoch - max(entry.start_epoch, each.settled_epoch))
                    owed += size * entry.price * epochs * (each.state == Holding.ACTIVE)
                assert owed <= entry.prepaid << 20

    @invariant()
    def inventories_are_what_segments_said_when_they_were_frozen(self) -> None:
        for number in self.ledger.storing:
            total = inventory.total_leaves(self.ledger.state, number)
            found = Counter(inventory.locate(self.ledger.state, number, leaf)[:2] for leaf in range(total))
            assert {(*place, leaves) for place, leaves in found.items()} == self.frozen.get(number, set())

    @invariant()
    def earmarks_are_those_of_open_reservations(self) -> None:
        for at in range(2):
            contract = self.ledger.contract(self.key(at))
            ids = (reservation_id(self.ledger.contract_id(self.key(at)), i) for i in range(contract.reservations))
            found = [self.ledger.state.find(RESERVATIONS, identifier) for identifier in ids]
            assert contract.reserved == sum(each.earmarked for each in found if each is not None)


def test_random_lives_of_segments_lose_no_unit_and_no_leaf() -> None:
    done.clear()
    quick = settings(
        max_examples=50,
        stateful_step_count=60,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    run_state_machine_as_test(Machine, settings=quick)
    exercised = {name for name, times in done.items() if times >= 5}
    assert exercised >= {
        "RegisterSegments", "CancelReservations", "Sponsor", "Unsponsor", "ExtendSegments", "Settle", "ReportLoss", "Redraw",
        "AddReceipts", "CancelContract",
    }, done  # fmt: skip

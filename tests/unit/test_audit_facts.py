"""A node's challenge as the ledger's entries give it: to whoever has them all, and to whoever fetches them one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from dds.ledger.facts import Entries, Key, NotLoaded, asked_of
from dds.ledger.records import CHAIN, EPOCHS, NODES, SEGMENTS, Assignment, Holding, Segment, number_key
from dds.ledger.rules import inventory
from dds.ledger.state import State
from dds.primitives.errors import UnavailableError
from dds.primitives.hashing import sha256
from dds.primitives.keys import SigningKey
from dds.primitives.units import MIB
from dds.proofs.audit import Asked
from dds.proofs.challenge import audit_seed, drawn_leaves, extra_leaf, target_of
from dds.runtime.audit_ledger import look_up
from dds.wire.ledger import AnyBody, StripeRun
from tests.ledger_committee import Ledger

STRIPES = (StripeRun(4, 3, 2, MIB),)  # 265 leaves a fragment, 1,060 an index
NODE = 4  # the first that stores


def assign(ledger: Ledger, name: bytes, index: int, *, released: int = 0) -> bytes:
    segment_id = sha256(name)
    assignments = [Assignment()] * 5
    assignments[index] = Assignment(NODE, int(Holding.ACTIVE), 4 * MIB, 1060)
    segment = Segment(
        sha256(name + b"root"), bytes(32), bytes(32), 1, 2, STRIPES, released, tuple(assignments), (), ledger.epoch
    )
    ledger.state.put(SEGMENTS, segment_id, segment)
    leaves = 1060 - 265 * released.bit_count()
    inventory.set_leaves(ledger.state, NODE, segment_id, index, leaves, released)
    ledger.state.keep()
    ledger.commit()
    return segment_id


def asked(ledger: Ledger, epoch: int) -> Asked:
    found = asked_of(ledger.state, NODE, epoch)
    assert found is not None
    return found


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def test_the_challenge_is_what_beacon_node_and_inventory_draw(ledger: Ledger) -> None:
    segment_id = assign(ledger, b"one", 3)
    ledger.to_epoch(2)
    found, state = asked(ledger, 2), ledger.state
    record = state.find(EPOCHS, number_key(2))
    assert record is not None and found.beacon == record.beacon and found.number == NODE
    assert found.node_id == ledger.nodes[NODE].public and found.network == "test"
    seed = audit_seed(record.beacon, found.node_id, inventory.inventory_root(state, NODE))
    drawn = [target_of(STRIPES, segment_id, 3, leaf, 0) for leaf in drawn_leaves(seed, 1060, 20)]
    assert list(found.targets) == drawn and len(drawn) <= 20
    facts = found.segments[segment_id]
    assert (facts.segment_root, facts.stripes, facts.since_epoch) == (sha256(b"oneroot"), STRIPES, 0)


def test_a_new_assignment_is_asked_one_leaf_more_in_its_first_epoch_only(ledger: Ledger) -> None:
    ids = [assign(ledger, bytes([number]), 2) for number in range(60)]
    ledger.to_epoch(1)
    first, seed = asked(ledger, 1), b""
    record = ledger.state.find(EPOCHS, number_key(1))
    assert record is not None
    seed = audit_seed(record.beacon, first.node_id, inventory.inventory_root(ledger.state, NODE))
    for segment_id in ids:
        assert target_of(STRIPES, segment_id, 2, extra_leaf(seed, segment_id, 2, 1060), 0) in first.targets
    assert 60 <= len(first.targets) <= 80
    ledger.to_epoch(2)
    assert len(asked(ledger, 2).targets) <= 20


def test_released_stripes_are_not_asked_for(ledger: Ledger) -> None:
    assign(ledger, b"one", 3, released=0b0110)
    ledger.to_epoch(1)
    assert {target.stripe for target in asked(ledger, 1).targets} == {0, 3}


def test_every_epoch_asks_for_something_else(ledger: Ledger) -> None:
    assign(ledger, b"one", 3)
    targets = []
    for epoch in (1, 2, 3):
        ledger.to_epoch(epoch)
        targets.append(asked(ledger, epoch).targets)
    assert len(set(targets)) == 3


def test_nothing_is_asked_of_an_empty_node_of_another_epoch_or_of_nobody(ledger: Ledger) -> None:
    assign(ledger, b"one", 3)
    assert asked_of(ledger.state, NODE, 0) is None  # assigned, but not in the inventory of epoch 0
    ledger.to_epoch(2)
    assert asked_of(ledger.state, NODE, 1) is None and asked_of(ledger.state, NODE, 3) is None
    assert asked_of(ledger.state, NODE + 1, 2) is None and asked_of(ledger.state, 99, 2) is None


def test_a_light_client_comes_to_the_same_in_a_few_rounds(ledger: Ledger) -> None:
    for number in range(200):  # more than one page of the inventory
        assign(ledger, b"segment %d" % number, number % 5)
    ledger.to_epoch(1)
    entries, rounds, fetched = Entries(), 0, 0
    while True:
        try:
            found = asked_of(entries, NODE, 1)
            break
        except NotLoaded as lack:
            rounds, fetched = rounds + 1, fetched + len(lack.keys)
            for table, identifier in lack.keys:
                entries.put((table, identifier), ledger.state.find(table, identifier))
    assert found == asked(ledger, 1) and rounds <= 8 and fetched < 400


class Port:
    """A ledger that moves on while it is read, where it is told to."""

    def __init__(self, ledger: Ledger, *, moves_at: int = -1) -> None:
        self.ledger, self.moves_at, self.calls = ledger, moves_at, 0

    async def find_many(self, wanted: Sequence[Key], /) -> list[Any]:
        self.calls += 1
        if self.calls == self.moves_at:
            self.ledger.to_epoch(self.ledger.epoch + 1)
        state: State = self.ledger.state
        return [state.find(table, identifier) for table, identifier in wanted]

    async def submit(self, key: SigningKey, body: AnyBody, /) -> object:
        raise AssertionError("nothing is sent here")


def test_looking_up_gives_what_the_state_gives(ledger: Ledger) -> None:
    assign(ledger, b"one", 3)
    ledger.to_epoch(1)
    assert asyncio.run(look_up(Port(ledger), lambda reader: asked_of(reader, NODE, 1))) == asked(ledger, 1)


def test_what_challenges_have_in_common_is_fetched_once(ledger: Ledger) -> None:
    assign(ledger, b"one", 3)
    ledger.to_epoch(1)
    port, known = Port(ledger), Entries()

    async def twice() -> tuple[int, int]:
        first = await look_up(port, lambda reader: asked_of(reader, NODE, 1), known)
        calls = port.calls
        assert await look_up(port, lambda reader: asked_of(reader, NODE, 1), known) == first == asked(ledger, 1)
        return calls, port.calls

    calls, after = asyncio.run(twice())
    assert after == calls <= 4


def test_entries_that_were_kept_are_not_mixed_with_those_of_a_later_epoch(ledger: Ledger) -> None:
    assign(ledger, b"one", 3)
    ledger.to_epoch(1)
    known = Entries()
    asyncio.run(look_up(Port(ledger), lambda reader: reader.find(CHAIN), known))
    ledger.to_epoch(2)
    with pytest.raises(UnavailableError):
        asyncio.run(look_up(Port(ledger), lambda reader: asked_of(reader, NODE, 1), known))


@pytest.mark.parametrize("moves_at", [2, 3, 4])
def test_entries_of_two_epochs_are_never_mixed(ledger: Ledger, moves_at: int) -> None:
    assign(ledger, b"one", 3)
    ledger.to_epoch(1)
    with pytest.raises(UnavailableError):
        asyncio.run(look_up(Port(ledger, moves_at=moves_at), lambda reader: asked_of(reader, NODE, 1)))


def test_entries_that_are_absent_are_known_to_be(ledger: Ledger) -> None:
    entries = Entries()
    with pytest.raises(NotLoaded):
        entries.find(NODES, number_key(99))
    entries.put((NODES, number_key(99)), None)
    assert entries.find(NODES, number_key(99)) is None
    entries.put((CHAIN, b""), ledger.state.chain)
    assert entries.find(CHAIN) == ledger.state.chain

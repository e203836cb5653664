"""Inventories: frozen for an epoch, the same pages for the same assignments, every leaf found."""

from __future__ import annotations

import pytest

from dds.ledger.genesis import GENESIS_VERSION, Genesis, apply_genesis
from dds.ledger.params import Params
from dds.ledger.records import PAGES, number_key
from dds.ledger.rules import inventory
from dds.ledger.rules.inventory import (
    PAGE_ENTRIES_MAX,
    find_held,
    inventory_root,
    locate,
    new_assignments,
    set_leaves,
    total_leaves,
)
from dds.ledger.state import State
from dds.primitives.hashing import sha256

NODE = 3


@pytest.fixture
def state() -> State:
    return fresh()


def fresh() -> State:
    state = State({})
    apply_genesis(state, Genesis(GENESIS_VERSION, "test", Params()))
    return state


def step(state: State) -> None:
    ending = state.epoch
    inventory.freeze(state, ending, ending + 1)
    state.set_chain(epoch=ending + 1)
    state.keep()


def name(i: int) -> bytes:
    return sha256(i.to_bytes(4, "big"))


def filled(count: int, *, backwards: bool = False) -> State:
    state = fresh()
    for i in reversed(range(count)) if backwards else range(count):
        set_leaves(state, NODE, name(i), i % 5, 1 + i % 3)
    step(state)
    return state


def pages(state: State) -> dict[bytes, bytes]:
    """The trie's, without what says when something came."""
    key = PAGES.prefix + number_key(NODE)
    return {k: v for k, v in state.changes().items() if v is not None and k.startswith(key) and k != key + b"n"}


def test_a_node_without_assignments_has_nothing_to_prove(state: State) -> None:
    assert (total_leaves(state, NODE), inventory_root(state, NODE)) == (0, bytes(32))


def test_a_change_counts_from_the_next_epoch_on(state: State) -> None:
    set_leaves(state, NODE, name(0), 2, 7)
    assert total_leaves(state, NODE) == 0
    step(state)
    assert total_leaves(state, NODE) == 7 and locate(state, NODE, 6) == (name(0), 2, 6)
    set_leaves(state, NODE, name(0), 2, 0)
    assert total_leaves(state, NODE) == 7
    step(state)
    assert (total_leaves(state, NODE), inventory_root(state, NODE)) == (0, bytes(32))


def test_of_two_changes_in_one_epoch_the_last_counts(state: State) -> None:
    set_leaves(state, NODE, name(0), 2, 7)
    set_leaves(state, NODE, name(0), 2, 0)
    set_leaves(state, NODE, name(1), 2, 0)
    set_leaves(state, NODE, name(1), 2, 5, 0b1)
    step(state)
    assert total_leaves(state, NODE) == 5
    assert find_held(state, NODE, name(0), 2) is None
    held = find_held(state, NODE, name(1), 2)
    assert held is not None and (held.leaves, held.released) == (5, 0b1)


@pytest.mark.parametrize("count", [1, PAGE_ENTRIES_MAX, PAGE_ENTRIES_MAX + 1, 700])
def test_every_leaf_is_found_once(count: int) -> None:
    state = filled(count)
    found = [locate(state, NODE, leaf) for leaf in range(total_leaves(state, NODE))]
    assert sorted(found) == sorted((name(i), i % 5, leaf) for i in range(count) for leaf in range(1 + i % 3))


def test_a_leaf_beyond_the_last_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        locate(filled(1), NODE, 1)


def test_the_same_assignments_give_the_same_pages_in_whatever_order_they_came() -> None:
    assert pages(filled(300)) == pages(filled(300, backwards=True))


@pytest.mark.parametrize("count", [0, 1, PAGE_ENTRIES_MAX, PAGE_ENTRIES_MAX + 1])
def test_what_grew_and_shrank_is_what_never_grew(count: int) -> None:
    state = filled(400)
    for i in range(count, 400):
        set_leaves(state, NODE, name(i), i % 5, 0)
    step(state)
    assert pages(state) == pages(filled(count))


@pytest.mark.parametrize(("count", "kind"), [(PAGE_ENTRIES_MAX, 0), (PAGE_ENTRIES_MAX + 1, 1)])
def test_a_page_is_split_when_it_has_more_than_it_holds(count: int, kind: int) -> None:
    found = filled(count).find(PAGES, number_key(NODE) + b"t")
    assert found is not None and found.data[0] == kind


def test_roots_differ_when_anything_does() -> None:
    roots = {inventory_root(filled(count), NODE) for count in range(5)}
    other = fresh()
    set_leaves(other, NODE, name(0), 0, 1, released=1)
    step(other)
    assert len(roots | {inventory_root(other, NODE)}) == 6


def test_what_is_new_is_new_for_one_epoch_and_at_most_sixty_four(state: State) -> None:
    set_leaves(state, NODE, name(0), 1, 7)
    assert new_assignments(state, NODE) == ()
    step(state)
    assert new_assignments(state, NODE) == ((name(0), 1),)
    set_leaves(state, NODE, name(0), 1, 6)  # smaller, not new
    step(state)
    assert new_assignments(state, NODE) == ()
    for i in range(1, 100):
        set_leaves(state, NODE, name(i), 0, 1)
    step(state)
    assert len(new_assignments(state, NODE)) == 64


def test_a_pause_leaves_what_stepping_leaves() -> None:
    leapt, stepped = fresh(), fresh()
    for state in (leapt, stepped):
        set_leaves(state, NODE, name(0), 1, 7)
    inventory.freeze(leapt, 0, 5)
    leapt.set_chain(epoch=5)
    leapt.keep()
    for _ in range(5):
        step(stepped)
    assert leapt.changes() == stepped.changes()
    assert new_assignments(leapt, NODE) == ()  # it was new in the first epoch of the pause


def test_many_changes_of_one_epoch_are_all_applied(state: State) -> None:
    for i in range(200):  # more than one entry of the queue
        set_leaves(state, i % 3, name(i), 0, 2)
    step(state)
    assert sum(total_leaves(state, number) for number in range(3)) == 400
    queued = [key for key, value in state.changes().items() if value is not None and key[9:10] == b"q"]
    assert queued == []

"""Which edge a reader asks, and how long it waits for it."""

from __future__ import annotations

from dds.primitives.cid import CID, cid_of
from dds.primitives.ids import NodeID
from dds.protocol.edge_choice import (
    COOL_DOWN_S_MIN,
    EDGES_MAX,
    PATIENCE_FACTOR,
    PATIENCE_S_MAX,
    PATIENCE_S_MIN,
    PATIENCE_S_UNKNOWN,
    EdgeChoice,
)


def edge(number: int) -> NodeID:
    return NodeID(number.to_bytes(32, "big"))


def content(number: int) -> CID:
    return cid_of(number.to_bytes(4, "big"))


NEAR = [(edge(number), True) for number in range(4)]
FAR = [(edge(number), False) for number in range(10, 14)]


def first(choice: EdgeChoice, number: int) -> NodeID:
    return choice.order(NEAR, content(number), 0.0)[0]


def test_edges_of_the_own_region_come_first() -> None:
    order = EdgeChoice().order([*FAR, *NEAR], content(1), 0.0)
    assert set(order[:4]) == {node for node, _ in NEAR}
    assert len(order) == 8


def test_all_readers_ask_the_same_edge_for_a_content_and_contents_spread_over_the_edges() -> None:
    assert [first(EdgeChoice(), number) for number in range(50)] == [first(EdgeChoice(), number) for number in range(50)]
    asked = [first(EdgeChoice(), number) for number in range(400)]
    assert all(60 < asked.count(node) < 140 for node, _ in NEAR)


def test_an_edge_that_goes_moves_only_its_own_contents() -> None:
    choice = EdgeChoice()
    left = NEAR[1:]
    for number in range(100):
        was = first(choice, number)
        now = choice.order(left, content(number), 0.0)[0]
        assert now == was or was == edge(0)


def test_one_that_mostly_misses_comes_after_the_others_and_is_not_waited_for() -> None:
    choice = EdgeChoice()
    node = first(choice, 1)
    for _ in range(20):
        choice.answered(node, 0.01, asked=10, hits=0)
    assert choice.order(NEAR, content(1), 0.0)[-1] == node
    assert choice.patience_s(node) == 0.0
    for _ in range(3):
        choice.answered(node, 0.01, asked=10, hits=10)
    assert first(choice, 1) == node  # it has come to have what is wanted
    assert choice.patience_s(node) == PATIENCE_S_MIN


def test_patience_follows_the_time_of_its_answers_within_bounds() -> None:
    choice = EdgeChoice()
    assert choice.patience_s(edge(1)) == PATIENCE_S_UNKNOWN
    choice.answered(edge(1), 0.1, asked=1, hits=1)
    assert choice.patience_s(edge(1)) == PATIENCE_FACTOR * 0.1
    choice.answered(edge(2), 30.0, asked=1, hits=1)
    assert choice.patience_s(edge(2)) == PATIENCE_S_MAX


def test_one_that_fails_is_left_alone_longer_each_time_and_forgiven_when_it_answers() -> None:
    choice = EdgeChoice()
    node = edge(1)
    for _ in range(8):
        choice.failed(node, 0.0)  # many requests of one moment
    assert not choice.is_usable(node, COOL_DOWN_S_MIN - 0.1)
    assert choice.is_usable(node, COOL_DOWN_S_MIN)
    choice.failed(node, COOL_DOWN_S_MIN)
    assert not choice.is_usable(node, 3 * COOL_DOWN_S_MIN - 0.1)
    choice.answered(node, 0.1, asked=1, hits=1)
    assert choice.is_usable(node, COOL_DOWN_S_MIN)


def test_a_flood_of_edges_does_not_wash_out_one_that_lied() -> None:
    choice = EdgeChoice()
    choice.lied(edge(0))
    for number in range(1, EDGES_MAX + 100):
        choice.answered(edge(number), 0.1, asked=1, hits=1)
    assert not choice.is_usable(edge(0), 1e9)
    assert len(choice._edges) == EDGES_MAX

"""The stripe read, event by event: what it decides in the situations that once went wrong."""

from __future__ import annotations

from dds.primitives.ids import NodeID
from dds.protocol.download import Cancel, Effect, Fetch, Ready, StripeRead, Stuck, Wanted


def node(number: int) -> NodeID:
    return NodeID(number.to_bytes(32, "big"))


def a_read(k: int, m: int, wanted: list[Wanted], holders: dict[int, list[NodeID]] | None = None) -> StripeRead:
    return StripeRead(k, m, wanted, holders or {index: [node(index)] for index in range(k + m)})


def fetches(effects: list[Effect]) -> list[Fetch]:
    return [effect for effect in effects if isinstance(effect, Fetch)]


def whole(k: int, size: int = 100) -> list[Wanted]:
    return [Wanted(slot, 0, size) for slot in range(k)]


def test_whoever_answers_directly_is_not_decoded() -> None:
    read = a_read(2, 1, whole(2))
    assert [f.index for f in fetches(read.start(0.0))] == [0, 1]
    assert read.arrived(0, 0.1) == []
    assert read.arrived(1, 0.1) == [Ready({0: 0, 1: 1}, (), 0, 0, {})]


def test_a_failed_slot_is_decoded_from_the_others_and_one_parity() -> None:
    read = a_read(2, 1, whole(2))
    read.start(0.0)
    assert [f.index for f in fetches(read.failed(0, "gone", 0.1))] == [2]
    read.arrived(1, 0.2)
    assert read.arrived(2, 0.2) == [Ready({1: 1}, (0,), 0, 100, {1: 1, 2: 2})]


def test_a_slow_request_that_arrives_after_all_saves_the_decoding() -> None:
    read = a_read(2, 2, whole(2))
    read.start(0.0)
    read.arrived(1, 0.1)
    assert len(fetches(read.tick(1.0, 0.5))) == 2
    assert read.slow_nodes() == {node(0)}
    assert read.arrived(0, 1.1) == [Cancel(2), Cancel(3), Ready({0: 0, 1: 1}, (), 0, 0, {})]


def test_a_hedge_asks_for_one_more_than_is_missing() -> None:
    """The one asked in a slow node's stead may be slow too, and a second hedge delay is what hurts."""
    read = a_read(10, 6, whole(10))
    read.start(0.0)
    for ticket in range(9):
        read.arrived(ticket, 0.1)
    assert [f.index for f in fetches(read.tick(1.0, 0.5))] == [10, 11]


def test_a_failure_asks_for_exactly_what_is_missing() -> None:
    read = a_read(10, 6, whole(10))
    read.start(0.0)
    assert len(fetches(read.failed(0, "gone", 0.1))) == 1


def test_a_wide_stripe_with_many_failures_still_finds_its_k() -> None:
    """Extra requests were capped at 64 for every geometry: 64 + 64 with one narrow slot wanted was called stuck."""
    read = a_read(64, 64, [Wanted(0, 0, 10)])
    effects = read.start(0.0)
    bad = {0, *range(64, 100)}
    while not read.over:
        fetch = fetches(effects).pop(0)
        rest = [effect for effect in effects if effect is not fetch]
        news = read.failed(fetch.ticket, "gone", 0.1) if fetch.index in bad else read.arrived(fetch.ticket, 0.1)
        effects = rest + news
    assert any(isinstance(effect, Ready) for effect in effects)


def test_a_holder_that_fails_over_the_wider_range_gives_way_to_the_next_holder() -> None:
    """It was asked again and again, because it had once answered for a narrower range; the next holder never was."""
    wanted = [Wanted(0, 0, 10), Wanted(1, 50, 60)]
    read = a_read(2, 1, wanted, {0: [node(0)], 1: [node(1), node(11)], 2: [node(2)]})
    read.start(0.0)
    read.arrived(1, 0.1)
    wide = fetches(read.failed(0, "gone", 0.2))
    assert [(f.index, f.node) for f in wide] == [(2, node(2)), (1, node(1))]
    read.arrived(wide[0].ticket, 0.3)
    again = fetches(read.failed(wide[1].ticket, "gone", 0.4))
    assert [(f.index, f.node, f.lo, f.hi) for f in again] == [(1, node(11), 0, 10)]
    assert isinstance(read.arrived(again[0].ticket, 0.5)[-1], Ready)


def test_an_index_that_is_here_and_on_its_way_counts_once() -> None:
    """A slow holder that answered while its substitute was in flight hid that one fragment was still missing."""
    wanted = [Wanted(0, 0, 10), Wanted(1, 0, 10)]
    read = a_read(2, 2, wanted, {0: [node(0)], 1: [node(1), node(11)], 2: [node(2)], 3: [node(3)]})
    read.start(0.0)
    hedged = fetches(read.tick(1.0, 0.5))
    assert [f.index for f in hedged] == [2, 3, 1]
    read.failed(hedged[0].ticket, "gone", 1.1)
    read.failed(hedged[1].ticket, "gone", 1.1)
    read.arrived(1, 1.2)
    assert not read.over
    assert isinstance(read.arrived(0, 1.3)[-1], Ready)


def test_two_distant_columns_are_asked_for_once_and_not_step_by_step() -> None:
    wanted = [Wanted(slot, 10 * slot, 10 * slot + 10) for slot in range(4)]
    read = a_read(4, 4, wanted)
    read.start(0.0)
    asked = [f for slot in range(4) for f in fetches(read.failed(slot, "gone", 0.1))]
    ranges = {(f.lo, f.hi) for f in asked}
    assert ranges == {(0, 10), (0, 40)}


def test_a_broken_connection_is_tried_once_more_before_giving_up() -> None:
    read = a_read(1, 1, whole(1))
    first = fetches(read.start(0.0))
    second = fetches(read.failed(first[0].ticket, "reset", 0.1))
    third = fetches(read.failed(second[0].ticket, "reset", 0.2))
    assert [f.index for f in third] == [1]
    last = read.failed(third[0].ticket, "reset", 0.3)
    assert [f.index for f in fetches(last)] == [0]
    assert read.failed(fetches(last)[0].ticket, "reset", 0.4) == [
        Stuck(0, 1, {0: [(node(0), "reset")] * 2, 1: [(node(1), "reset")] * 2})
    ]


def test_who_hung_is_not_tried_again() -> None:
    read = a_read(1, 0, whole(1))
    read.start(0.0)
    assert read.tick(1.0, 0.5) == []
    assert read.failed(0, "timed out", 30.0) == [Stuck(0, 1, {0: [(node(0), "timed out")]})]


def test_wrong_bytes_found_after_arrival_are_decoded_around() -> None:
    read = a_read(2, 1, whole(2))
    read.start(0.0)
    read.arrived(0, 0.1)
    assert [f.index for f in fetches(read.failed(0, "wrong bytes", 0.2))] == [2]
    read.arrived(1, 0.3)
    assert read.arrived(2, 0.3) == [Ready({1: 1}, (0,), 0, 100, {1: 1, 2: 2})]


def test_doubtful_holders_are_asked_last() -> None:
    read = StripeRead(2, 2, whole(2), {index: [node(index)] for index in range(4)}, doubtful=frozenset({0, 2}))
    assert [f.index for f in fetches(read.start(0.0))] == [1, 3]
    assert [f.index for f in fetches(read.failed(1, "gone", 0.1))] == [2]


def test_a_stripe_nobody_holds_is_stuck_at_once() -> None:
    read = StripeRead(2, 1, whole(2), {})
    assert read.start(0.0) == [Stuck(0, 2, {0: [], 1: [], 2: []})]


def test_stuck_names_only_what_did_not_come() -> None:
    read = a_read(2, 1, whole(2))
    read.start(0.0)
    read.arrived(1, 0.1)
    read.tick(1.0, 0.5)
    read.failed(0, "timed out", 30.0)
    read.tick(31.0, 0.5)
    stuck = read.failed(2, "timed out", 60.0)
    assert stuck == [Stuck(1, 2, {0: [(node(0), "timed out")], 2: [(node(2), "timed out")]})]


def test_what_is_at_hand_is_not_asked_for() -> None:
    read = a_read(2, 1, whole(2))
    assert read.offer(0, node(7), 0, 100) == 0
    assert read.offer(2, node(8), 0, 50) == 1
    assert [f.index for f in fetches(read.start(0.0))] == [1]
    assert read.arrived(2, 0.1) == [Ready({0: 0, 1: 2}, (), 0, 0, {})]


def test_a_fragment_at_hand_serves_for_decoding_over_its_own_columns_only() -> None:
    read = a_read(2, 1, [Wanted(0, 0, 50), Wanted(1, 0, 100)])
    read.offer(2, node(8), 0, 50)
    first, second = fetches(read.start(0.0))
    read.arrived(second.ticket, 0.1)
    assert read.failed(first.ticket, "gone", 0.2) == [Ready({1: 2}, (0,), 0, 50, {2: 0, 1: 2})]


def test_nothing_wanted_is_ready_at_once() -> None:
    assert a_read(2, 1, []).start(0.0) == [Ready({}, (), 0, 0, {})]

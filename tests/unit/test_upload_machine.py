"""The upload machine, event by event: what it decides in the situations that once went wrong."""

from __future__ import annotations

from dds.primitives.ids import NodeID
from dds.protocol.upload import (
    LAST_CHANCE_PAUSE_S,
    STRAGGLER_S_MAX,
    STRAGGLER_S_MIN,
    Abandon,
    Commit,
    Effect,
    Enough,
    Failed,
    Failure,
    Finished,
    SegmentUpload,
    Send,
    Settled,
    enough_receipts,
)


def node(number: int) -> NodeID:
    return NodeID(number.to_bytes(32, "big"))


def an_upload(n: int, spares: int = 0) -> SegmentUpload:
    return SegmentUpload([node(i) for i in range(n)], [node(100 + i) for i in range(spares)])


def sends(effects: list[Effect]) -> list[tuple[int, NodeID, int]]:
    return [(effect.index, effect.node, effect.stripe) for effect in effects if isinstance(effect, Send)]


def answer_all(machine: SegmentUpload, effects: list[Effect], now: float, but: frozenset[NodeID] = frozenset()) -> list[Effect]:
    """Acknowledge every send and commit, and what follows from that, except those to `but`; returns the other effects."""
    rest: list[Effect] = []
    todo = list(effects)
    while todo:
        match todo.pop(0):
            case Send(index, to, stripe) if to not in but:
                todo += machine.staged(index, to, stripe, now)
            case Commit(index, to) if to not in but:
                todo += machine.committed_by(index, to, now)
            case other:
                rest.append(other)
    return rest


def test_a_plain_upload_settles_its_stripes_and_finishes_with_the_chosen() -> None:
    machine = an_upload(3)
    assert answer_all(machine, machine.stripe_ready(0, 3, 0.0), 0.1) == [Settled(0)]
    assert answer_all(machine, machine.all_ready(0.2), 0.3) == [Finished((node(0), node(1), node(2)))]
    assert machine.over
    assert machine.committed() == 3


def test_a_lane_has_one_fragment_in_flight_until_answers_are_known_to_be_quick_and_two_then() -> None:
    machine = an_upload(1)
    effects = [effect for stripe in range(5) for effect in machine.stripe_ready(stripe, 1, 0.0)]
    assert sends(effects) == [(0, node(0), 0)]
    assert sends(machine.staged(0, node(0), 0, 0.1)) == [(0, node(0), 1), (0, node(0), 2)]


def test_on_a_slow_link_nothing_is_sent_ahead() -> None:
    machine = an_upload(1)
    for stripe in range(5):
        machine.stripe_ready(stripe, 1, 0.0)
    assert sends(machine.staged(0, node(0), 0, 20.0)) == [(0, node(0), 1)]


def test_the_straggler_limit_of_a_single_lane_is_defined_before_any_answer() -> None:
    """It took the median of nothing."""
    assert an_upload(1).straggler_s() == STRAGGLER_S_MAX / 2
    assert an_upload(1, 1).tick(100.0) == []


def test_nothing_follows_the_end() -> None:
    machine = an_upload(2)
    machine.stripe_ready(0, 2, 0.0)
    machine.failed(0, node(0), Failure.REFUSED, 0.1)
    assert machine.over
    assert machine.stripe_ready(1, 2, 0.2) == []
    assert machine.all_ready(0.3) == []
    assert machine.failed(1, node(1), Failure.REFUSED, 0.4) == []
    assert machine.tick(99.0) == []


def test_a_failure_names_only_the_index_that_has_no_node() -> None:
    """Lanes that merely had nothing in flight were called missing."""
    machine = an_upload(3)
    answer_all(machine, machine.stripe_ready(0, 3, 0.0), 0.1, but=frozenset({node(2)}))
    effects = machine.failed(2, node(2), Failure.REFUSED, 0.2)
    assert effects[-1] == Failed((2,), {node(2): Failure.REFUSED})


def test_a_spare_takes_the_unsettled_stripes_first() -> None:
    """What the others wait for goes out before what only this node lacks, so that the window moves on at once."""
    machine = an_upload(2, 1)
    for stripe in range(3):
        answer_all(machine, machine.stripe_ready(stripe, 2, 0.0), 0.1)
    answer_all(machine, machine.stripe_ready(3, 2, 0.2), 0.3, but=frozenset({node(1)}))
    effects = machine.failed(1, node(1), Failure.UNREACHABLE, 0.4)
    assert effects[0] == Abandon(1, node(1), Failure.UNREACHABLE)
    assert sends(effects) == [(1, node(100), 3), (1, node(100), 0)]
    assert Settled(3) in machine.staged(1, node(100), 3, 0.5)


def test_a_straggler_is_replaced_once_others_have_answered() -> None:
    machine = an_upload(6, 1)
    answer_all(machine, machine.stripe_ready(0, 6, 0.0), 0.1, but=frozenset({node(5)}))
    assert machine.tick(STRAGGLER_S_MIN - 0.1) == []
    effects = machine.tick(STRAGGLER_S_MIN + 0.1)
    assert effects == [Abandon(5, node(5), Failure.SLOW), Send(5, node(100), 0)]


def test_making_a_fragment_again_is_not_the_nodes_delay() -> None:
    """A spare's fragments were encoded again one after the other; the wait was held against its node, and the next spare had
    even more to wait for."""
    machine = an_upload(6, 2)
    answer_all(machine, machine.stripe_ready(0, 6, 0.0), 0.1, but=frozenset({node(5)}))
    assert sends(machine.tick(STRAGGLER_S_MIN + 0.1)) == [(5, node(100), 0)]
    machine.preparing(5, node(100), 0)
    assert machine.tick(60.0) == []
    machine.departed(5, node(100), 0, 60.0)
    assert machine.tick(60.0 + STRAGGLER_S_MIN - 0.1) == []
    assert sends(machine.tick(60.0 + STRAGGLER_S_MIN + 0.1)) == [(5, node(101), 0)]


def test_when_every_lane_is_late_nobody_is_replaced() -> None:
    """One tick used to hand every lane's node to the next lane, all of them starting again from the first stripe."""
    machine = an_upload(6, 3)
    machine.stripe_ready(0, 6, 0.0)
    assert machine.tick(STRAGGLER_S_MAX * 3) == []


def test_on_a_slow_link_the_limit_follows_what_requests_take() -> None:
    """Capped at ten seconds, a home link whose fair share takes longer would have restarted every lane."""
    machine = an_upload(4, 2)
    answer_all(machine, machine.stripe_ready(0, 4, 0.0), 26.0)
    assert machine.straggler_s() >= 2 * 26.0


def test_false_stragglers_do_not_use_up_a_small_network() -> None:
    """A node was dropped for good when it had been slow three times, so jitter alone could fail an upload."""
    machine = an_upload(3, 1)
    machine.stripe_ready(0, 3, 0.0)
    now, slow = 0.0, 0
    for index in (0, 1):
        answer_all(machine, [Send(index, machine.holders[index], 0)], 0.01)
    for _ in range(50):
        now += 20.0
        slow += any(isinstance(effect, Abandon) for effect in machine.tick(now))
    assert slow > 2
    refused = machine.failed(2, machine.holders[2], Failure.REFUSED, now)
    assert not any(isinstance(effect, Failed) for effect in refused)


def test_one_tick_never_hands_a_straggler_its_own_lane_back() -> None:
    machine = an_upload(3, 1)
    answer_all(machine, machine.stripe_ready(0, 3, 0.0), 0.01, but=frozenset({node(2)}))
    effects = machine.tick(10.0)
    assert [effect.node for effect in effects if isinstance(effect, Abandon)] == [node(2)]
    assert sends(effects) == [(2, node(100), 0)]


def test_a_broken_connection_gets_a_second_chance_when_nobody_else_is_left() -> None:
    machine = an_upload(2)
    machine.stripe_ready(0, 2, 0.0)
    effects = machine.failed(0, node(0), Failure.UNREACHABLE, 0.1)
    assert effects == [Abandon(0, node(0), Failure.UNREACHABLE), Send(0, node(0), 0)]


def test_the_last_chance_comes_after_a_pause_and_is_the_last() -> None:
    """Nodes that were slow to accept a connection had both their chances used up within one busy spell."""
    machine = an_upload(2)
    machine.stripe_ready(0, 2, 0.0)
    machine.failed(0, node(0), Failure.UNREACHABLE, 5.0)
    assert machine.failed(0, node(0), Failure.SLOW, 10.0) == [Abandon(0, node(0), Failure.SLOW)]
    assert machine.stripe_ready(1, 2, 10.1) == []
    assert machine.tick(10.0 + LAST_CHANCE_PAUSE_S - 0.1) == []
    assert sends(machine.tick(10.0 + LAST_CHANCE_PAUSE_S)) == [(0, node(0), 0)]
    assert isinstance(machine.failed(0, node(0), Failure.UNREACHABLE, 20.0)[-1], Failed)


def test_who_refused_or_lied_gets_no_last_chance() -> None:
    for why in (Failure.REFUSED, Failure.BROKEN):
        machine = an_upload(2)
        machine.stripe_ready(0, 2, 0.0)
        machine.failed(0, node(0), Failure.UNREACHABLE, 5.0)
        assert isinstance(machine.failed(0, node(0), why, 5.1)[-1], Failed)


def test_a_spare_that_answers_is_not_kept_waiting_for_a_last_chance() -> None:
    machine = an_upload(2, 1)
    machine.stripe_ready(0, 2, 0.0)
    assert sends(machine.failed(0, node(0), Failure.UNREACHABLE, 5.0)) == [(0, node(100), 0)]
    assert sends(machine.failed(1, node(1), Failure.UNREACHABLE, 5.0)) == [(1, node(0), 0)]


def test_a_lane_that_rests_does_not_keep_the_others_from_their_commits() -> None:
    machine = an_upload(2)
    machine.stripe_ready(0, 2, 0.0)
    machine.failed(0, node(0), Failure.UNREACHABLE, 0.1)
    machine.failed(0, node(0), Failure.UNREACHABLE, 0.2)
    machine.staged(1, node(1), 0, 0.3)
    assert machine.all_ready(0.4) == [Commit(1, node(1))]
    machine.committed_by(1, node(1), 0.5)
    assert answer_all(machine, machine.tick(0.2 + LAST_CHANCE_PAUSE_S), 4.0) == [Settled(0), Finished((node(0), node(1)))]


def test_a_failed_node_never_relieves_a_straggler() -> None:
    """A slow node that answers in the end is better than one that is gone."""
    machine = an_upload(4, 1)
    answer_all(machine, machine.stripe_ready(0, 4, 0.0), 0.01, but=frozenset({node(2), node(3)}))
    answer_all(machine, machine.failed(3, node(3), Failure.UNREACHABLE, 0.02), 0.03)
    assert machine.tick(30.0) == []


def test_who_was_replaced_while_committing_gets_another_index_last() -> None:
    """It may hold the first one by now; with two, one node's loss would cost two fragments."""
    machine = an_upload(3, 3)
    answer_all(machine, machine.stripe_ready(0, 3, 0.0), 0.01)
    answer_all(machine, machine.all_ready(0.02), 0.03, but=frozenset({node(0), node(1)}))
    effects = machine.tick(10.0)
    assert [effect.node for effect in effects if isinstance(effect, Send)] == [node(100), node(101)]
    assert sends(machine.failed(0, node(100), Failure.REFUSED, 10.1)) == [(0, node(102), 0)]
    assert sends(machine.failed(1, node(101), Failure.REFUSED, 10.2)) == [(1, node(1), 0)]


def test_late_news_of_a_replaced_node_is_ignored() -> None:
    machine = an_upload(2, 1)
    machine.stripe_ready(0, 2, 0.0)
    machine.failed(0, node(0), Failure.REFUSED, 0.1)
    assert machine.staged(0, node(0), 0, 0.2) == []
    assert machine.committed_by(0, node(0), 0.2) == []
    assert machine.failed(0, node(0), Failure.BROKEN, 0.2) == []
    assert machine.holders == (node(100), node(1))


def test_enough_is_told_once_at_its_count_and_the_rest_goes_on() -> None:
    machine = SegmentUpload([node(i) for i in range(6)], [], enough=4)
    silent = frozenset({node(1), node(5)})
    answer_all(machine, machine.stripe_ready(0, 6, 0.0), 0.1)
    told = answer_all(machine, machine.all_ready(0.2), 0.3, but=silent)
    assert Enough((node(0), node(2), node(3), node(4))) in told
    assert not machine.over
    assert answer_all(machine, machine.committed_by(1, node(1), 0.4), 0.4) == []
    assert machine.committed_by(5, node(5), 0.5) == [Finished(tuple(node(i) for i in range(6)))]


def test_lanes_that_need_not_finish_hold_up_no_stripe() -> None:
    """With two of sixteen nodes hung and no spare, the window stood still and the fast acknowledgement never came."""
    machine = SegmentUpload([node(i) for i in range(6)], [], enough=4)
    told = answer_all(machine, machine.stripe_ready(0, 6, 0.0), 0.1, but=frozenset({node(0), node(1)}))
    assert Settled(0) in told
    told = answer_all(machine, machine.stripe_ready(1, 6, 0.2), 0.3, but=frozenset({node(0), node(1), node(2)}))
    assert Settled(1) not in told


def test_a_lane_without_a_node_lets_the_others_commit_before_the_upload_fails() -> None:
    """It ended at once, fourteen of sixteen receipts short of nothing but an answer."""
    machine = SegmentUpload([node(i) for i in range(4)], [], enough=3)
    answer_all(machine, machine.stripe_ready(0, 4, 0.0), 0.1, but=frozenset({node(2)}))
    assert machine.failed(2, node(2), Failure.REFUSED, 0.2) == [Abandon(2, node(2), Failure.REFUSED)]
    assert sends(machine.stripe_ready(1, 4, 0.3)) == [(0, node(0), 1), (1, node(1), 1), (3, node(3), 1)]
    for index in (0, 1, 3):
        machine.staged(index, node(index), 1, 0.4)
    told = answer_all(machine, machine.all_ready(0.5), 0.6)
    assert told == [Enough((node(0), node(1), node(3))), Failed((2,), {node(2): Failure.REFUSED})]
    assert machine.over


def test_more_lanes_without_a_node_than_may_be_missing_end_it_at_once() -> None:
    machine = SegmentUpload([node(i) for i in range(4)], [], enough=3)
    machine.stripe_ready(0, 4, 0.0)
    machine.failed(2, node(2), Failure.REFUSED, 0.2)
    assert machine.failed(1, node(1), Failure.REFUSED, 0.3)[-1] == Failed(
        (1, 2), {node(1): Failure.REFUSED, node(2): Failure.REFUSED}
    )


def test_enough_receipts_survive_two_thirds_of_the_parity() -> None:
    assert [enough_receipts(k + m, m) for k, m in ((10, 6), (10, 10), (16, 16), (1, 6), (4, 1), (3, 2))] == [
        14,
        17,
        27,
        5,
        5,
        5,
    ]

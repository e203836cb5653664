"""Reads among faulty holders, seeded: ready whenever k fragments can be had, stuck only when not, never for long."""

from __future__ import annotations

from random import Random

import pytest

from dds.protocol.download import Ready, Stuck, Wanted
from dds.sim.download_run import Reader, ReadPlan, ReadReport, holders_of
from dds.sim.nodes import Fault, Latency, SimNode, break_nodes, network

FAULTS = [fault for fault in Fault if fault is not Fault.NONE]
JITTER = Latency(usual_s=0.05, spread=1.0, tail_chance=0.05, tail_s=4.0)
GEOMETRIES = ((10, 6), (10, 6), (1, 6), (1, 1), (2, 1), (6, 6), (16, 16), (20, 12))
TRANSFER_S = 0.08  # more than any healthy request below takes


def a_reader(rng: Random, nodes: list[SimNode], plan: ReadPlan, extra: float = 0.0) -> Reader:
    holders = holders_of(rng, nodes, plan.k + plan.m, extra)
    return Reader({node.node_id: node for node in nodes}, holders, plan)


def a_range(rng: Random, plan: ReadPlan) -> list[Wanted]:
    """What a byte range needs of a stripe: whole slots, or the end of one, some whole ones and the beginning of one."""
    first = rng.randrange(plan.k)
    last = rng.randrange(first, plan.k)
    size = plan.slot_bytes
    lo, hi = rng.choice(((0, size), (rng.randrange(size), size), (0, rng.randrange(1, size))))
    if first == last:
        return [Wanted(first, lo, hi)]
    middle = [Wanted(slot, 0, size) for slot in range(first + 1, last)]
    return [Wanted(first, lo, size), *middle, Wanted(last, 0, rng.randrange(1, size))]


def scattered(rng: Random, plan: ReadPlan) -> list[Wanted]:
    """Any columns of any slots, as many small files packed into a stripe are read."""
    slots = rng.sample(range(plan.k), rng.randrange(1, plan.k + 1))
    ranges = [sorted(rng.sample(range(plan.slot_bytes + 1), 2)) for _ in slots]
    return [Wanted(slot, lo, hi) for slot, (lo, hi) in zip(slots, ranges, strict=True)]


def some_wants(rng: Random, reader: Reader) -> list[Wanted]:
    return rng.choice((reader.whole(), a_range(rng, reader.plan), scattered(rng, reader.plan)))


def some_plan(rng: Random) -> ReadPlan:
    k, m = rng.choice(GEOMETRIES)
    return ReadPlan(k, m, hedge_s=rng.choice((None, None, 0.1, 1.0)), timeout_s=rng.choice((5.0, 30.0)))


@pytest.mark.seeds(200)
def test_a_stripe_is_ready_whenever_at_most_m_holders_are_bad(seed: int) -> None:
    rng = Random(seed)
    plan = some_plan(rng)
    nodes = network(rng, plan.k + plan.m, rng.choice((Latency(), JITTER)))
    for node in rng.sample(nodes, rng.randrange(plan.m + 1)):
        break_nodes(rng, [node], rng.choice(FAULTS))
    reader = a_reader(rng, nodes, plan, rng.choice((0.0, 0.5)))
    for _ in range(3):
        assert isinstance(reader.read(some_wants(rng, reader)).outcome, Ready)


@pytest.mark.seeds(200)
def test_a_stripe_with_more_bad_holders_is_stuck_only_when_fewer_than_k_can_be_had(seed: int) -> None:
    """`Reader` checks every `Stuck` against the truth."""
    rng = Random(seed)
    plan = some_plan(rng)
    nodes = network(rng, plan.k + plan.m + rng.randrange(4))
    for node in rng.sample(nodes, min(len(nodes), plan.m + 1 + rng.randrange(4))):
        break_nodes(rng, [node], rng.choice(FAULTS))
    reader = a_reader(rng, nodes, plan, rng.choice((0.0, 0.5, 1.0)))
    for _ in range(2):
        report = reader.read(some_wants(rng, reader))
        assert report.seconds < 5 * plan.timeout_s


@pytest.mark.seeds(60)
def test_what_earlier_reads_brought_is_used_and_never_asked_for(seed: int) -> None:
    rng = Random(seed)
    plan = some_plan(rng)
    nodes = network(rng, plan.k + plan.m)
    reader = a_reader(rng, nodes, plan)
    here = rng.sample(range(plan.k + plan.m), rng.randrange(1, plan.k + plan.m))
    for index in here:  # whoever holds it elsewhere is gone
        reader.nodes[reader.holders[index][0]].fault = Fault.DEAD
    wanted = some_wants(rng, reader)
    report = reader.read(wanted, [(index, 0, plan.slot_bytes) for index in here])
    assert isinstance(report.outcome, Ready)
    at_hand = sum(want.slot in here or plan.k == 1 for want in wanted)
    assert report.requests == len(wanted) - at_hand


@pytest.mark.seeds(30)
def test_dead_holders_beyond_m_make_it_stuck_at_once(seed: int) -> None:
    rng = Random(seed)
    plan = ReadPlan(hedge_s=1.0)
    nodes = network(rng, 16)
    for node in rng.sample(nodes, 7):
        node.fault = Fault.DEAD
    reader = a_reader(rng, nodes, plan)
    report = reader.read(reader.whole())
    assert isinstance(report.outcome, Stuck)
    assert report.outcome.have == 9
    assert {node for rows in report.outcome.tried.values() for node, _ in rows} == {
        n.node_id for n in nodes if n.fault is Fault.DEAD
    }
    assert report.seconds < 3 * TRANSFER_S


@pytest.mark.seeds(30)
def test_a_healthy_read_asks_each_wanted_slot_once_and_decodes_nothing(seed: int) -> None:
    rng = Random(seed)
    reader = a_reader(rng, network(rng, 16), ReadPlan())
    wanted = some_wants(rng, reader)
    report = reader.read(wanted)
    assert isinstance(report.outcome, Ready)
    assert (report.requests, report.outcome.missing, report.outcome.sources) == (len(wanted), (), {})


def paused(rng: Random, data: int, parity: int, hedge_s: float) -> ReadReport:
    """A whole stripe of 10 + 6 while so many of its data and parity holders are stopped for good."""
    nodes = network(rng, 16, Latency(usual_s=0.02, spread=0.2))
    reader = Reader({n.node_id: n for n in nodes}, {i: [n.node_id] for i, n in enumerate(nodes)}, ReadPlan(hedge_s=hedge_s))
    for index in [*rng.sample(range(10), data), *rng.sample(range(10, 16), parity)]:
        nodes[index].fault, nodes[index].from_s = Fault.HANGS, rng.choice((0.0, 0.01))
    report = reader.read(reader.whole())
    assert isinstance(report.outcome, Ready)
    return report


@pytest.mark.parametrize("data", range(7))
@pytest.mark.seeds(8)
def test_six_of_sixteen_paused_cost_one_hedge_and_two_transfers(seed: int, data: int) -> None:
    """A second hedge only where most of the six are parity, and all of those asked first happen to be among them."""
    report = paused(Random(seed), data, 6 - data, hedge_s=0.5)
    hedges = 0 if data == 0 else 1 if data >= 3 else 2
    assert report.seconds <= hedges * 0.55 + 2 * TRANSFER_S + 0.1
    assert report.requests <= 16


@pytest.mark.seeds(20)
def test_a_reader_waits_for_paused_nodes_in_one_stripe_and_reads_around_them_in_the_next(seed: int) -> None:
    rng = Random(seed)
    nodes = network(rng, 16)
    break_nodes(rng, rng.sample(nodes, 6), Fault.HANGS)
    for node in nodes:
        node.from_s = 0.2
    reader = a_reader(rng, nodes, ReadPlan())
    seconds = [reader.read(reader.whole()).seconds for _ in range(40)]
    assert sum(seconds) < 40 * TRANSFER_S + 2 * 1.1
    assert max(seconds[-10:]) < 2 * TRANSFER_S


@pytest.mark.seeds(20)
def test_holders_that_resume_serve_again(seed: int) -> None:
    rng = Random(seed)
    nodes = network(rng, 16)
    bad = rng.sample(nodes, 6)
    for node in bad:
        node.fault, node.from_s, node.until_s = Fault.PAUSES, 0.1, 2.0
    reader = a_reader(rng, nodes, ReadPlan(hedge_s=0.3))
    while reader.clock.now < 150.0:
        reader.read(reader.whole())
        reader.clock.now += 5.0
    last = reader.read(reader.whole())
    assert isinstance(last.outcome, Ready)
    assert (last.requests, last.outcome.missing) == (10, ())


@pytest.mark.seeds(20)
def test_one_passing_break_of_every_connection_does_not_fail_a_read(seed: int) -> None:
    rng = Random(seed)
    nodes = network(rng, 16)
    for node in nodes:
        node.fault, node.from_s = Fault.DEAD, 0.01
    reader = a_reader(rng, nodes, ReadPlan())

    def restart() -> None:
        for node in nodes:
            node.fault = Fault.NONE

    reader.clock.at(0.011, restart)
    assert isinstance(reader.read(reader.whole()).outcome, Ready)


@pytest.mark.seeds(5)
def test_a_seed_replays_a_read_exactly(seed: int) -> None:
    def play() -> ReadReport:
        rng = Random(seed)
        nodes = network(rng, 16, JITTER)
        break_nodes(rng, rng.sample(nodes, 5), Fault.FLAKY)
        reader = a_reader(rng, nodes, ReadPlan())
        return reader.read(reader.whole())

    assert play() == play()

"""Uploads among faulty nodes, seeded: they end, they finish when they can, and what they call finished is so."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from dds.protocol.upload import STRAGGLER_S_MIN, Failed, Failure, Finished, enough_receipts
from dds.sim.nodes import Fault, Latency, SimNode, break_nodes, network
from dds.sim.upload_run import TICK_S, UploadPlan, UploadReport, UploadRun

FAULTS = [fault for fault in Fault if fault is not Fault.NONE]
JITTER = Latency(usual_s=0.05, spread=1.0, tail_chance=0.05, tail_s=4.0)


def upload(nodes: list[SimNode], n: int, rng: Random, plan: UploadPlan | None = None) -> UploadReport:
    """The first n nodes are chosen, the rest are spares."""
    ids = [node.node_id for node in nodes]
    return UploadRun({node.node_id: node for node in nodes}, ids[:n], ids[n:], plan or UploadPlan(), rng).run()


def some_plan(rng: Random) -> UploadPlan:
    return UploadPlan(
        stripes=rng.choice((1, 1, 2, 5, 12)),
        fragment_bytes=rng.choice((4096, 1 << 20)),
        window=rng.choice((1, 2, 4)),
        encode_s=rng.choice((0.001, 0.05)),
        timeout_s=rng.choice((5.0, 30.0)),
    )


@pytest.mark.seeds(150)
def test_an_upload_finishes_whenever_no_more_nodes_are_bad_than_there_are_spares(seed: int) -> None:
    rng = Random(seed)
    n, spares = rng.choice((1, 2, 3, 7, 12, 16)), rng.randrange(9)
    nodes = network(rng, n + spares, rng.choice((Latency(), JITTER)))
    for node in rng.sample(nodes, rng.randrange(spares + 1)):
        break_nodes(rng, [node], rng.choice(FAULTS))
    assert isinstance(upload(nodes, n, rng, some_plan(rng)).outcome, Finished)


@pytest.mark.seeds(100)
def test_an_upload_with_more_bad_nodes_than_spares_still_ends_and_a_failure_gives_reasons(seed: int) -> None:
    rng = Random(seed)
    n, spares = rng.choice((1, 2, 3, 7, 16)), rng.randrange(5)
    nodes = network(rng, n + spares, rng.choice((Latency(), JITTER)))
    bad = rng.sample(nodes, rng.randrange(spares + 1, n + spares + 1))
    for node in bad:
        break_nodes(rng, [node], rng.choice(FAULTS))
    report = upload(nodes, n, rng, some_plan(rng))
    if isinstance(report.outcome, Failed):
        failed = {node for node, why in report.outcome.reasons.items() if why is not Failure.SLOW}
        assert failed <= {node.node_id for node in bad}
    assert report.seconds < 600


@pytest.mark.seeds(60)
def test_small_networks_with_heavy_jitter_never_fail_for_false_stragglers(seed: int) -> None:
    rng = Random(seed)
    n, spares = rng.choice((2, 3, 7, 12, 16)), rng.randrange(5)
    report = upload(network(rng, n + spares, JITTER), n, rng, replace(some_plan(rng), stripes=6))
    assert isinstance(report.outcome, Finished)
    assert report.seconds < 60


@pytest.mark.parametrize("fault", [Fault.HANGS, Fault.DRIPS, Fault.PAUSES, Fault.SLOW, Fault.DEAD])
@pytest.mark.seeds(12)
def test_slow_nodes_cost_at_most_the_straggler_limit_and_one_lanes_resend(seed: int, fault: Fault) -> None:
    """Four that begin at once cost no more than one; four that begin one after another are found one after another."""

    def play(bad: int, *, at_once: bool = True) -> UploadReport:
        rng = Random(seed)
        nodes = network(rng, 24)
        broken = rng.sample(nodes[:16], bad)
        break_nodes(rng, broken, fault, within_s=0.3)
        for node in broken if at_once else []:
            node.from_s, node.factor = broken[0].from_s, broken[0].factor
        return upload(nodes, 16, rng, UploadPlan(stripes=24))

    healthy = play(0)
    one_wave_s = STRAGGLER_S_MIN + 24 * 0.03 + 2 * TICK_S
    for slow, waves in ((play(1), 1), (play(4), 1), (play(4, at_once=False), 4)):
        assert isinstance(slow.outcome, Finished)
        assert slow.seconds <= healthy.seconds + waves * one_wave_s


@pytest.mark.parametrize("factor", [3.0, 5.0, 10.0, 50.0])
@pytest.mark.seeds(6)
def test_a_node_that_answers_steadily_but_slowly_does_not_set_the_pace(seed: int, factor: float) -> None:
    """Each answer comes before the straggler limit, yet sixty-four of them would hold up the upload for half a minute."""

    def play(bad: int) -> UploadReport:
        rng = Random(seed)
        nodes = network(rng, 24, Latency(usual_s=0.02, spread=0.1))
        for node in nodes[:bad]:
            node.fault, node.factor = Fault.SLOW, factor
        return upload(nodes, 16, rng, UploadPlan(stripes=64))

    healthy, slow = play(0), play(1)
    assert slow.seconds <= healthy.seconds + 1.5 * STRAGGLER_S_MIN + 64 * 0.03


@pytest.mark.seeds(6)
def test_a_slow_home_link_is_not_blamed_on_the_nodes(seed: int) -> None:
    rng = Random(seed)
    plan = UploadPlan(stripes=3, uplink_bytes_per_s=1.25e6, timeout_s=120.0)
    report = upload(network(rng, 20), 16, rng, plan)
    assert isinstance(report.outcome, Finished)
    assert report.replaced == ()
    assert report.seconds < 1.05 * (16 * 3 << 20) / 1.25e6 + 2.0


@pytest.mark.parametrize("outage_s", [2.0, 8.0, 25.0])
@pytest.mark.seeds(6)
def test_an_outage_of_our_own_link_does_not_use_up_the_nodes(seed: int, outage_s: float) -> None:
    rng = Random(seed)
    begin = 0.3 + rng.random()
    plan = UploadPlan(stripes=12, uplink_bytes_per_s=1e8, outage_s=(begin, begin + outage_s))
    report = upload(network(rng, 17), 16, rng, plan)
    assert isinstance(report.outcome, Finished)
    assert len(report.replaced) < 16
    assert report.seconds < begin + outage_s + 6.0


def test_a_healthy_upload_sends_every_fragment_exactly_once() -> None:
    report = upload(network(Random(1), 24), 16, Random(1), UploadPlan(stripes=64))
    assert (report.sends, report.replaced) == (16 * 64, ())


@pytest.mark.seeds(5)
def test_a_seed_replays_an_upload_exactly(seed: int) -> None:
    def play() -> UploadReport:
        rng = Random(seed)
        nodes = network(rng, 20, JITTER)
        break_nodes(rng, nodes[3:6], Fault.FLAKY)
        return upload(nodes, 16, rng)

    assert play() == play()


@pytest.mark.parametrize("fault", [Fault.HANGS, Fault.DRIPS, Fault.DEAD, Fault.REFUSES])
@pytest.mark.seeds(8)
def test_two_nodes_too_few_do_not_keep_the_fast_acknowledgement_from_coming(seed: int, fault: Fault) -> None:
    """Twenty nodes, six of them bad: fourteen of sixteen lanes commit although the last two find no node."""
    rng = Random(seed)
    nodes = network(rng, 20)
    break_nodes(rng, rng.sample(nodes, 6), fault, within_s=0.0)
    report = upload(nodes, 16, rng, UploadPlan(stripes=12, enough=enough_receipts(16, 6)))
    assert isinstance(report.outcome, Failed)  # what is missing is for another try
    assert len(report.outcome.missing) == 2
    assert report.enough_s is not None
    assert report.enough_s < 40.0


@pytest.mark.seeds(60)
def test_a_fast_acknowledgement_never_comes_after_the_end_nor_without_its_holders(seed: int) -> None:
    rng = Random(seed)
    n, spares = rng.choice((2, 3, 7, 12, 16)), rng.randrange(9)
    nodes = network(rng, n + spares, rng.choice((Latency(), JITTER)))
    for node in rng.sample(nodes, rng.randrange(spares + 1)):
        break_nodes(rng, [node], rng.choice(FAULTS))
    report = upload(nodes, n, rng, replace(some_plan(rng), enough=enough_receipts(n, n // 2)))
    assert isinstance(report.outcome, Finished)
    assert report.enough_s is not None and report.enough_s <= report.seconds


@pytest.mark.seeds(20)
def test_nodes_that_are_slow_to_accept_connections_for_a_while_do_not_fail_an_upload(seed: int) -> None:
    """Seven of twenty on a busy machine: each had two chances, and both were used up within the same twenty seconds."""
    rng = Random(seed)
    nodes = network(rng, 20, Latency(usual_s=1.5))  # so that nobody counts as a straggler before a connection times out
    for slow in rng.sample(nodes, 7):
        slow.fault, slow.until_s = Fault.BUSY, 20.0 + 5.0 * rng.random()
    report = upload(nodes, 16, rng, UploadPlan(stripes=rng.choice((1, 6))))
    assert isinstance(report.outcome, Finished)
    assert report.seconds < 60

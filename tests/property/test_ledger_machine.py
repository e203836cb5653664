"""The whole ledger at random: every kind of transaction, good and broken, through epochs, pauses and slashes.

`ledger_moves.py` chooses what is done by looking at the state, `ledger_watch.py` checks every transaction, block and epoch
against models of its own. A failure names its seed, or the steps to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from dds.ledger.machine import RULES
from dds.ledger.params import Params
from dds.ledger.rules import emission, holding, inventory, retrieval, settlement, sponsors, witnesses
from tests.ledger_moves import MOVES, act, audit_round, next_epoch, pause, play, settle_in, spoil
from tests.ledger_world import EPOCH_MS, World, root_of

SEEDS = range(4)
STEPS = 1_200
seeds = st.integers(0, 2**32 - 1)
names = st.sampled_from(sorted(MOVES))
Blocks = list[tuple[int, list[bytes]]]


@pytest.fixture(scope="module")
def worlds() -> dict[int, World]:
    """Fixed histories, by seed."""
    return {seed: played(seed) for seed in SEEDS}


def played(seed: int, steps: int = STEPS) -> World:
    try:
        return play(seed, steps)
    except AssertionError as error:
        raise AssertionError(f"make sim SEED={seed}, or play({seed}, {steps}): {error}") from error


# -- what a fixed run has exercised -----------------------------------------------------------------------------------------


def test_every_rule_was_carried_out_many_times(worlds: dict[int, World]) -> None:
    done = sum((world.done for world in worlds.values()), Counter[str]())
    assert set(done) == {body.__name__ for body in RULES} == set(MOVES)
    assert {name: times for name, times in done.items() if times < 15} == {}


def test_refusals_of_many_kinds_occurred_and_most_transactions_were_good(worlds: dict[int, World]) -> None:
    refused = sum((world.refused for world in worlds.values()), Counter[str]())
    done = sum(sum(world.done.values()) for world in worlds.values())
    assert len(refused) >= 40, sorted(refused)
    assert 70 <= 100 * done / (done + sum(refused.values())) <= 95


def test_everything_that_moves_money_happened(worlds: dict[int, World]) -> None:
    """A history in which nobody is punished, or every subsidy is paid in full, would show little."""
    happened = sum((world.watch.happened for world in worlds.values()), Counter[str]())
    rare = {
        "node-faulted", "node-back", "slash", "slash-bond", "slash-share", "slash-to-repair", "jailed", "epoch-unknown", "pay",
        "subsidy", "withheld", "returned", "refund", "redrawn", "segment-ended", "retrieval", "endowment", "bond-released",
    }  # fmt: skip
    assert {name: happened[name] for name in rare if happened[name] < 10} == {}
    assert min(world.watch.least_scale for world in worlds.values()) < 500_000, "emission never fell short"


# -- where one block ends and the next begins -------------------------------------------------------------------------------


def one_by_one(blocks: Blocks) -> Iterator[tuple[int, list[bytes]]]:
    for time_ms, raws in blocks:
        yield from ((time_ms, [raw]) for raw in raws) if raws else [(time_ms, [])]


def with_ticks(blocks: Blocks) -> Iterator[tuple[int, list[bytes]]]:
    """Empty blocks through every pause and around every transaction."""
    before = 0
    for time_ms, raws in blocks:
        yield from ((tick, []) for tick in range(before + EPOCH_MS // 2, time_ms, EPOCH_MS // 2))
        yield from ((time_ms, part) for raw in raws for part in ([], [raw]))
        before = time_ms


def joined(blocks: Blocks) -> Iterator[tuple[int, list[bytes]]]:
    """One block an epoch, at the time of its first transaction; epochs in which nothing was sent leave none."""
    epochs: dict[int, tuple[int, list[bytes]]] = {}
    for time_ms, raws in blocks:
        if raws:
            epochs.setdefault(time_ms // EPOCH_MS, (time_ms, []))[1].extend(raws)
    yield from epochs.values()
    yield blocks[-1][0], []


@pytest.mark.parametrize("split", [list, one_by_one, with_ticks, joined])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_transactions_give_the_same_root_however_blocks_are_cut(
    worlds: dict[int, World], seed: int, split: Callable[[Blocks], Any]
) -> None:
    world = worlds[seed]
    assert root_of(world.genesis, list(split(world.blocks))) == world.root, f"play({seed}, {STEPS})"


# -- the models can tell ----------------------------------------------------------------------------------------------------


def _all_passed(standing: Any, first: int, end: int) -> tuple[int, int]:
    return end - first, 0


def _nothing_taken(*args: Any, **kwargs: Any) -> None:
    pass


def _whole_budget(params: Params, genesis_supply: int, epoch: int) -> int:
    return params.supply_cap


PLANTED: list[tuple[Any, str, Any]] = [
    (settlement, "passes_in", _all_passed),
    (settlement, "closed_before", lambda state: 0),
    (holding, "share_ppm", lambda amount, ppm: amount),
    (holding, "take_collateral", _nothing_taken),
    (holding, "_return", _nothing_taken),
    (holding, "closed_before", lambda state: state.epoch + 1),
    (sponsors, "count_sponsored", _nothing_taken),
    (emission, "released", _whole_budget),
    (retrieval, "_take", _nothing_taken),
    (inventory, "end_segment", _nothing_taken),
    (witnesses, "quorum", lambda params, members: 1),
]


@pytest.mark.parametrize(("module", "name", "fault"), PLANTED, ids=[f"{m.__name__.split('.')[-1]}.{n}" for m, n, _ in PLANTED])
def test_a_fault_planted_in_a_rule_is_found(module: Any, name: str, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, name, fault)
    with pytest.raises((AssertionError, IndexError, KeyError)):
        [play(seed, STEPS // 3) for seed in (0, 1)]


# -- Hypothesis looks for itself --------------------------------------------------------------------------------------------


class Lives(RuleBasedStateMachine):
    """Each step has a seed of its own, so that a failure shrinks to few of them."""

    @initialize(seed=seeds)
    def begin(self, seed: int) -> None:
        self.world = World()
        settle_in(self.world, Random(seed))

    @rule(name=names, seed=seeds)
    def good(self, name: str, seed: int) -> None:
        act(self.world, Random(seed), name)

    @rule(name=names, seed=seeds)
    def also_good(self, name: str, seed: int) -> None:
        act(self.world, Random(seed), name)

    @rule(name=names, seed=seeds)
    def broken(self, name: str, seed: int) -> None:
        spoil(self.world, Random(seed), name)

    @rule(seed=seeds)
    def witnesses_report(self, seed: int) -> None:
        audit_round(self.world, Random(seed))

    @rule(seed=seeds)
    def the_next_epoch(self, seed: int) -> None:
        next_epoch(self.world, Random(seed))

    @rule(seed=seeds)
    def a_pause(self, seed: int) -> None:
        pause(self.world, Random(seed))

    @rule()
    def end_of_a_block(self) -> None:
        self.world.end_block()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.end_block()


def test_nothing_that_can_be_done_breaks_the_ledger() -> None:
    quick = settings(
        max_examples=25,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow],
    )
    run_state_machine_as_test(Lives, settings=quick)

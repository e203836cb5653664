"""What a node's record of audits says: its score, which epochs it is paid for, whether it is suspended, whether it is vetted.

Decides what a verdict on one node and epoch does to the node; who passed is decided by the witnesses' quorum (`witnesses.py`).
Epochs are recorded in ascending order, each once.
Source: docs/spec/ledger.md, "Reputation, weights, the draw".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from msgspec.structs import replace

from dds.ledger.params import Params
from dds.ledger.records import RUNS_MAX, STANDINGS, Node, NodeStatus, Run, Standing, number_key
from dds.ledger.rules.slashing import fault_node, take_for_miss
from dds.ledger.state import State
from dds.primitives.money import MILLION

VERDICT: Final = 10**6  # what one verdict adds to a counter

# -- reading ----------------------------------------------------------------------------------------------------------------


def standing_of(state: State, number: int) -> Standing:
    return state.find(STANDINGS, number_key(number)) or Standing()


def score_ppm(standing: Standing, params: Params) -> int:
    """Good verdicts among all, the recent ones weighing most; 10^6 for a node that was never judged."""
    good, bad = _counters(standing, params)
    return good * MILLION // (good + bad) if good + bad else MILLION


def passes_in(standing: Standing, first: int, end: int) -> tuple[int, int]:
    """How many epochs of [first, end) were passed, and the sum of their subsidy scales in ppm."""
    passed = scaled = 0
    for run in reversed(standing.runs):
        if run.first + run.count <= first:
            break
        within = min(end, run.first + run.count) - max(first, run.first)
        if within > 0:
            passed += within
            scaled += within * run.scale_ppm
    return passed, scaled


def is_suspended(standing: Standing, params: Params, epoch: int) -> bool:
    """Whether too many of the last windows went by without a pass, as seen from `epoch`.

    Only windows with a verdict count, so a newcomer is not suspended for the time before it came, nor a node for the time in
    which it had nothing to prove; the window that `epoch` lies in is not over and does not count. Windows are forgotten with
    age: a suspended node that lost everything is free again when they are.
    """
    passed, judged = windows_seen(standing, params, epoch)
    return passed * MILLION < judged * params.downtime_suspend_ppm


def windows_seen(standing: Standing, params: Params, epoch: int) -> tuple[int, int]:
    """How many of the finished windows that are remembered had a pass, and how many a verdict, as seen from `epoch`."""
    now = _turned(standing, params, epoch)
    judged = (now.judged >> 1).bit_count()
    return (now.passed >> 1).bit_count(), judged


def is_vetted(node: Node, standing: Standing, params: Params, epoch: int) -> bool:
    """Whether it has passed often enough and been there long enough to be drawn like anybody else."""
    proven = standing.passed >= params.vetted_audits and epoch - node.registered_epoch >= params.vetted_epochs
    return node.genesis or proven


# -- verdicts ---------------------------------------------------------------------------------------------------------------


def record_pass(state: State, number: int, epoch: int, scale_ppm: int) -> None:
    """A quorum saw every challenged leaf of `epoch`: the node is paid for it, its subsidy scaled."""
    before = standing_of(state, number)
    after = _judged(before, state.params, epoch, passed=True)
    runs = _with_pass(before.runs, epoch, scale_ppm)
    state.put(STANDINGS, number_key(number), replace(after, runs=runs, passed=before.passed + 1, missed_in_row=0))


def record_miss(state: State, number: int, epoch: int) -> None:
    """`epoch` is not paid; from the third in a row on it costs, and in the end the node is taken to be gone."""
    params = state.params
    before = standing_of(state, number)
    missed = before.missed_in_row + 1
    after = _judged(before, params, epoch, passed=False)
    state.put(STANDINGS, number_key(number), replace(after, missed_in_row=missed))
    reason = f"audit of epoch {epoch} missed, {missed} in a row"
    state.emit("withheld", node=number, detail=reason)
    if missed >= params.down_epochs and state.node(number).status != NodeStatus.FAULTED:
        fault_node(state, number, params.down_slash_ppm, f"down for {missed} epochs", since=epoch + 1)
    elif missed > params.missed_in_row_free:
        take_for_miss(state, number, reason=reason)


def forgive_misses(state: State, number: int) -> None:
    """Count anew: the node comes back after it lost its assignments. What it did before stays in its score."""
    standing = standing_of(state, number)
    state.put(STANDINGS, number_key(number), replace(standing, missed_in_row=0))


def _judged(standing: Standing, params: Params, epoch: int, *, passed: bool) -> Standing:
    good, bad = (counter * params.reputation_keep_ppm // MILLION for counter in _counters(standing, params))
    now = _turned(standing, params, epoch)
    return replace(
        standing,
        judged=standing.judged + 1,
        good=good + VERDICT * passed,
        bad=bad + VERDICT * (not passed),
        windows=now.passed | int(passed),
        windows_judged=now.judged | 1,
        window_epoch=now.first_epoch,
    )


def _counters(standing: Standing, params: Params) -> tuple[int, int]:
    return (standing.good, standing.bad) if standing.judged else (params.reputation_start, 0)


def _with_pass(runs: tuple[Run, ...], epoch: int, scale_ppm: int) -> tuple[Run, ...]:
    last = runs[-1] if runs else None
    if last is not None and last.first + last.count == epoch and last.scale_ppm == scale_ppm:
        return (*runs[:-1], replace(last, count=last.count + 1))
    longer = (*runs, Run(epoch, 1, scale_ppm))
    return longer if len(longer) <= RUNS_MAX else _one_less(longer)


def _one_less(runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """Join the oldest two that touch, at the lower scale, so that no rent is lost; where none touch, forget the oldest."""
    for at, (one, two) in enumerate(pairwise(runs)):
        if one.first + one.count == two.first:
            joined = Run(one.first, one.count + two.count, min(one.scale_ppm, two.scale_ppm))
            return (*runs[:at], joined, *runs[at + 2 :])
    return runs[1:]


@dataclass(frozen=True, slots=True)
class _Windows:
    """Downtime windows as seen from one epoch: bit i is the i-th last."""

    first_epoch: int
    passed: int
    judged: int


def _turned(standing: Standing, params: Params, epoch: int) -> _Windows:
    length = params.downtime_window_epochs
    first = epoch // length * length
    steps = min((first - standing.window_epoch) // length, params.downtime_windows + 1)
    if steps <= 0:
        return _Windows(standing.window_epoch, standing.windows, standing.windows_judged)
    kept = (1 << (params.downtime_windows + 1)) - 1  # the present one and the finished ones
    return _Windows(first, standing.windows << steps & kept, standing.windows_judged << steps & kept)

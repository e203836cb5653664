"""Who is a candidate, and how the weights of candidates relate."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dds.ledger.records import OPERATORS, STANDINGS, NodeStatus, Standing, number_key
from dds.ledger.rent import collateral
from dds.ledger.rules.slashing import jail
from dds.ledger.rules.weights import Wanted, screen
from dds.placement.draw import WEIGHT_MAX
from dds.primitives.money import TOKEN
from dds.primitives.units import MIB
from tests.ledger_committee import Ledger, small_params

TIB = 1 << 40


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(witnesses=1, storers=3)


def weights(
    ledger: Ledger, *, size: int = MIB, price: int = 1000, term: int = 100, exclude: tuple[int, ...] = (), role: str = "ssn"
) -> dict[int, int]:
    drawn = screen(ledger.state, Wanted(role, size, price, term), exclude).candidates
    by_id = {node.public: number for number, node in enumerate(ledger.nodes)}
    return {by_id[each.node_id]: each.weight for each in drawn}


def change(ledger: Ledger, number: int, **changes: Any) -> None:
    ledger.state.put_node(msgspec.structs.replace(ledger.state.node(number), **changes))
    ledger.state.keep()


def judge(ledger: Ledger, number: int, **fields: Any) -> None:
    ledger.state.put(STANDINGS, number_key(number), Standing(**fields))
    ledger.state.keep()


def set_bond(ledger: Ledger, number: int, bond: int) -> None:
    account = ledger.operators[number].public
    ledger.state.put(OPERATORS, account, msgspec.structs.replace(ledger.operator(number), bond=bond))
    ledger.state.keep()


def test_only_storage_nodes_are_candidates_and_the_excluded_are_not(ledger: Ledger) -> None:
    assert list(weights(ledger)) == [1, 2, 3]
    assert list(weights(ledger, exclude=(2,))) == [1, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"status": int(NodeStatus.RETIRING)},
        {"status": int(NodeStatus.FAULTED)},
        {"ask_price": 1001},
        {"term_epochs_max": 99},
        {"promised_bytes": TIB - MIB + 1},
        {"pool_free": collateral(small_params(), MIB, 1000) - 1},
    ],
)
def test_a_node_that_cannot_take_the_share_is_no_candidate(ledger: Ledger, changes: dict[str, int]) -> None:
    change(ledger, 2, **changes)
    assert list(weights(ledger)) == [1, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"ask_price": 1000},
        {"term_epochs_max": 100},
        {"promised_bytes": TIB - MIB},
        {"pool_free": collateral(small_params(), MIB, 1000)},
    ],
)
def test_a_node_that_can_just_take_it_is_one(ledger: Ledger, changes: dict[str, int]) -> None:
    change(ledger, 2, **changes)
    assert 2 in weights(ledger)


def test_jail_and_a_lost_bond_take_a_node_out_of_the_draw(ledger: Ledger) -> None:
    jail(ledger.state, ledger.operators[1].public)
    ledger.state.keep()
    set_bond(ledger, 3, 0)
    assert list(weights(ledger)) == [2]


def test_a_suspended_node_is_no_candidate(ledger: Ledger) -> None:
    judge(ledger, 1, judged=40, good=1, windows=0b0110, windows_judged=0b1111, window_epoch=0)
    judge(ledger, 2, judged=40, good=1, windows=0b0010, windows_judged=0b1111, window_epoch=0)
    assert list(weights(ledger)) == [1, 3]  # two of three windows are enough, one is not


def test_weight_goes_with_the_square_of_the_score(ledger: Ledger) -> None:
    judge(ledger, 1, judged=9, passed=9, good=500_000, bad=500_000)
    found = weights(ledger)
    assert found[1] * 4 == found[2] == found[3]


def test_weight_goes_with_free_space_up_to_a_cap(ledger: Ledger) -> None:
    change(ledger, 1, promised_bytes=TIB // 2)
    change(ledger, 3, capacity_bytes=64 * TIB)
    set_bond(ledger, 3, 10_000 * TOKEN)
    found = weights(ledger)
    assert found[1] * 2 == found[2]
    assert found[3] == found[2] * 16


def test_a_bond_below_what_all_the_operators_nodes_need_weighs_less(ledger: Ledger) -> None:
    set_bond(ledger, 1, 5 * TOKEN)  # half of what a TiB needs
    set_bond(ledger, 2, 10 * TOKEN)
    found = weights(ledger)
    assert found[1] * 2 == found[2] == found[3]
    change(ledger, 3, operator=ledger.operators[2].public)  # one bond, two nodes
    shared = weights(ledger)
    assert shared[2] == shared[3] == shared[1]


def test_unvetted_nodes_together_get_a_twentieth(ledger: Ledger) -> None:
    change(ledger, 1, genesis=False)
    found = weights(ledger)
    assert found[1] * 1_000_000 // sum(found.values()) in (49_999, 50_000)


def test_a_small_unvetted_node_weighs_no_more_than_if_it_were_vetted(ledger: Ledger) -> None:
    change(ledger, 1, genesis=False, promised_bytes=TIB - 2 * MIB)
    few = weights(ledger)
    change(ledger, 1, genesis=True)
    assert weights(ledger) == few


def test_where_nobody_is_vetted_everybody_weighs_what_it_does(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        change(ledger, number, genesis=False)
    assert len(set(weights(ledger).values())) == 1


def test_weights_fit_into_a_draw_and_use_its_range(ledger: Ledger) -> None:
    change(ledger, 1, promised_bytes=TIB - MIB)
    found = weights(ledger)
    assert min(found.values()) >= 1 and WEIGHT_MAX // 2 <= max(found.values()) <= WEIGHT_MAX

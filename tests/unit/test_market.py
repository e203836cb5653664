"""The market's prices: uniform, slow, bounded, and never stuck where nobody sells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from dds.ledger.genesis import GenesisNode, GenesisOperator
from dds.ledger.params import Params
from dds.ledger.records import OPERATORS, STANDINGS, Lane, NodeStatus, Standing, number_key
from dds.ledger.rules.market import WIDTHS, asks, clear, percentile_price
from dds.placement.roles import ASN, SSN
from dds.primitives.money import AMOUNT_MAX, TOKEN
from dds.primitives.units import MIB
from tests.money_ledger import MoneyLedger, genesis_node, key_of

WIDTH = WIDTHS[SSN]


def market(*prices: int, bonds: dict[int, int] | None = None, start: int = 1_000, **node_changes: Any) -> MoneyLedger:
    """One node of one operator for each ask, 1 GiB each; bonds in token by place, 100 where nothing is said."""
    keys = [key_of(f"operator {at}") for at in range(len(prices))]
    nodes: list[GenesisNode] = [
        genesis_node(f"node {at}", keys[at], price, **{"capacity_bytes": 1 << 30, **node_changes})
        for at, price in enumerate(prices)
    ]
    operators = [GenesisOperator(key.public, (bonds or {}).get(at, 100) * TOKEN, ("r",)) for at, key in enumerate(keys)]
    return MoneyLedger(*nodes, params=Params(price_start=start), operators=operators)


def prices_of(ledger: MoneyLedger) -> tuple[int, int]:
    return ledger.state.chain.lane(SSN).price, ledger.state.chain.lane(SSN).reference


def buy(ledger: MoneyLedger, demand_bytes: int, price_max: int) -> None:
    """What reservations of the present epoch leave behind; the next epoch begins."""
    ledger.demand(demand_bytes, price_max)
    ledger.go_to(ledger.epoch + 1)


# -- asks -------------------------------------------------------------------------------------------------------------------


def test_asks_are_listed_cheapest_first_and_then_by_number() -> None:
    ledger = market(30, 10, 20, 10)
    assert [(ask.price, ask.number) for ask in asks(ledger.state)] == [(10, 1), (10, 3), (20, 2), (30, 0)]


@pytest.mark.parametrize(
    "change",
    [
        {"status": NodeStatus.RETIRING},
        {"status": NodeStatus.FAULTED},
        {"roles": ("witness",)},
        {"promised_bytes": (1 << 30) - MIB + 1},
        {"pool_free": 1_440 * 10 - 1},
    ],
)
def test_who_cannot_be_drawn_asks_for_nothing(change: dict[str, Any]) -> None:
    ledger = market(10, 20)
    node = replace(ledger.state.node(0), **change)
    ledger.state.put_node(node)
    assert [ask.number for ask in asks(ledger.state)] == [1]


def test_an_offer_is_no_larger_than_its_collateral_pool_can_back() -> None:
    ledger = market(10, pool=1_440 * 10 * 5)
    assert [ask.free_bytes for ask in asks(ledger.state)] == [5 * MIB]


def test_a_jailed_operators_asks_do_not_stand_until_it_is_free() -> None:
    ledger = market(10, 20)
    operator = key_of("operator 0").public
    bonded = ledger.state.find(OPERATORS, operator)
    assert bonded is not None
    ledger.state.put(OPERATORS, operator, replace(bonded, jailed_until=5))
    ledger.state.keep()
    ledger.commit()
    ledger.go_to(4)
    assert [ask.number for ask in asks(ledger.state)] == [1]
    ledger.go_to(5)
    assert [ask.number for ask in asks(ledger.state)] == [0, 1]


def suspend(ledger: MoneyLedger, *places: int) -> None:
    """Every one of its windows so far went by without a pass; the last began with epoch 48."""
    for place in places:
        down = Standing(judged=60, bad=1, windows=0, window_epoch=48, windows_judged=0b11111)
        ledger.state.put(STANDINGS, number_key(place), down)
    ledger.state.keep()
    ledger.commit()


def test_suspended_nodes_ask_for_nothing_and_cannot_hold_the_price_down() -> None:
    ledger = market(*([1] * WIDTH), *([1_000] * 20))
    ledger.go_to(60)
    suspend(ledger, *range(WIDTH))
    assert [ask.number for ask in asks(ledger.state)] == list(range(WIDTH, WIDTH + 20))
    buy(ledger, MIB, 1_000)
    assert ledger.state.chain.lane(SSN).price == 1_000


# -- the clearing price -----------------------------------------------------------------------------------------------------


def test_the_price_is_the_highest_ask_that_the_demand_needs() -> None:
    ledger = market(*range(900, 900 + 10 * 40, 10))
    buy(ledger, 25 << 30, 5_000)
    assert ledger.state.chain.lane(SSN).price == 900 + 10 * 24
    buy(ledger, (25 << 30) + 1, 5_000)
    assert ledger.state.chain.lane(SSN).price == 900 + 10 * 25
    assert (ledger.state.chain.lane(SSN).demand_bytes, ledger.state.chain.lane(SSN).demand_price_max) == (0, 0)


def test_demand_lifts_the_price_no_higher_than_the_buyers_own_limit() -> None:
    ledger = market(*([900] * 20), *([2_000] * 20))
    buy(ledger, 30 << 30, 1_100)
    assert ledger.state.chain.lane(SSN).price == 1_100


def test_demand_beyond_all_supply_lifts_the_price_to_its_ceiling() -> None:
    ledger = market(*([1_000] * 20))
    buy(ledger, AMOUNT_MAX, AMOUNT_MAX)
    assert prices_of(ledger) == (3_000, 1_000)


def test_without_demand_the_price_stays() -> None:
    ledger = market(*([900] * 20), start=1_000)
    ledger.go_to(1)
    assert prices_of(ledger) == (1_000, 980)


def test_a_cartel_of_two_fifths_lifts_nothing_beyond_the_creators_own_limit() -> None:
    """It owns enough bonds to move the reference, and enough space that demand must buy from it."""
    ledger = market(*([1_000] * 24), *([2_000] * 16))
    for _ in range(60):
        buy(ledger, 35 << 30, 1_500)
        assert ledger.state.chain.lane(SSN).price <= 1_500
    assert prices_of(ledger) == (1_500, 2_000)
    buy(ledger, 10 << 30, 1_500)  # demand that the others can serve pays their price, at once
    assert ledger.state.chain.lane(SSN).price == 1_000


# -- never stuck ------------------------------------------------------------------------------------------------------------


def test_a_price_below_every_ask_rises_to_where_a_segment_can_be_placed() -> None:
    ledger = market(*range(1_100, 1_100 + 40))
    ledger.go_to(1)
    assert ledger.state.chain.lane(SSN).price == 1_100 + WIDTH - 1


def test_one_cheap_node_does_not_hold_the_price_where_no_segment_fits() -> None:
    ledger = market(1, *([1_000] * 20))
    buy(ledger, MIB, 500)
    assert ledger.state.chain.lane(SSN).price == 1_000


def test_cheap_asks_that_take_no_real_segment_cannot_hold_the_price_down() -> None:
    """It takes a third of all bonds to do that: seventeen of 51 are enough, sixteen of 50 are not."""
    ledger = market(*([1] * 17), *([1_000] * 34), capacity_bytes=2 * MIB)
    for _ in range(5):
        buy(ledger, MIB, 10)
        assert ledger.state.chain.lane(SSN).price == 1
    ledger = market(*([1] * 16), *([1_000] * 34), capacity_bytes=2 * MIB)
    buy(ledger, MIB, 10)
    assert ledger.state.chain.lane(SSN).price == 1_000


def test_asks_far_above_the_reference_are_reached_in_time() -> None:
    ledger = market(*([10_000] * 20), start=1_000)
    ledger.go_to(1)
    assert prices_of(ledger) == (3_060, 1_020)
    ledger.go_to(200)
    assert prices_of(ledger) == (10_000, 10_000)


def test_one_ask_out_of_reach_does_not_lift_a_small_networks_price() -> None:
    ledger = market(*([1_000] * 10), AMOUNT_MAX)
    ledger.go_to(1)
    assert prices_of(ledger) == (1_000, 1_000)


def test_asks_of_nothing_leave_a_price_of_one() -> None:
    ledger = market(*([0] * 20), start=1)
    buy(ledger, MIB, 0)
    assert prices_of(ledger) == (1, 1)


def test_a_network_without_asks_keeps_its_reference() -> None:
    ledger = market()
    buy(ledger, MIB, 5_000)
    assert prices_of(ledger) == (3_000, 1_000)


# -- the reference ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "reference"), [(2_000, 1_020), (1_010, 1_010), (995, 995), (10, 980)])
def test_the_reference_moves_at_most_two_percent_an_epoch(asked: int, reference: int) -> None:
    ledger = market(*([asked] * 20))
    ledger.go_to(1)
    assert ledger.state.chain.lane(SSN).reference == reference


def test_a_small_reference_moves_by_one_unit_at_least() -> None:
    ledger = market(*([20] * 20), start=10)
    ledger.go_to(3)
    assert ledger.state.chain.lane(SSN).reference == 13


def test_the_reference_is_where_two_thirds_of_the_bonds_ask_no_more() -> None:
    ledger = market(10, 20, 30, bonds={0: 100, 1: 100, 2: 100})
    assert percentile_price(asks(ledger.state), 666_666) == 20
    assert percentile_price(asks(ledger.state), 666_667) == 30
    ledger = market(10, 20, 30, bonds={0: 100, 1: 100, 2: 1_000})
    assert percentile_price(asks(ledger.state), 666_667) == 30


def test_many_nodes_behind_one_bond_weigh_as_much_as_one() -> None:
    one, crowd = key_of("one"), key_of("crowd")
    nodes = [genesis_node("first", one, 10), *(genesis_node(f"copy {at}", crowd, 99) for at in range(9))]
    bonds = [GenesisOperator(one.public, 300 * TOKEN, ()), GenesisOperator(crowd.public, 100 * TOKEN, ())]
    ledger = MoneyLedger(*nodes, operators=bonds)
    assert percentile_price(asks(ledger.state), 666_667) == 10


# -- lanes ------------------------------------------------------------------------------------------------------------------


def two_lanes(standard: Sequence[int], archive: Sequence[int], both: Sequence[int] = ()) -> MoneyLedger:
    """Asks by what the node stores for; 1 GiB each."""
    named = [
        (price, roles) for prices, roles in ((standard, (SSN,)), (archive, (ASN,)), (both, (ASN, SSN))) for price in prices
    ]
    keys = [key_of(f"operator {at}") for at in range(len(named))]
    nodes = [
        genesis_node(f"node {at}", key, price, capacity_bytes=1 << 30, roles=roles)
        for at, (key, (price, roles)) in enumerate(zip(keys, named, strict=True))
    ]
    operators = [GenesisOperator(key.public, 100 * TOKEN, ("r",)) for key in keys]
    return MoneyLedger(*nodes, params=Params(price_start=1_000), operators=operators)


def lane_prices(ledger: MoneyLedger) -> list[tuple[int, int]]:
    return [(lane.price, lane.reference) for lane in ledger.state.chain.lanes]


def test_each_lane_clears_among_its_own_nodes() -> None:
    ledger = two_lanes([2_000] * 20, [1_500] * 40)
    ledger.go_to(1)
    assert lane_prices(ledger) == [(2_000, 1_020), (1_500, 1_020)]
    ledger.go_to(100)
    assert lane_prices(ledger) == [(2_000, 2_000), (1_500, 1_500)]


@pytest.mark.parametrize(("role", "prices"), [(SSN, [1_190, 1_000]), (ASN, [1_000, 1_190])])
def test_demand_in_one_lane_moves_no_price_in_the_other(role: str, prices: list[int]) -> None:
    asked = [900] * 40 + [1_190] * 20
    ledger = two_lanes(asked, asked)
    ledger.demand(50 << 30, 5_000, role)
    ledger.go_to(1)
    assert [lane.price for lane in ledger.state.chain.lanes] == prices
    assert [lane.demand_bytes for lane in ledger.state.chain.lanes] == [0, 0]


def test_a_node_of_both_roles_has_one_ask_that_stands_in_both_lanes() -> None:
    ledger = two_lanes([], [], [1_500] * 40)
    assert [ask.roles for ask in asks(ledger.state)] == [(ASN, SSN)] * 40
    ledger.go_to(1)
    assert lane_prices(ledger) == [(1_500, 1_020)] * 2


def test_a_lanes_price_reaches_as_many_nodes_as_its_class_draws() -> None:
    ladder = range(1_100, 1_140)
    ledger = two_lanes(ladder, ladder)
    ledger.go_to(1)
    assert [lane.price for lane in ledger.state.chain.lanes] == [1_100 + 15, 1_100 + 31]  # 10+6 and 16+16


def test_a_lane_in_which_nobody_sells_keeps_its_price() -> None:
    ledger = two_lanes([900] * 20, [])
    ledger.go_to(10)
    assert ledger.state.chain.lane(ASN) == Lane(price=1_000, reference=1_000)
    ledger.demand(MIB, 5_000, ASN)
    ledger.go_to(11)
    assert ledger.state.chain.lane(ASN).price == 3_000  # its ceiling: what is wanted cannot be had below


def test_a_cartel_of_archive_nodes_lifts_no_standard_price() -> None:
    ledger = two_lanes([1_000] * 20, [10**9] * 40)
    ledger.go_to(500)
    standard, archive = lane_prices(ledger)
    assert standard == (1_000, 1_000) and archive[1] > 10**6


def test_a_pause_of_both_lanes_ends_where_stepping_does() -> None:
    paused, stepped = (two_lanes([900] * 10 + [4_000] * 10, [100] * 30 + [5_000] * 9, [7_000] * 3) for _ in range(2))
    for ledger in (paused, stepped):
        ledger.demand(12 << 30, 2_500)
        ledger.demand(31 << 30, 4_500, ASN)
    paused.go_to(60)
    for epoch in range(1, 61):
        stepped.go_to(epoch)
    assert paused.base == stepped.base


def test_each_lanes_change_is_told_by_its_name() -> None:
    ledger = two_lanes([1_000] * 20, [1_000] * 40)
    ledger.demand(AMOUNT_MAX, AMOUNT_MAX, ASN)
    ledger.go_to(1)
    told = [event.detail for event in ledger.events if event.name == "price"]
    assert told == ["archive: 3000 per MiB-epoch from epoch 1 on, before 1000; reference 1000"]


# -- pauses -----------------------------------------------------------------------------------------------------------------


def jail(ledger: MoneyLedger, until: dict[int, int]) -> None:
    for place, epoch in until.items():
        operator = key_of(f"operator {place}").public
        bonded = ledger.state.find(OPERATORS, operator)
        assert bonded is not None
        ledger.state.put(OPERATORS, operator, replace(bonded, jailed_until=epoch))
    ledger.state.keep()
    ledger.commit()


@pytest.mark.parametrize("length", [1, 2, 3, 7, 29, 30, 31, 200])
@pytest.mark.parametrize(
    ("asked", "jailed"),
    [
        ([10_000] * 20, {}),
        ([500] * 20, {}),
        ([900] * 10 + [4_000] * 10, {}),
        ([900] * 10 + [4_000] * 10, dict.fromkeys(range(10), 30)),
        ([900] * 14 + [4_000] * 6, dict.fromkeys(range(14), 30)),
        ([100] * 18 + [5_000] * 2, {0: 3, 1: 7, 18: 30, 19: 2}),
    ],
)
def test_a_pause_ends_where_stepping_through_it_does(length: int, asked: list[int], jailed: dict[int, int]) -> None:
    paused, stepped = market(*asked), market(*asked)
    for ledger in (paused, stepped):
        jail(ledger, jailed)
        ledger.demand(12 << 30, 2_500)
    paused.go_to(length)
    for epoch in range(1, length + 1):
        stepped.go_to(epoch)
    assert prices_of(paused) == prices_of(stepped)
    assert paused.base == stepped.base


def test_only_the_first_epoch_of_a_pause_has_demand() -> None:
    ledger = market(*([1_500] * 20))
    ledger.demand(AMOUNT_MAX, AMOUNT_MAX)
    clear(ledger.state, 0, 50)
    assert prices_of(ledger) == (3 * 1_020, 1_500)


@pytest.mark.parametrize("length", [59, 60, 61, 700, 720, 900])
def test_a_pause_in_which_suspended_nodes_come_back_ends_where_stepping_does(length: int) -> None:
    paused, stepped = (market(*([1] * WIDTH), *([3_000] * 4)) for _ in range(2))
    for ledger in (paused, stepped):
        ledger.go_to(60)
        suspend(ledger, *range(WIDTH))
    paused.go_to(60 + length)
    for epoch in range(61, 61 + length):
        stepped.state.set_chain(epoch=epoch - 1)
        clear(stepped.state, epoch - 1, epoch)
        stepped.state.set_chain(epoch=epoch)
        stepped.state.keep()
    stepped.commit()
    assert prices_of(paused) == prices_of(stepped)


def test_the_longest_pause_is_over_when_nothing_moves_any_more() -> None:
    ledger = market(*([3 * 10**13] * 20), start=1)
    ledger.go_to(10**9)
    assert prices_of(ledger) == (3 * 10**13, 3 * 10**13)


def test_a_price_is_told_when_it_changes_and_not_when_it_stays() -> None:
    ledger = market(*([900] * 20))
    ledger.go_to(100)
    told = [event.detail for event in ledger.events if event.name == "price"]
    assert told[0] == "standard: 1000 per MiB-epoch from epoch 1 on, before 1000; reference 980"
    ledger.go_to(200)
    assert [event.detail for event in ledger.events if event.name == "price"] == told

"""Does cheating pay? Strategies played on the real rules, each searched over its knobs, against what honesty brings.

An attacker's wealth is all money in all its purses. Storing costs nothing here, bandwidth neither: what would only be a loss of
theirs outside the ledger is left out, so an attack that gains nothing here gains nothing anywhere. What is known to gain is
named below with its bound, and in docs/spec/ledger.md, "What is not proven".
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from random import Random

import pytest

from dds.ledger.records import SEGMENTS, Holding
from dds.ledger.rules.inventory import total_leaves
from dds.ledger.rules.weights import Wanted, screen
from dds.ledger.rules.witnesses import beacon_commitment, beacon_of
from dds.placement.roles import SSN
from dds.primitives.hashing import sha256
from dds.primitives.keys import SigningKey
from dds.primitives.money import MILLION, TOKEN
from dds.primitives.units import MIB
from dds.wire.audit import LeafStatement, open_message, sign_answer
from dds.wire.codec import encode
from dds.wire.evidence import InvalidAnswer, encode_evidence
from dds.wire.ledger import (
    CancelContract,
    Deposit,
    Endow,
    ExtendSegments,
    Loss,
    OpenContract,
    RedeemVouchers,
    Redraw,
    ReportLoss,
    RequestWithdrawal,
    Reserve,
    SetAsk,
    Settle,
    SpendEndowment,
    Sponsor,
    SubmitEvidence,
    Unsponsor,
    Withdraw,
    WithdrawEscrow,
    WitnessReport,
)
from dds.wire.vouchers import Voucher, sign_voucher
from tests.ledger_arena import BOND, FUNDS, NETWORK, PRICE, PRICE_MAX, WITNESSES, Arena, arena_params, key_of

# -- what is left to an attacker --------------------------------------------------------------------------------------------

SELF_DEAL_LOSS_PPM = 11_000  # of the rent, at least: the fee of 2 % less the subsidy, at most 90 % of its burned half
SYBIL_PPM = 1_200_000  # of its share of the weights: draws are without replacement, so many small ones are drawn more often
CARTEL_FACTOR = PRICE_MAX // PRICE  # who is among the 16 that must be had sets the price, up to the creators' own limits
ENDOWMENT_SHARE_PPM = 3 * 5_000  # of an endowment, a year: its publisher can withdraw what is spent instead of extending
OWN_REPORT_PPM = 200_000  # of what a fault costs: another account of the same person is not known for one
BEACONS_BY_WITHHOLDING = 2  # to choose from, for each secret kept back, at no_reveal_bond_ppm of the bond

MALLORY, MALLET = key_of("publisher 0"), key_of("publisher 1")
HONEST = key_of("publisher 2")
ALL_HERS = dict.fromkeys(range(WITNESSES, WITNESSES + 6), "publisher 0")  # every storage node is the attacker's
Strategy = Callable[[Arena], None]


def profit(strategy: Strategy, *who: SigningKey, owners: dict[int, str] | None = None) -> int:
    """Wealth after, less before; everything that comes back has come."""
    arena = Arena(owners=owners)
    arena.tick()
    before = arena.wealth(*who)
    strategy(arena)
    arena.close_out(*who)
    return arena.wealth(*who) - before


# -- dealing with oneself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("term", "kept", "again"), list(product((1, 2, 7, 40), (1, 5, 12), (0, 1, 3))))
def test_who_stores_on_its_own_nodes_loses_most_of_the_fee(term: int, kept: int, again: int) -> None:
    """Publisher of all, operator of all nodes: rent goes round, the fee goes, the subsidy brings back less."""

    def deal(arena: Arena) -> None:
        arena.open(MALLORY, term=term)
        arena.store(MALLORY, 4)
        for _ in range(kept):
            arena.turn()
            names = sorted(name for name, each in arena.entries(SEGMENTS) if each.sponsors)
            if again and names:
                arena.do(MALLORY, ExtendSegments(arena.contract_id(MALLORY), names, again))
        arena.turn(3)

    paid = 4 * 3 * PRICE * term  # rent of four segments for the first term, whatever comes after
    assert profit(deal, MALLORY, owners=ALL_HERS) <= -paid * SELF_DEAL_LOSS_PPM // MILLION


@pytest.mark.parametrize(("term", "pause", "reserve_only"), list(product((1, 3, 30), (0, 1, 3), (False, True))))
def test_opening_and_cancelling_over_and_over_farms_nothing(term: int, pause: int, reserve_only: bool) -> None:
    def bounce(arena: Arena) -> None:
        for _ in range(5):
            if not arena.do(MALLORY, OpenContract("standard", 2, 1, term, PRICE_MAX, 100 * TOKEN)).ok:
                arena.turn(3)
                continue
            if reserve_only:
                arena.ok(MALLORY, Reserve(arena.contract_id(MALLORY), 2, 3, 1, MIB))
            else:
                arena.store(MALLORY, 2)
            arena.turn(pause)
            arena.ok(MALLORY, CancelContract(arena.contract_id(MALLORY)))
            arena.turn(2)
            names = [name for name, _ in arena.entries(SEGMENTS)]
            if names:
                arena.ok(MALLORY, Settle(names))

    assert profit(bounce, MALLORY, owners=ALL_HERS) <= 0


# -- any mixture, found by climbing -----------------------------------------------------------------------------------------

ACTIONS = ("store", "sponsor", "unsponsor", "extend", "cancel", "settle", "lose", "mend", "down", "turn", "turn", "withdraw")
PLAN_LENGTH, ROUNDS = 14, 120


def carry_out(arena: Arena, plan: list[tuple[str, int]]) -> None:
    """Two publishers and all nodes of one person; what is refused is passed over."""
    pair = (MALLORY, MALLET)
    for action, choice in plan:
        key = pair[choice % 2]
        contract = arena.contract_id(key)
        names = sorted(name for name, each in arena.entries(SEGMENTS) if each.sponsors)
        name = names[choice % len(names)] if names else b""
        match action:
            case "store":
                arena.do(key, OpenContract("standard", 2, 1, 1 + choice % 9, PRICE_MAX, 100 * TOKEN))
                arena.store(key, 1 + choice % 2)
            case "cancel":
                arena.do(key, CancelContract(contract))
            case "withdraw":
                arena.do(key, WithdrawEscrow(contract, TOKEN))
            case "down":
                arena.down ^= {WITNESSES + choice % 6}
            case "turn":
                arena.turn(1 + choice % 3)
            case _ if name:
                _with_segment(arena, action, key, name, choice)


def _with_segment(arena: Arena, action: str, key: SigningKey, name: bytes, choice: int) -> None:
    contract, segment = arena.contract_id(key), arena.segment(name)
    assert segment is not None
    match action:
        case "sponsor":
            arena.do(key, Sponsor(contract, name, (1 + choice % 3).to_bytes(8, "little")))
        case "unsponsor":
            arena.do(key, Unsponsor(contract, [name]))
        case "extend":
            arena.do(key, ExtendSegments(contract, [name], 1 + choice % 5))
        case "settle":
            arena.do(key, Settle([name]))
        case "lose":
            index = choice % 3
            arena.do(arena.node_key(segment.assignments[index].node), ReportLoss([Loss(name, index)]))
        case "mend":
            freed = [at for at, each in enumerate(segment.assignments) if each.state == Holding.FREED]
            if freed:
                arena.do(key, Redraw(name, freed))
            arena.add_receipts(key, name)


@pytest.mark.seeds(3)
def test_no_mixture_of_storing_sponsoring_losing_and_leaving_gains(seed: int) -> None:
    """Best response by hill climbing: the best plan so far, changed in one or two places."""
    rng = Random(seed)

    def gene() -> tuple[str, int]:
        return rng.choice(ACTIONS), rng.randrange(60)

    def worth(plan: list[tuple[str, int]]) -> int:
        return profit(lambda arena: carry_out(arena, [("store", 7), *plan]), MALLORY, MALLET, owners=ALL_HERS)

    best = [gene() for _ in range(PLAN_LENGTH)]
    most = worth(best)
    for _ in range(ROUNDS):
        plan = list(best)
        for _ in range(rng.randint(1, 2)):
            plan[rng.randrange(PLAN_LENGTH)] = gene()
        if (gain := worth(plan)) >= most:
            best, most = plan, gain
    assert most <= 0, f"seed {seed}: {most} gained by {best}"


# -- Sybils -----------------------------------------------------------------------------------------------------------------

GIB = 1 << 30


def share_of_draws(parts: int, *, operators: int) -> tuple[float, float]:
    """(share of what was assigned, share of the weights) of somebody with 24 of 96 GiB, cut into nodes and operators."""
    owners = {WITNESSES + 9 + at: f"sybil {at % operators}" for at in range(parts)}
    capacity = {WITNESSES + at: 8 * GIB for at in range(9)} | dict.fromkeys(owners, 24 * GIB // parts)
    params = arena_params(bond_need_per_tib=BOND // operators * 1024 // 8)  # a bond that just backs what it should
    arena = Arena(9 + parts, owners=owners, capacity=capacity, params=params)
    arena.tick()
    hers = {arena.node_key(number).public for number in owners}
    pool = screen(arena.state, Wanted("ssn", MIB, PRICE, 1)).candidates
    weight = sum(each.weight for each in pool if each.node_id in hers) / sum(each.weight for each in pool)
    arena.open(HONEST, term=1)
    for _ in range(6):
        arena.store(HONEST, 20)
        arena.turn()
    held = [each.node for _, segment in arena.entries(SEGMENTS) for each in segment.assignments]
    return sum(number in owners for number in held) / len(held), weight


@pytest.mark.parametrize(("parts", "operators"), [(2, 1), (8, 1), (8, 4), (8, 8)])
def test_many_nodes_are_drawn_hardly_more_often_than_their_weight(parts: int, operators: int) -> None:
    drawn, weight = share_of_draws(parts, operators=operators)
    assert drawn <= weight * SYBIL_PPM / MILLION, f"{drawn:.3f} of the draws with {weight:.3f} of the weight"


def test_a_bond_split_among_nodes_weighs_no_more_than_on_one() -> None:
    _, one = share_of_draws(1, operators=1)
    _, many = share_of_draws(8, operators=1)
    assert many <= one + 1e-6


# -- the beacon -------------------------------------------------------------------------------------------------------------


def revealed_world(withhold: bool) -> tuple[bytes, int]:
    """(the beacon of epoch 5, the attacker's bond) when witness 0 keeps its secret of round 2 back, or does not."""
    arena = Arena()
    arena.tick()
    secret = {number: sha256(f"secret {number}".encode()) for number in range(WITNESSES)}
    while arena.epoch < 5:
        for number in arena.seats():
            node = arena.node_key(number)
            commit = beacon_commitment(node.public, secret[number]) if arena.epoch == 2 else b""
            reveal = secret[number] if arena.epoch == 4 and not (withhold and number == 0) else b""
            arena.ok(node, WitnessReport(arena.epoch, arena.passed(), [], commit, reveal))
        arena.tick()
    return beacon_of(arena.state, 5), arena.wealth(arena.operator(0))


def test_a_withheld_secret_gives_the_choice_between_two_beacons_and_costs_part_of_the_bond() -> None:
    (told, rich), (kept_back, poor) = revealed_world(False), revealed_world(True)
    assert len({told, kept_back}) == BEACONS_BY_WITHHOLDING
    assert rich == FUNDS + BOND + 100 * TOKEN
    assert rich - poor == BOND * arena_params().no_reveal_bond_ppm // MILLION


# -- cartels ----------------------------------------------------------------------------------------------------------------


def cartel_income(members: int, storers: int, multiple_percent: int) -> tuple[int, int]:
    """(what these nodes earned, the last price) when they ask so much of what they would ask alone."""
    owners = {WITNESSES + at: f"cartel {at}" for at in range(members)}
    arena = Arena(storers, owners=owners)
    keys = [key_of(name) for name in owners.values()]
    arena.tick()
    for number, member in zip(owners, keys, strict=True):
        arena.ok(member, SetAsk(number, PRICE * 9 * multiple_percent // 1000, 1 << 34, 10_000))
    arena.open(HONEST, term=4)
    before = arena.wealth(*keys)
    for _ in range(15):
        arena.store(HONEST, 3)
        arena.turn()
    price = arena.state.chain.lane(SSN).price
    arena.close_out(HONEST)
    return arena.wealth(*keys) - before, price


def test_a_cartel_of_two_fifths_gains_nothing_where_enough_others_can_be_drawn() -> None:
    honest, usual = cartel_income(12, 32, 100)
    for multiple in (105, 130, 200, 300):
        gained, price = cartel_income(12, 32, multiple)
        assert price == usual and gained < honest, f"asking {multiple} %: {gained} at {price}, honestly {honest} at {usual}"


@pytest.mark.parametrize(("members", "storers"), [(1, 10), (4, 10), (9, 22)])
def test_who_cannot_be_done_without_takes_no_more_than_the_creators_limit_allows(members: int, storers: int) -> None:
    honest, _ = cartel_income(members, storers, 100)
    assert honest > 0
    for multiple in (105, 200, 300, 1_000):
        gained, price = cartel_income(members, storers, multiple)
        assert price <= PRICE_MAX, f"asking {multiple} %: nobody pays {price}"
        assert gained <= honest * CARTEL_FACTOR, f"asking {multiple} %: {gained}, honestly {honest}"


# -- retrieval --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("race", [False, True])
def test_reading_from_oneself_moves_money_and_makes_none(race: bool) -> None:
    def wash(arena: Arena) -> None:
        arena.ok(MALLET, Deposit(10 * TOKEN))
        for turn in range(1, 8):
            if race:
                arena.do(MALLET, RequestWithdrawal(TOKEN))
                arena.do(MALLET, Withdraw())
            node = arena.node_key(WITNESSES + turn % 6).public
            voucher = Voucher(1, NETWORK, MALLET.public, node, turn * TOKEN, arena.epoch)
            arena.do(MALLORY, RedeemVouchers([sign_voucher(MALLET, voucher)], []))
            arena.turn(2)

    assert profit(wash, MALLORY, MALLET, owners=ALL_HERS) == 0


# -- faults of one's own ----------------------------------------------------------------------------------------------------


def store_on_own_nodes(arena: Arena) -> tuple[bytes, int]:
    """(a segment of an honest publisher, the attacker's node at index 0)."""
    arena.open(HONEST)
    (name,) = arena.store(HONEST)
    arena.turn(2)
    segment = arena.segment(name)
    assert segment is not None
    return name, segment.assignments[0].node


def test_reporting_an_own_loss_costs_a_quarter_of_the_collateral_and_pays_nobody() -> None:
    def lose(arena: Arena) -> None:
        name, number = store_on_own_nodes(arena)
        arena.ok(arena.node_key(number), ReportLoss([Loss(name, 0)]))

    assert profit(lose, MALLORY, owners=ALL_HERS) < 0


def fraud_cost(reporter: SigningKey, *who: SigningKey) -> int:
    """What it costs who owns all of `who` to convict an own node."""
    arena = Arena(owners=ALL_HERS)
    arena.tick()
    name, number = store_on_own_nodes(arena)
    segment = arena.segment(name)
    assert segment is not None
    statement = LeafStatement(name, segment.segment_root, 0, 0, 0, b"false", sha256(b"false"), [], [])
    signed = open_message(sign_answer(arena.node_key(number), NETWORK, arena.epoch, bytes(32), [encode(statement)])).signed
    before = arena.wealth(*who)
    arena.ok(reporter, SubmitEvidence(encode_evidence(InvalidAnswer(signed, encode(statement)))))
    return before - arena.wealth(*who)


def test_convicting_an_own_node_gives_back_at_most_the_reporters_fifth() -> None:
    node = key_of(f"node {WITNESSES}")
    in_full = fraud_cost(MALLORY, MALLORY, MALLET)
    assert in_full > BOND * arena_params().fraud_bond_ppm // MILLION
    assert fraud_cost(node, MALLORY, MALLET, node) == in_full
    assert fraud_cost(MALLET, MALLORY, MALLET) == pytest.approx(in_full * (MILLION - OWN_REPORT_PPM) / MILLION, abs=3)


# -- sponsors ---------------------------------------------------------------------------------------------------------------


def victims_cost(intrude: Callable[[Arena, bytes, int], None]) -> int:
    """What an honest publisher has spent on one segment in the end, when somebody else joins and leaves as he likes."""
    arena = Arena()
    arena.tick()
    before = arena.wealth(HONEST)
    arena.open(HONEST, term=12)
    (name,) = arena.store(HONEST)
    arena.open(MALLORY, term=5)
    for turn in range(12):
        intrude(arena, name, turn)
        arena.turn()
    arena.turn(3)
    arena.close_out(HONEST)
    return before - arena.wealth(HONEST)


def joiner(period: int, stripes: int, extend: int) -> Callable[[Arena, bytes, int], None]:
    def intrude(arena: Arena, name: bytes, turn: int) -> None:
        contract = arena.contract_id(MALLORY)
        if turn % period == 0:
            arena.do(MALLORY, Sponsor(contract, name, stripes.to_bytes(8, "little")))
        elif extend:
            arena.do(MALLORY, ExtendSegments(contract, [name], extend))
        else:
            arena.do(MALLORY, Unsponsor(contract, [name]))

    return intrude


@pytest.mark.parametrize(("period", "stripes", "extend"), list(product((2, 3, 5), (1, 3), (0, 2))))
def test_who_joins_and_leaves_never_makes_another_sponsor_pay_more(period: int, stripes: int, extend: int) -> None:
    alone = victims_cost(lambda arena, name, turn: None)
    assert victims_cost(joiner(period, stripes, extend)) <= alone


@pytest.mark.parametrize("stay", [1, 2, 4])
def test_a_sponsor_that_leaves_early_has_paid_its_half_of_every_epoch_that_it_stayed(stay: int) -> None:
    arena = Arena()
    arena.tick()
    arena.open(HONEST, term=12)
    (name,) = arena.store(HONEST)
    before = arena.wealth(MALLORY)
    arena.open(MALLORY, term=8)
    arena.ok(MALLORY, Sponsor(arena.contract_id(MALLORY), name, (3).to_bytes(8, "little")))
    arena.turn(stay)
    arena.ok(MALLORY, Unsponsor(arena.contract_id(MALLORY), [name]))
    arena.turn(3)
    arena.close_out(MALLORY)
    half = 3 * PRICE * stay // 2
    fee = 3 * PRICE * 8 * arena.params.fee_ppm // MILLION  # of the whole term
    assert before - arena.wealth(MALLORY) == half + fee


# -- endowments -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stored", "epochs"), list(product((1, 8), (5, 40))))
def test_an_endowment_leaks_to_its_publisher_no_faster_than_it_may_be_spent(stored: int, epochs: int) -> None:
    gift = 1_000 * TOKEN
    arena = Arena()
    arena.tick()
    arena.open(MALLORY, term=epochs + 5)
    arena.store(MALLORY, stored)
    arena.ok(HONEST, Endow(arena.contract_id(MALLORY), gift))
    before = arena.wealth(MALLORY)
    for _ in range(epochs):
        arena.turn()
        arena.do(MALLORY, SpendEndowment(arena.contract_id(MALLORY)))
    earned = arena.wealth(MALLORY) - before
    assert 0 < earned <= gift * ENDOWMENT_SHARE_PPM * epochs // (MILLION * 8766)


@pytest.mark.parametrize("epochs", [1, 10])
def test_an_own_endowment_never_comes_back_whole(epochs: int) -> None:
    def endow(arena: Arena) -> None:
        arena.open(MALLORY)
        arena.store(MALLORY, 3)
        arena.ok(MALLORY, Endow(arena.contract_id(MALLORY), 100 * TOKEN))
        arena.turn(epochs)
        arena.do(MALLORY, SpendEndowment(arena.contract_id(MALLORY)))

    assert profit(endow, MALLORY, owners=ALL_HERS) <= -99 * TOKEN


def test_the_arena_pays_honest_nodes_so_that_an_attack_has_something_to_gain() -> None:
    arena = Arena()
    nodes = [arena.operator(number) for number in arena.storing]
    arena.tick()
    arena.open(HONEST)
    before = arena.wealth(*nodes)
    arena.store(HONEST, 4)
    arena.turn(8)
    assert sum(total_leaves(arena.state, number) for number in arena.storing) > 0
    arena.close_out(HONEST)
    assert arena.wealth(*nodes) - before >= 4 * 3 * PRICE * 7

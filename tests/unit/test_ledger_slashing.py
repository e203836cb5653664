"""Slashing: who loses what, who gets it, and that what is proven is punished once."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from dds.ledger.events import Event
from dds.ledger.machine import TxResult
from dds.ledger.money import balance
from dds.ledger.records import OPERATORS, SEGMENTS, Holding, NodeStatus, Operator, Unbonding
from dds.ledger.rules.slashing import fault_node, jail, take_bond, take_collateral, take_for_miss
from dds.primitives.hashing import sha256
from dds.primitives.money import TOKEN
from dds.wire.audit import LeafStatement, open_message, sign_answer
from dds.wire.codec import encode
from dds.wire.evidence import InvalidAnswer, WitnessEquivocation, encode_evidence
from dds.wire.ledger import ReleaseBond, SubmitEvidence, Unbond, WitnessReport, sign_tx
from tests.ledger_committee import BOND, FUNDS, NETWORK, POOL, Ledger, bitmap, key_of

STORER = 4
REPORTER, OTHER = key_of("reporter").public, key_of("other").public


@pytest.fixture
def ledger() -> Ledger:
    fresh = Ledger()
    fresh.give_assignment(STORER, 10 * TOKEN)
    fresh.to_epoch(1)
    return fresh


def do(ledger: Ledger, act: Callable[[], None]) -> list[Event]:
    """What a rule would do, kept as a transaction is, with all money counted afterwards."""
    act()
    events = ledger.state.keep()
    ledger.commit()
    return events


def collateral(ledger: Ledger, amount: int, *reporters: bytes) -> None:
    do(ledger, lambda: take_collateral(ledger.state, STORER, amount, reporters, reason="why", evidence=b"e"))


def bond(ledger: Ledger, ppm: int, *reporters: bytes) -> None:
    operator = ledger.operators[STORER].public
    do(ledger, lambda: take_bond(ledger.state, operator, ppm, reporters, reason="why", evidence=b"e"))


# -- the split --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "paid", "repair", "burned"),
    [(1000, 200, 300, 500), (1, 0, 0, 1), (9, 1, 2, 6), (10 * TOKEN, 2 * TOKEN, 3 * TOKEN, 5 * TOKEN)],
)
def test_collateral_is_split_20_30_50_and_what_rounding_leaves_is_burned(
    ledger: Ledger, amount: int, paid: int, repair: int, burned: int
) -> None:
    collateral(ledger, amount, REPORTER)
    chain = ledger.state.chain
    assert (balance(ledger.state, REPORTER), chain.repair_reserve, chain.burned) == (paid, repair, burned)
    assert ledger.state.node(STORER).pool_locked == 10 * TOKEN - amount


def test_reporters_share_evenly_and_each_counts_once(ledger: Ledger) -> None:
    collateral(ledger, 1003, REPORTER, OTHER, REPORTER)  # a fifth is 200
    assert (balance(ledger.state, REPORTER), balance(ledger.state, OTHER)) == (100, 100)
    assert ledger.state.chain.burned == 1003 - 200 - 300


@pytest.mark.parametrize("name", ["operator 4", "node 4", "payout 4"])
def test_who_belongs_to_the_punished_operator_gets_nothing_for_reporting(ledger: Ledger, name: str) -> None:
    own = key_of(name).public
    before = balance(ledger.state, own)
    collateral(ledger, 1000, own, OTHER)
    assert balance(ledger.state, own) == before
    assert balance(ledger.state, OTHER) == 100  # not more for it
    assert ledger.state.chain.burned == 600


def test_without_a_reporter_the_share_is_burned(ledger: Ledger) -> None:
    collateral(ledger, 1000)
    assert (ledger.state.chain.repair_reserve, ledger.state.chain.burned) == (300, 700)


def test_bond_is_split_20_0_80(ledger: Ledger) -> None:
    bond(ledger, 500_000, REPORTER)
    assert ledger.operator(STORER).bond == BOND // 2
    assert balance(ledger.state, REPORTER) == BOND // 10
    assert (ledger.state.chain.repair_reserve, ledger.state.chain.burned) == (0, BOND // 2 - BOND // 10)


def test_every_event_of_a_slash_says_why_and_what_proves_it(ledger: Ledger) -> None:
    def act() -> None:
        take_collateral(
            ledger.state, STORER, 1000, (REPORTER,), reason="why", evidence=b"e", segment=ledger.segment_id, index=0
        )

    said = [(e.name, e.node, e.segment, e.index, e.detail, e.evidence, e.amount + e.delta) for e in do(ledger, act)]
    about = (STORER, ledger.segment_id, 0, "why", b"e")
    assert said == [
        ("slash", *about, 1000),
        ("slash-share", *about, 200),
        ("slash-to-repair", *about, 300),
        ("slash-burned", *about, 500),
    ]


# -- bond that leaves -------------------------------------------------------------------------------------------------------


def test_unbonding_bond_is_slashable_until_it_is_released(ledger: Ledger) -> None:
    operator = ledger.operators[STORER]
    assert ledger.send(operator, Unbond(400 * TOKEN)).ok
    bond(ledger, 1_000_000, REPORTER)
    assert (ledger.operator(STORER).bond, ledger.operator(STORER).unbonding) == (0, ())
    assert balance(ledger.state, REPORTER) == BOND // 5


def test_released_bond_cannot_be_slashed(ledger: Ledger) -> None:
    operator = ledger.operators[STORER]
    assert ledger.send(operator, Unbond(400 * TOKEN)).ok
    ledger.to_epoch(1 + ledger.params.unbonding_epochs)
    assert ledger.send(operator, ReleaseBond()).ok
    bond(ledger, 1_000_000)
    assert balance(ledger.state, operator.public) == FUNDS + 400 * TOKEN


def test_bond_goes_first_and_then_what_leaves_last(ledger: Ledger) -> None:
    account = ledger.operators[STORER].public
    parts = (Unbonding(300 * TOKEN, 5), Unbonding(300 * TOKEN, 9))
    ledger.state.put(OPERATORS, account, msgspec.structs.replace(ledger.operator(STORER), bond=400 * TOKEN, unbonding=parts))
    ledger.state.keep()
    bond(ledger, 800_000)
    assert ledger.operator(STORER).bond == 0
    assert ledger.operator(STORER).unbonding == (Unbonding(200 * TOKEN, 5),)


def test_a_share_of_a_bond_is_rounded_up(ledger: Ledger) -> None:
    account = ledger.operators[STORER].public
    ledger.state.put(OPERATORS, account, Operator(bond=1001, nodes=(STORER,)))
    ledger.state.set_chain(genesis_supply=ledger.state.chain.genesis_supply - BOND + 1001)
    ledger.state.keep()
    bond(ledger, 1_000)
    assert ledger.operator(STORER).bond == 1001 - 2


# -- misses -----------------------------------------------------------------------------------------------------------------


def test_a_miss_is_paid_from_the_free_pool_then_from_the_bond_and_never_from_locked_collateral(ledger: Ledger) -> None:
    node = ledger.state.node(STORER)
    ledger.state.put_node(msgspec.structs.replace(node, pool_free=TOKEN // 20))
    ledger.state.set_chain(genesis_supply=ledger.state.chain.genesis_supply - node.pool_free + TOKEN // 20)
    ledger.state.keep()
    do(ledger, lambda: take_for_miss(ledger.state, STORER, reason="missed"))
    after = ledger.state.node(STORER)
    assert (after.pool_free, after.pool_locked) == (0, 10 * TOKEN)
    assert ledger.operator(STORER).bond == BOND - TOKEN // 20


def test_a_miss_takes_no_more_than_there_is(ledger: Ledger) -> None:
    node = ledger.state.node(STORER)
    ledger.state.put_node(msgspec.structs.replace(node, pool_free=0))
    ledger.state.put(OPERATORS, node.operator, Operator(bond=7, nodes=(STORER,)))
    ledger.state.set_chain(genesis_supply=ledger.state.chain.genesis_supply - node.pool_free - BOND + 7)
    ledger.state.keep()
    do(ledger, lambda: take_for_miss(ledger.state, STORER, reason="missed"))
    assert ledger.operator(STORER).bond == 0


# -- faults and jail --------------------------------------------------------------------------------------------------------


def test_the_heavier_of_two_faults_counts_from_the_first_on(ledger: Ledger) -> None:
    do(ledger, lambda: fault_node(ledger.state, STORER, 250_000, "down"))
    ledger.to_epoch(2)
    do(ledger, lambda: fault_node(ledger.state, STORER, 1_000_000, "fraud"))
    do(ledger, lambda: fault_node(ledger.state, STORER, 500_000, "loss"))
    node = ledger.state.node(STORER)
    assert (node.status, node.fault_ppm, node.fault_reason, node.fault_epoch) == (NodeStatus.FAULTED, 1_000_000, "fraud", 1)


def test_a_longer_sentence_stays(ledger: Ledger) -> None:
    account = ledger.operators[STORER].public
    ledger.state.put(OPERATORS, account, msgspec.structs.replace(ledger.operator(STORER), jailed_until=1000))
    do(ledger, lambda: jail(ledger.state, account))
    assert ledger.operator(STORER).jailed_until == 1000


# -- evidence ---------------------------------------------------------------------------------------------------------------


def false_answer(ledger: Ledger, epoch: int = 2, *, by: int = STORER, index: int = 0) -> SubmitEvidence:
    """The storer, or another, signed that a leaf is what it cannot be."""
    statement = encode(LeafStatement(ledger.segment_id, bytes(32), index, 0, 0, b"no such byte", bytes(32), [], []))
    message = open_message(sign_answer(ledger.nodes[by], NETWORK, epoch, bytes(32), [statement]))
    return SubmitEvidence(encode_evidence(InvalidAnswer(message.signed, statement)))


def submit(ledger: Ledger, evidence: SubmitEvidence) -> TxResult:
    return ledger.send(ledger.anna, evidence)


def test_a_false_answer_costs_all_collateral_half_the_bond_and_a_jail_sentence(ledger: Ledger) -> None:
    ledger.to_epoch(2)
    assert submit(ledger, false_answer(ledger)).ok
    segment = ledger.state.find(SEGMENTS, ledger.segment_id)
    assert segment is not None and segment.assignments[0].state == Holding.FREED
    node = ledger.state.node(STORER)
    assert (node.pool_locked, node.pool_free) == (0, POOL - 10 * TOKEN)
    operator = ledger.operator(STORER)
    assert (operator.bond, operator.jailed_until) == (BOND // 2, 2 + ledger.params.jail_epochs)
    assert balance(ledger.state, ledger.anna.public) == FUNDS + 2 * TOKEN + BOND // 10
    assert ledger.state.chain.repair_reserve == 3 * TOKEN


def test_lying_about_what_another_holds_costs_the_liar_and_not_the_holder(ledger: Ledger) -> None:
    ledger.to_epoch(2)
    locked = ledger.state.node(STORER).pool_locked
    assert submit(ledger, false_answer(ledger, by=STORER + 1)).ok
    assert (ledger.operator(STORER + 1).bond, ledger.operator(STORER).bond) == (BOND // 2, BOND)
    segment = ledger.state.find(SEGMENTS, ledger.segment_id)
    assert segment is not None and segment.assignments[0].state == Holding.ACTIVE
    assert ledger.state.node(STORER).pool_locked == locked > 0


def test_the_same_offence_is_punished_once(ledger: Ledger) -> None:
    ledger.to_epoch(2)
    assert submit(ledger, false_answer(ledger)).ok
    assert submit(ledger, false_answer(ledger)).code == "evidence-spent"
    assert ledger.operator(STORER).bond == BOND // 2


def test_many_false_answers_of_an_epoch_cost_the_bond_once_and_those_of_the_next_again(ledger: Ledger) -> None:
    ledger.to_epoch(3)
    for index in (0, 1):
        assert submit(ledger, false_answer(ledger, index=index)).ok
    assert ledger.operator(STORER).bond == BOND // 2
    assert submit(ledger, false_answer(ledger, 3)).ok
    assert ledger.operator(STORER).bond == BOND // 4


def test_an_operator_that_reports_its_own_node_earns_nothing(ledger: Ledger) -> None:
    ledger.to_epoch(2)
    assert ledger.send(ledger.operators[STORER], false_answer(ledger)).ok
    assert balance(ledger.state, ledger.operators[STORER].public) == FUNDS
    assert ledger.state.chain.burned == 7 * TOKEN + BOND // 2


def test_what_proves_nothing_is_refused(ledger: Ledger) -> None:
    assert submit(ledger, SubmitEvidence(b"")).code == "evidence-does-not-hold"
    assert submit(ledger, SubmitEvidence(b"\x92\x01\xc0")).code == "evidence-does-not-hold"
    assert ledger.operator(STORER).bond == BOND


def test_evidence_counts_while_its_window_is_open_and_no_longer(ledger: Ledger) -> None:
    window = ledger.params.evidence_epochs
    ledger.to_epoch(2 + window)
    in_time = false_answer(ledger)
    ledger.to_epoch(3 + window)
    assert submit(ledger, in_time).code == "evidence-does-not-hold"
    assert submit(ledger, false_answer(ledger, 3)).ok


def two_reports(ledger: Ledger, *, second: WitnessReport) -> SubmitEvidence:
    first = WitnessReport(1, bitmap([STORER]), [], b"", b"")
    raws = [sign_tx(ledger.nodes[0], NETWORK, nonce, body) for nonce, body in enumerate((first, second))]
    return SubmitEvidence(encode_evidence(WitnessEquivocation(*raws)))


def test_a_witness_that_reports_twice_loses_a_twentieth_of_its_bond_and_goes_to_jail(ledger: Ledger) -> None:
    assert submit(ledger, two_reports(ledger, second=WitnessReport(1, bitmap([]), [], b"", b""))).ok
    assert ledger.operator(0).bond == BOND - BOND // 20
    assert balance(ledger.state, ledger.anna.public) == FUNDS + BOND // 100
    ledger.to_epoch(2)
    assert 0 not in ledger.seated(2)


def test_a_reveal_beside_a_vote_is_no_second_report(ledger: Ledger) -> None:
    alone = WitnessReport(1, b"", [], b"", sha256(b"secret"))
    assert submit(ledger, two_reports(ledger, second=alone)).code == "evidence-does-not-hold"

"""Operators and nodes: how both come, what they may change, how they leave."""

from __future__ import annotations

import msgspec
import pytest

from dds.ledger.money import balance
from dds.ledger.records import ACCOUNTS, STANDINGS, NodeStatus, Standing, number_key
from dds.ledger.rules.operators import UNBONDING_MAX
from dds.ledger.rules.slashing import fault_node, jail
from dds.primitives.keys import SigningKey
from dds.primitives.money import TOKEN
from dds.wire.ledger import (
    CONSENT_TAG,
    Bond,
    DrainPool,
    FundPool,
    RegisterNode,
    ReleaseBond,
    RetireNode,
    SetAsk,
    Transfer,
    Unbond,
)
from tests.ledger_committee import BOND, FUNDS, NETWORK, POOL, Ledger, key_of

NODE = 0
LEAST = 100 * TOKEN
NEW_NODE = key_of("a new node")


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(witnesses=1, storers=1)


def registration(operator: SigningKey, node: SigningKey = NEW_NODE, *, network: str = NETWORK) -> RegisterNode:
    consent = node.sign_tagged(CONSENT_TAG, network, operator.public)
    return RegisterNode(node.public, consent, ["ssn", "witness"], "r", "s", 1 << 40, operator.public, 1000, 500, 5 * TOKEN)


# -- bonds ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("amount", "code"), [(LEAST, ""), (LEAST - 1, "bond-too-small"), (0, "bond-too-small")])
def test_becoming_an_operator_takes_the_whole_minimum(ledger: Ledger, amount: int, code: str) -> None:
    assert ledger.send(ledger.anna, Bond(amount, ["eu"])).code == code
    assert balance(ledger.state, ledger.anna.public) == FUNDS - (0 if code else amount)


def test_an_operator_adds_any_amount_and_declares_its_regions_anew_for_nothing(ledger: Ledger) -> None:
    operator = ledger.operators[NODE]
    assert ledger.send(operator, Bond(1, ["eu"])).ok
    assert ledger.send(operator, Bond(0, ["asia", "eu"])).ok
    assert (ledger.operator(NODE).bond, ledger.operator(NODE).regions) == (BOND + 1, ("asia", "eu"))
    assert ledger.operator(NODE).nodes == (NODE,)


@pytest.mark.parametrize("regions", [["b", "a"], ["a", "a"]])
def test_regions_that_are_no_set_are_refused(ledger: Ledger, regions: list[str]) -> None:
    assert ledger.send(ledger.anna, Bond(LEAST, regions)).code == "not-ascending"


def test_a_bond_that_nobody_has_the_money_for_is_refused(ledger: Ledger) -> None:
    assert ledger.send(ledger.anna, Bond(FUNDS + 1, [])).code == "insufficient-balance"


def test_what_stays_of_a_bond_is_the_minimum_or_nothing(ledger: Ledger) -> None:
    assert ledger.send(ledger.anna, Bond(3 * LEAST, [])).ok
    assert ledger.send(ledger.anna, Unbond(2 * LEAST + 1)).code == "bond-too-small"
    assert ledger.send(ledger.anna, Unbond(3 * LEAST + 1)).code == "insufficient-bond"
    assert ledger.send(ledger.anna, Unbond(0)).code == "nothing-to-move"
    assert ledger.send(ledger.anna, Unbond(2 * LEAST)).ok
    assert ledger.send(ledger.anna, Unbond(LEAST)).ok
    assert ledger.send(ledger.anna, Bond(1, [])).code == "bond-too-small"  # as when it first came


def test_a_bond_stays_while_a_node_has_a_pool_or_assignments(ledger: Ledger) -> None:
    operator = ledger.operators[NODE]
    assert ledger.send(operator, Unbond(BOND)).code == "operator-in-use"
    assert ledger.send(operator, DrainPool(NODE, POOL)).ok
    node = ledger.state.node(NODE)
    ledger.state.put_node(msgspec.structs.replace(node, assignments=1))
    ledger.state.keep()
    assert ledger.send(operator, Unbond(BOND)).code == "operator-in-use"
    ledger.state.put_node(node)
    ledger.state.keep()
    assert ledger.send(operator, Unbond(BOND)).ok


def test_bond_is_released_at_its_epoch_and_not_one_before(ledger: Ledger) -> None:
    operator, wait = ledger.operators[NODE], ledger.params.unbonding_epochs
    assert ledger.send(operator, Unbond(LEAST)).ok
    ledger.to_epoch(1)
    assert ledger.send(operator, Unbond(2 * LEAST)).ok
    ledger.to_epoch(wait - 1)
    assert ledger.send(operator, ReleaseBond()).code == "nothing-to-release"
    ledger.to_epoch(wait)
    assert ledger.send(operator, ReleaseBond()).ok
    assert balance(ledger.state, operator.public) == FUNDS + LEAST
    assert [part.amount for part in ledger.operator(NODE).unbonding] == [2 * LEAST]


def test_a_bond_leaves_in_a_limited_number_of_parts(ledger: Ledger) -> None:
    operator = ledger.operators[NODE]
    codes = [ledger.send(operator, Unbond(1)).code for _ in range(UNBONDING_MAX + 1)]
    assert codes == [""] * UNBONDING_MAX + ["too-many-unbondings"]


# -- pools ------------------------------------------------------------------------------------------------------------------


def test_a_pool_is_its_operators_to_fund_and_to_drain(ledger: Ledger) -> None:
    operator = ledger.operators[NODE]
    assert ledger.send(ledger.anna, FundPool(NODE, 1)).code == "not-the-operator"
    assert ledger.send(ledger.anna, DrainPool(NODE, 1)).code == "not-the-operator"
    assert ledger.send(operator, FundPool(7, 1)).code == "no-such-node"
    assert ledger.send(operator, FundPool(NODE, TOKEN)).ok
    assert ledger.state.node(NODE).pool_free == POOL + TOKEN


def test_what_assignments_lock_cannot_be_drained(ledger: Ledger) -> None:
    ledger.give_assignment(NODE, 10 * TOKEN)
    operator = ledger.operators[NODE]
    assert ledger.send(operator, DrainPool(NODE, POOL - 10 * TOKEN + 1)).code == "insufficient-pool"
    assert ledger.send(operator, DrainPool(NODE, POOL - 10 * TOKEN)).ok
    assert balance(ledger.state, operator.public) == FUNDS + POOL - 10 * TOKEN


# -- nodes ------------------------------------------------------------------------------------------------------------------


def test_a_registered_node_has_an_account_of_its_own_and_can_send_with_it(ledger: Ledger) -> None:
    operator = ledger.operators[NODE]
    assert ledger.send(operator, registration(operator)).ok
    number = ledger.state.node_number(NEW_NODE.public)
    assert number == 2 and ledger.operator(NODE).nodes == (0, 2)
    assert (ledger.state.node(number).pool_free, balance(ledger.state, operator.public)) == (5 * TOKEN, FUNDS - 5 * TOKEN)
    assert ledger.state.find(ACCOUNTS, NEW_NODE.public) is not None
    assert ledger.send(NEW_NODE, SetAsk(number, 7, 1 << 30, 9)).ok
    assert ledger.state.node(number).ask_price == 7


def test_registering_leaves_an_account_that_the_node_had_as_it_was(ledger: Ledger) -> None:
    assert ledger.send(ledger.anna, Transfer(NEW_NODE.public, 5)).ok
    assert ledger.send(ledger.operators[NODE], registration(ledger.operators[NODE])).ok
    assert balance(ledger.state, NEW_NODE.public) == 5


def test_nobody_registers_a_node_that_did_not_consent_to_this_operator_on_this_network(ledger: Ledger) -> None:
    operator = ledger.operators[NODE]
    assert ledger.send(operator, registration(ledger.operators[1])).code == "no-consent"
    assert ledger.send(operator, registration(operator, network="other")).code == "no-consent"
    assert ledger.state.node_number(NEW_NODE.public) is None


def test_a_node_is_registered_once(ledger: Ledger) -> None:
    for operator, code in [(ledger.operators[0], ""), (ledger.operators[1], "node-known")]:
        assert ledger.send(operator, registration(operator)).code == code


@pytest.mark.parametrize(
    ("roles", "code"), [(["ssn", "boss"], "not-ascending"), (["boss"], "unknown-role"), (["ssn", "ssn"], "not-ascending")]
)
def test_roles_are_a_set_of_known_ones(ledger: Ledger, roles: list[str], code: str) -> None:
    operator = ledger.operators[NODE]
    assert ledger.send(operator, msgspec.structs.replace(registration(operator), roles=roles)).code == code


def test_who_is_jailed_or_not_bonded_registers_nothing(ledger: Ledger) -> None:
    assert ledger.send(ledger.anna, registration(ledger.anna)).code == "no-such-operator"
    jail(ledger.state, ledger.operators[NODE].public)
    ledger.state.keep()
    assert ledger.send(ledger.operators[NODE], registration(ledger.operators[NODE])).code == "operator-jailed"
    ledger.to_epoch(ledger.params.jail_epochs)
    assert ledger.send(ledger.operators[NODE], registration(ledger.operators[NODE])).ok


def test_an_ask_is_changed_by_the_operator_or_the_node_and_by_nobody_else(ledger: Ledger) -> None:
    ask = SetAsk(NODE, 1, 1, 1)
    assert ledger.send(ledger.anna, ask).code == "not-the-operator"
    assert ledger.send(ledger.operators[1], ask).code == "not-the-operator"
    assert ledger.send(ledger.operators[NODE], ask).ok
    assert ledger.send(ledger.nodes[NODE], SetAsk(NODE, 2, 3, 4)).ok
    node = ledger.state.node(NODE)
    assert (node.ask_price, node.capacity_bytes, node.term_epochs_max) == (2, 3, 4)


def test_capacity_does_not_fall_below_what_is_promised(ledger: Ledger) -> None:
    ledger.give_assignment(NODE, TOKEN)
    promised = ledger.state.node(NODE).promised_bytes
    assert ledger.send(ledger.nodes[NODE], SetAsk(NODE, 1, promised - 1, 1)).code == "capacity-promised"
    assert ledger.send(ledger.nodes[NODE], SetAsk(NODE, 1, promised, 1)).ok


def test_a_retiring_node_takes_nothing_back(ledger: Ledger) -> None:
    assert ledger.send(ledger.anna, RetireNode(NODE)).code == "not-the-operator"
    assert ledger.send(ledger.nodes[NODE], RetireNode(NODE)).ok
    assert ledger.state.node(NODE).status == NodeStatus.RETIRING
    assert ledger.send(ledger.operators[NODE], RetireNode(NODE)).code == "node-not-active"
    assert ledger.send(ledger.operators[NODE], SetAsk(NODE, 1, 1, 1)).code == "node-retiring"


def test_a_caught_node_comes_back_by_a_new_ask_once_it_holds_nothing(ledger: Ledger) -> None:
    ask = SetAsk(NODE, 1, 1 << 30, 1)
    ledger.state.put_node(msgspec.structs.replace(ledger.state.node(NODE), assignments=1))
    ledger.state.put(STANDINGS, number_key(NODE), Standing(judged=30, bad=9, missed_in_row=24))
    fault_node(ledger.state, NODE, 250_000, "down")
    ledger.state.keep()
    assert ledger.send(ledger.nodes[NODE], ask).ok
    assert ledger.send(ledger.nodes[NODE], RetireNode(NODE)).code == "node-not-active"  # its fault is not forgotten so
    assert ledger.state.node(NODE).status == NodeStatus.FAULTED
    ledger.state.put_node(msgspec.structs.replace(ledger.state.node(NODE), assignments=0))
    ledger.state.keep()
    assert ledger.send(ledger.nodes[NODE], ask).ok
    node = ledger.state.node(NODE)
    assert (node.status, node.fault_ppm, node.fault_epoch, node.fault_reason) == (NodeStatus.ACTIVE, 0, -1, "")
    assert (ledger.standing(NODE).missed_in_row, ledger.standing(NODE).bad) == (0, 9)


def test_a_caught_node_of_a_jailed_operator_does_not_come_back(ledger: Ledger) -> None:
    fault_node(ledger.state, NODE, 1_000_000, "fraud")
    jail(ledger.state, ledger.operators[NODE].public)
    ledger.state.keep()
    assert ledger.send(ledger.nodes[NODE], SetAsk(NODE, 1, 1, 1)).code == "operator-jailed"

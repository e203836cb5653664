"""What a network asks of a node at least, and which of it the ledger sees to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from dds.apps.cli.requirements import requirements_of
from dds.ledger.params import Params, devnet_params
from dds.ledger.requirements import capacity_least, requirements
from dds.primitives.money import TOKEN
from dds.primitives.units import GIB, MIB
from dds.wire.ledger import CONSENT_TAG, RegisterNode, SetAsk
from tests.ledger_committee import NETWORK, Ledger, key_of, small_params

NEW_NODE = key_of("a new node")
STORER = 1


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(witnesses=1, storers=1, params=small_params(capacity_bytes_min=10 * GIB))


def registration(ledger: Ledger, capacity_bytes: int, roles: Sequence[str]) -> RegisterNode:
    operator = ledger.operators[STORER].public
    consent = NEW_NODE.sign_tagged(CONSENT_TAG, NETWORK, operator)
    return RegisterNode(NEW_NODE.public, consent, list(roles), "r", "s", capacity_bytes, operator, 1000, 500, 5 * TOKEN)


@pytest.mark.parametrize("roles", [("ssn",), ("asn",), ("asn", "ssn", "witness")])
@pytest.mark.parametrize(("offered", "code"), [(10 * GIB, ""), (10 * GIB - 1, "too-small"), (0, "too-small")])
def test_a_storing_node_is_registered_with_the_least_capacity_or_more(
    ledger: Ledger, roles: tuple[str, ...], offered: int, code: str
) -> None:
    pools = ledger.state.chain.nodes
    assert ledger.send(ledger.operators[STORER], registration(ledger, offered, roles)).code == code
    assert ledger.state.chain.nodes == pools + (code == "")


@pytest.mark.parametrize("roles", [("witness",), ("ecn", "gateway")])
def test_a_node_that_does_not_store_needs_no_capacity(ledger: Ledger, roles: tuple[str, ...]) -> None:
    assert ledger.send(ledger.operators[STORER], registration(ledger, 0, roles)).ok
    number = ledger.state.node_number(NEW_NODE.public)
    assert number is not None and ledger.send(NEW_NODE, SetAsk(number, 1, 0, 1)).ok


@pytest.mark.parametrize(("offered", "code"), [(10 * GIB, ""), (10 * GIB - 1, "too-small")])
def test_no_ask_offers_less_than_the_least_capacity(ledger: Ledger, offered: int, code: str) -> None:
    before = ledger.state.node(STORER)
    assert ledger.send(ledger.nodes[STORER], SetAsk(STORER, 7, offered, 9)).code == code
    assert (ledger.state.node(STORER) == before) == (code != "")


def test_what_a_genesis_lists_is_the_founders_business() -> None:
    ledger = Ledger(witnesses=1, storers=1, params=small_params(capacity_bytes_min=1 << 50))
    assert ledger.state.node(STORER).capacity_bytes < 1 << 50


def test_every_requirement_is_a_parameter_and_says_whether_the_ledger_sees_to_it() -> None:
    params = replace(Params(), capacity_bytes_min=5, bandwidth_bytes_per_s_min=6, downtime_suspend_ppm=7)
    found = {each.name: (each.least, each.enforced) for each in requirements(params)}
    assert found == {"capacity": (5, True), "bandwidth": (6, False), "uptime": (7, True)}
    assert [each.is_met(6) for each in requirements(params)] == [True, True, False]


def test_doctor_looks_for_what_the_network_asks() -> None:
    found = requirements_of(replace(Params(), capacity_bytes_min=5, bandwidth_bytes_per_s_min=6))
    assert (found.capacity_bytes_min, found.bandwidth_bytes_per_s_min) == (5, 6)
    assert requirements_of(None).capacity_bytes_min > 0


def test_a_devnet_asks_for_little_room_and_for_no_more_than_any_network() -> None:
    small, usual = requirements(devnet_params(0)), requirements(Params())
    assert (small[0].least, usual[0].least) == (MIB, 10 * GIB)
    assert all(one.least <= other.least for one, other in zip(small, usual, strict=True))
    assert capacity_least(devnet_params(0), ["ssn"]) == MIB and capacity_least(Params(), ["witness"]) == 0

"""Edges of the rules that no story leads to: found by planting mistakes that nothing else noticed (tests/mutants.py)."""

from __future__ import annotations

import msgspec
import pytest

from dds.ledger import rent
from dds.ledger.genesis import Genesis, GenesisAccount, GenesisNode, GenesisOperator, apply_genesis
from dds.ledger.machine import Context, apply_block
from dds.ledger.params import Params
from dds.ledger.records import CHAIN, ENDOWMENTS, OPERATORS, LossVotes, Operator, SponsorEntry
from dds.ledger.rules import inventory
from dds.ledger.rules.emission import released
from dds.ledger.rules.endowments import epoch_cost
from dds.ledger.state import State
from dds.placement.roles import SSN
from dds.primitives.errors import ConfigError, FormatError, UnsupportedVersion
from dds.primitives.hashing import sha256
from dds.primitives.money import TOKEN, share_ppm
from dds.primitives.units import MIB
from dds.wire.codec import decode, encode
from dds.wire.ledger import (
    TX_TAG,
    TX_VERSION,
    AddReceipts,
    CancelContract,
    DrainPool,
    Endow,
    ExtendSegments,
    OpenContract,
    RegisterSegments,
    Reserve,
    SetAsk,
    Settle,
    SpendEndowment,
    Transfer,
    TxPayload,
    open_tx,
    sign_tx,
)
from dds.wire.signed import sign
from tests.ledger_committee import EPOCH_MS, NETWORK
from tests.ledger_kit import ANNA, BERT, FUNDS, small_genesis
from tests.ledger_storage import PRICE, SLOT, TERM, Storage

ONE = sha256(b"one")
BODY = Transfer(BERT.public, 1)


@pytest.fixture
def ledger() -> Storage:
    fresh = Storage()
    fresh.open()
    fresh.open(fresh.bert)
    return fresh


# -- transactions and blocks --------------------------------------------------------------------------------------------------


def test_a_transaction_spelled_in_another_way_is_refused_though_its_signature_holds() -> None:
    payload = encode(TxPayload(TX_VERSION, 0, BODY))
    assert payload[:3] == b"\x93\x01\x00"
    longer = b"\x93\x01\xcc\x00" + payload[3:]  # the nonce in two bytes
    for other in (sign(ANNA, TX_TAG, NETWORK, longer), b"\xdc\x00\x03" + sign_tx(ANNA, NETWORK, 0, BODY)[1:]):
        with pytest.raises(FormatError, match="canonical"):
            open_tx(other, NETWORK)


@pytest.mark.parametrize("version", [TX_VERSION - 1, TX_VERSION + 1])
def test_a_transaction_of_another_version_is_refused(version: int) -> None:
    with pytest.raises(UnsupportedVersion):
        open_tx(sign(ANNA, TX_TAG, NETWORK, encode(TxPayload(version, 0, BODY))), NETWORK)


def test_a_transfer_of_nothing_is_refused(ledger: Storage) -> None:
    assert ledger.send(ledger.anna, Transfer(BERT.public, 0)).code == "nothing-to-move"


def test_a_second_block_of_an_epoch_ends_nothing(ledger: Storage) -> None:
    ledger.give_leaves(4)
    apply_block(ledger.state, NETWORK, [], Context(2, EPOCH_MS - 1))
    assert inventory.total_leaves(ledger.state, 4) == 0
    apply_block(ledger.state, NETWORK, [], Context(3, EPOCH_MS))
    assert inventory.total_leaves(ledger.state, 4) == 100


def test_what_a_refused_transaction_would_have_told_is_not_told_later(ledger: Storage) -> None:
    (reservation,) = ledger.reserve()
    twice = [ledger.entry(reservation, []), ledger.entry(reservation, [], b"two")]
    assert ledger.send(ledger.anna, RegisterSegments(twice)).code == "no-such-reservation"
    assert apply_block(ledger.state, NETWORK, [], Context(2, 0)).events == ()


def test_an_entry_that_was_read_often_and_is_deleted_is_gone_for_good() -> None:
    base = {OPERATORS.key(ONE): encode(Operator(7))}
    state = State(base)
    assert state.find(OPERATORS, ONE) == Operator(7)
    state.delete(OPERATORS, ONE)
    state.keep()
    assert state.changes() == {OPERATORS.key(ONE): None}
    base.clear()
    state.committed()
    assert state.find(OPERATORS, ONE) is None


# -- genesis ------------------------------------------------------------------------------------------------------------------


def _node(name: bytes) -> GenesisNode:
    return GenesisNode(sha256(name), ANNA.public, ANNA.public, ("ssn",), "r", "s", 1, 1, 1, 5)


def _supply(genesis: Genesis) -> int:
    state = State({})
    apply_genesis(state, genesis)
    chain = state.find(CHAIN)
    assert chain is not None
    return chain.genesis_supply


def test_genesis_counts_balances_bonds_and_pools_and_stays_within_the_cap() -> None:
    operator = GenesisOperator(ANNA.public, 7, ())
    whole = msgspec.structs.replace(small_genesis(), operators=(operator,), nodes=(_node(b"1"), _node(b"2")))
    supply = 2 * FUNDS + 7 + 2 * 5
    for cap in (supply, supply - 1):
        capped = msgspec.structs.replace(whole, params=msgspec.structs.replace(whole.params, supply_cap=cap))
        if cap == supply:
            assert _supply(capped) == supply
        else:
            with pytest.raises(ConfigError, match="cap"):
                _supply(capped)


def test_genesis_names_every_account_operator_and_node_once() -> None:
    operator = GenesisOperator(ANNA.public, 7, ())
    for twice in (
        {"accounts": (GenesisAccount(ANNA.public, 1),) * 2},
        {"operators": (operator,) * 2},
        {"operators": (operator,), "nodes": (_node(b"1"),) * 2},
    ):
        with pytest.raises(ConfigError, match="twice"):
            _supply(msgspec.structs.replace(small_genesis(), **twice))
    with pytest.raises(ConfigError, match="no operator"):
        _supply(msgspec.structs.replace(small_genesis(), nodes=(_node(b"1"),)))


def test_genesis_of_another_version_begins_nothing() -> None:
    with pytest.raises(ConfigError, match="version 1"):
        _supply(msgspec.structs.replace(small_genesis(), version=1))


def test_genesis_refuses_bond_that_leaves_before_evidence_is_too_old() -> None:
    params = msgspec.structs.replace(small_genesis().params, unbonding_epochs=11, evidence_epochs=12)
    with pytest.raises(ConfigError, match="11 epochs"):
        _supply(msgspec.structs.replace(small_genesis(), params=params))


def test_no_committee_is_larger_than_its_votes_have_bits() -> None:
    everybody = LossVotes(0, bytes(32), 0, (1 << 64) - 1)
    assert decode(encode(everybody), LossVotes) == everybody
    decode(encode(msgspec.structs.replace(Params(), committee_max=64)), Params)
    with pytest.raises(FormatError):
        decode(encode(msgspec.structs.replace(Params(), committee_max=65)), Params)


# -- money --------------------------------------------------------------------------------------------------------------------


def test_epochs_before_a_contract_stored_anything_cost_its_endowment_nothing(ledger: Storage) -> None:
    contract = ledger.contract_id()
    ledger.ok(ledger.bert, Endow(contract, TOKEN))
    ledger.to_epoch(4)
    ledger.store()
    ledger.to_epoch(5)
    ledger.ok(ledger.bert, SpendEndowment(contract))
    endowment = ledger.state.find(ENDOWMENTS, contract)
    assert endowment is not None
    assert endowment.spent == epoch_cost(ledger.params, ledger.contract(), ledger.state.chain.lane(SSN).reference) > 0


def test_what_is_minted_in_an_epoch_is_gone_from_its_budget(ledger: Storage) -> None:
    ledger.store()
    ledger.pass_until(5)
    budget = ledger.state.chain.emission_budget
    ledger.ok(ledger.bert, Settle([ONE]))
    minted = sum(ledger.earned("subsidy").values())
    assert ledger.state.chain.emission_budget == budget - minted < budget
    assert entry_of(ledger).subsidy + minted == share_ppm(ledger.state.chain.burned_for_subsidy, ledger.params.subsidy_ppm)
    ledger.to_epoch(6)
    assert ledger.state.chain.emission_budget == released(ledger.params, ledger.state.chain.genesis_supply, 6) - minted


# -- contracts, draws, receipts -----------------------------------------------------------------------------------------------


def entry_of(ledger: Storage) -> SponsorEntry:
    (entry,) = ledger.segment().sponsors
    return entry


def test_a_cancelled_contract_does_not_open_anew_while_it_sponsors_a_segment(ledger: Storage) -> None:
    ledger.store()
    ledger.ok(ledger.anna, CancelContract(ledger.contract_id()))
    assert ledger.send(ledger.anna, OpenContract("standard", 2, 1, 5, 5_000, 0)).code == "contract-in-use"


def test_another_beacon_draws_other_nodes(ledger: Storage) -> None:
    other = Storage()
    other.open()
    other.state.set_chain(beacon_mix=ONE)
    other.state.keep()
    drawn = [[each.reservation(name).chosen for name in each.reserve(count=16)] for each in (ledger, other)]
    assert drawn[0] != drawn[1]


def test_one_reservation_draws_no_node_beyond_its_collateral(ledger: Storage) -> None:
    need = rent.collateral(ledger.params, MIB, ledger.state.chain.lane(SSN).price)
    for number in ledger.storing:
        ledger.ok(ledger.operators[number], DrainPool(number, ledger.node(number).pool_free - 3 * need))
    assert ledger.send(ledger.anna, Reserve(ledger.contract_id(), 7, 3, 1, MIB)).code == "not-enough-nodes"
    ledger.reserve(count=5, size=MIB)  # 15 of 18 places


def test_a_spare_without_room_stands_in_for_nobody(ledger: Storage) -> None:
    (reservation,) = ledger.reserve()
    spare = ledger.reservation(reservation).spares[0]
    register = RegisterSegments([ledger.entry(reservation, [ledger.receipt(0, spare, reservation)])])
    for capacity, code in ((2 * SLOT - 1, "no-room"), (2 * SLOT, "")):
        ledger.ok(ledger.nodes[spare], SetAsk(spare, PRICE, capacity, 100))
        assert ledger.send(ledger.anna, register).code == code


def test_a_node_with_other_proofs_is_not_paid_for_the_epoch_of_its_receipt(ledger: Storage) -> None:
    ledger.give_leaves(*ledger.storing)
    _, chosen = ledger.store(without=[1])
    ledger.pass_until(3)
    ledger.ok(ledger.bert, AddReceipts(ONE, [ledger.late_receipt(1)]))
    ledger.pass_until(6)
    ledger.ok(ledger.bert, Settle([ONE]))
    assert ledger.earned()[chosen[1]] == PRICE // 2  # for epoch 4 alone; 5 is not closed


# -- settling and extending ---------------------------------------------------------------------------------------------------


def test_segments_to_settle_stand_in_ascending_order(ledger: Storage) -> None:
    for order in ([ONE, ONE], sorted([ONE, sha256(b"two")], reverse=True)):
        assert ledger.send(ledger.anna, Settle(order)).code == "not-ascending"


def test_extending_takes_the_last_clearing_price_where_that_is_higher(ledger: Storage) -> None:
    ledger.store()
    ledger.state.set_lane(SSN, price=2 * PRICE)
    ledger.state.keep()
    ledger.ok(ledger.anna, ExtendSegments(ledger.contract_id(), [ONE], 1))
    entry = entry_of(ledger)
    assert (entry.price, entry.prepaid) == (2 * PRICE, 3 * PRICE * (TERM + 1))


def test_joining_anew_takes_the_last_clearing_price_where_that_is_higher(ledger: Storage) -> None:
    ledger.store()
    ledger.state.set_lane(SSN, price=2 * PRICE)
    ledger.state.keep()
    for key in (ledger.anna, ledger.bert):
        ledger.sponsor(key)
    assert [entry.price for entry in ledger.segment().sponsors] == [2 * PRICE] * 2
    assert ledger.segment().price == 2 * PRICE
    ledger.assert_sound()

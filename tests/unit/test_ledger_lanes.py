"""A contract pays the price of where its class is stored: what it reserves, joins, extends and is endowed for."""

from __future__ import annotations

import pytest

from dds.ledger import rent
from dds.ledger.records import CONTRACTS, Contract, contract_id, reservation_id
from dds.ledger.rules.endowments import epoch_cost
from dds.placement.roles import ASN, SSN
from dds.primitives.hashing import sha256
from dds.primitives.units import MIB
from dds.wire.ledger import Endow, ExtendSegments, OpenContract, RegisterSegments, Reserve, SpendEndowment, Sponsor
from tests.ledger_storage import ALL, DEPOSIT, PRICE, PRICE_MAX, SLOT, TERM, Storage

ARCHIVE_PRICE = 2 * PRICE
ONE = sha256(b"one")


class Lanes(Storage):
    """Archive costs twice as much as standard. Anna has a contract of both classes, whose geometry is the same here."""

    def __init__(self) -> None:
        super().__init__(8, storing_roles=(ASN, SSN))
        self.archive = contract_id(self.anna.public, "archive")
        self.open()
        self.ok(self.anna, OpenContract("archive", 2, 1, TERM, PRICE_MAX, DEPOSIT))
        self.set_price(ASN, ARCHIVE_PRICE)

    def set_price(self, role: str, price: int) -> None:
        self.state.set_lane(role, price=price, reference=price)
        self.state.keep()
        self.commit()

    def archived(self) -> Contract:
        found = self.state.find(CONTRACTS, self.archive)
        assert found is not None
        return found

    def store_archive(self) -> None:
        self.ok(self.anna, Reserve(self.archive, 1, 3, 1, 2 * SLOT))
        reservation = reservation_id(self.archive, self.archived().reservations - 1)
        chosen = self.reservation(reservation).chosen
        receipts = [self.receipt(at, each, reservation) for at, each in enumerate(chosen)]
        self.ok(self.anna, RegisterSegments([self.entry(reservation, receipts)]))


@pytest.fixture
def ledger() -> Lanes:
    return Lanes()


def test_a_contract_reserves_at_the_price_of_its_classs_lane(ledger: Lanes) -> None:
    (standard,) = ledger.reserve()
    ledger.ok(ledger.anna, Reserve(ledger.archive, 1, 3, 1, 2 * SLOT))
    archive = reservation_id(ledger.archive, 0)
    assert [ledger.reservation(each).price for each in (standard, archive)] == [PRICE, ARCHIVE_PRICE]
    quoted = [rent.quote(ledger.params, [2 * SLOT] * 3, price, TERM).total for price in (PRICE, ARCHIVE_PRICE)]
    assert [ledger.reservation(each).earmarked for each in (standard, archive)] == quoted


def test_a_contracts_limit_is_held_against_its_own_lane(ledger: Lanes) -> None:
    ledger.set_price(SSN, PRICE_MAX + 1)
    ledger.ok(ledger.anna, Reserve(ledger.archive, 1, 3, 1, MIB))
    assert ledger.send(ledger.anna, Reserve(ledger.contract_id(), 1, 3, 1, MIB)).code == "price-above-limit"


def test_what_is_reserved_is_demand_in_its_own_lane_only(ledger: Lanes) -> None:
    ledger.ok(ledger.anna, Reserve(ledger.archive, 2, 3, 1, MIB))
    standard, archive = ledger.state.chain.lanes
    assert (standard.demand_bytes, standard.demand_price_max) == (0, 0)
    assert (archive.demand_bytes, archive.demand_price_max) == (2 * 3 * MIB, PRICE_MAX)


def test_joining_and_extending_cost_what_the_lane_of_the_segment_costs(ledger: Lanes) -> None:
    """Whatever class the contract is of: its own cheaper lane is not where the segment lies."""
    ledger.store_archive()
    ledger.set_price(ASN, ARCHIVE_PRICE + 7)
    ledger.ok(ledger.anna, Sponsor(ledger.contract_id(), ONE, ALL.to_bytes(8, "little")))
    assert [entry.price for entry in ledger.segment().sponsors] == [ARCHIVE_PRICE, ARCHIVE_PRICE + 7]
    ledger.set_price(ASN, ARCHIVE_PRICE + 11)
    ledger.ok(ledger.anna, ExtendSegments(ledger.contract_id(), [ONE], 1))
    assert ledger.segment().sponsors[1].price == ARCHIVE_PRICE + 11
    ledger.assert_sound()


def test_an_endowment_spends_by_the_reference_of_its_classs_lane(ledger: Lanes) -> None:
    ledger.store_archive()
    ledger.ok(ledger.bert, Endow(ledger.archive, 1_000 * DEPOSIT))
    ledger.to_epoch(1)
    ledger.set_price(ASN, ARCHIVE_PRICE)
    before = ledger.archived().escrow
    ledger.ok(ledger.bert, SpendEndowment(ledger.archive))
    assert ledger.archived().escrow - before == epoch_cost(ledger.params, ledger.archived(), ARCHIVE_PRICE)


def test_a_reservation_keeps_its_price_when_the_lane_moves(ledger: Lanes) -> None:
    ledger.ok(ledger.anna, Reserve(ledger.archive, 1, 3, 1, 2 * SLOT))
    ledger.set_price(ASN, ARCHIVE_PRICE + 500)
    assert ledger.reservation(reservation_id(ledger.archive, 0)).price == ARCHIVE_PRICE

"""Which nodes keep a class, on the ledger and without one, and what is said when there are too few."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from dds.erasure.geometry import ARCHIVE, ARCHIVE_SMALL, class_geometry
from dds.ledger.records import SEGMENTS, contract_id, reservation_id
from dds.ledger.rules.weights import Wanted, screen
from dds.placement.explain import Reason
from dds.placement.roles import storage_role, too_few
from dds.primitives.ids import NodeID
from dds.primitives.keys import SigningKey
from dds.primitives.units import MIB
from dds.runtime.client import on_network
from dds.runtime.network import Network
from dds.runtime.results import PutOptions
from dds.storage.home import ClientConfig
from dds.transport.client import PeerClient
from dds.wire.discovery import NODE, RECORD_VERSION, NodeRecord, sign_record
from dds.wire.ledger import Loss, OpenContract, Redraw, RegisterSegments, ReportLoss, Reserve
from tests.ledger_storage import PRICE_MAX, SLOT, TERM, Storage

ARCHIVERS = (4, 5, 6, 7)
NETWORK = "roles"


@pytest.fixture
def ledger() -> Storage:
    """Nodes 4 to 7 keep the archive, 8 and 9 are storage nodes, 10 is both."""
    fresh = Storage(7)
    for number in fresh.storing:
        roles = ("asn", "ssn") if number == 10 else ("asn",) if number in ARCHIVERS else ("ssn",)
        fresh.state.put_node(replace(fresh.node(number), roles=roles))
    fresh.state.keep()
    fresh.ok(fresh.anna, OpenContract("archive", 2, 1, TERM, PRICE_MAX, 10**12))
    return fresh


def reserve_archive(ledger: Storage, width: int) -> bytes:
    contract = contract_id(ledger.anna.public, "archive")
    ledger.ok(ledger.anna, Reserve(contract, 1, width, 1, 2 * SLOT))
    return reservation_id(contract, 0)


def test_only_class_archive_is_kept_by_archive_nodes() -> None:
    assert storage_role("archive") == "asn"
    assert {storage_role(name) for name in ("standard", "hot", "custom", "custom-4-2")} == {"ssn"}


def test_an_archive_contract_draws_archive_nodes_and_every_other_storage_nodes(ledger: Storage) -> None:
    assert set(ledger.reservation(reserve_archive(ledger, 5)).chosen) == {*ARCHIVERS, 10}
    ledger.open()
    (identifier,) = ledger.reserve(width=3)
    assert set(ledger.reservation(identifier).chosen) == {8, 9, 10}


def test_a_refusal_names_the_role_and_how_many_could_take_it(ledger: Storage) -> None:
    refused = ledger.send(ledger.anna, Reserve(contract_id(ledger.anna.public, "archive"), 1, 6, 1, 2 * SLOT))
    assert refused.code == "not-enough-nodes"
    assert refused.message.startswith("6 asn nodes are needed, and 5 can take it")


def test_a_redraw_stays_with_the_role_that_the_segment_was_drawn_for(ledger: Storage) -> None:
    reservation = reserve_archive(ledger, 3)
    chosen = ledger.reservation(reservation).chosen
    entry = ledger.entry(reservation, [ledger.receipt(index, number, reservation) for index, number in enumerate(chosen)])
    ledger.ok(ledger.anna, RegisterSegments([entry]))
    assert ledger.segment().role == "asn"
    ledger.to_epoch(ledger.epoch + 1)
    ledger.ok(ledger.nodes[chosen[0]], ReportLoss([Loss(entry.segment_id, 0)]))
    spare = {*ARCHIVERS, 10} - set(chosen) | {chosen[0]}
    ledger.ok(ledger.anna, Redraw(entry.segment_id, [0]))
    found = ledger.state.find(SEGMENTS, entry.segment_id)
    assert found is not None and found.assignments[0].node in spare


def test_whoever_screens_says_of_every_node_why_it_was_left_out(ledger: Storage) -> None:
    ledger.state.put_node(replace(ledger.node(5), promised_bytes=ledger.node(5).capacity_bytes))
    ledger.state.put_node(replace(ledger.node(6), ask_price=2_000))
    ledger.state.keep()
    found = screen(ledger.state, Wanted("asn", MIB, 1_325, TERM), exclude=(4,))
    number_of = {NodeID(key.public): number for number, key in enumerate(ledger.nodes)}
    reasons = {number_of[each.node_id]: each.reason for each in found.left_out}
    assert [number_of[each.node_id] for each in found.candidates] == [7, 10]
    assert (reasons[4], reasons[5], reasons[6]) == (Reason.HOLDS, Reason.NO_ROOM, Reason.ASK)
    assert {reasons[number] for number in (0, 1, 2, 3, 8, 9)} == {Reason.WRONG_ROLE}
    assert len(found.candidates) + len(found.left_out) == len(ledger.nodes)


def a_record(key: SigningKey, now: int, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "version": RECORD_VERSION, "network": NETWORK, "node_id": key.public, "addresses": ["127.0.0.1:1"], "roles": ["ssn"],
        "region": "r", "operator": "o", "subnet": "s", "capacity_bytes": MIB, "free_bytes": MIB, "price": 0,
        "software": "t", "dht": "", "iroh": [], "seq": now, "expires_ms": now + 60_000,
    }  # fmt: skip
    return sign_record(key, NODE, NodeRecord(**(fields | changes)))


async def test_without_a_ledger_a_class_is_offered_to_nodes_of_its_role_with_room() -> None:
    keys = [SigningKey(bytes([number]) * 32) for number in range(1, 5)]
    async with PeerClient(keys[0], network=NETWORK) as client:
        network = Network(keys[0], ClientConfig(NETWORK), client)
        now = network.now_ms()
        for key, roles, free in zip(keys, (["ssn"], ["asn"], ["asn", "ssn"], ["asn"]), (MIB, MIB, MIB, 0), strict=True):
            network._learn(a_record(key, now, roles=roles, free_bytes=free))  # as a peer's answer would
        assert [each.node_id for each in network.candidates("archive")] == [keys[1].public, keys[2].public]
        assert [each.node_id for each in network.candidates("hot")] == [keys[0].public, keys[2].public]


def test_too_few_nodes_of_a_role_are_told_with_what_to_do() -> None:
    error = too_few("archive", 12, 3)
    assert error.message == "class archive needs 12 asn nodes, and 3 are known"
    assert error.hint is not None and "dds devnet up --asn 12" in error.hint


def test_the_archive_of_a_small_network_is_six_and_six() -> None:
    small, large = ClientConfig(NETWORK, archive="6+6"), ClientConfig(NETWORK)
    for config, geometry in ((small, ARCHIVE_SMALL), (large, ARCHIVE)):
        options = on_network(PutOptions(class_name="archive"), config)
        assert class_geometry(options.class_name, options.k, options.m) == geometry
    assert on_network(PutOptions(), small) == PutOptions()

"""A ledger that stores: contracts, segments with real receipts, epochs whose audits are reported, on `ledger_committee`'s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from dds.ledger import rent
from dds.ledger.audit_money import check_state
from dds.ledger.events import Event
from dds.ledger.machine import TxResult
from dds.ledger.params import Params
from dds.ledger.records import (
    BY_PREFIX,
    CONTRACTS,
    RESERVATIONS,
    SEGMENTS,
    Contract,
    Node,
    Reservation,
    Segment,
    contract_id,
    receipt_contract,
    reservation_id,
)
from dds.primitives.hashing import sha256
from dds.primitives.keys import SigningKey
from dds.primitives.money import TOKEN
from dds.wire.ledger import OpenContract, RegisterSegments, Reserve, SegmentEntry, Sponsor, StripeRun, stripes_hash
from dds.wire.receipts import RECEIPT_VERSION, Receipt, sign_receipt
from tests.ledger_committee import NETWORK, Ledger, key_of

SLOT = 1 << 18
STRIPES = (StripeRun(2, 2, 1, SLOT),)  # two stripes of three fragments: 512 KiB an index
ALL = 0b11
TERM = 10
PRICE = 1_325
PRICE_MAX = 4_000
DEPOSIT = TOKEN
ROOT, RECORD = sha256(b"root"), sha256(b"record")


class Storage(Ledger):
    """Storage nodes stand behind the witnesses: by default numbers 4 to 9. Anna and Bert publish."""

    def __init__(self, storers: int = 6, *, params: Params | None = None, storing_roles: tuple[str, ...] = ("ssn",)) -> None:
        super().__init__(4, storers, params=params, storing_roles=storing_roles)
        self.bert = self.operators[0]  # any funded account
        self.storing = range(4, 4 + storers)
        self.events: list[Event] = []

    # -- blocks -------------------------------------------------------------------------------------------------------------

    def send(self, key: SigningKey, body: Any) -> TxResult:
        result = super().send(key, body)
        self.events += result.events
        return result

    def ok(self, key: SigningKey, body: Any) -> tuple[Event, ...]:
        result = self.send(key, body)
        assert result.ok, (result.code, result.message)
        return result.events

    def to_epoch(self, epoch: int, *, stepping: bool = True) -> list[Event]:
        events = super().to_epoch(epoch, stepping=stepping)
        self.events += events
        return events

    def pass_until(self, epoch: int, *, missing: dict[int, Sequence[int]] | None = None) -> None:
        """Go on to `epoch`; every storage node passes every epoch from now on, but those of `missing[epoch]`."""
        while self.epoch < epoch:
            absent = (missing or {}).get(self.epoch, ())
            self.report_all(self.epoch, [number for number in self.storing if number not in absent])
            self.to_epoch(self.epoch + 1)

    def assert_sound(self) -> None:
        decoded = [(key, msgspec.msgpack.decode(raw, type=BY_PREFIX[key[:1]].kind)) for key, raw in self.base.items()]
        problems = check_state(decoded)
        assert not problems, problems

    # -- what is there ------------------------------------------------------------------------------------------------------

    def contract(self, key: SigningKey | None = None) -> Contract:
        found = self.state.find(CONTRACTS, self.contract_id(key))
        assert found is not None
        return found

    def contract_id(self, key: SigningKey | None = None) -> bytes:
        return contract_id((key or self.anna).public, "standard")

    def reservation(self, identifier: bytes) -> Reservation:
        found = self.state.find(RESERVATIONS, identifier)
        assert found is not None
        return found

    def segment(self, name: bytes = b"one") -> Segment:
        found = self.state.find(SEGMENTS, sha256(name))
        assert found is not None
        return found

    def node(self, number: int) -> Node:
        return self.state.node(number)

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]

    def earned(self, name: str = "pay") -> dict[int, int]:
        """What each node got, by events."""
        sums: dict[int, int] = {}
        for event in self.named(name):
            sums[event.node] = sums.get(event.node, 0) + event.delta
        return sums

    # -- what is done -------------------------------------------------------------------------------------------------------

    def open(
        self, key: SigningKey | None = None, *, term: int = TERM, price_max: int = PRICE_MAX, deposit: int = DEPOSIT
    ) -> None:
        self.ok(key or self.anna, OpenContract("standard", 2, 1, term, price_max, deposit))

    def reserve(self, key: SigningKey | None = None, *, count: int = 1, size: int = 2 * SLOT, width: int = 3) -> list[bytes]:
        """The reservations' ids."""
        first = self.contract(key).reservations
        contract = self.contract_id(key)
        self.ok(key or self.anna, Reserve(contract, count, width, 1, size))
        return [reservation_id(contract, first + at) for at in range(count)]

    def receipt(self, index: int, number: int, reservation: bytes, name: bytes = b"one", **changes: Any) -> bytes:
        fields: dict[str, Any] = {
            "version": RECEIPT_VERSION,
            "network": NETWORK,
            "contract": reservation + stripes_hash(STRIPES),
            "segment_id": sha256(name),
            "segment_root": ROOT,
            "index": index,
            "node_id": self.nodes[number].public,
            "fragment_bytes": rent.stripes_bytes(STRIPES, index),
            "leaf_count": rent.leaf_count(STRIPES, index),
            "expires_ms": 0,
        }
        return sign_receipt(self.nodes[number], Receipt(**(fields | changes)))

    def entry(self, reservation: bytes, receipts: Sequence[bytes], name: bytes = b"one", **changes: Any) -> SegmentEntry:
        fields: dict[str, Any] = {"segment_root": ROOT, "encoding_hash": RECORD, "stripes": list(STRIPES)} | changes
        return SegmentEntry(reservation=reservation, segment_id=sha256(name), receipts=list(receipts), **fields)

    def store(
        self, name: bytes = b"one", key: SigningKey | None = None, *, without: Sequence[int] = ()
    ) -> tuple[bytes, tuple[int, ...]]:
        """Reserve and register with everybody's receipt but those `without`; the reservation's id and the nodes drawn."""
        (reservation,) = self.reserve(key)
        chosen = self.reservation(reservation).chosen
        receipts = [self.receipt(at, each, reservation, name) for at, each in enumerate(chosen) if at not in without]
        self.ok(key or self.anna, RegisterSegments([self.entry(reservation, receipts, name)]))
        return reservation, chosen

    def late_receipt(self, index: int, name: bytes = b"one", *, draw: int | None = None) -> bytes:
        """Of the node that is pending at `index`."""
        segment = self.segment(name)
        pending = segment.assignments[index]
        contract = receipt_contract(segment.reservation, pending.draw if draw is None else draw)
        return self.receipt(index, pending.node, contract, name)

    def sponsor(self, key: SigningKey, stripes: int = ALL, name: bytes = b"one") -> None:
        self.ok(key, Sponsor(self.contract_id(key), sha256(name), stripes.to_bytes(8, "little")))


__all__ = ["ALL", "DEPOSIT", "PRICE", "PRICE_MAX", "RECORD", "ROOT", "SLOT", "STRIPES", "TERM", "Storage", "key_of"]

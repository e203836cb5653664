"""Another encoding for a segment that is stored: other stripes, other nodes, another contract of its publisher, the same id.

Decides when an encoding may take another's place, and that it does so whole: every index of the new one is receipted before
anybody who holds the old one is let go, in one transaction. What registering costs and asks is segments.py's, how assignments
and sponsors end holding.py's. Whether both encodings are of the same bytes no ledger can tell: readers check that by the
segment's id. Source: docs/spec/ledger.md, "Re-encoding".
"""

from __future__ import annotations

from msgspec.structs import replace

from dds.ledger import rent
from dds.ledger.faults import require
from dds.ledger.records import SEGMENTS, Former, Holding, Reservation, Segment
from dds.ledger.rules.funding import find_contract, own_contract
from dds.ledger.rules.holding import end_encoding, touch_living
from dds.ledger.rules.reservations import find_reservation
from dds.ledger.rules.segments import assign, begin_segment, check_entry
from dds.ledger.state import State
from dds.wire.ledger import Reencode, SegmentEntry, Tx


def reencode(state: State, tx: Tx, body: Reencode) -> None:
    """The reservation of the target contract becomes the segment's; what was before ends."""
    entry = body.segment
    reservation = find_reservation(state, entry.reservation)
    contract = own_contract(state, reservation.contract, tx.sender)
    check_entry(state, entry, reservation)
    old = touch_living(state, entry.segment_id)
    _check_replaceable(state, old, reservation.contract, tx.sender)
    _check_complete(entry, reservation)
    end_encoding(state, entry.segment_id, old, "the segment was re-encoded")
    begun = replace(
        begin_segment(state, entry, reservation, contract),
        former=Former(old.segment_root, old.stripes, old.registered_epoch),
    )
    new = assign(state, entry, begun, reservation)
    _check_others_hold(old, new)
    state.put(SEGMENTS, entry.segment_id, new)
    _tell(state, entry.segment_id, old, reservation.contract)


def _check_replaceable(state: State, old: Segment, target: bytes, sender: bytes) -> None:
    now = state.epoch
    require(
        old.registered_epoch < now,
        "too-early",
        f"the segment is what it is since this epoch: challenges of epoch {now} know one encoding before it, not two",
    )
    require(
        all(find_contract(state, entry.contract).publisher == sender for entry in old.sponsors),
        "foreign-sponsor",
        "another publisher pays for this segment too: it stays as it is",
    )
    require(
        all(entry.contract != target for entry in old.sponsors),
        "same-contract",
        "the contract sponsors the segment already: another encoding needs another contract",
    )
    everything, paid = (1 << rent.stripe_count(old.stripes)) - 1, 0
    for entry in old.sponsors:
        paid |= entry.stripes if entry.start_epoch <= now < entry.end_epoch else 0
    require(
        not everything & ~paid & ~old.released,
        "not-paid",
        f"a stripe is not paid for in epoch {now}, which its holders are to be paid: extend the segment first",
    )
    require(not old.released, "stripe-released", "a stripe that nobody sponsored is released: store the segment anew")


def _check_complete(entry: SegmentEntry, reservation: Reservation) -> None:
    there, wanted = len(entry.receipts), len(reservation.chosen)
    require(there == wanted, "not-all-receipts", f"{there} of {wanted} receipts: nobody is let go before every index is stored")


def _check_others_hold(old: Segment, new: Segment) -> None:
    """A node that keeps both would be asked to store the segment twice, and lost both shares at once."""
    held = {each.node for each in old.assignments if each.state != Holding.FREED}
    twice = sorted(held & {each.node for each in new.assignments})
    require(not twice, "node-twice", f"nodes {twice} hold the segment in its old encoding: take spares")


def _tell(state: State, segment_id: bytes, old: Segment, target: bytes) -> None:
    """To each contract's history."""
    sources = [entry.contract for entry in old.sponsors]
    detail = f"from {_named(state, sources)} to {_named(state, [target])}"
    for contract in (*sources, target):
        state.emit("segment-reencoded", contract=contract, segment=segment_id, detail=detail)


def _named(state: State, contracts: list[bytes]) -> str:
    return ", ".join(f"{find_contract(state, each).class_name} (contract {each.hex()[:16]})" for each in contracts)

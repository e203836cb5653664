"""Registering segments by their nodes' receipts, late receipts, and a node's own word that it lost something.

Decides what a receipt must say to make an assignment active, and that a segment's sizes are what its stripes imply. What it
costs is funding.py's, who may hold it was drawn in reservations.py, what happens later is holding.py's.
Source: docs/spec/ledger.md, "Segments, assignments, sponsors".
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from dds.ledger import rent
from dds.ledger.faults import Refused, require, require_ascending
from dds.ledger.records import (
    SEGMENTS,
    Assignment,
    Contract,
    Holding,
    NodeStatus,
    Reservation,
    Segment,
    SponsorEntry,
    receipt_contract,
)
from dds.ledger.rules.funding import count_sponsored, own_contract, pay_rent
from dds.ledger.rules.holding import FREED, hold, promise, release, touch_living
from dds.ledger.rules.reservations import close_reservation, find_reservation
from dds.ledger.rules.settlement import put_at
from dds.ledger.state import State
from dds.placement.roles import storage_role
from dds.primitives.errors import DDSError
from dds.primitives.units import STRIPES_PER_SEGMENT_MAX
from dds.wire.ledger import AddReceipts, RegisterSegments, ReportLoss, SegmentEntry, Tx, stripes_hash
from dds.wire.receipts import Receipt, open_receipt


def register_segments(state: State, tx: Tx, body: RegisterSegments) -> None:
    for entry in body.segments:
        _register(state, tx, entry)


def _register(state: State, tx: Tx, entry: SegmentEntry) -> None:
    """Pay for one segment, and make active whom a receipt is there for; the others stay pending as drawn."""
    reservation = find_reservation(state, entry.reservation)
    contract = own_contract(state, reservation.contract, tx.sender)
    check_entry(state, entry, reservation)
    old = state.find(SEGMENTS, entry.segment_id)
    if old is not None:
        until = "sponsor it instead" if old.sponsors else "it goes with this epoch; register it in the next"
        raise Refused("segment-exists", f"segment {entry.segment_id.hex()[:16]} is registered already: {until}")
    segment = begin_segment(state, entry, reservation, contract)
    total = rent.sponsored_bytes(segment.stripes, segment.sponsors[0].stripes)
    state.emit("segment-registered", contract=reservation.contract, segment=entry.segment_id, detail=f"{total} bytes in all")
    state.put(SEGMENTS, entry.segment_id, assign(state, entry, segment, reservation))


def check_entry(state: State, entry: SegmentEntry, reservation: Reservation) -> None:
    """
    Raises:
        Refused: the reservation has expired, or was not made for such stripes.
    """
    now = state.epoch
    require(now < reservation.expires_epoch, "reservation-expired", f"in epoch {reservation.expires_epoch}; it is epoch {now}")
    count, width = rent.stripe_count(entry.stripes), rent.width(entry.stripes)
    require(count <= STRIPES_PER_SEGMENT_MAX, "bad-geometry", f"{count} stripes, the most is {STRIPES_PER_SEGMENT_MAX}")
    drawn = len(reservation.chosen)
    require(width == drawn, "bad-geometry", f"the stripes take {width} nodes, {drawn} were drawn")
    least = min(run.m for run in entry.stripes)
    wanted = reservation.loss_tolerance
    require(least >= wanted, "bad-geometry", f"a stripe survives {least} losses, the draw was for {wanted}")
    largest = rent.stripes_bytes(entry.stripes, 0)
    most = reservation.fragment_bytes_max
    require(largest <= most, "fragment-too-large", f"an index has {largest} bytes, {most} were reserved")


def begin_segment(state: State, entry: SegmentEntry, reservation: Reservation, contract: Contract) -> Segment:
    """Use the reservation up and pay for the contract's term; nobody holds the segment yet, and it is not stored.

    Raises:
        Refused: the escrow does not cover it.
    """
    close_reservation(state, entry.reservation, reservation)
    everything = (1 << rent.stripe_count(entry.stripes)) - 1
    total = rent.sponsored_bytes(entry.stripes, everything)
    paid = pay_rent(state, reservation.contract, rent.rent(total, reservation.price, contract.term_epochs), entry.segment_id)
    count_sponsored(state, reservation.contract, 1, total)
    begins = state.epoch + 1
    sponsor = SponsorEntry(
        contract=reservation.contract,
        stripes=everything,
        price=reservation.price,
        start_epoch=begins,
        end_epoch=begins + contract.term_epochs,
        prepaid=paid.prepaid,
        reserve=paid.reserve,
        subsidy=paid.subsidy,
        subsidy_rate=paid.subsidy // contract.term_epochs,
    )
    state.set_chain(subsidy_due=state.chain.subsidy_due + sponsor.subsidy_rate)
    return Segment(
        segment_root=entry.segment_root,
        encoding_hash=entry.encoding_hash,
        reservation=entry.reservation,
        price=reservation.price,
        loss_tolerance=reservation.loss_tolerance,
        stripes=tuple(entry.stripes),
        released=0,
        assignments=(FREED,) * len(reservation.chosen),
        sponsors=(sponsor,),
        registered_epoch=state.epoch,
        role=storage_role(contract.class_name),
    )


def assign(state: State, entry: SegmentEntry, segment: Segment, reservation: Reservation) -> Segment:
    """Receipted indices to their signers; the rest pending with the node drawn, unless that one stands in elsewhere."""
    allowed = {*reservation.chosen, *reservation.spares}
    receipts = [_open(state, raw) for raw in entry.receipts]
    require_ascending([receipt.index for receipt in receipts], "receipts' indices")
    signers: dict[int, int] = {}
    for receipt in receipts:
        number = _signer(state, receipt)
        require(number in allowed, "foreign-node", f"node {number} was not drawn for this segment")
        require(number not in signers.values(), "node-twice", f"node {number} holds another index of this segment")
        _check_receipt(segment, entry.segment_id, receipt, entry.reservation)
        signers[receipt.index] = number
    for index, drawn in enumerate(reservation.chosen):
        signed = signers.get(index)
        if signed is None and drawn in signers.values():
            continue  # freed: to be redrawn
        pending = _pending(state, segment, index, drawn if signed is None else signed, reservation.expires_epoch)
        if signed is None:
            segment = replace(segment, assignments=put_at(segment.assignments, index, pending))
        else:
            segment = hold(state, entry.segment_id, segment, index, pending)
    return segment


def _pending(state: State, segment: Segment, index: int, number: int, expires_epoch: int) -> Assignment:
    node, size = state.node(number), rent.stripes_bytes(segment.stripes, index)
    room = node.capacity_bytes - node.promised_bytes
    require(room >= size, "no-room", f"node {number} has room for {room} bytes, index {index} has {size}")
    promise(state, number, 1, size)
    return Assignment(
        node=number,
        state=int(Holding.PENDING),
        bytes=size,
        leaf_count=rent.leaf_count(segment.stripes, index),
        expires_epoch=expires_epoch,
    )


# -- receipts ---------------------------------------------------------------------------------------------------------------


def add_receipts(state: State, tx: Tx, body: AddReceipts) -> None:
    """Make pending assignments active; each receipt must be of the very node that is pending, for the draw that it came by."""
    segment = touch_living(state, body.segment_id)
    receipts = [_open(state, raw) for raw in body.receipts]
    require_ascending([receipt.index for receipt in receipts], "receipts' indices")
    for receipt in receipts:
        number = _signer(state, receipt)
        require(receipt.index < len(segment.assignments), "bad-receipt", f"there is no index {receipt.index}")
        assignment = segment.assignments[receipt.index]
        require(assignment.state == Holding.PENDING, "not-pending", f"index {receipt.index} waits for no receipt")
        require(
            assignment.node == number, "foreign-node", f"index {receipt.index} is node {assignment.node}'s, not node {number}'s"
        )
        _check_receipt(segment, body.segment_id, receipt, receipt_contract(segment.reservation, assignment.draw))
        segment = hold(state, body.segment_id, segment, receipt.index, assignment)
    state.put(SEGMENTS, body.segment_id, segment)


def _open(state: State, raw: bytes) -> Receipt:
    try:
        return open_receipt(raw, state.chain.network)
    except DDSError as error:
        raise Refused("bad-receipt", f"a receipt does not hold: {error}") from None


def _signer(state: State, receipt: Receipt) -> int:
    number = state.node_number(receipt.node_id)
    if number is None:
        raise Refused("foreign-node", f"a receipt by {receipt.node_id.hex()[:16]}, which is no registered node")
    status = state.node(number).status
    require(status == NodeStatus.ACTIVE, "node-not-active", f"node {number} takes no assignments: {NodeStatus(status).name}")
    return number


def _check_receipt(segment: Segment, segment_id: bytes, receipt: Receipt, contract: bytes) -> None:
    """Every field is what the segment implies."""
    due = contract + stripes_hash(segment.stripes)
    require(receipt.contract == due, "bad-receipt", f"receipt {receipt.index} is for another reservation, draw or stripes")
    same = (receipt.segment_id, receipt.segment_root) == (segment_id, segment.segment_root)
    require(same, "bad-receipt", f"receipt {receipt.index} is for another segment or root")
    require(receipt.index < len(segment.assignments), "bad-receipt", f"there is no index {receipt.index}")
    said = receipt.fragment_bytes, receipt.leaf_count
    # What is released since is still in a receipt that names all that was sent, so either is right.
    implied = [
        (rent.stripes_bytes(segment.stripes, receipt.index, out), rent.leaf_count(segment.stripes, receipt.index, out))
        for out in (0, segment.released)
    ]
    require(
        said in implied,
        "bad-receipt",
        f"receipt {receipt.index} says {said[0]} bytes and {said[1]} leaves, the stripes imply {implied[-1]}",
    )


# -- losses -----------------------------------------------------------------------------------------------------------------


def report_loss(state: State, tx: Tx, body: ReportLoss) -> None:
    """A node's own word: cheaper than being found out."""
    require_ascending([(loss.segment_id, loss.index) for loss in body.losses], "losses")
    number = state.node_number(tx.sender)
    if number is None:
        raise Refused("not-a-node", "the sender is no registered node")
    for loss in body.losses:
        segment = state.get(SEGMENTS, loss.segment_id, "no-such-segment", "segment")
        _check_holder(segment.assignments, loss.index, number)
        slash = state.params.self_reported_slash_ppm
        release(state, loss.segment_id, loss.index, reason="loss reported by the node itself", slash_ppm=slash)


def _check_holder(assignments: Sequence[Assignment], index: int, number: int) -> None:
    held = index < len(assignments) and assignments[index].node == number and assignments[index].state == Holding.ACTIVE
    require(held, "not-held", f"node {number} does not hold index {index}")

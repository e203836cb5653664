"""Drawing nodes: for segments to come, and for indices that lost their holder.

Decides whom the ledger asks, by `placement/draw.py` over `weights.py`'s candidates, and holds room and money for them until a
segment is registered or the reservation expires. Money stays in the escrow and is only earmarked, so a put that fails half-way
has nothing to get back but its earmark. Source: docs/spec/ledger.md, "Segments, assignments, sponsors".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace as replace_fields
from typing import Final

from msgspec.structs import replace

from dds.ledger import rent
from dds.ledger.faults import Refused, require, require_ascending
from dds.ledger.records import (
    CONTRACTS,
    RESERVATIONS,
    SEGMENTS,
    Assignment,
    Contract,
    Holding,
    Reservation,
    Segment,
    reservation_id,
)
from dds.ledger.rules.funding import find_contract, own_contract, require_escrow, require_price
from dds.ledger.rules.holding import promise, touch_living
from dds.ledger.rules.settlement import put_at
from dds.ledger.rules.standing import is_vetted, standing_of
from dds.ledger.rules.weights import Screened, Wanted, screen
from dds.ledger.rules.witnesses import beacon_of
from dds.ledger.state import State
from dds.placement.draw import Candidate, Draw, Rules, draw
from dds.placement.explain import Drawing, LeftOut, Reason
from dds.placement.roles import storage_role
from dds.primitives.errors import NotEnoughNodes
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import NodeID
from dds.primitives.units import SLOT_BYTES_MAX, STRIPES_PER_SEGMENT_MAX
from dds.wire.ledger import BATCH_MAX, CancelReservations, Redraw, Reserve, Tx

SEED_TAG: Final = b"dds/placement/v2"
SWEPT_MAX: Final = 2 * BATCH_MAX  # more than one transaction makes, so that what is left behind gets less
INDEX_BYTES_MAX: Final = STRIPES_PER_SEGMENT_MAX * SLOT_BYTES_MAX  # more room than a segment can use is not held
DEMAND_BYTES_MAX: Final = 1 << 62  # declared capacities are words: their sum must still fit into an entry


# -- reservations -----------------------------------------------------------------------------------------------------------


def reserve(state: State, tx: Tx, body: Reserve) -> None:
    """Draw for `count` segments at the last clearing price, which is theirs until the reservation expires."""
    reservations_drawn(state, tx, body)


def reservations_drawn(state: State, tx: Tx, body: Reserve) -> dict[bytes, Drawing]:
    """What `reserve` does; by reservation how it was drawn, for whoever explains it."""
    own_contract(state, body.contract, tx.sender)
    contract = _sweep(state, body.contract)
    role = storage_role(contract.class_name)
    price = state.chain.lane(role).price
    require(body.loss_tolerance < body.width, "bad-geometry", f"{body.width} nodes, of which {body.loss_tolerance} may be lost")
    size = body.fragment_bytes_max
    require(0 < size <= INDEX_BYTES_MAX, "bad-geometry", f"an index has 1 to {INDEX_BYTES_MAX} bytes, not {size}")
    require_price(contract, price)
    each = rent.quote(state.params, [body.fragment_bytes_max] * body.width, price, contract.term_epochs).total
    require_escrow(contract, each * body.count)
    wanted = Wanted(role, body.fragment_bytes_max, price, contract.term_epochs)
    screened = screen(state, wanted)
    drawn: Counter[int] = Counter()
    drawings: dict[bytes, Drawing] = {}
    for counter in range(contract.reservations, contract.reservations + body.count):
        identifier = reservation_id(body.contract, counter)
        drawing = drawings[identifier] = _draw(state, wanted, screened, body.width, body.loss_tolerance, identifier)
        made = _reservation(state, body, price, drawing.found, each)
        state.put(RESERVATIONS, identifier, made)
        for number in made.chosen:
            promise(state, number, 0, body.fragment_bytes_max)
        drawn.update(made.chosen)
        full = _full(state, drawn, body.fragment_bytes_max, price)
        screened = _without(screened, full)
        detail = "; ".join((*made.bends, *_unvetted(state, made.chosen))) or "every spread rule holds"
        state.emit("reserved", amount=each, contract=body.contract, detail=detail, evidence=identifier)
    _note(state, body, each * body.count)
    return drawings


def _without(screened: Screened, full: Collection[NodeID]) -> Screened:
    if not full:
        return screened
    left = tuple(each for each in screened.candidates if each.node_id not in full)
    gone = tuple(LeftOut(each.node_id, Reason.USED_UP) for each in screened.candidates if each.node_id in full)
    return replace_fields(screened, candidates=left, left_out=(*screened.left_out, *gone))


def _sweep(state: State, contract_id: bytes) -> Contract:
    """Close the contract's oldest reservations as far as they have expired: nobody else may come to do it.

    They expire in the order of their numbers, and each number is passed once, so this costs no more than making them did.
    """
    contract = find_contract(state, contract_id)
    swept, end = contract.swept, min(contract.reservations, contract.swept + SWEPT_MAX)
    while swept < end:
        identifier = reservation_id(contract_id, swept)
        found = state.find(RESERVATIONS, identifier)
        if found is not None and found.expires_epoch > state.epoch:
            break
        if found is not None:
            _end_unused(state, identifier, found)
        swept += 1
    swept_contract = replace(find_contract(state, contract_id), swept=swept)
    state.put(CONTRACTS, contract_id, swept_contract)
    return swept_contract


def _reservation(state: State, body: Reserve, price: int, found: Draw, earmarked: int) -> Reservation:
    return Reservation(
        contract=body.contract,
        price=price,
        expires_epoch=state.epoch + state.params.reservation_epochs,
        fragment_bytes_max=body.fragment_bytes_max,
        chosen=_numbers(state, found.chosen),
        spares=_numbers(state, found.spares),
        bends=tuple(bend.describe(body.loss_tolerance) for bend in found.bends),
        loss_tolerance=body.loss_tolerance,
        earmarked=earmarked,
    )


def _unvetted(state: State, chosen: Sequence[int]) -> tuple[str, ...]:
    """In words, that newcomers were drawn: they are meant to be few, and are many where vetted nodes do not suffice."""
    params, now = state.params, state.epoch
    new = sum(not is_vetted(state.node(number), standing_of(state, number), params, now) for number in chosen)
    return (f"{new} of {len(chosen)} nodes are not vetted yet",) if new else ()


def _note(state: State, body: Reserve, earmarked: int) -> None:
    """In the contract, and as the epoch's demand for nodes of its role."""
    contract = find_contract(state, body.contract)
    role = storage_role(contract.class_name)
    lane = state.chain.lane(role)
    made, reserved = contract.reservations + body.count, contract.reserved + earmarked
    state.put(CONTRACTS, body.contract, replace(contract, reservations=made, reserved=reserved))
    state.set_lane(
        role,
        demand_bytes=min(DEMAND_BYTES_MAX, lane.demand_bytes + body.fragment_bytes_max * body.width * body.count),
        demand_price_max=max(lane.demand_price_max, contract.price_max),
    )


def _full(state: State, drawn: Counter[int], size: int, price: int) -> set[NodeID]:
    """Of those drawn so often those who can take no more: no room, or no collateral."""
    need = rent.collateral(state.params, size, price)
    full = set()
    for number, times in drawn.items():
        node = state.node(number)
        if node.capacity_bytes - node.promised_bytes < size or node.pool_free < need * (times + 1):
            full.add(NodeID(node.node_id))
    return full


def cancel_reservations(state: State, tx: Tx, body: CancelReservations) -> None:
    """By the contract's publisher; by anyone where they have expired or the contract is cancelled."""
    require_ascending(body.reservations, "reservations")
    for identifier in body.reservations:
        found = find_reservation(state, identifier)
        contract = find_contract(state, found.contract)
        over = found.expires_epoch <= state.epoch or contract.cancelled_epoch >= 0
        require(
            over or contract.publisher == tx.sender,
            "reservation-open",
            f"reservation {identifier.hex()[:16]} is another's until epoch {found.expires_epoch}; it is epoch {state.epoch}",
        )
        _end_unused(state, identifier, found)


def find_reservation(state: State, identifier: bytes) -> Reservation:
    return state.get(RESERVATIONS, identifier, "no-such-reservation", "reservation")


def _end_unused(state: State, identifier: bytes, found: Reservation) -> None:
    close_reservation(state, identifier, found)
    state.emit("unreserved", amount=found.earmarked, contract=found.contract, detail=f"reservation {identifier.hex()}")


def close_reservation(state: State, identifier: bytes, found: Reservation) -> None:
    """Give back the room and the earmark that it held."""
    for number in found.chosen:
        promise(state, number, 0, -found.fragment_bytes_max)
    contract = find_contract(state, found.contract)
    state.put(CONTRACTS, found.contract, replace(contract, reserved=contract.reserved - found.earmarked))
    state.delete(RESERVATIONS, identifier)


# -- new nodes for a segment that is there ----------------------------------------------------------------------------------


def redraw(state: State, tx: Tx, body: Redraw) -> None:
    """New pending nodes for indices that nobody holds; by anyone. Their receipts name the draw (records.receipt_contract)."""
    redrawn(state, tx, body)


def redrawn(state: State, _tx: Tx, body: Redraw) -> Drawing:
    """What `redraw` does; how it was drawn, for whoever explains it."""
    require_ascending(body.indices, "indices")
    segment = touch_living(state, body.segment_id)
    for index in body.indices:
        require(index < len(segment.assignments), "no-such-index", f"the segment has {len(segment.assignments)} indices")
        require(segment.assignments[index].state == Holding.FREED, "index-held", f"index {index} is held or pending")
        require(
            rent.stripes_bytes(segment.stripes, index, segment.released) > 0, "index-released", f"index {index} is not needed"
        )
    number = segment.redraws + 1
    seed_of = tagged_hash(b"dds/redraw/v1", segment.reservation, number.to_bytes(8, "big"))
    drawing = _draw_newcomers(state, segment, body.indices, seed_of)
    bends = tuple(bend.describe(segment.loss_tolerance) for bend in drawing.found.bends)
    segment = replace(segment, redraws=number)
    for index, drawn in zip(body.indices, _numbers(state, drawing.found.chosen), strict=True):
        segment = _pend(state, segment, index, drawn)
        state.emit(
            "redrawn",
            node=drawn,
            segment=body.segment_id,
            index=index,
            detail="; ".join((f"draw {number}", *bends, *_unvetted(state, [drawn]))),
        )
    state.put(SEGMENTS, body.segment_id, segment)
    return drawing


def _draw_newcomers(state: State, segment: Segment, indices: Sequence[int], seed_of: bytes) -> Drawing:
    """Beside the present holders, who count in every limit."""
    holders = [each.node for each in segment.assignments if each.state != Holding.FREED]
    wanted = Wanted(
        role=segment.role,
        fragment_bytes=max(rent.stripes_bytes(segment.stripes, index, segment.released) for index in indices),
        price=segment.price,
        term_epochs=max(0, max(entry.end_epoch for entry in segment.sponsors) - state.epoch),
    )
    screened = screen(state, wanted, exclude=frozenset(holders))
    nodes = [state.node(number) for number in holders]
    held = tuple(Candidate(NodeID(node.node_id), node.region, node.operator.hex(), node.subnet, 1) for node in nodes)
    return _draw(state, wanted, screened, len(indices), segment.loss_tolerance, seed_of, held)


def _pend(state: State, segment: Segment, index: int, number: int) -> Segment:
    size = rent.stripes_bytes(segment.stripes, index, segment.released)
    promise(state, number, 1, size)
    pending = Assignment(
        node=number,
        state=int(Holding.PENDING),
        bytes=size,
        leaf_count=rent.leaf_count(segment.stripes, index, segment.released),
        draw=segment.redraws,
        expires_epoch=state.epoch + state.params.reservation_epochs,
    )
    return replace(segment, assignments=put_at(segment.assignments, index, pending))


def _draw(
    state: State,
    wanted: Wanted,
    screened: Screened,
    count: int,
    loss_tolerance: int,
    identifier: bytes,
    held: tuple[Candidate, ...] = (),
) -> Drawing:
    seed = tagged_hash(SEED_TAG, beacon_of(state, state.epoch), identifier)
    pool = screened.candidates
    try:
        found = draw(pool, count, Rules.for_loss_tolerance(loss_tolerance), seed, held=held)
    except NotEnoughNodes:
        raise Refused(
            "not-enough-nodes",
            f"{count} {wanted.role} nodes are needed, and {len(pool)} can take it:"
            " at this price, with room, collateral and long enough terms",
        ) from None
    return Drawing(pool, screened.left_out, count, loss_tolerance, seed, found, wanted.role, held, screened.unvetted)


def _numbers(state: State, node_ids: Sequence[bytes]) -> tuple[int, ...]:
    numbers = tuple(state.node_number(node_id) for node_id in node_ids)
    assert None not in numbers, "candidates are registered"
    return tuple(number for number in numbers if number is not None)

"""Moves of a living ledger about segments: reserving, registering, sponsoring, settling, losing, mending.

What a move is: `ledger_moves.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, Final

import msgspec

from dds.ledger import rent
from dds.ledger.records import (
    CONTRACTS,
    ENDOWMENTS,
    RESERVATIONS,
    SEGMENTS,
    Contract,
    Holding,
    Node,
    NodeStatus,
    Reservation,
    Segment,
    receipt_contract,
)
from dds.ledger.rules.settlement import closed_before
from dds.placement.roles import storage_role
from dds.primitives.hashing import sha256
from dds.wire import ledger as wire
from dds.wire.ledger import StripeRun, stripes_hash
from dds.wire.receipts import RECEIPT_VERSION, Receipt, sign_receipt
from tests.ledger_moves_money import Attempt, free_escrow, living_contracts, node_of
from tests.ledger_world import NETWORK, World

GEOMETRIES: Final = (  # (width, loss tolerance, stripes)
    (3, 1, (StripeRun(1, 2, 1, 70_000),)),
    (3, 1, (StripeRun(2, 2, 1, 9_000), StripeRun(1, 1, 2, 130))),
    (4, 1, (StripeRun(3, 3, 1, 4_000),)),
    (5, 2, (StripeRun(1, 3, 2, 150_000), StripeRun(2, 1, 2, 1))),
    (2, 1, (StripeRun(1, 1, 1, 1),)),
)


# -- reservations and segments ----------------------------------------------------------------------------------------------


def reserve(w: World, rng: Random) -> Attempt | None:
    count, (width, tolerance, stripes) = rng.choice((1, 1, 2)), rng.choice(GEOMETRIES)
    size = rent.stripes_bytes(stripes, 0) + rng.choice((0, 0, 1_000))
    fit = []
    for name, each in living_contracts(w):
        price = w.chain.lane(storage_role(each.class_name)).price
        cost = rent.quote(w.params, [size] * width, price, each.term_epochs).total * count
        if price <= each.price_max and cost <= free_escrow(each):
            fit.append((name, each))
    if not fit:
        return None
    name, chosen = rng.choice(fit)
    return w.keys[chosen.publisher], wire.Reserve(name, count, width, tolerance, size)


def cancel_reservations(w: World, rng: Random) -> Attempt | None:
    found = w.all(RESERVATIONS)
    if not found:
        return None
    identifier, one = rng.choice(found)
    contract = w.get(CONTRACTS, one.contract)
    assert contract is not None
    mine = [name for name, each in found if each.contract == one.contract]
    chosen = sorted(rng.sample(mine, rng.randint(1, min(2, len(mine)))))
    if one.expires_epoch <= w.epoch and rng.random() < 0.5:
        return rng.choice(w.readers), wire.CancelReservations([identifier])
    return w.keys[contract.publisher], wire.CancelReservations(chosen)


def _receipt(w: World, node: Node, reservation: bytes, segment: tuple[bytes, bytes], index: int, stripes: Any) -> bytes:
    receipt = Receipt(
        version=RECEIPT_VERSION,
        network=NETWORK,
        contract=reservation + stripes_hash(stripes),
        segment_id=segment[0],
        segment_root=segment[1],
        index=index,
        node_id=node.node_id,
        fragment_bytes=rent.stripes_bytes(stripes, index),
        leaf_count=rent.leaf_count(stripes, index),
        expires_ms=0,
    )
    return sign_receipt(w.keys[node.node_id], receipt)


def register_segments(w: World, rng: Random) -> Attempt | None:
    """With all receipts, or some; now and then a spare stands in, or two nodes have changed places."""
    for name, reservation, contract, stripes in _fitting(w, rng):
        entry = _entry(w, rng, name, reservation, stripes)
        return w.keys[contract.publisher], wire.RegisterSegments([entry])
    return None


def _fitting(w: World, rng: Random) -> Iterator[tuple[bytes, Reservation, Contract, Any]]:
    """Reservations that can be used and paid for, in random order, with their contracts and stripes that fit."""
    open_ones = [(name, each) for name, each in w.all(RESERVATIONS) if each.expires_epoch > w.epoch]
    rng.shuffle(open_ones)
    for name, reservation in open_ones:
        contract = w.get(CONTRACTS, reservation.contract)
        assert contract is not None
        fit = [g for g in GEOMETRIES if g[0] == len(reservation.chosen) and g[1] >= reservation.loss_tolerance]
        fit = [g for g in fit if rent.stripes_bytes(g[2], 0) <= reservation.fragment_bytes_max]
        if contract.cancelled_epoch >= 0 or not fit:
            continue
        stripes = rng.choice(fit)[2]
        total = rent.sponsored_bytes(stripes, (1 << 64) - 1)
        cost = rent.quote(w.params, [total], reservation.price, contract.term_epochs).total
        if cost <= free_escrow(contract) + reservation.earmarked:
            yield name, reservation, contract, stripes


def _entry(w: World, rng: Random, name: bytes, reservation: Reservation, stripes: Any) -> wire.SegmentEntry:
    segment = sha256(f"segment {w.name()}".encode()), sha256(name)
    signers = _signers(w, rng, reservation, stripes)
    receipts = [_receipt(w, node, name, segment, index, stripes) for index, node in sorted(signers.items())]
    return wire.SegmentEntry(name, *segment, sha256(segment[0]), list(stripes), receipts)


def _signers(w: World, rng: Random, reservation: Reservation, stripes: Any) -> dict[int, Node]:
    numbers = list(reservation.chosen)
    if rng.random() < 0.2 and len(numbers) > 1:
        numbers[0], numbers[1] = numbers[1], numbers[0]
    if rng.random() < 0.2 and reservation.spares:
        numbers[-1] = rng.choice(reservation.spares)
    share = rng.choice((1.0, 1.0, 0.7))
    able = {index: number for index, number in enumerate(numbers) if _can_hold(w, reservation, stripes, index, number)}
    return {index: node_of(w, number) for index, number in able.items() if rng.random() < share}


def _can_hold(w: World, reservation: Reservation, stripes: Any, index: int, number: int) -> bool:
    node, size = node_of(w, number), rent.stripes_bytes(stripes, index)
    room = node.capacity_bytes - node.promised_bytes >= size or number == reservation.chosen[index]
    backed = node.pool_free >= rent.collateral(w.params, size, reservation.price)
    return room and backed and node.status == NodeStatus.ACTIVE


def reencode(w: World, rng: Random) -> Attempt | None:
    """A publisher's own segment under another contract of its; spares stand in for those who hold it already."""
    for segment_id, segment in _living_segments(w, rng):
        contracts = {name: w.get(CONTRACTS, name) for name in (entry.contract for entry in segment.sponsors)}
        owners = {found.publisher for found in contracts.values() if found}
        if len(owners) != 1 or segment.released or segment.registered_epoch == w.epoch or _unpaid(segment, w.epoch):
            continue
        for name, reservation, contract, stripes in _fitting(w, rng):
            if contract.publisher in owners and reservation.contract not in contracts:
                signers = _newcomers(w, segment, reservation, stripes)
                if len(signers) == len(reservation.chosen):
                    names = segment_id, sha256(name)
                    receipts = [_receipt(w, node, name, names, index, stripes) for index, node in signers.items()]
                    entry = wire.SegmentEntry(name, *names, sha256(names[1]), list(stripes), receipts)
                    return w.keys[contract.publisher], wire.Reencode(entry)
    return None


def _unpaid(segment: Segment, epoch: int) -> int:
    """The stripes (bits) for which nobody pays in `epoch`."""
    unpaid = (1 << rent.stripe_count(segment.stripes)) - 1
    for entry in segment.sponsors:
        unpaid &= ~(entry.stripes if entry.start_epoch <= epoch < entry.end_epoch else 0)
    return unpaid


def _newcomers(w: World, segment: Segment, reservation: Reservation, stripes: Any) -> dict[int, Node]:
    """By index: who was drawn for it, or a spare, and holds nothing of the segment."""
    taken = {each.node for each in segment.assignments if each.state != Holding.FREED}
    signers = {}
    for index, drawn in enumerate(reservation.chosen):
        for number in (drawn, *reservation.spares):
            if number not in taken and _can_hold(w, reservation, stripes, index, number):
                signers[index] = node_of(w, number)
                taken.add(number)
                break
    return signers


def _living_segments(w: World, rng: Random) -> Iterator[tuple[bytes, Segment]]:
    """In random order, as they will be found."""
    names = [name for name, _ in w.all(SEGMENTS)]
    rng.shuffle(names)
    for name in names:
        segment = w.touched(name)
        if segment.sponsors:
            yield name, segment


def add_receipts(w: World, rng: Random) -> Attempt | None:
    for name, segment in _living_segments(w, rng):
        receipts = []
        for index, each in enumerate(segment.assignments):
            if each.state != Holding.PENDING:
                continue
            node = node_of(w, each.node)
            enough = node.pool_free >= rent.collateral(w.params, each.bytes, segment.price)
            if node.status == NodeStatus.ACTIVE and enough:
                contract = receipt_contract(segment.reservation, each.draw)
                receipts.append(_receipt(w, node, contract, (name, segment.segment_root), index, segment.stripes))
        if receipts:
            return rng.choice(w.readers), wire.AddReceipts(name, receipts)
    return None


def _affordable(w: World, contract: Contract, segment: Segment, entry: Any, end: int) -> int | None:
    """What `entry`, paid until `end`, takes from the escrow; None: more than is free."""
    since = max(entry.start_epoch, closed_before(w.state))
    cost = rent.rent(rent.sponsored_bytes(segment.stripes, entry.stripes), entry.price, end - since)
    total = rent.quote_rent(w.params, max(0, cost - entry.prepaid)).total
    return total if total <= free_escrow(contract) else None


def sponsor(w: World, rng: Random) -> Attempt | None:
    for name, segment in _living_segments(w, rng):
        there = ((1 << rent.stripe_count(segment.stripes)) - 1) & ~segment.released
        stripes = there & rng.choice((there, rng.randint(1, there))) or there
        for contract_name, contract in rng.sample(living_contracts(w), len(living_contracts(w))):
            old = next((entry for entry in segment.sponsors if entry.contract == contract_name), None)
            begins = w.epoch + 1
            entry = old or msgspec.structs.replace(
                segment.sponsors[0], contract=contract_name, stripes=0, start_epoch=begins, end_epoch=begins, prepaid=0
            )
            price = max(segment.price, w.chain.lane(segment.role).price)
            wanted = msgspec.structs.replace(entry, stripes=entry.stripes | stripes, price=max(entry.price, price))
            end = max(entry.end_epoch, begins + contract.term_epochs)
            cheap = price <= contract.price_max and _affordable(w, contract, segment, wanted, end) is not None
            if cheap and (old or len(segment.sponsors) < w.params.sponsors_max):
                return w.keys[contract.publisher], wire.Sponsor(contract_name, name, stripes.to_bytes(8, "little"))
    return None


def _sponsored(w: World, rng: Random) -> tuple[bytes, Contract, list[tuple[bytes, Segment, Any]]] | None:
    """A living contract, and what it sponsors as it will be found."""
    living = living_contracts(w)
    rng.shuffle(living)
    segments = list(_living_segments(w, rng))
    for name, contract in living:
        own = [(key, each, entry) for key, each in segments for entry in each.sponsors if entry.contract == name]
        if own:
            return name, contract, own
    return None


def unsponsor(w: World, rng: Random) -> Attempt | None:
    found = _sponsored(w, rng)
    if found is None:
        return None
    name, contract, own = found
    chosen = rng.sample(own, rng.randint(1, min(2, len(own))))
    return w.keys[contract.publisher], wire.Unsponsor(name, sorted(key for key, _, _ in chosen))


def extend_segments(w: World, rng: Random) -> Attempt | None:
    found = _sponsored(w, rng)
    if found is None:
        return None
    name, contract, own = found
    epochs = rng.randint(1, 6)
    for key, segment, entry in own:
        price = max(entry.price, w.chain.lane(segment.role).price)
        longer = msgspec.structs.replace(entry, price=price)
        if price <= contract.price_max and _affordable(w, contract, segment, longer, entry.end_epoch + epochs) is not None:
            anyone = w.get(ENDOWMENTS, name) is not None and rng.random() < 0.5
            sender = rng.choice(w.readers) if anyone else w.keys[contract.publisher]
            return sender, wire.ExtendSegments(name, [key], epochs)
    return None


def settle(w: World, rng: Random) -> Attempt | None:
    names = [name for name, _ in w.all(SEGMENTS)] + [sha256(b"no such segment")]
    chosen = rng.sample(names, rng.randint(1, min(6, len(names))))
    return rng.choice([*w.readers, *w.operators]), wire.Settle(sorted(chosen))


def redraw(w: World, rng: Random) -> Attempt | None:
    for name, segment in _living_segments(w, rng):
        gone = [
            index
            for index, each in enumerate(segment.assignments)
            if each.state == Holding.FREED and rent.stripes_bytes(segment.stripes, index, segment.released)
        ]
        if gone:
            return rng.choice(w.readers), wire.Redraw(name, gone)
    return None


def report_loss(w: World, rng: Random) -> Attempt | None:
    held = [
        (name, index, each.node)
        for name, segment in w.all(SEGMENTS)
        for index, each in enumerate(segment.assignments)
        if each.state == Holding.ACTIVE
    ]
    if not held:
        return None
    name, index, number = rng.choice(held)
    more = [place for place in held if place[2] == number and rng.random() < 0.3]
    losses = sorted({(name, index)} | {(one, at) for one, at, _ in more})
    return w.keys[node_of(w, number).node_id], wire.ReportLoss([wire.Loss(*loss) for loss in losses])

"""An assignment's life: locked and active, let go, and everything that is due when a segment is touched.

Decides when an index is held and by whom, and what becomes of its collateral. Nothing here happens by itself: whoever names a
segment in a transaction brings it up to date first (`touch`): cancelled contracts' sponsorships end, proven epochs are paid,
caught nodes are let go, pending indices expire, ended sponsors get back what is left. How much is due to whom does not depend
on when somebody comes. Source: docs/spec/ledger.md, "Segments, assignments, sponsors".
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from dds.ledger import money, rent
from dds.ledger.faults import require
from dds.ledger.records import (
    CONTRACTS,
    SEGMENTS,
    Assignment,
    Contract,
    Holding,
    NodeStatus,
    Segment,
    SponsorEntry,
)
from dds.ledger.rules import inventory
from dds.ledger.rules.funding import count_sponsored
from dds.ledger.rules.settlement import closed_before, put_at, settle, settle_unjudged, with_carry
from dds.ledger.rules.slashing import take_collateral
from dds.ledger.state import State
from dds.primitives.money import format_tokens, share_ppm

FREED = Assignment()


def touch(state: State, segment_id: bytes) -> Segment:
    """Bring a segment up to date; the same again in the same epoch changes nothing. One without sponsors goes with the epoch.

    Raises:
        Refused: there is no such segment.
    """
    segment = state.get(SEGMENTS, segment_id, "no-such-segment", "segment")
    before = segment
    segment = settle(state, segment_id, _end_cancelled(state, segment))
    for index in range(len(segment.assignments)):
        segment = _free_if_due(state, segment_id, segment, index)
    segment = _end_sponsors(state, segment_id, segment)
    if segment != before:
        state.put(SEGMENTS, segment_id, segment)
    return segment


def touch_living(state: State, segment_id: bytes) -> Segment:
    """The same, for whoever wants to go on with it.

    Raises:
        Refused: there is no such segment, or nobody sponsors it any more.
    """
    segment = touch(state, segment_id)
    require(bool(segment.sponsors), "segment-ended", f"nobody sponsors segment {segment_id.hex()[:16]} any more")
    return segment


def release(
    state: State,
    segment_id: bytes,
    index: int,
    *,
    reason: str,
    slash_ppm: int = 0,
    reporters: Sequence[bytes] = (),
    evidence: bytes = b"",
) -> None:
    """Settle one assignment, take `slash_ppm` of its collateral and free it. What is freed already stays as it is.

    The epochs that are not closed yet are not paid any more.

    Raises:
        Refused: there is no such segment.
    """
    segment = state.get(SEGMENTS, segment_id, "no-such-segment", "segment")
    if segment.assignments[index].state != Holding.FREED:
        segment = settle(state, segment_id, _end_cancelled(state, segment), [index])
        segment = _free(state, segment_id, segment, index, reason, slash_ppm, reporters, evidence)
        state.put(SEGMENTS, segment_id, segment)


def end_encoding(state: State, segment_id: bytes, segment: Segment, reason: str) -> None:
    """Let everybody go who holds this (touched) segment, none slashed, and give every sponsor back what is left.

    Its rent is due to the end of the present epoch, as where a sponsorship is ended: the epochs without a verdict are paid in
    full, or whoever re-encodes often enough would never pay.
    """
    segment = settle_unjudged(state, segment_id, segment)
    for index, assignment in enumerate(segment.assignments):
        if assignment.state != Holding.FREED:
            segment = _free(state, segment_id, segment, index, reason)
    for entry in segment.sponsors:
        _return(state, segment_id, segment, entry)


def hold(state: State, segment_id: bytes, segment: Segment, index: int, assignment: Assignment) -> Segment:
    """A receipt has come: lock the collateral of `assignment`'s node; active from now on, paid from the next epoch on.

    Raises:
        Refused: the node's pool does not cover it.
    """
    node = state.node(assignment.node)
    need = rent.collateral(state.params, assignment.bytes, segment.price)
    require(
        node.pool_free >= need,
        "no-collateral",
        f"node {node.number} has {format_tokens(node.pool_free)} free for collateral, {format_tokens(need)} are needed",
    )
    state.put_node(replace(node, pool_free=node.pool_free - need, pool_locked=node.pool_locked + need))
    state.emit("locked", amount=need, node=node.number, segment=segment_id, index=index, detail="collateral of an assignment")
    inventory.set_leaves(state, node.number, segment_id, index, assignment.leaf_count, segment.released)
    begins = state.epoch + 1
    active = replace(
        assignment, state=Holding.ACTIVE, first_epoch=begins, settled_epoch=begins, collateral=need, expires_epoch=0
    )
    return replace(segment, assignments=put_at(segment.assignments, index, active))


def promise(state: State, number: int, count: int, size: int) -> None:
    """A node holds `count` assignments more and has promised `size` bytes more; both may be negative."""
    node = state.node(number)
    state.put_node(replace(node, assignments=node.assignments + count, promised_bytes=node.promised_bytes + size))


# -- letting go -------------------------------------------------------------------------------------------------------------


def _free_if_due(state: State, segment_id: bytes, segment: Segment, index: int) -> Segment:
    assignment = segment.assignments[index]
    if assignment.state == Holding.FREED:
        return segment
    node = state.node(assignment.node)
    if node.status == NodeStatus.FAULTED:
        return _free(state, segment_id, segment, index, node.fault_reason, node.fault_ppm)
    if assignment.state == Holding.PENDING and assignment.expires_epoch <= state.epoch:
        return _free(state, segment_id, segment, index, "no receipt in time")
    return segment


def _free(
    state: State,
    segment_id: bytes,
    segment: Segment,
    index: int,
    reason: str,
    slash_ppm: int = 0,
    reporters: Sequence[bytes] = (),
    evidence: bytes = b"",
) -> Segment:
    """Whatever was to be paid was paid."""
    assignment = segment.assignments[index]
    number, slashed = assignment.node, share_ppm(assignment.collateral, slash_ppm)
    if slashed:
        take_collateral(state, number, slashed, reporters, reason=reason, evidence=evidence, segment=segment_id, index=index)
    kept = assignment.collateral - slashed
    node = state.node(number)
    state.put_node(replace(node, pool_free=node.pool_free + kept, pool_locked=node.pool_locked - kept))
    promise(state, number, -1, -assignment.bytes)
    if assignment.state == Holding.ACTIVE:
        inventory.set_leaves(state, number, segment_id, index, 0)
    state.emit("freed", amount=kept, node=number, segment=segment_id, index=index, detail=reason, evidence=evidence)
    sponsors = tuple(with_carry(entry, index, 0) for entry in segment.sponsors)  # whoever comes next has earned nothing yet
    return replace(segment, assignments=put_at(segment.assignments, index, FREED), sponsors=sponsors)


# -- sponsors that end ------------------------------------------------------------------------------------------------------


def _end_cancelled(state: State, segment: Segment) -> Segment:
    """A cancelled contract pays to the end of the epoch that it was cancelled in, and for one epoch at least."""
    sponsors = []
    for entry in segment.sponsors:
        cancelled = _contract(state, entry).cancelled_epoch
        end = entry.end_epoch if cancelled < 0 else min(entry.end_epoch, max(entry.start_epoch, cancelled) + 1)
        sponsors.append(entry if end == entry.end_epoch else replace(entry, end_epoch=end))
    return replace(segment, sponsors=tuple(sponsors))


def _end_sponsors(state: State, segment_id: bytes, segment: Segment) -> Segment:
    """Those whose last epoch is settled leave, in the order of their ends, and what nobody sponsors then is released."""
    until = closed_before(state)
    ended = sorted((entry for entry in segment.sponsors if entry.end_epoch <= until), key=lambda entry: entry.end_epoch)
    if not ended:
        return segment
    for entry in ended:
        _return(state, segment_id, segment, entry)
    sponsors = tuple(entry for entry in segment.sponsors if entry.end_epoch > until)
    wanted = 0
    for entry in sponsors:
        wanted |= entry.stripes
    released = (1 << rent.stripe_count(segment.stripes)) - 1 & ~wanted
    segment = _shrink(state, segment_id, replace(segment, sponsors=sponsors, released=released))
    if not sponsors:
        inventory.end_segment(state, segment_id)
        state.emit("segment-ended", segment=segment_id, detail="nobody sponsors it any more")
    return segment


def _return(state: State, segment_id: bytes, segment: Segment, entry: SponsorEntry) -> None:
    """What is left goes to the contract's escrow; to its publisher where the contract is cancelled."""
    count_sponsored(state, entry.contract, -1, -rent.sponsored_bytes(segment.stripes, entry.stripes))
    contract, left = _contract(state, entry), entry.prepaid + entry.reserve
    detail = f"unearned rent {entry.prepaid}, repair reserve {entry.reserve}"
    if contract.cancelled_epoch < 0:
        state.put(CONTRACTS, entry.contract, replace(contract, escrow=contract.escrow + left))
        state.emit("returned", amount=left, contract=entry.contract, segment=segment_id, detail=detail)
    else:
        money.credit(state, contract.publisher, left, "refund", contract=entry.contract, segment=segment_id, detail=detail)
    state.set_chain(subsidy_due=state.chain.subsidy_due - entry.subsidy_rate)


def _shrink(state: State, segment_id: bytes, segment: Segment) -> Segment:
    """Every assignment loses the released stripes; the collateral stays as long as anything does."""
    for index, assignment in enumerate(segment.assignments):
        size = rent.stripes_bytes(segment.stripes, index, segment.released)
        if assignment.state == Holding.FREED or size == assignment.bytes:
            continue
        if size == 0:
            segment = _free(state, segment_id, segment, index, "nobody sponsors it any more")
            continue
        leaves = rent.leaf_count(segment.stripes, index, segment.released)
        promise(state, assignment.node, 0, size - assignment.bytes)
        if assignment.state == Holding.ACTIVE:
            inventory.set_leaves(state, assignment.node, segment_id, index, leaves, segment.released)
        smaller = replace(assignment, bytes=size, leaf_count=leaves)
        segment = replace(segment, assignments=put_at(segment.assignments, index, smaller))
    return segment


def _contract(state: State, entry: SponsorEntry) -> Contract:
    return state.get(CONTRACTS, entry.contract, "no-such-contract", "contract")

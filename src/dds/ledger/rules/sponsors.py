"""Who pays for a segment: joining, leaving, extending, settling.

Decides what a sponsor pays and for which epochs. A stripe's rent is split among its sponsors epoch by epoch (settlement.py),
but each pays in advance as if it were alone: what others carry comes back at its end, so no assignment goes unpaid because
somebody else left. Source: docs/spec/ledger.md, "Segments, assignments, sponsors".
"""

from __future__ import annotations

from msgspec.structs import replace

from dds.ledger import rent
from dds.ledger.faults import Refused, require, require_ascending
from dds.ledger.records import ENDOWMENTS, SEGMENTS, Contract, Segment, SponsorEntry
from dds.ledger.rules.endowments import spend_due
from dds.ledger.rules.funding import count_sponsored, find_contract, living_contract, own_contract, pay_rent, require_price
from dds.ledger.rules.holding import touch, touch_living
from dds.ledger.rules.settlement import carried, closed_before
from dds.ledger.state import State
from dds.primitives.money import format_tokens
from dds.wire.ledger import EPOCH_MAX, ExtendSegments, Settle, Sponsor, Tx, Unsponsor


def sponsor(state: State, tx: Tx, body: Sponsor) -> None:
    """Join for the contract's term from the next epoch on; who sponsors it already adds stripes and begins its term anew.

    Where a stripe's last sponsor ended with the epoch before, from the present one on: nodes have it, and would not be paid.
    """
    contract = own_contract(state, body.contract, tx.sender)
    segment = touch_living(state, body.segment_id)
    stripes, begins = int.from_bytes(body.stripes, "little"), state.epoch + 1
    _check_stripes(segment, stripes)
    segment = replace(
        segment, price=max(segment.price, state.chain.lane(segment.role).price)
    )  # or joining anew would keep an old price for ever
    require_price(contract, segment.price)
    at = _find(segment, body.contract)
    if at is None:
        most = state.params.sponsors_max
        require(len(segment.sponsors) < most, "too-many-sponsors", f"a segment has at most {most} sponsors")
        begins -= 1 if stripes & ~_paid_after(segment, state.epoch) else 0
        new = SponsorEntry(body.contract, stripes, segment.price, begins, begins, prepaid=0, reserve=0)
        segment, at = replace(segment, sponsors=(*segment.sponsors, new)), len(segment.sponsors)
        count_sponsored(state, body.contract, 1, rent.sponsored_bytes(segment.stripes, stripes))
    else:
        more = stripes & ~segment.sponsors[at].stripes
        count_sponsored(state, body.contract, 0, rent.sponsored_bytes(segment.stripes, more))
    entry = segment.sponsors[at]
    wanted = replace(entry, stripes=entry.stripes | stripes, price=max(entry.price, segment.price))
    end = max(entry.end_epoch, begins + contract.term_epochs)
    _keep(state, body.segment_id, segment, at, _paid_until(state, body.segment_id, segment, wanted, end))
    state.emit("sponsored", contract=body.contract, segment=body.segment_id, detail=f"until epoch {end}")


def unsponsor(state: State, tx: Tx, body: Unsponsor) -> None:
    """The present epoch is the last that is paid, or the first one where that is to come: nobody joins and pays for nothing.

    What is left comes back when that epoch is closed and somebody settles.
    """
    require_ascending(body.segments, "segments")
    own_contract(state, body.contract, tx.sender)
    for segment_id in body.segments:
        segment, at = _sponsored(state, body.contract, segment_id)
        entry = segment.sponsors[at]
        end = min(entry.end_epoch, max(entry.start_epoch, state.epoch) + 1)
        _keep(state, segment_id, segment, at, replace(entry, end_epoch=end))
        state.emit("unsponsored", contract=body.contract, segment=segment_id, detail=f"ends before epoch {end}")


def extend_segments(state: State, tx: Tx, body: ExtendSegments) -> None:
    """At the higher of its own price and the last clearing price: nobody keeps an old price for ever."""
    require_ascending(body.segments, "segments")
    contract = living_contract(state, body.contract)
    endowed = state.find(ENDOWMENTS, body.contract) is not None
    require(
        endowed or contract.publisher == tx.sender,
        "not-the-publisher",
        "only its publisher extends a contract without endowment",
    )
    if contract.publisher != tx.sender:
        spend_due(state, body.contract)
        contract = find_contract(state, body.contract)
    for segment_id in body.segments:
        segment, at = _sponsored(state, body.contract, segment_id)
        entry = segment.sponsors[at]
        price = max(entry.price, state.chain.lane(segment.role).price)
        require_price(contract, price)
        end = entry.end_epoch + body.epochs
        require(end <= EPOCH_MAX, "too-long", f"nothing is paid beyond epoch {EPOCH_MAX}")
        longer = _paid_until(state, segment_id, segment, replace(entry, price=price), end)
        _keep(state, segment_id, replace(segment, price=max(segment.price, price)), at, longer)
        state.emit("extended", contract=body.contract, segment=segment_id, detail=f"until epoch {end}, at {price} a MiB-epoch")
    if contract.publisher != tx.sender:
        _require_endowed(contract, contract.escrow - find_contract(state, body.contract).escrow)


def _require_endowed(contract: Contract, spent: int) -> None:
    """Others extend with the endowment's money alone: one base unit given must not open the publisher's own escrow."""
    require(
        spent <= contract.endowed,
        "not-endowed",
        f"this costs {format_tokens(spent)}, of the escrow {format_tokens(contract.endowed)} come from the endowment",
    )


def settle_segments(state: State, tx: Tx, body: Settle) -> None:
    """By anyone, as often as they like; what has gone meanwhile is passed over."""
    require_ascending(body.segments, "segments")
    for segment_id in body.segments:
        if state.find(SEGMENTS, segment_id) is not None:
            touch(state, segment_id)


# -- one sponsor ------------------------------------------------------------------------------------------------------------


def _paid_until(state: State, segment_id: bytes, segment: Segment, entry: SponsorEntry, end: int) -> SponsorEntry:
    """`entry` (with its stripes and price) paid in full until `end`: what its unsettled epochs cost, less what it has left.

    Its old subsidy goes on for the epochs that it was for; what was not earned of it is not earned later.
    """
    since = max(entry.start_epoch, closed_before(state))
    cost = rent.rent(rent.sponsored_bytes(segment.stripes, entry.stripes), entry.price, end - since) + carried(entry)
    paid = pay_rent(state, entry.contract, max(0, cost - entry.prepaid), segment_id)
    subsidy = min(entry.subsidy, entry.subsidy_rate * max(0, entry.end_epoch - since)) + paid.subsidy
    rate = subsidy // (end - since)
    state.set_chain(subsidy_due=state.chain.subsidy_due - entry.subsidy_rate + rate)
    return replace(
        entry,
        end_epoch=end,
        prepaid=entry.prepaid + paid.prepaid,
        reserve=entry.reserve + paid.reserve,
        subsidy=subsidy,
        subsidy_rate=rate,
    )


def _check_stripes(segment: Segment, stripes: int) -> None:
    count = rent.stripe_count(segment.stripes)
    require(stripes > 0, "no-stripes", "at least one stripe is to be sponsored")
    require(stripes >> count == 0, "no-such-stripe", f"the segment has {count} stripes")
    require(not stripes & segment.released, "stripe-released", "a stripe that nobody sponsored is released: store it anew")


def _paid_after(segment: Segment, epoch: int) -> int:
    """The stripes (bits) whose sponsors have not all ended when `epoch` begins."""
    paid = 0
    for entry in segment.sponsors:
        paid |= entry.stripes if entry.end_epoch > epoch else 0
    return paid


def _sponsored(state: State, contract_id: bytes, segment_id: bytes) -> tuple[Segment, int]:
    segment = touch_living(state, segment_id)
    at = _find(segment, contract_id)
    if at is None:
        raise Refused("not-sponsored", f"the contract does not sponsor segment {segment_id.hex()[:16]}")
    return segment, at


def _find(segment: Segment, contract_id: bytes) -> int | None:
    return next((at for at, entry in enumerate(segment.sponsors) if entry.contract == contract_id), None)


def _keep(state: State, segment_id: bytes, segment: Segment, at: int, entry: SponsorEntry) -> None:
    sponsors = (*segment.sponsors[:at], entry, *segment.sponsors[at + 1 :])
    state.put(SEGMENTS, segment_id, replace(segment, sponsors=sponsors))

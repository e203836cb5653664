"""Paying for a put: quote, escrow, reservations, registration; and the money back when it fails half-way.

One desk a put. Decides what is asked of the ledger and when. Does not decide prices or who stores (the ledger's rules do), nor
whether a quote is accepted (whoever put says so in `confirm`). Nothing is uploaded before the ledger has drawn its nodes, and
a segment counts as stored only when the ledger has its receipts.

    quote -> confirm -> escrow covers it -> per segment: reserve -> [upload] -> register with receipts
                                            reused segments: sponsor
    on failure: reservations cancelled, this put's unspent deposit withdrawn, but not what others of this session count on
    what a killed put left reserved: cancelled by the next put under the contract, once it has expired

Puts of one contract share its escrow. Those of one session know of each other (escrow_claims.py); where one of another program
was quicker, the ledger refuses, and the escrow is topped up again in the same breath as the reservation.

Source: docs/spec/ledger.md, "Contracts", "Segments, assignments, sponsors".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from dds.erasure.geometry import CUSTOM_CLASS, Geometry, class_geometry
from dds.ledger.params import Params
from dds.ledger.records import (
    ACCOUNTS,
    CHAIN,
    CONTRACTS,
    NODES,
    PARAMS,
    RESERVATIONS,
    SEGMENTS,
    Account,
    Chain,
    Contract,
    Reservation,
    contract_id,
    number_key,
    reservation_id,
)
from dds.ledger.rent import quote
from dds.placement.draw import Draw
from dds.placement.roles import more_nodes, storage_role
from dds.primitives.errors import DDSError, InputError, LedgerRefused, UnavailableError
from dds.primitives.hashing import sha256
from dds.primitives.ids import NodeID, SegmentID
from dds.primitives.keys import SigningKey
from dds.primitives.money import format_tokens, share_ppm
from dds.protocol.quote import parse_term, price_per_tib_month, segments_of, segments_quote
from dds.runtime.escrow_claims import Claim, EscrowClaims
from dds.runtime.ledger_client import LedgerClient, TxDone
from dds.runtime.offers import Confirm, Offer, Reserved, Spent
from dds.runtime.results import Payment, PutOptions
from dds.wire.ledger import (
    AnyBody,
    CancelReservations,
    ExtendSegments,
    OpenContract,
    Reencode,
    RegisterSegments,
    Reserve,
    SegmentEntry,
    SetContract,
    Sponsor,
    TopUp,
    WithdrawEscrow,
    stripe_runs,
)
from dds.wire.segment import EncodingRecord, StripeShape

T = TypeVar("T")
log = logging.getLogger(__name__)

TERM: Final = "720"  # epochs, when nobody says otherwise: 30 days of hours
TICKET_RENEWED_S: Final = 120.0  # nodes take one for ten minutes (runtime/admission.py)
CONTRACT_EXISTS: Final = "contract-exists"
SEGMENT_EXISTS: Final = "segment-exists"
FEES: Final = ("fee", "fee-burned")
NO_ESCROW: Final = "insufficient-escrow"
NO_NODES: Final = "not-enough-nodes"
UNPAID_HINT: Final = "store it anew with --dedup off, or wait for the next epoch"
COVER_ATTEMPTS_MAX: Final = 8  # for one reservation, while others use up what is put into the escrow
GIVE_BACK_ATTEMPTS_MAX: Final = 4
GIVE_BACK_S: Final = 15.0  # the longest that a put which failed waits for the ledger
SWEPT_MAX: Final = 256  # of a contract's latest reservations: what killed puts left is looked for among them
PRICE_SLACK_PPM: Final = 50_000  # a quote holds although the price rises by so much until the nodes are drawn
PRICE_HEADROOM: Final = 2  # a new contract's limit, in multiples of the price that was quoted


@dataclass(slots=True)
class ContractDesk:
    """Use: `begin` once, then `reserve`, `register`, `reuse` as the put goes; `fail` if it ends otherwise than well."""

    ledger: LedgerClient
    key: SigningKey
    class_name: str
    geometry: Geometry
    term: str  # "30d", or a number of epochs; empty: the contract's, or TERM
    price_max: int | None  # per MiB-epoch; None: the contract's, or PRICE_HEADROOM x the price quoted
    confirm: Confirm
    claims: EscrowClaims = field(default_factory=EscrowClaims)  # of all puts of this session
    segments: list[list[StripeShape]] | None = None  # what will be stored, where that is known: then the quote is exact
    spent: Spent = field(default_factory=Spent)
    _params: Params = field(default_factory=Params)
    _contract: bytes = b""
    _price: int = 0  # that the quote was made with: the most that is paid
    _paid_price: int = 0  # of the last segment
    _epochs: int = 0
    _claim: Claim = field(default_factory=Claim)
    _agreed: list[AnyBody] = field(default_factory=list)  # not sent yet
    _open: set[bytes] = field(default_factory=set)  # reservations not registered yet
    _expired: list[bytes] = field(default_factory=list)  # reservations of earlier puts
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)  # escrow is looked at and topped up by one segment at a time
    _under_way: set[asyncio.Task[Any]] = field(default_factory=set)  # at the ledger, whoever waits for it

    async def offer(self, data_bytes: int | None) -> Offer:
        """What a put of `data_bytes` costs at most, and how it would be paid. Nothing is changed by asking.

        Raises:
            InputError: the price is above the limit, or the account has too little.
        """
        return (await self._look(data_bytes))[0]

    async def begin(self, data_bytes: int | None) -> None:
        """Quote, ask, and see to the escrow. `data_bytes` None: a stream, which is paid for segment by segment.

        Raises:
            InputError: the quote was declined, or cannot be paid.
        """
        offer, contract = await self._look(data_bytes)
        if not self.confirm(offer):
            raise InputError("the quote was not accepted: nothing was stored", hint="accept it with --yes")
        self._agree(contract, offer)
        try:
            await self._cancel(self._expired)
        except BaseException:
            self.end()
            raise

    async def _left_behind(self, contract: Contract, epoch: int) -> list[bytes]:
        """Reservations that have expired: nobody else gives back what a killed put had earmarked, and the room at its nodes."""
        first = max(0, contract.reservations - SWEPT_MAX)
        ids = [reservation_id(self._contract, counter) for counter in range(first, contract.reservations)]
        found = await self.ledger.find_many([(RESERVATIONS, each) for each in ids])
        return [each for each, made in zip(ids, found, strict=True) if made is not None and made.expires_epoch <= epoch]

    async def _cancel(self, reservations: Iterable[bytes]) -> None:
        """One by one: one that is closed already must not keep the others open."""
        ids = sorted(reservations)
        await self.ledger.submit_many(self.key, [CancelReservations([each]) for each in ids])
        self._open.difference_update(ids)

    async def _look(self, data_bytes: int | None) -> tuple[Offer, Contract | None]:
        self._contract = contract_id(self.key.public, self.class_name)
        params, chain, contract, account = await self.ledger.find_many(
            [(PARAMS, b""), (CHAIN, b""), (CONTRACTS, self._contract), (ACCOUNTS, self.key.public)]
        )
        if params is None or chain is None:
            raise UnavailableError("the ledger has no parameters yet", hint="is it set up? dds ledger status")
        self._params = params
        if contract is not None and contract.cancelled_epoch >= 0:
            contract = None
        if contract is not None and not self.term:  # nobody says otherwise
            self._epochs = contract.term_epochs
        else:
            self._epochs = parse_term(self.term or TERM, params.epoch_ms)
        if contract is not None and contract.reserved:
            self._expired = await self._left_behind(contract, chain.epoch)
        offer = self._offer(data_bytes or 0, chain, contract, account or Account())
        if offer.balance < offer.deposit:
            raise InputError(
                f"the account has {format_tokens(offer.balance)}, and {format_tokens(offer.deposit)} are needed",
                hint="look at it with 'dds wallet show'; somebody must send it tokens",
            )
        return offer, contract

    def _offer(self, data_bytes: int, chain: Chain, contract: Contract | None, account: Account) -> Offer:
        lane, limit = chain.lane(storage_role(self.class_name)), self.price_max
        if limit is None:
            limit = lane.price * PRICE_HEADROOM if contract is None else contract.price_max
        self._price = min(limit, lane.price + share_ppm(lane.price, PRICE_SLACK_PPM))
        segments = list(segments_of(self.geometry, data_bytes)) if self.segments is None else self.segments
        bound = segments_quote(self._params, segments, data_bytes, self._price, self._epochs)
        if lane.price > limit:
            raise InputError(
                f"the price is {format_tokens(price_per_tib_month(lane.price))} per TiB and 720 epochs, above your limit",
                hint="raise --max-price, or wait: dds market price",
            )
        escrow = 0 if contract is None else self._free(contract)
        deposit = max(0, bound.total - escrow)
        return Offer(bound, lane.price, limit, lane.reference, escrow, account.balance, deposit, self._params.epoch_ms)

    def _agree(self, contract: Contract | None, offer: Offer) -> None:
        """What the ledger is told with the first thing that is paid for: a put that stores nothing moves nothing."""
        k, m = self.geometry
        if contract is None:
            self._agreed = [OpenContract(self.class_name, k, m, self._epochs, offer.price_max, offer.deposit)]
        else:
            if (contract.term_epochs, contract.price_max) != (self._epochs, offer.price_max):
                self._agreed.append(SetContract(self._contract, self._epochs, offer.price_max))
            if offer.deposit:
                self._agreed.append(TopUp(self._contract, offer.deposit))
        self._claim.amount, self._claim.unsent = offer.quote.total, offer.deposit
        self.claims.enter(self._contract, self._claim)

    def _free(self, contract: Contract) -> int:
        """Of the escrow, without what is reserved and what other puts of this session count on."""
        return max(0, contract.escrow - contract.reserved - self.claims.of_others(self._contract, self._claim))

    async def _send(self, body: AnyBody, before: Sequence[AnyBody] = ()) -> TxDone:
        """`body`, behind what was agreed on and not sent yet, and behind `before`.

        Raises:
            LedgerRefused: of what stands before it only where `body` was refused too.
        """
        agreed, self._agreed = self._agreed, []
        for terms in [each for each in agreed if isinstance(each, SetContract)]:
            await self.ledger.submit(self.key, terms)  # alone: nothing may be reserved by the old ones
        first = [*(each for each in agreed if not isinstance(each, SetContract)), *before]
        *outcomes, done = await self.ledger.submit_many(self.key, [*first, body])
        moved = sum(_deposit_of(each) for each, outcome in zip(first, outcomes, strict=True) if isinstance(outcome, TxDone))
        self.spent.deposited += moved
        self._claim.unsent = 0
        refusals = [each for each in outcomes if isinstance(each, LedgerRefused)]
        if any(refusal.refusal == CONTRACT_EXISTS for refusal in refusals):  # another put has just opened it
            owed = _deposit_of(first[0])
            top_up: list[AnyBody] = [TopUp(self._contract, owed)] if owed else []
            if isinstance(done, LedgerRefused):
                return await self._send(body, top_up)
            self._agreed, self._claim.unsent = top_up, owed
            return done
        if isinstance(done, LedgerRefused):
            raise refusals[0] if refusals else done
        return done

    async def _to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """What is at the ledger goes on when the put is cancelled, so that `fail` knows what came of it."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    # -- new segments -----------------------------------------------------------------------------------------------------

    async def reserve(self, width: int, m: int, fragment_bytes_max: int) -> Reserved:
        """Nodes for one segment of which each keeps at most `fragment_bytes_max` bytes.

        Raises:
            LedgerRefused: not enough nodes, or above the price limit.
        """
        try:
            identifier = await self._to_the_end(self._reserve(width, m, fragment_bytes_max))
        except LedgerRefused as refusal:
            hint = more_nodes(storage_role(self.class_name), width) if refusal.refusal == NO_NODES else refusal.hint
            raise LedgerRefused(refusal.refusal, f"class {self.class_name}: {refusal.message}", hint=hint) from None
        reservation, ticket = await self._prove(identifier)
        if reservation is None:
            raise UnavailableError("the ledger has no such reservation any more", hint="run the same put again")
        if reservation.price > self._price:
            raise UnavailableError("the price has risen above the quote", hint="run the same put again for a new one")
        numbers = [*reservation.chosen, *reservation.spares]
        nodes = await self.ledger.find_many([(NODES, number_key(number)) for number in numbers])
        ids = [NodeID(node.node_id) for node in nodes]
        draw = Draw(tuple(ids[:width]), tuple(ids[width:]), ())
        return Reserved(identifier, ticket, _now_s(), reservation.price, draw, tuple(reservation.bends))

    async def _reserve(self, width: int, m: int, fragment_bytes_max: int) -> bytes:
        needed = quote(self._params, [fragment_bytes_max] * width, self._price, self._epochs).total
        done = await self._paying(needed, Reserve(self._contract, 1, width, m, fragment_bytes_max))
        identifier = next(event.evidence for event in done.events if event.name == "reserved")
        self._open.add(identifier)
        return identifier

    async def ticket(self, reserved: Reserved) -> bytes:
        """A ticket that is young enough for the nodes, however long the upload took."""
        if _now_s() - reserved.proven_s < TICKET_RENEWED_S:
            return reserved.ticket
        return (await self._prove(reserved.id))[1]

    async def _prove(self, identifier: bytes) -> tuple[Reservation | None, bytes]:
        (reservation, _), ticket = await self.ledger.proven([(RESERVATIONS, identifier), (CONTRACTS, self._contract)])
        return reservation, ticket

    async def _paying(self, needed: int, body: AnyBody) -> TxDone:
        """Send what takes at most `needed` from the escrow, and as much into the escrow as that lacks.

        Where a put of another program has used up what was there, the escrow gets the whole of it with the same request.
        """
        async with self._one:
            for attempt in range(COVER_ATTEMPTS_MAX):
                try:
                    done = await self._send(body, await self._cover(needed, whole=attempt > 1))
                except LedgerRefused as refusal:
                    if refusal.refusal != NO_ESCROW or attempt + 1 == COVER_ATTEMPTS_MAX:
                        raise
                    self._claim.amount = 0
                else:
                    self._claim.amount = max(0, self._claim.amount - needed)
                    return done
        raise AssertionError("unreachable")

    async def _cover(self, needed: int, *, whole: bool) -> list[AnyBody]:
        """What puts into the escrow what a segment may take: for a stream, and what is reused, nothing was agreed."""
        if needed <= self._claim.amount:
            return []
        contract = None if whole else await self.ledger.find(CONTRACTS, self._contract)
        missing = needed - self._claim.unsent - (self._free(contract) if contract is not None else 0)
        return [TopUp(self._contract, missing)] if missing > 0 else []

    async def register(self, reserved: Reserved, record: EncodingRecord, payload: bytes, receipts: Sequence[bytes]) -> None:
        """Close the reservation with the nodes' receipts, by ascending index: from the next epoch on they are audited and paid.

        Raises:
            LedgerRefused
            UnavailableError: the segment is there already, and cannot be paid for.
        """
        entry = _entry(reserved, record, payload, receipts)
        try:
            await self._to_the_end(self._close(reserved, RegisterSegments([entry])))
        except LedgerRefused as refusal:
            if refusal.refusal != SEGMENT_EXISTS:
                raise
            await self._cancel([reserved.id])
            await self.reuse(record.segment_id, record, set(range(len(record.stripes))))

    async def reencode(self, reserved: Reserved, record: EncodingRecord, payload: bytes, receipts: Sequence[bytes]) -> None:
        """Put a stored segment's new encoding into the place of its old one; every index has its receipt.

        Raises:
            LedgerRefused: the old encoding stays what it is.
        """
        await self._to_the_end(self._close(reserved, Reencode(_entry(reserved, record, payload, receipts))))

    async def _close(self, reserved: Reserved, body: AnyBody) -> None:
        done = await self.ledger.submit(self.key, body)
        self._open.discard(reserved.id)
        self.spent.segments += 1
        self._charge(done, reserved.price)

    def payment(self) -> Payment:
        spent = self.spent
        return Payment(
            contract=self._contract,
            price=self._paid_price,
            term_epochs=self._epochs,
            rent=spent.rent,
            fee=spent.fee,
            reserve=spent.reserve,
            segments=spent.segments,
            sponsored=spent.sponsored,
        )

    def _charge(self, done: TxDone, price: int) -> None:
        """What the ledger says that it took."""
        self._paid_price = price
        for event in done.events:
            if event.contract == self._contract:
                self.spent.rent += event.amount * (event.name == "rent")
                self.spent.fee += event.amount * (event.name in FEES)
                self.spent.reserve += event.amount * (event.name == "repair-reserve")

    # -- segments that are there already ----------------------------------------------------------------------------------

    async def reuse(self, segment_id: SegmentID, record: EncodingRecord, stripes: set[int]) -> None:
        """Pay for the stripes of a stored segment that this put relies on, or extend what is paid for already.

        Raises:
            UnavailableError: it cannot be paid for, so that nobody would keep that part of the content.
        """
        segment = await self.ledger.find(SEGMENTS, segment_id)
        if segment is None:
            raise UnavailableError("a segment stored earlier is not on the ledger: nobody is paid for it", hint=UNPAID_HINT)
        wanted = sum(1 << stripe for stripe in stripes)
        ours = next((sponsor for sponsor in segment.sponsors if sponsor.contract == self._contract), None)
        chain = await self.ledger.find(CHAIN)
        assert chain is not None
        end = chain.epoch + self._epochs
        sizes = _sizes_of(record, stripes)
        if ours is None or wanted & ~ours.stripes:
            price = max(segment.price, chain.lane(segment.role).price)
            body: AnyBody = Sponsor(self._contract, segment_id, wanted.to_bytes(8, "little"))
        elif ours.end_epoch < end:
            price = max(ours.price, chain.lane(segment.role).price)
            body = ExtendSegments(self._contract, [segment_id], end - ours.end_epoch)
        else:
            return
        needed = quote(self._params, sizes, price, self._epochs).total
        try:
            await self._to_the_end(self._sponsor(needed, body, price))
        except LedgerRefused as refusal:
            problem = f"a segment stored earlier cannot be paid for: {refusal.message}"
            raise UnavailableError(problem, hint=UNPAID_HINT) from None

    async def _sponsor(self, needed: int, body: AnyBody, price: int) -> None:
        self._charge(await self._paying(needed, body), price)
        self.spent.sponsored += 1

    # -- the end ----------------------------------------------------------------------------------------------------------

    async def fail(self) -> None:
        """Take back what the put did not use. To be called when nothing of the put is under way any more.

        Where the ledger does not answer in time, the deposit stays in the contract's escrow, and a later put under the same
        contract uses it; reservations expire, and that put cancels them.
        """
        try:
            async with asyncio.timeout(GIVE_BACK_S):
                await self._give_back()
        except (DDSError, TimeoutError) as error:
            log.warning("what the put did not use is still in the contract's escrow: %s", error or "the ledger does not answer")

        finally:
            self.end()

    def end(self) -> None:
        """Count on nothing in the escrow any more. To be called however the put ends; `fail` does."""
        self.claims.leave(self._contract, self._claim)

    async def _give_back(self) -> None:
        """What others of this session count on stays, whoever moved it there."""
        await asyncio.gather(*self._under_way, return_exceptions=True)
        await self._cancel(self._open)
        for _ in range(GIVE_BACK_ATTEMPTS_MAX):
            contract = await self.ledger.find(CONTRACTS, self._contract)
            if contract is None:
                return
            free = contract.withdrawable - self.claims.of_others(self._contract, self._claim)
            unspent = min(self.spent.deposited - self.spent.total, free)
            if unspent <= 0:
                return
            try:
                await self.ledger.submit(self.key, WithdrawEscrow(self._contract, unspent))
            except LedgerRefused as refusal:
                if refusal.refusal != NO_ESCROW:  # another put has just reserved some of it
                    raise
            else:
                self.spent.deposited -= unspent
                return


def _deposit_of(body: AnyBody) -> int:
    """What goes into the escrow with it."""
    match body:
        case OpenContract():
            return body.deposit
        case TopUp():
            return body.amount
        case _:
            return 0


def _entry(reserved: Reserved, record: EncodingRecord, payload: bytes, receipts: Sequence[bytes]) -> SegmentEntry:
    return SegmentEntry(
        reservation=reserved.id,
        segment_id=record.segment_id,
        segment_root=record.root(),
        encoding_hash=sha256(payload),
        stripes=stripe_runs(record.stripes),
        receipts=list(receipts),
    )


def open_desk(
    ledger: LedgerClient, key: SigningKey, options: PutOptions, confirm: Confirm, claims: EscrowClaims
) -> ContractDesk:
    """The desk of one put. `ledger` and `claims` are those of all puts of the session."""
    geometry = class_geometry(options.class_name, options.k, options.m)
    name = options.class_name if options.class_name != CUSTOM_CLASS else f"{CUSTOM_CLASS}-{geometry.k}-{geometry.m}"
    return ContractDesk(ledger, key, name, geometry, options.term, options.price_max, confirm, claims)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _sizes_of(record: EncodingRecord, stripes: set[int]) -> list[int]:
    return [sum(part.size for stripe, part in record.fragments_of(index) if stripe in stripes) for index in range(record.width)]

"""Paying for a put: quote, escrow, reservations, registration; and the money back when it fails half-way.

One desk a put. Decides what is asked of the ledger and when. Does not decide prices or who stores (the ledger's rules do), nor
whether a quote is accepted (whoever put says so in `confirm`). Nothing is uploaded before the ledger has drawn its nodes, and
a segment counts as stored only when the ledger has its receipts.

    quote -> confirm -> escrow covers it -> per segment: reserve -> [upload] -> register with receipts
                                            reused segments: sponsor
    on failure: reservations cancelled, this put's unspent deposit withdrawn
    what a killed put left reserved: cancelled by the next put under the contract, once it has expired

Source: docs/spec/ledger.md, "Contracts", "Segments, assignments, sponsors".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

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
from dds.protocol.quote import PutQuote, parse_term, price_per_tib_month, segments_of, segments_quote
from dds.runtime.ledger_client import LedgerClient, TxDone
from dds.runtime.results import Payment, PutOptions
from dds.storage.home import parse_node_address
from dds.transport.client import PeerClient
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

log = logging.getLogger(__name__)

TERM: Final = "720"  # epochs, when nobody says otherwise: 30 days of hours
TICKET_RENEWED_S: Final = 120.0  # nodes take one for ten minutes (runtime/admission.py)
CONTRACT_EXISTS: Final = "contract-exists"
SEGMENT_EXISTS: Final = "segment-exists"
FEES: Final = ("fee", "fee-burned")
NO_ESCROW: Final = "insufficient-escrow"
NO_NODES: Final = "not-enough-nodes"
UNPAID_HINT: Final = "store it anew with --dedup off, or wait for the next epoch"
GIVE_BACK_S: Final = 15.0  # the longest that a put which failed waits for the ledger
SWEPT_MAX: Final = 256  # of a contract's latest reservations: what killed puts left is looked for among them
PRICE_SLACK_PPM: Final = 50_000  # a quote holds although the price rises by so much until the nodes are drawn
PRICE_HEADROOM: Final = 2  # a new contract's limit, in multiples of the price that was quoted


@dataclass(frozen=True, slots=True)
class Offer:
    """A quote, and how it will be paid."""

    quote: PutQuote  # an upper bound: at a price that is a little above the present one
    price: int  # now, per MiB-epoch
    price_max: int
    reference: int
    escrow: int  # in the standing contract now
    balance: int
    deposit: int  # what will be moved into escrow
    epoch_ms: int


@dataclass(frozen=True, slots=True)
class Reserved:
    """A segment's drawn nodes; `id` is what their receipts must name."""

    id: bytes
    ticket: bytes  # proves it to the nodes
    proven_s: float  # when, by the loop's clock
    price: int  # per MiB-epoch
    draw: Draw
    bends: tuple[str, ...]


@dataclass(slots=True)
class Spent:
    """What this put has cost so far, in base units."""

    rent: int = 0
    fee: int = 0
    reserve: int = 0
    deposited: int = 0
    segments: int = 0
    sponsored: int = 0

    @property
    def total(self) -> int:
        return self.rent + self.fee + self.reserve


Confirm = Callable[[Offer], bool]


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
    segments: list[list[StripeShape]] | None = None  # what will be stored, where that is known: then the quote is exact
    spent: Spent = field(default_factory=Spent)
    _params: Params = field(default_factory=Params)
    _contract: bytes = b""
    _price: int = 0  # that the quote was made with: the most that is paid
    _paid_price: int = 0  # of the last segment
    _epochs: int = 0
    _sure: int = 0  # of the escrow: agreed on for this put, and not reserved yet
    _agreed: list[AnyBody] = field(default_factory=list)  # not sent yet
    _deposit: int = 0  # that is in it
    _open: set[bytes] = field(default_factory=set)  # reservations not registered yet
    _expired: list[bytes] = field(default_factory=list)  # reservations of earlier puts
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)  # escrow is looked at and topped up by one segment at a time

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
        await self._cancel(self._expired)

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
        escrow = 0 if contract is None else contract.escrow - contract.reserved
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
        self._deposit, self._sure = offer.deposit, offer.quote.total

    async def _send(self, body: AnyBody) -> TxDone:
        agreed, self._agreed = self._agreed, []
        *before, done = await self.ledger.submit_many(self.key, [*agreed, body])
        for refusal in before:
            if isinstance(refusal, LedgerRefused) and refusal.refusal != CONTRACT_EXISTS:
                raise refusal
        if any(isinstance(each, LedgerRefused) for each in before):  # another put of this home has just opened it
            if self._deposit:
                await self.ledger.submit(self.key, TopUp(self._contract, self._deposit))
                self.spent.deposited += self._deposit
            return done if isinstance(done, TxDone) else await self._send(body)
        self.spent.deposited += self._deposit if agreed else 0
        if isinstance(done, LedgerRefused):
            raise done
        return done

    # -- new segments -----------------------------------------------------------------------------------------------------

    async def reserve(self, width: int, m: int, fragment_bytes_max: int) -> Reserved:
        """Nodes for one segment of which each keeps at most `fragment_bytes_max` bytes.

        Raises:
            LedgerRefused: not enough nodes, or above the price limit.
        """
        needed = quote(self._params, [fragment_bytes_max] * width, self._price, self._epochs).total
        async with self._one:
            try:
                done = await self._paying(needed, Reserve(self._contract, 1, width, m, fragment_bytes_max))
            except LedgerRefused as refusal:
                hint = more_nodes(storage_role(self.class_name), width) if refusal.refusal == NO_NODES else refusal.hint
                raise LedgerRefused(refusal.refusal, f"class {self.class_name}: {refusal.message}", hint=hint) from None
        identifier = next(event.evidence for event in done.events if event.name == "reserved")
        self._open.add(identifier)
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

    async def ticket(self, reserved: Reserved) -> bytes:
        """A ticket that is young enough for the nodes, however long the upload took."""
        if _now_s() - reserved.proven_s < TICKET_RENEWED_S:
            return reserved.ticket
        return (await self._prove(reserved.id))[1]

    async def _prove(self, identifier: bytes) -> tuple[Reservation | None, bytes]:
        (reservation, _), ticket = await self.ledger.proven([(RESERVATIONS, identifier), (CONTRACTS, self._contract)])
        return reservation, ticket

    async def _paying(self, needed: int, body: AnyBody) -> TxDone:
        """Send what takes at most `needed` from the escrow, once more where another put of this home has used that up."""
        await self._cover(needed)
        try:
            return await self._send(body)
        except LedgerRefused as refusal:
            if refusal.refusal != NO_ESCROW:
                raise
        self._sure = 0
        await self._cover(needed)
        return await self._send(body)

    async def _cover(self, needed: int) -> None:
        """See to it that the escrow has what a segment may take: for a stream, and what is reused, nothing was agreed."""
        if needed <= self._sure:
            self._sure -= needed
            return
        self._sure = 0  # it is part of the escrow that is looked at now
        contract = await self.ledger.find(CONTRACTS, self._contract)
        missing = needed - (contract.escrow - contract.reserved if contract is not None else 0)
        if missing > 0:
            await self._send(TopUp(self._contract, missing))
            self.spent.deposited += missing

    async def register(self, reserved: Reserved, record: EncodingRecord, payload: bytes, receipts: Sequence[bytes]) -> None:
        """Close the reservation with the nodes' receipts, by ascending index: from the next epoch on they are audited and paid.

        Raises:
            LedgerRefused
            UnavailableError: the segment is there already, and cannot be paid for.
        """
        entry = _entry(reserved, record, payload, receipts)
        try:
            done = await self.ledger.submit(self.key, RegisterSegments([entry]))
        except LedgerRefused as refusal:
            if refusal.refusal != SEGMENT_EXISTS:
                raise
            await self._cancel([reserved.id])
            await self.reuse(record.segment_id, record, set(range(len(record.stripes))))
            return
        self._open.discard(reserved.id)
        self.spent.segments += 1
        self._charge(done, reserved.price)

    async def reencode(self, reserved: Reserved, record: EncodingRecord, payload: bytes, receipts: Sequence[bytes]) -> None:
        """Put a stored segment's new encoding into the place of its old one; every index has its receipt.

        Raises:
            LedgerRefused: the old encoding stays what it is.
        """
        done = await self.ledger.submit(self.key, Reencode(_entry(reserved, record, payload, receipts)))
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
        try:
            async with self._one:
                if ours is None or wanted & ~ours.stripes:
                    joins_at = max(segment.price, chain.lane(segment.role).price)
                    needed = quote(self._params, sizes, joins_at, self._epochs).total
                    body: AnyBody = Sponsor(self._contract, segment_id, wanted.to_bytes(8, "little"))
                    self._charge(await self._paying(needed, body), joins_at)
                elif ours.end_epoch < end:
                    more, price = end - ours.end_epoch, max(ours.price, chain.lane(segment.role).price)
                    needed = quote(self._params, sizes, price, self._epochs).total
                    body = ExtendSegments(self._contract, [segment_id], more)
                    self._charge(await self._paying(needed, body), price)
                else:
                    return
        except LedgerRefused as refusal:
            problem = f"a segment stored earlier cannot be paid for: {refusal.message}"
            raise UnavailableError(problem, hint=UNPAID_HINT) from None
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

    async def _give_back(self) -> None:
        await self._cancel(self._open)
        contract = await self.ledger.find(CONTRACTS, self._contract)
        free = contract.withdrawable if contract is not None else 0
        unspent = min(self.spent.deposited - self.spent.total, free)
        if unspent > 0:
            await self.ledger.submit(self.key, WithdrawEscrow(self._contract, unspent))
            self.spent.deposited -= unspent


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
    client: PeerClient, network: str, ledger: str, key: SigningKey, options: PutOptions, confirm: Confirm
) -> ContractDesk | None:
    """The desk of one put, or None where the network is not paid: `ledger` ("NODEID@host:port") is empty."""
    if not ledger:
        return None
    geometry = class_geometry(options.class_name, options.k, options.m)
    name = options.class_name if options.class_name != CUSTOM_CLASS else f"{CUSTOM_CLASS}-{geometry.k}-{geometry.m}"
    at = ledger_of(client, network, ledger)
    return ContractDesk(at, key, name, geometry, options.term, options.price_max, confirm)


def ledger_of(client: PeerClient, network: str, address: str) -> LedgerClient:
    """The ledger whose host is "NODEID@host:port"."""
    host, name, port = parse_node_address(address)
    client.learn(host, [(name, port)])
    return LedgerClient(client, host, network=network)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def accept(_offer: Offer) -> bool:
    """For programs: their limit is `price_max`."""
    return True


def _sizes_of(record: EncodingRecord, stripes: set[int]) -> list[int]:
    return [sum(part.size for stripe, part in record.fragments_of(index) if stripe in stripes) for index in range(record.width)]

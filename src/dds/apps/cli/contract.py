"""`dds contract`: the standing contracts of a publisher, one a class: what they hold, what they cost, how long they last.

Which segments a contract pays for is read from its events and then from the ledger's proven entries, each segment by itself.
Its rent an epoch is what its share of the stripes costs at the prices at which each segment was reserved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from dds.apps.cli.ledger_session import Desk, WalletOption, YesOption, confirm, told, with_ledger
from dds.apps.cli.ledger_text import facts, parse_price, parse_span, price_text, span_text, table
from dds.apps.cli.session import Session, command, command_hint, fields, group
from dds.apps.cli.wallet import positive_tokens
from dds.primitives.errors import InputError
from dds.primitives.ids import id_text
from dds.primitives.money import MILLION, format_tokens, mul_div_ceil, parse_tokens
from dds.primitives.units import MIB, human_bytes

if TYPE_CHECKING:
    from dds.ledger.params import Params
    from dds.ledger.records import Contract, Segment, SponsorEntry

ContractArgument = Annotated[str, typer.Argument(metavar="CONTRACT", help="A contract's id, or the class of one of your own.")]
AmountArgument = Annotated[str, typer.Argument(metavar="AMOUNT", help="Tokens, for example 12 or 0.25.")]
PriceOption = Annotated[
    str | None,
    typer.Option(
        "--price-max",
        metavar="PRICE",
        help="The most that you pay: base units per MiB-epoch, or '1.5 ECHO' per TiB of fragments and 30 days.",
    ),
]
TermOption = Annotated[
    str | None, typer.Option("--term", metavar="SPAN", help="How long a put is paid for: epochs, or for example 30d.")
]


@dataclass(frozen=True, slots=True)
class Paying:
    """One segment that a contract pays for."""

    segment: bytes
    stripes: int  # of this contract
    fragment_bytes: int  # of these stripes, all indices
    rent: int  # an epoch, base units: the contract's share
    price: int
    prepaid: int
    reserve: int
    end_epoch: int


@dataclass(frozen=True, slots=True)
class Standing:
    """A contract as of now."""

    contract: bytes
    record: Contract
    epoch: int
    paying: tuple[Paying, ...] = ()

    @property
    def rent(self) -> int:
        return sum(item.rent for item in self.paying)

    @property
    def free(self) -> int:
        """Of the escrow: what no open reservation has a claim on."""
        return self.record.escrow - self.record.reserved

    @property
    def prepaid(self) -> int:
        return sum(item.prepaid for item in self.paying)

    def lasts(self, params: Params) -> int | None:
        """Epochs that the escrow can pay for beyond what is prepaid, fee and reserve included; None: it pays for nothing."""
        cost = mul_div_ceil(self.rent, MILLION + params.fee_ppm + params.repair_reserve_ppm, MILLION)
        return self.free // cost if cost else None


def app() -> typer.Typer:
    """The `contract` group."""
    made = group("contract", "Your standing contracts: what stored content is paid from.")
    command(made, "list")(list_contracts)
    command(made)(show)
    command(made, "open")(open_contract)
    command(made, "set")(set_contract)
    for run in (topup, withdraw, cancel):
        command(made)(run)
    return made


def list_contracts(session: Session, wallet: WalletOption = None) -> None:
    """Show the wallet's contracts."""

    async def work(desk: Desk) -> tuple[list[Standing], Params]:
        found = await own_contracts(desk, desk.key.public)
        epoch = (await desk.client.head()).epoch
        return [await standing_of(desk, *entry, epoch) for entry in found], await desk.params()

    found, params = with_ledger(session, work, wallet=wallet)
    head = ("class", "k+m", "escrow", "segments", "rent an epoch", "escrow lasts", "price limit", "contract")
    rows = [
        (
            item.record.class_name + (" (cancelled)" if item.record.cancelled_epoch >= 0 else ""),
            f"{item.record.k}+{item.record.m}",
            format_tokens(item.record.escrow),
            item.record.segments,
            format_tokens(item.rent),
            _lasts_text(item, params),
            f"{item.record.price_max:,}",
            id_text(item.contract),
        )
        for item in found
    ]
    text = table(head, rows, right=(2, 3, 4, 6)) if rows else "no contract yet"
    session.result({"contracts": [document(item, params) for item in found]}, text)
    if not rows:
        session.say(f"hint: {command_hint('contract open standard --deposit 1', session)}")


def show(session: Session, contract: ContractArgument, wallet: WalletOption = None) -> None:
    """Show a contract: escrow, term, price limit, segments, rent, and how long the escrow lasts."""

    async def work(desk: Desk) -> tuple[Standing, Params]:
        identifier, record = await desk.contract(contract)
        return await standing_of(desk, identifier, record, (await desk.client.head()).epoch), await desk.params()

    found, params = with_ledger(session, work, wallet=wallet)
    lines = [describe(found, params)]
    if found.paying and session.verbose:
        lines.append(_segment_table(found))
    session.result(document(found, params), "\n".join(lines))
    if found.paying and not session.verbose:
        session.say("its segments: --verbose")


def open_contract(
    session: Session,
    class_name: Annotated[str, typer.Argument(metavar="CLASS", help="standard, hot, archive or custom.")] = "standard",
    deposit: Annotated[str, typer.Option("--deposit", metavar="AMOUNT", help="Into its escrow.")] = "0",
    term: TermOption = None,
    price_max: PriceOption = None,
    k: Annotated[int | None, typer.Option("-k", "--k", help="Class custom: data fragments.")] = None,
    m: Annotated[int | None, typer.Option("-m", "--m", help="Class custom: parity fragments.")] = None,
    wallet: WalletOption = None,
    yes: YesOption = False,
) -> None:
    """Open the wallet's contract of a class. Without --term 30 days, without --price-max twice the price now."""
    from dds.erasure.geometry import ARCHIVE_CLASS, ARCHIVES, class_geometry
    from dds.ledger.records import contract_id
    from dds.placement.roles import storage_role
    from dds.wire.ledger import OpenContract

    if class_name == ARCHIVE_CLASS and k is None and m is None:
        k, m = ARCHIVES[session.open_home().client_config().archive]
    geometry, units = class_geometry(class_name, k, m), parse_tokens(deposit)

    async def work(desk: Desk) -> None:
        params, chain = await desk.params(), await desk.chain()
        epochs = parse_span(term or "30d", params)
        price = parse_price(price_max, params) if price_max is not None else 2 * chain.lane(storage_role(class_name)).price
        terms = f"{class_name} {geometry}, term {span_text(epochs, params)}, at most {price_text(price, params)}"
        confirm(session, f"open {terms}, with {format_tokens(units)} in escrow?", yes=yes or units == 0)
        done = await desk.send(OpenContract(class_name, geometry.k, geometry.m, epochs, price, units))
        identifier = contract_id(desk.key.public, class_name)
        told(
            session, done, f"{id_text(identifier)}\n{terms}", contract=id_text(identifier), price_max=price, term_epochs=epochs
        )

    with_ledger(session, work, wallet=wallet)


def set_contract(
    session: Session,
    contract: ContractArgument,
    term: TermOption = None,
    price_max: PriceOption = None,
    wallet: WalletOption = None,
) -> None:
    """Change a contract's term or price limit; what was put already keeps its own."""
    from dds.wire.ledger import SetContract

    if term is None and price_max is None:
        raise InputError("nothing to change", hint="give --term or --price-max")

    async def work(desk: Desk) -> None:
        identifier, record = await desk.contract(contract)
        params = await desk.params()
        epochs = parse_span(term, params) if term is not None else record.term_epochs
        price = parse_price(price_max, params) if price_max is not None else record.price_max
        done = await desk.send(SetContract(identifier, epochs, price))
        text = f"term {span_text(epochs, params)}, at most {price_text(price, params)}"
        told(session, done, text, contract=id_text(identifier), price_max=price, term_epochs=epochs)

    with_ledger(session, work, wallet=wallet)


def topup(
    session: Session, contract: ContractArgument, amount: AmountArgument, wallet: WalletOption = None, yes: YesOption = False
) -> None:
    """Move AMOUNT into a contract's escrow; any account may."""
    from dds.wire.ledger import TopUp

    units = positive_tokens(amount)

    async def work(desk: Desk) -> None:
        identifier, record = await desk.contract(contract)
        if record.publisher != desk.key.public:
            session.say(f"note: this contract is of {id_text(record.publisher)}: only that account can take money out again")
        confirm(session, f"move {format_tokens(units)} into the contract {id_text(identifier)}?", yes=yes)
        done = await desk.send(TopUp(identifier, units))
        now = format_tokens(record.escrow + units)
        told(session, done, f"{format_tokens(units)} added: {now} in escrow", contract=id_text(identifier), amount=units)

    with_ledger(session, work, wallet=wallet)


def withdraw(session: Session, contract: ContractArgument, amount: AmountArgument, wallet: WalletOption = None) -> None:
    """Take AMOUNT, or 'all', out of a contract's escrow: what pays for nothing yet."""
    from dds.wire.ledger import WithdrawEscrow

    asked = None if amount == "all" else positive_tokens(amount)

    async def work(desk: Desk) -> None:
        identifier, record = await desk.contract(contract)
        units = record.withdrawable if asked is None else asked
        if units == 0:
            raise InputError(
                "nothing in its escrow is free",
                hint="open reservations keep their part until they end, an endowment's money pays rent only",
            )
        done = await desk.send(WithdrawEscrow(identifier, units))
        told(session, done, f"{format_tokens(units)} taken out", contract=id_text(identifier), amount=units)

    with_ledger(session, work, wallet=wallet)


def cancel(session: Session, contract: ContractArgument, wallet: WalletOption = None, yes: YesOption = False) -> None:
    """End a contract: its content is no longer paid for, nodes drop it; what was paid ahead comes back."""
    from dds.wire.ledger import CancelContract

    async def work(desk: Desk) -> None:
        identifier, record = await desk.contract(contract)
        confirm(
            session, f"stop paying for {record.segments:,} segments of {id_text(identifier)}? Nodes will drop them", yes=yes
        )
        done = await desk.send(CancelContract(identifier))
        back = sum(event.delta for event in done.events if event.account == record.publisher)
        text = f"cancelled: {record.segments:,} segments are no longer paid for, {format_tokens(back)} came back from escrow"
        told(session, done, text, contract=id_text(identifier), segments=record.segments)

    with_ledger(session, work, wallet=wallet)


async def own_contracts(desk: Desk, publisher: bytes) -> list[tuple[bytes, Contract]]:
    """The publisher's contracts, one a class."""
    from dds.ledger.records import CONTRACTS

    identifiers = await desk.contract_ids(publisher)
    found = zip(identifiers, await desk.find_many(CONTRACTS, identifiers), strict=True)
    return [(identifier, record) for identifier, record in found if record is not None and record.publisher == publisher]


async def standing_of(desk: Desk, contract: bytes, record: Contract, epoch: int) -> Standing:
    """The contract with all that it pays for in `epoch`."""
    from dds.ledger.records import SEGMENTS

    if not record.segments:
        return Standing(contract, record, epoch)
    named = dict.fromkeys([row.event.segment async for row in desk.client.all_events(contract=contract) if row.event.segment])
    segments = await desk.find_many(SEGMENTS, list(named))
    return Standing(contract, record, epoch, paying(contract, list(zip(named, segments, strict=True)), epoch))


def paying(contract: bytes, segments: Sequence[tuple[bytes, Segment | None]], epoch: int) -> tuple[Paying, ...]:
    """Those that `contract` pays for in `epoch` or later, in the order given."""
    from dds.ledger.rent import sponsored_bytes

    return tuple(
        Paying(
            segment=identifier,
            stripes=sponsor.stripes.bit_count(),
            fragment_bytes=sponsored_bytes(segment.stripes, sponsor.stripes),
            rent=rent_share(segment, sponsor, max(epoch, sponsor.start_epoch)),
            price=sponsor.price,
            prepaid=sponsor.prepaid,
            reserve=sponsor.reserve,
            end_epoch=sponsor.end_epoch,
        )
        for identifier, segment in segments
        if segment is not None
        for sponsor in segment.sponsors
        if sponsor.contract == contract and sponsor.end_epoch > epoch
    )


def rent_share(segment: Segment, sponsor: SponsorEntry, epoch: int) -> int:
    """What a sponsor pays for `epoch` when every node passes, ceiled: those who sponsor a stripe then split its rent."""
    from dds.ledger.rent import shapes

    others = [each for each in segment.sponsors if each.start_epoch <= epoch < each.end_epoch]
    cost = 0
    for stripe, run in shapes(segment.stripes):
        if sponsor.stripes >> stripe & 1:
            sharing = sum(each.stripes >> stripe & 1 for each in others)
            cost += mul_div_ceil((run.k + run.m) * run.slot_bytes, sponsor.price, max(1, sharing))
    return -(-cost // MIB)


def document(found: Standing, params: Params) -> dict[str, object]:
    """A contract for machines; money in base units, times in epochs."""
    return {
        "contract": id_text(found.contract),
        **fields(found.record),
        "epoch": found.epoch,
        "rent_per_epoch": found.rent,
        "prepaid": found.prepaid,
        "escrow_lasts_epochs": found.lasts(params),
        "paying": [fields(item) for item in found.paying],
    }


def describe(found: Standing, params: Params) -> str:
    """The contract, a line a fact."""
    record = found.record
    size = sum(item.fragment_bytes for item in found.paying)
    pairs = [
        ("contract", id_text(found.contract)),
        ("publisher", id_text(record.publisher)),
        ("class", f"{record.class_name}, any {record.k} of {record.k + record.m}"),
        ("escrow", format_tokens(record.escrow) + _reserved(record)),
        ("term", span_text(record.term_epochs, params)),
        ("price limit", price_text(record.price_max, params)),
        ("segments", f"{record.segments:,}, {human_bytes(size)} of fragments"),
        ("rent", f"{format_tokens(found.rent)} an epoch of {params.epoch_ms / 1000:g} s"),
        ("prepaid", format_tokens(found.prepaid)),
    ]
    if found.paying:
        first = min(item.end_epoch for item in found.paying)
        pairs.append(
            ("paid through", f"epoch {first - 1:,}, {span_text(first - found.epoch, params)} from now, the first to end")
        )
    pairs.append(("escrow lasts", _lasts_text(found, params)))
    if record.cancelled_epoch >= 0:
        pairs.append(("cancelled", f"in epoch {record.cancelled_epoch:,}"))
    return facts(pairs)


def _reserved(record: Contract) -> str:
    return f", {format_tokens(record.reserved)} of it for puts that are under way" if record.reserved else ""


def _lasts_text(found: Standing, params: Params) -> str:
    epochs = found.lasts(params)
    return "pays for nothing now" if epochs is None else f"{span_text(epochs, params)} more"


def _segment_table(found: Standing) -> str:
    head = ("segment", "stripes", "fragments", "rent an epoch", "prepaid", "through epoch")
    rows = [
        (
            id_text(item.segment),
            item.stripes,
            human_bytes(item.fragment_bytes),
            format_tokens(item.rent),
            format_tokens(item.prepaid),
            item.end_epoch - 1,
        )
        for item in found.paying
    ]
    return table(head, rows, right=(1, 2, 3, 4, 5))

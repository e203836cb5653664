"""`dds endow`: give money that pays a contract's rent for as long as it lasts, and show how long that is.

Coverage is told in two ways that guess no future: years at the cost of today, and the share of the pool that would last for
ever if storage gets cheaper by the network's parameter each year. Both are the ledger's own arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from dds.apps.cli.ledger_session import Desk, WalletOption, YesOption, confirm, told, with_ledger
from dds.apps.cli.ledger_text import facts, ppm_text
from dds.apps.cli.session import Session, command, command_hint
from dds.apps.cli.wallet import positive_tokens
from dds.primitives.errors import InputError, NotFoundError
from dds.primitives.ids import id_text
from dds.primitives.money import MILLION, format_tokens
from dds.primitives.units import human_bytes

if TYPE_CHECKING:
    from dds.ledger.params import Params
    from dds.ledger.records import Contract, Endowment


@dataclass(frozen=True, slots=True)
class Coverage:
    """How far an endowment goes; base units."""

    contract: bytes
    class_name: str
    pool: int
    given: int
    spent: int
    stored: int  # bytes of fragments that the contract pays for now
    cost: int  # of all of it, an epoch, fee and reserve included
    years_tenths: int | None  # the pool at this cost, in tenths of a year, floored; None: it pays for nothing now
    coverage_ppm: int | None  # of the pool that would last for ever; None: as above


def register(app: typer.Typer) -> None:
    command(app)(endow)


def endow(
    session: Session,
    contract: Annotated[
        str | None, typer.Argument(metavar="[CONTRACT]", help="A contract's id, or the class of one of your own.")
    ] = None,
    amount: Annotated[str | None, typer.Argument(metavar="[AMOUNT]", help="Tokens, for example 12 or 0.25.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Show the endowment, or those of all your contracts.")] = False,
    spend: Annotated[bool, typer.Option("--spend", help="Move what the past epochs allow into the contract's escrow.")] = False,
    wallet: WalletOption = None,
    yes: YesOption = False,
) -> None:
    """Give AMOUNT to CONTRACT's endowment: it pays the rent for as long as it lasts and never comes back."""
    if sum((show, spend, amount is not None)) != 1 or (contract is None and not show):
        raise InputError(
            "give CONTRACT and AMOUNT, or --show, or CONTRACT and --spend", hint="dds endow standard 10; dds endow --show"
        )
    if show:
        return _show(session, contract, wallet)
    assert contract is not None
    if amount is None:
        return _spend(session, contract, wallet)
    return _give(session, contract, positive_tokens(amount), wallet, yes=yes)


def _give(session: Session, contract: str, units: int, wallet: str | None, *, yes: bool) -> None:
    async def work(desk: Desk) -> None:
        from dds.wire.ledger import Endow

        identifier, record = await desk.contract(contract)
        question = f"give {format_tokens(units)} to the endowment of {id_text(identifier)}? It never comes back"
        confirm(session, question, yes=yes)
        done = await desk.send(Endow(identifier, units))
        found = await coverage_of(desk, identifier, record)
        told(session, done, describe(found, await desk.params()), contract=id_text(identifier), amount=units)

    with_ledger(session, work, wallet=wallet)


def _spend(session: Session, contract: str, wallet: str | None) -> None:
    async def work(desk: Desk) -> None:
        from dds.wire.ledger import SpendEndowment

        identifier, _ = await desk.contract(contract)
        done = await desk.send(SpendEndowment(identifier))
        moved = sum(event.amount for event in done.events if event.name == "endowment")
        told(session, done, f"{format_tokens(moved)} moved into escrow", contract=id_text(identifier), amount=moved)

    with_ledger(session, work, wallet=wallet)


def _show(session: Session, contract: str | None, wallet: str | None) -> None:
    async def work(desk: Desk) -> tuple[list[Coverage], Params]:
        from dds.apps.cli.contract import own_contracts

        chosen = [await desk.contract(contract)] if contract is not None else await own_contracts(desk, desk.key.public)
        found = [await coverage_of(desk, *entry) for entry in chosen]
        return [item for item in found if item.given or contract is not None], await desk.params()

    found, params = with_ledger(session, work, wallet=wallet)
    if contract is not None and not found[0].given:
        raise NotFoundError(f"the contract {contract} has no endowment", hint=f"give it one: dds endow {contract} AMOUNT")
    text = "\n\n".join(describe(item, params) for item in found) or "none of your contracts has an endowment"
    session.result({"endowments": found}, text)
    if not found:
        session.say(f"hint: {command_hint('endow standard AMOUNT', session)}")


async def coverage_of(desk: Desk, contract: bytes, record: Contract) -> Coverage:
    from dds.ledger.records import ENDOWMENTS
    from dds.ledger.records import Endowment as Empty
    from dds.placement.roles import storage_role

    chain, params = await desk.chain(), await desk.params()
    reference = chain.lane(storage_role(record.class_name)).reference
    return coverage(contract, record, await desk.client.find(ENDOWMENTS, contract) or Empty(), reference, params)


def coverage(contract: bytes, record: Contract, endowment: Endowment, reference: int, params: Params) -> Coverage:
    """What the ledger's formulas say of the pool and of what the contract stores now."""
    from dds.ledger.params import EPOCHS_PER_YEAR
    from dds.ledger.rules.endowments import coverage_ppm, epoch_cost

    cost = epoch_cost(params, record, reference)
    share = None
    if cost and params.cost_decline_ppm:
        share = coverage_ppm(endowment.pool, record.rent_bytes, min(reference, record.price_max), params.cost_decline_ppm)
    return Coverage(
        contract=contract,
        class_name=record.class_name,
        pool=endowment.pool,
        given=endowment.given,
        spent=endowment.spent,
        stored=record.rent_bytes,
        cost=cost,
        years_tenths=endowment.pool * 10 // (cost * EPOCHS_PER_YEAR) if cost else None,
        coverage_ppm=share,
    )


def describe(found: Coverage, params: Params) -> str:
    """The endowment, a line a fact."""
    pairs = [
        ("contract", f"{id_text(found.contract)} ({found.class_name})"),
        ("pool", f"{format_tokens(found.pool)}; given {format_tokens(found.given)}, spent {format_tokens(found.spent)}"),
        ("stores", f"{human_bytes(found.stored)} of fragments, {format_tokens(found.cost)} an epoch at the reference price"),
        ("covers", _covers(found, params)),
    ]
    return facts(pairs)


def _covers(found: Coverage, params: Params) -> str:
    if found.years_tenths is None:
        return "nothing is stored under this contract now"
    whole, tenth = divmod(found.years_tenths, 10)
    text = f"{whole:,}.{tenth} years of 8,766 epochs at the cost of today"
    if found.coverage_ppm is None:
        return text
    decline = ppm_text(params.cost_decline_ppm)
    if found.coverage_ppm >= MILLION:
        return f"{text}; for ever if storage gets {decline} cheaper a year"
    return f"{text}; {ppm_text(found.coverage_ppm)} of what would last for ever if storage gets {decline} cheaper a year"

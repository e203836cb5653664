"""`dds market`: what nodes ask, what storing costs now, and what a put of some size would cost.

A quote is the ledger's own arithmetic (ledger/rent.py) on the stripes that so many bytes would be cut into, at the price now.
It is an estimate in two things only: the price may have moved when the put comes, and directories and indexes add a little.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dds.apps.cli.ledger_session import Desk, with_ledger
from dds.apps.cli.ledger_text import (
    about_tokens,
    duration_text,
    facts,
    month_epochs,
    parse_span,
    ppm_text,
    price_text,
    span_text,
    table,
)
from dds.apps.cli.session import Session, command, fields, group, parse_size
from dds.apps.cli.stake import score_text
from dds.primitives.errors import InputError
from dds.primitives.ids import id_text
from dds.primitives.money import format_tokens
from dds.primitives.units import GIB, human_bytes

if TYPE_CHECKING:
    from dds.erasure.geometry import Geometry
    from dds.ledger.params import Params
    from dds.ledger.records import Chain, Lane, Node
    from dds.ledger.rent import Quote

LIMIT_DEFAULT: Final = 50
NODES_LOOKED_AT_MAX: Final = 4096
QUOTE_BYTES_MAX: Final = 1 << 50


@dataclass(frozen=True, slots=True)
class Estimate:
    """What storing `size` bytes would cost; base units."""

    size: int
    class_name: str
    geometry: Geometry
    stored: int  # bytes of all fragments
    epochs: int
    price: int
    reference: int
    prices: dict[str, int]  # of every lane, by its name
    quote: Quote

    def gib_month(self, params: Params) -> int:
        """All that is due for a GiB of content and 30 days at this rate."""
        return -(-self.quote.total * GIB * month_epochs(params) // (self.size * self.epochs))


def app() -> typer.Typer:
    """The `market` group."""
    made = group("market", "Prices: what nodes ask, the price now, what a put would cost.")
    for run in (asks, price, quote):
        command(made)(run)
    return made


def asks(
    session: Session,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many rows.")] = LIMIT_DEFAULT,
    every: Annotated[bool, typer.Option("--all", help="Also nodes that take nothing new.")] = False,
) -> None:
    """Show what nodes ask and in which lane, the cheapest first."""

    async def work(desk: Desk) -> tuple[list[Node], list[str], int, int]:
        from dds.ledger.records import NODES, STANDINGS, number_key

        chain, params = await desk.chain(), await desk.params()
        keys = [number_key(number) for number in range(min(chain.nodes, NODES_LOOKED_AT_MAX))]
        found = [node for node in await desk.find_many(NODES, keys) if node and (every or is_offer(node))]
        found.sort(key=lambda node: (node.ask_price, node.number))
        shown = found[:limit]
        standings = await desk.find_many(STANDINGS, [number_key(node.number) for node in shown])
        return shown, [score_text(standing, params) for standing in standings], len(found), chain.nodes - len(keys)

    shown, scores, count, unseen = with_ledger(session, work)
    data = [{**fields(node), "lanes": lanes_of(node), "score": score} for node, score in zip(shown, scores, strict=True)]
    text = _ask_table(shown, scores) if shown else "no node offers space now"
    session.result({"asks": data, "more": count - len(shown), "not_looked_at": unseen}, text)
    if count > len(shown):
        session.say(f"{count - len(shown):,} more: --limit {count}")
    if unseen:
        session.say(f"the ledger has {unseen:,} more nodes that were not looked at")


def price(session: Session) -> None:
    """Show each lane's price now, the reference that bounds it, and the present epoch's demand."""

    async def work(desk: Desk) -> tuple[Chain, Params]:
        return await desk.chain(), await desk.params()

    chain, params = with_ledger(session, work)
    lanes = {name: _lane_data(chain.lane(role), params) for role, name in lane_names().items()}
    text = f"{_lane_table(lanes, params)}\n\nepoch {chain.epoch:,}, {duration_text(params.epoch_ms)} each"
    session.result({"epoch": chain.epoch, "lanes": lanes}, text)


def _lane_data(lane: Lane, params: Params) -> dict[str, int]:
    ceiling = params.price_ceiling_multiple * lane.reference
    return {"price": lane.price, "reference": lane.reference, "ceiling": ceiling, "demand_bytes": lane.demand_bytes}


def _lane_table(lanes: dict[str, dict[str, int]], params: Params) -> str:
    step = ppm_text(params.reference_step_ppm)
    rows = [
        ("price now", *(price_text(lane["price"], params) for lane in lanes.values())),
        ("reference", *(f"{lane['reference']:,}, moves by {step} an epoch at most" for lane in lanes.values())),
        ("ceiling", *(f"{lane['ceiling']:,}, {params.price_ceiling_multiple} x the reference" for lane in lanes.values())),
        ("demand", *(f"{human_bytes(lane['demand_bytes'])} of fragments reserved now" for lane in lanes.values())),
    ]
    return table(("", *lanes), rows)


def quote(
    session: Session,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Of the content, for example 20GiB.")],
    class_name: Annotated[str | None, typer.Option("--class", help="standard, hot, archive. [default: standard]")] = None,
    k: Annotated[int | None, typer.Option("-k", "--k", help="Data fragments of a geometry of your own.")] = None,
    m: Annotated[int | None, typer.Option("-m", "--m", help="Its parity fragments.")] = None,
    epochs: Annotated[
        str | None, typer.Option("--epochs", metavar="SPAN", help="For how long: epochs, or for example 30d. [default: 30d]")
    ] = None,
) -> None:
    """Show what storing SIZE would cost now: rent, fee, reserve, and per GiB and month."""
    from dds.erasure.geometry import ARCHIVE_CLASS, ARCHIVES, CUSTOM_CLASS, class_geometry

    name = class_name or (CUSTOM_CLASS if k is not None or m is not None else "standard")
    if name == ARCHIVE_CLASS and k is None and m is None:
        k, m = ARCHIVES[session.open_home().client_config().archive]
    geometry, wanted = class_geometry(name, k, m), parse_size(size)
    if not 0 < wanted <= QUOTE_BYTES_MAX:
        raise InputError(f"a size from 1 byte to {human_bytes(QUOTE_BYTES_MAX)}")

    async def work(desk: Desk) -> tuple[Estimate, Params]:
        chain, params = await desk.chain(), await desk.params()
        return estimate(params, chain, wanted, name, geometry, parse_span(epochs or "30d", params)), params

    found, params = with_ledger(session, work)
    total = {"total": found.quote.total, "gib_month": found.gib_month(params)}
    session.result({**fields(found), **total}, describe(found, params))


def lane_names() -> dict[str, str]:
    """By storing role, how people call its part of the market."""
    from dds.ledger.rules.market import LANE_NAMES

    return LANE_NAMES


def lanes_of(node: Node) -> list[str]:
    """The parts of the market that a node's ask stands in."""
    return [name for role, name in lane_names().items() if role in node.roles]


def is_offer(node: Node) -> bool:
    """Whether a draw may choose it: it stores, is active, and has room."""
    from dds.ledger.records import NodeStatus

    stores = "ssn" in node.roles or "asn" in node.roles
    return stores and node.status == NodeStatus.ACTIVE and node.promised_bytes < node.capacity_bytes


def estimate(params: Params, chain: Chain, size: int, class_name: str, geometry: Geometry, epochs: int) -> Estimate:
    """The ledger's quote for the stripes that `size` bytes are cut into."""
    from dds.erasure.geometry import last_stripe, stored_bytes
    from dds.ledger import rent
    from dds.placement.roles import storage_role

    full, rest = divmod(size, geometry.stripe_bytes)
    stored = full * geometry.n * (geometry.stripe_bytes // geometry.k)
    stored += stored_bytes([last_stripe(geometry, rest)]) if rest else 0
    lane = chain.lane(storage_role(class_name))
    prices = {name: chain.lane(role).price for role, name in lane_names().items()}
    made = rent.quote(params, [stored], lane.price, epochs)
    return Estimate(size, class_name, geometry, stored, epochs, lane.price, lane.reference, prices, made)


def describe(found: Estimate, params: Params) -> str:
    """The estimate, a line a fact."""
    due, geometry = found.quote, found.geometry
    return facts(
        [
            ("content", f"{human_bytes(found.size)}, class {found.class_name}, any {geometry.k} of {geometry.n} fragments"),
            ("on nodes", f"{human_bytes(found.stored)}, {found.stored / found.size:.2f} x the size"),
            ("for", span_text(found.epochs, params)),
            ("rent", format_tokens(due.rent)),
            ("fee", f"{format_tokens(due.fee)}, {ppm_text(params.fee_ppm)} of the rent"),
            ("reserve", f"{format_tokens(due.reserve)}, for repairs; what is not spent comes back"),
            ("total", format_tokens(due.total)),
            ("per GiB-month", f"{about_tokens(found.gib_month(params))} for each GiB of content and 30 days"),
            ("price now", price_text(found.price, params)),
            ("reference", f"{found.reference:,} per MiB-epoch"),
            ("lanes", ", ".join(f"{name} {each:,}" for name, each in found.prices.items()) + " per MiB-epoch"),
        ]
    )


def _ask_table(nodes: list[Node], scores: list[str]) -> str:
    head = ("node", "ask", "free", "of", "longest term", "region", "pool free", "score", "sells", "roles", "NodeID")
    rows = [
        (
            node.number,
            f"{node.ask_price:,}",
            human_bytes(node.capacity_bytes - node.promised_bytes),
            human_bytes(node.capacity_bytes),
            f"{node.term_epochs_max:,} epochs",
            node.region,
            format_tokens(node.pool_free),
            score,
            "+".join(lanes_of(node)),
            "+".join(node.roles),
            id_text(node.node_id),
        )
        for node, score in zip(nodes, scores, strict=True)
    ]
    return table(head, rows, right=(0, 1, 2, 3, 4, 6, 7))

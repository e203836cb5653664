"""`dds stake`: being an operator: the bond, the nodes that stand under it, their collateral pools and what they ask.

An operator is an account with a bond; a node joins under it with its own consent, which this home's node key signs. Amounts are
tokens, prices the ledger's (base units per MiB-epoch) or tokens per TiB of fragments and 30 days.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from dds.apps.cli.ledger_session import Desk, WalletOption, YesOption, confirm, told, with_ledger
from dds.apps.cli.ledger_text import facts, parse_price, parse_span, price_text, span_text, table
from dds.apps.cli.session import Session, command, fields, group, parse_size
from dds.apps.cli.standing_text import vetting_text
from dds.apps.cli.wallet import positive_tokens
from dds.primitives.errors import InputError, NotFoundError
from dds.primitives.ids import id_text
from dds.primitives.money import format_tokens, parse_tokens
from dds.primitives.units import human_bytes

if TYPE_CHECKING:
    from dds.ledger.params import Params
    from dds.ledger.records import Chain, Node, Operator

AmountArgument = Annotated[str, typer.Argument(metavar="AMOUNT", help="Tokens, for example 100 or 0.25.")]
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="A NodeID, a number on the ledger, or a devnet's node-03.")]
AskOption = Annotated[
    str | None,
    typer.Option(
        "--ask", metavar="PRICE", help="What it asks: base units per MiB-epoch, or '1.5 ECHO' per TiB of fragments and 30 days."
    ),
]
TermOption = Annotated[str | None, typer.Option("--term", metavar="SPAN", help="The longest term it takes: epochs, or 365d.")]
CapacityOption = Annotated[str | None, typer.Option("--capacity", metavar="SIZE", help="What it offers, for example 500GiB.")]
TERM_DEFAULT: Final = "365d"
_STATUS: Final = ("active", "retiring", "faulted")  # by ledger.records.NodeStatus


def app() -> typer.Typer:
    """The `stake` group."""
    made = group("stake", "For operators: bonds, nodes on the ledger, their collateral and asks.")
    for run in (bond, unbond, release, show, register, ask, fund, drain, retire):
        command(made)(run)
    return made


def bond(
    session: Session,
    amount: AmountArgument,
    region: Annotated[
        list[str] | None, typer.Option("--region", help="Where you run nodes; may be given again. [default: as before]")
    ] = None,
    wallet: WalletOption = None,
    yes: YesOption = False,
) -> None:
    """Become an operator, or add AMOUNT to the bond; 0 with --region declares the regions anew."""
    from dds.ledger.records import OPERATORS
    from dds.wire.ledger import Bond

    units = parse_tokens(amount)

    async def work(desk: Desk) -> None:
        params, known = await desk.params(), await desk.client.find(OPERATORS, desk.key.public)
        have = known.bond if known else 0
        if have + units < params.bond_min:
            need = format_tokens(params.bond_min)
            raise InputError(f"an operator's bond is at least {need}, this makes {format_tokens(have + units)}")
        regions = sorted(set(region)) if region else list(known.regions if known else ())
        wait = span_text(params.unbonding_epochs, params)
        question = f"bond {format_tokens(units)}? It can be slashed, and taking it out takes {wait}"
        confirm(session, question, yes=yes or units == 0)
        done = await desk.send(Bond(units, regions))
        where = f", regions {', '.join(regions)}" if regions else ""
        told(session, done, f"bond {format_tokens(have + units)}{where}", bond=have + units, regions=regions)

    with_ledger(session, work, wallet=wallet)


def unbond(session: Session, amount: AmountArgument, wallet: WalletOption = None) -> None:
    """Begin to take AMOUNT out of the bond: it stays slashable until the evidence window is over."""
    from dds.wire.ledger import Unbond

    units = positive_tokens(amount)

    async def work(desk: Desk) -> None:
        params = await desk.params()
        done = await desk.send(Unbond(units))
        text = f"{format_tokens(units)} will be free in {span_text(params.unbonding_epochs, params)}; then: dds stake release"
        told(session, done, text, amount=units)

    with_ledger(session, work, wallet=wallet)


def release(session: Session, wallet: WalletOption = None) -> None:
    """Take out what has waited long enough after 'unbond'."""
    from dds.wire.ledger import ReleaseBond

    async def work(desk: Desk) -> None:
        done = await desk.send(ReleaseBond())
        amount = sum(event.delta for event in done.events if event.account == desk.key.public)
        told(session, done, f"{format_tokens(amount)} released", amount=amount)

    with_ledger(session, work, wallet=wallet)


def show(
    session: Session,
    operator: Annotated[str | None, typer.Argument(metavar="ACCOUNT", help="[default: the wallet's]")] = None,
    wallet: WalletOption = None,
) -> None:
    """Show an operator: bond, what is leaving it, jail, and its nodes with asks, pools and scores."""
    from dds.ledger.records import NODES, OPERATORS, STANDINGS, number_key

    async def work(desk: Desk) -> None:
        account = desk.key.public if operator is None else desk.account(operator)
        found = await desk.client.find(OPERATORS, account)
        if found is None:
            raise NotFoundError(f"{id_text(account)} is no operator", hint="become one: dds stake bond AMOUNT --region NAME")
        params, epoch = await desk.params(), (await desk.client.head()).epoch
        keys = [number_key(number) for number in found.nodes]
        nodes = [node for node in await desk.find_many(NODES, keys) if node]
        standings = await desk.find_many(STANDINGS, keys)
        scores = [score_text(standing, params) for standing in standings]
        vetting = [vetting_text(node, standing, params, epoch) for node, standing in zip(nodes, standings, strict=True)]
        registered = [{**fields(node), "vetting": text} for node, text in zip(nodes, vetting, strict=True)]
        data = {"account": id_text(account), **fields(found), "epoch": epoch, "registered": registered}
        listed = "\n\n" + node_table(nodes, scores, vetting) if nodes else ""
        session.result(data, describe(account, found, params, epoch) + listed)

    with_ledger(session, work, wallet=wallet)


def register(
    session: Session,
    ask: AskOption = None,
    term: TermOption = None,
    capacity: CapacityOption = None,
    pool: Annotated[str, typer.Option("--pool", metavar="AMOUNT", help="Into its collateral pool.")] = "0",
    payout: Annotated[
        str | None, typer.Option("--payout", metavar="ACCOUNT", help="Whom its pay goes to [default: the operator]")
    ] = None,
    wallet: WalletOption = None,
    yes: YesOption = False,
) -> None:
    """Put this home's node on the ledger, under the wallet as its operator.

    Roles, region, subnet and capacity are those of node.toml. Without --ask the price now, of a node with two storing roles
    the lower one; without --term 365 days.
    """
    from dds.apps.cli.node_home import load
    from dds.storage.keyfile import load_key
    from dds.wire.ledger import CONSENT_TAG, RegisterNode

    node, config = load(session)
    node_key, units = load_key(node.key_file), parse_tokens(pool)
    size = parse_size(capacity) if capacity is not None else config.capacity_bytes
    roles = sorted(set(config.roles))

    async def work(desk: Desk) -> None:
        params, chain, head = await desk.params(), await desk.chain(), await desk.client.head()
        price = parse_price(ask, params) if ask is not None else price_now(chain, roles)
        epochs = parse_span(term or TERM_DEFAULT, params)
        pays = desk.account(payout) if payout is not None else desk.key.public
        terms = f"{human_bytes(size)} for {price_text(price, params)}, up to {span_text(epochs, params)}"
        question = f"register {config.name} ({', '.join(roles)}) with {format_tokens(units)} of collateral: {terms}?"
        confirm(session, question, yes=yes or units == 0)
        consent = node_key.sign_tagged(CONSENT_TAG, head.network, desk.key.public)
        body = RegisterNode(
            node_key.public, consent, list(roles), config.region, config.subnet, size, pays, price, epochs, units
        )
        done = await desk.send(body)
        made = await desk.node(id_text(node_key.public))
        told(session, done, f"node {made.number}: {terms}", node=made.number, id=id_text(node_key.public), ask_price=price)

    with_ledger(session, work, wallet=wallet)


def ask(
    session: Session,
    node: NodeArgument,
    price: Annotated[str | None, typer.Option("--price", metavar="PRICE", help="[default: as before]")] = None,
    term: TermOption = None,
    capacity: CapacityOption = None,
    wallet: WalletOption = None,
) -> None:
    """Change what a node asks and offers from now on; what it holds keeps its price."""
    from dds.wire.ledger import SetAsk

    if price is None and term is None and capacity is None:
        raise InputError("nothing to change", hint="give --price, --term or --capacity")
    size = None if capacity is None else parse_size(capacity)

    async def work(desk: Desk) -> None:
        found, params = await desk.node(node), await desk.params()
        asked = parse_price(price, params) if price is not None else found.ask_price
        epochs = parse_span(term, params) if term is not None else found.term_epochs_max
        offered = found.capacity_bytes if size is None else size
        done = await desk.send(SetAsk(found.number, asked, offered, epochs))
        text = f"node {found.number}: {human_bytes(offered)} for {price_text(asked, params)}, up to {span_text(epochs, params)}"
        told(session, done, text, node=found.number, ask_price=asked)

    with_ledger(session, work, wallet=wallet)


def fund(
    session: Session, node: NodeArgument, amount: AmountArgument, wallet: WalletOption = None, yes: YesOption = False
) -> None:
    """Commit AMOUNT to a node's collateral pool: each assignment locks a part of it."""
    from dds.wire.ledger import FundPool

    units = positive_tokens(amount)

    async def work(desk: Desk) -> None:
        found = await desk.node(node)
        confirm(session, f"move {format_tokens(units)} into the pool of node {found.number}? It can be slashed", yes=yes)
        done = await desk.send(FundPool(found.number, units))
        text = f"node {found.number}: {format_tokens(found.pool_free + units)} free in its pool"
        told(session, done, text, node=found.number, amount=units)

    with_ledger(session, work, wallet=wallet)


def drain(session: Session, node: NodeArgument, amount: AmountArgument, wallet: WalletOption = None) -> None:
    """Take AMOUNT, or 'all' that no assignment holds, out of a node's collateral pool."""
    from dds.wire.ledger import DrainPool

    asked = None if amount == "all" else positive_tokens(amount)

    async def work(desk: Desk) -> None:
        found = await desk.node(node)
        units = found.pool_free if asked is None else asked
        if units == 0:
            raise InputError(f"all of its pool is held by assignments: {format_tokens(found.pool_locked)}")
        done = await desk.send(DrainPool(found.number, units))
        text = f"{format_tokens(units)} taken out; {format_tokens(found.pool_locked)} are held by assignments"
        told(session, done, text, node=found.number, amount=units)

    with_ledger(session, work, wallet=wallet)


def retire(session: Session, node: NodeArgument, wallet: WalletOption = None, yes: YesOption = False) -> None:
    """Let a node take nothing new; when its last assignment has ended, its pool can be drained."""
    from dds.wire.ledger import RetireNode

    async def work(desk: Desk) -> None:
        found = await desk.node(node)
        confirm(session, f"retire node {found.number}? It has {found.assignments:,} assignments to serve to their end", yes=yes)
        done = await desk.send(RetireNode(found.number))
        told(session, done, f"node {found.number} takes nothing new", node=found.number)

    with_ledger(session, work, wallet=wallet)


def describe(account: bytes, found: Operator, params: Params, epoch: int) -> str:
    """The operator, a line a fact."""
    pairs = [("operator", id_text(account)), ("bond", format_tokens(found.bond))]
    for part in found.unbonding:
        left = part.release_epoch - epoch
        when = f"in {span_text(left, params)}" if left > 0 else "now: dds stake release"
        pairs.append(("leaving", f"{format_tokens(part.amount)}, free {when}"))
    pairs.append(("regions", ", ".join(found.regions) or "none declared"))
    if found.jailed_until > epoch:
        pairs.append(("jailed", f"until epoch {found.jailed_until:,}, {span_text(found.jailed_until - epoch, params)} more"))
    return facts([*pairs, ("nodes", len(found.nodes))])


def node_table(nodes: list[Node], scores: list[str], vetting: list[str]) -> str:
    """Nodes by number."""
    head = ("node", "state", "region", "ask", "free", "of", "shares", "pool free", "locked", "score", "vetting", "NodeID")
    rows = [
        (
            node.number,
            _STATUS[node.status] + (f": {node.fault_reason}" if node.fault_reason else ""),
            node.region,
            f"{node.ask_price:,}",
            human_bytes(node.capacity_bytes - node.promised_bytes),
            human_bytes(node.capacity_bytes),
            f"{node.assignments:,}",
            format_tokens(node.pool_free),
            format_tokens(node.pool_locked),
            score,
            progress,
            id_text(node.node_id),
        )
        for node, score, progress in zip(nodes, scores, vetting, strict=True)
    ]
    return table(head, rows, right=(0, 3, 4, 5, 6, 7, 8, 9))


def price_now(chain: Chain, roles: Sequence[str]) -> int:
    """What a node of these roles sells at now: in the cheaper of its lanes, so that it is drawn in each."""
    from dds.ledger.records import LANES

    return min(chain.lane(role).price for role in ([each for each in LANES if each in roles] or LANES[:1]))


def score_text(standing: Any, params: Params) -> str:
    """A node's reputation in per cent."""
    from dds.apps.cli.ledger_text import ppm_text
    from dds.ledger.records import Standing
    from dds.ledger.rules.standing import score_ppm

    return ppm_text(score_ppm(standing or Standing(), params))

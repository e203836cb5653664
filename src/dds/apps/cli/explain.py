"""`dds explain`: every unit that was paid, withheld or slashed, with its epoch, its reason and its evidence.

Everything shown is an event that the ledger emitted (ledger/explain.py says how it reads); totals are over all of them,
whatever --limit shows. For nodes and accounts the sum of the events is compared with the balance, which comes with a proof: an
event that was left out or made up would show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dds.apps.cli.ledger_session import IDENTITY, Desk, account_named, event_data, has_wallet, node_id_of, with_ledger
from dds.apps.cli.ledger_text import facts, signed_tokens, table
from dds.apps.cli.session import Session, command, fields, plain
from dds.apps.cli.standing_text import vetting_text
from dds.primitives.errors import IntegrityError, NotFoundError
from dds.primitives.ids import ID_TEXT_CHARS, id_text, parse_id
from dds.primitives.money import format_tokens

if TYPE_CHECKING:
    from dds.ledger.events import Event
    from dds.ledger.explain import Explanation
    from dds.runtime.ledger_client import LedgerEvent

LIMIT_DEFAULT: Final = 40
SHORT_CHARS: Final = 12  # of an identifier in a table; --verbose and --json have all of it
READS_MAX: Final = 5  # of a balance that changes while its events are read


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be explained."""

    kind: str  # "transaction", "node", "contract", "segment", "account"
    identifier: bytes
    name: str = ""  # how it was called on the command line, when that was not its id
    number: int = -1  # of a node
    payout: bytes = b""  # of a node: whom its pay goes to
    vetting: str = ""  # of a node: how far its vetting is


@dataclass(frozen=True, slots=True)
class Check:
    """Whether an account's events account for its balance; base units."""

    account: bytes
    at_genesis: int
    events: int  # the sum of their deltas
    balance: int

    @property
    def holds(self) -> bool:
        return self.at_genesis + self.events == self.balance


@dataclass(frozen=True, slots=True)
class Story:
    """What the events say."""

    subject: Subject
    lines: tuple[LedgerEvent, ...]  # all, oldest first
    explanation: Explanation  # of the same
    check: Check | None  # of the account itself, or of the one that a node's pay goes to
    brought: int = 0  # by a node to that account


def register(app: typer.Typer) -> None:
    command(app)(explain)


def explain(
    session: Session,
    what: Annotated[
        str, typer.Argument(metavar="TX|NODE|CONTRACT|ACCOUNT", help="An id, a wallet's name, or a devnet's node-03.")
    ],
    limit: Annotated[int, typer.Option("--limit", min=1, help="The last so many events in full.")] = LIMIT_DEFAULT,
) -> None:
    """Show what was paid, withheld or slashed, when, why, and on what evidence. Ends with 5 where a balance does not add up."""

    async def work(desk: Desk) -> Story:
        return await tell(desk, await resolve(desk, what))

    story = with_ledger(session, work)
    session.result(document(story, limit), describe(story, limit, verbose=session.verbose))
    if story.check is not None and not story.check.holds:
        raise IntegrityError(
            f"the events of {id_text(story.check.account)} do not add up to its balance",
            hint="do not trust this ledger's host; check all of it: dds ledger verify",
        )


async def resolve(desk: Desk, text: str) -> Subject:
    """What `text` names; an id that names nothing else is taken for a transaction's.

    Raises:
        InputError: nothing that it could name.
        NotFoundError: a node that the ledger does not know.
    """
    from dds.ledger.records import ACCOUNTS, CONTRACTS, NODES, NUMBERS, SEGMENTS, STANDINGS, number_key

    is_id = len(text) == ID_TEXT_CHARS
    if not is_id and (text == IDENTITY or has_wallet(desk.home, text)):
        return Subject("account", account_named(desk.home, text), text)
    identifier = parse_id(text, "id") if is_id else node_id_of(desk.home, text)
    entry = await desk.client.find(NUMBERS, identifier)
    node = None if entry is None else await desk.client.find(NODES, number_key(entry.number))
    if node is not None:
        standing = await desk.client.find(STANDINGS, number_key(node.number))
        vetting = vetting_text(node, standing, await desk.params(), (await desk.client.head()).epoch)
        return Subject("node", identifier, "" if is_id else text, node.number, node.payout, vetting)
    if not is_id:
        raise NotFoundError(f"the ledger knows no node {text}", hint="register it: dds stake register")
    for kind, known in (
        ("contract", await desk.client.find(CONTRACTS, identifier)),
        ("segment", await desk.client.find(SEGMENTS, identifier)),
        ("account", await desk.client.find(ACCOUNTS, identifier)),
    ):
        if known is not None:
            return Subject(kind, identifier)
    return Subject("transaction", identifier)


async def tell(desk: Desk, subject: Subject) -> Story:
    """Read all events of the subject, and check what can be checked.

    Raises:
        NotFoundError: a transaction that left no event.
    """
    from dds.ledger import explain

    identifier, client = subject.identifier, desk.client
    match subject.kind:
        case "account":
            lines, check = await _account(desk, identifier)
            return Story(subject, lines, explain.explain_account(_events(lines), identifier), check)
        case "node":
            lines = tuple([line async for line in client.all_events(node=subject.number)])
            _, check = await _account(desk, subject.payout)
            brought = explain.earned_by_node(_events(lines), subject.number, subject.payout)
            return Story(subject, lines, explain.explain_node(_events(lines), subject.number), check, brought)
        case "contract":
            lines = tuple([line async for line in client.all_events(contract=identifier)])
            return Story(subject, lines, explain.explain_contract(_events(lines), identifier), None)
        case "segment":
            lines = tuple([line async for line in client.all_events(segment=identifier)])
        case _:
            lines = tuple([line async for line in client.all_events(tx_id=identifier)])
            if not lines:
                raise NotFoundError(
                    f"the ledger knows nothing by {id_text(identifier)}",
                    hint="a transaction that was refused leaves no event; 'dds ledger export -' shows every one",
                )
    return Story(subject, lines, explain.explain_tx(_events(lines)), None)


def _events(lines: tuple[LedgerEvent, ...]) -> list[Event]:
    return [line.event for line in lines]


async def _account(desk: Desk, account: bytes) -> tuple[tuple[LedgerEvent, ...], Check | None]:
    """An account's events and whether they add up; read again while its balance moves. No check: the ledger knows no such."""
    from dds.ledger.explain import explain_account
    from dds.ledger.records import ACCOUNTS

    for _ in range(READS_MAX):
        before = await desk.client.find(ACCOUNTS, account)
        lines = tuple([line async for line in desk.client.all_events(account=account)])
        after = await desk.client.find(ACCOUNTS, account)
        if before == after:
            break
    if after is None:
        return lines, None
    genesis = await desk.client.genesis()
    at_genesis = sum(entry.balance for entry in genesis.accounts if entry.account == account)
    return lines, Check(account, at_genesis, explain_account(_events(lines), account).balance_change, after.balance)


def document(story: Story, limit: int) -> dict[str, object]:
    """For machines; money in base units."""
    shown = story.lines[-limit:]
    check = None if story.check is None else {**fields(story.check), "holds": story.check.holds, "by_node": story.brought}
    return {
        "kind": story.subject.kind,
        "id": id_text(story.subject.identifier),
        "node": story.subject.number if story.subject.kind == "node" else None,
        "vetting": story.subject.vetting or None,
        "events": [
            {"seq": line.seq, "height": line.height, "tx": plain(line.tx_id), "by": line.tx_name, **event_data(line.event)}
            for line in shown
        ],
        "count": len(story.lines),
        "more": len(story.lines) - len(shown),
        "totals": plain(story.explanation.totals),
        "balance_change": story.explanation.balance_change,
        "check": check,
    }


def describe(story: Story, limit: int, *, verbose: bool = False) -> str:
    """The story: totals, the events, and whether they add up."""
    subject, shown, count = story.subject, story.lines[-limit:], len(story.lines)
    name = f"{subject.name} " if subject.name else ""
    number = f"number {subject.number}, " if subject.kind == "node" else ""
    pairs = [(subject.kind, f"{name}{number}{id_text(subject.identifier)}"), ("events", f"{count:,}")]
    parts = [facts([*pairs, *([("vetting", subject.vetting)] if subject.vetting else [])])]
    if count:
        parts += [_total_table(story.explanation), _event_table(shown, verbose=verbose)]
    if more := count - len(shown):
        parts.append(f"{more:,} more, earlier: --limit {count}; the totals are of all {count:,}")
    if story.check is not None:
        parts.append(check_line(story))
    return "\n\n".join(parts)


def check_line(story: Story) -> str:
    """The sum of events against the balance."""
    check = story.check
    assert check is not None
    said = (
        f"{format_tokens(check.at_genesis)} at genesis {_plus(check.events)} by events = balance {format_tokens(check.balance)}"
    )
    verdict = "sum of events = balance change, checked" if check.holds else "WRONG: sum of events is not the balance change"
    whose = ""
    if story.subject.kind == "node":
        whose = f" (of {id_text(check.account)}, whom its pay goes to; this node brought {signed_tokens(story.brought)})"
    return f"{verdict}: {said}{whose}"


def _plus(amount: int) -> str:
    return f"+ {format_tokens(amount)}" if amount >= 0 else f"- {format_tokens(-amount)}"


def _total_table(explanation: Explanation) -> str:
    rows = [
        (
            total.name,
            f"{total.count:,}",
            signed_tokens(total.delta) if total.delta else "",
            format_tokens(total.amount) if total.amount else "",
            total.what if total.what != total.name else "",
        )
        for total in explanation.totals
    ]
    return table(("total of", "events", "balances", "moved", "which is"), rows, right=(1, 2, 3))


def _event_table(lines: tuple[LedgerEvent, ...], *, verbose: bool) -> str:
    """The columns that any of these events fills."""
    head = ("epoch", "event", "amount", "whose", "node", "contract", "segment", "reason", "evidence", "by", "transaction")
    rows = [_event_row(line, verbose=verbose) for line in lines]
    used = [at for at in range(len(head)) if any(row[at] for row in rows)]
    right = [place for place, at in enumerate(used) if at in (0, 2, 4)]
    return table([head[at] for at in used], [[row[at] for at in used] for row in rows], right=right)


def _event_row(line: LedgerEvent, *, verbose: bool) -> tuple[str, ...]:
    event = line.event
    return (
        f"{event.epoch:,}",
        event.name,
        signed_tokens(event.delta) if event.delta else format_tokens(event.amount) if event.amount else "",
        _short(event.account, verbose),
        f"{event.node}" if event.node >= 0 else "",
        _short(event.contract, verbose),
        _short(event.segment, verbose) + (f" #{event.index}" if event.index >= 0 else ""),
        event.detail,
        _short(event.evidence, verbose),
        line.tx_name,
        _short(line.tx_id, verbose),
    )


def _short(value: bytes, verbose: bool) -> str:
    text = id_text(value)
    return text if verbose or len(text) <= SHORT_CHARS else text[:SHORT_CHARS] + "…"

"""`dds tier`: which class this home's contents are in, which they should be in, and moving them there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dds.apps.cli.get import split_content
from dds.apps.cli.put import paid, parse_price_max, quote_prompt
from dds.apps.cli.session import Session, command, fields, group, printable, progress_on, with_client
from dds.primitives.cid import cid_text
from dds.primitives.errors import DDSError, InputError
from dds.primitives.units import human_bytes

if TYPE_CHECKING:
    from dds.runtime.client import Client
    from dds.runtime.tier_status import TierStatus
    from dds.runtime.tiering import MovePlan, MoveResult, Standing

ToClass = Literal["standard", "hot", "archive", "custom"]
TermOption = Annotated[str, typer.Option(metavar="TERM", help="How long it is paid for: 30d, 12h, or a number of epochs.")]
MaxPriceOption = Annotated[
    str, typer.Option("--max-price", metavar="AMOUNT", help="The most per TiB of fragments and 720 epochs.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Accept the quote without being asked.")]


def app() -> typer.Typer:
    """The `tier` group."""
    made = group("tier", "Classes of what this home has put: how often it is read, and moving it to the archive and back.")
    for run_command in (status, move, run):
        command(made)(run_command)
    return made


def status(session: Session) -> None:
    """Show each content's class, its reads, and what is recommended."""

    async def work(client: Client) -> list[TierStatus]:
        return await client.tier_status()

    rows = with_client(session, work)
    session.result({"contents": [fields(row) for row in rows]}, "\n".join(map(_row, rows)) or "this home has put nothing")


def _row(row: TierStatus) -> str:
    reads = "?" if row.reads is None else f"{row.reads / 1000:.1f}"
    advice = "stay" if row.recommendation.to == row.class_name else f"-> {row.recommendation.to}"
    return (
        f"{cid_text(row.content)}  {row.class_name:<9} {human_bytes(row.size_bytes):>10}  {reads:>7} reads  "
        f"{row.idle_days:>4} d idle  {advice:<12} {row.recommendation.reason}  {printable(row.name)}"
    )


def move(
    session: Session,
    content: Annotated[str, typer.Argument(metavar="CONTENTID", help="What this home has put.")],
    to: Annotated[ToClass, typer.Option("--to", help="The class that it is to be in.")],
    k: Annotated[int | None, typer.Option("-k", help="Data fragments a stripe (class custom).")] = None,
    m: Annotated[int | None, typer.Option("-m", help="Parity fragments a stripe (class custom).")] = None,
    term: TermOption = "",
    max_price: MaxPriceOption = "",
    yes: YesOption = False,
) -> None:
    """Store CONTENTID in another class, check it there, and let the old nodes go. Its ContentID stays what it is."""
    root, path = split_content(content)
    if path:
        raise InputError("a content moves as a whole", hint=f"dds tier move {cid_text(root)} --to {to}")
    confirm = quote_prompt(session, accept=yes, question="Move it?")

    async def work(client: Client) -> MoveResult:
        with progress_on(session) as report:
            return await client.move(
                root,
                to,
                k=k,
                m=m,
                term=term,
                price_max=parse_price_max(max_price),
                confirm=confirm,
                on_plan=lambda plan: _say_plan(session, plan),
                progress=report,
            )

    result = with_client(session, work)
    session.result(result, cid_text(result.content))
    for line in summary(result):
        session.say(line)


def _say_plan(session: Session, plan: MovePlan) -> None:
    session.say(
        f"{plan.to_move} of {plan.segments} segments move to {plan.target.class_name} ({plan.target.geometry}): "
        f"{human_bytes(plan.before.stored_bytes)} on the nodes now, {human_bytes(plan.after_bytes)} then"
    )


def summary(result: MoveResult) -> list[str]:
    """For people."""
    if not result.moved:
        return [f"all {result.segments} segments are in class {result.class_name} already"]
    lines = [
        f"moved {result.moved} of {result.segments} segments to {result.class_name} ({result.geometry}), "
        f"sent {human_bytes(result.sent_bytes)}",
        f"before  {_standing(result.before)}",
        f"after   {_standing(result.after)}",
    ]
    if result.payment is not None:
        lines += [paid(result.payment), "unused rent of the old class went back to its contract: dds contract list"]
    return lines + [f"note: {note}" for note in result.notes]


def _standing(standing: Standing) -> str:
    from dds.primitives.money import format_tokens

    rent = f", rent {format_tokens(standing.rent_month)} for 720 epochs" if standing.rent_month else ""
    return f"{'+'.join(standing.class_names)}: {human_bytes(standing.stored_bytes)} on the nodes{rent}"


def run(session: Session, term: TermOption = "", max_price: MaxPriceOption = "", yes: YesOption = False) -> None:
    """Move everything as recommended; what fails is told, and the rest goes on."""
    confirm = quote_prompt(session, accept=yes, question="Move it?")

    async def work(client: Client) -> tuple[list[MoveResult], list[dict[str, object]]]:
        moved: list[MoveResult] = []
        failed: list[dict[str, object]] = []
        for row in await client.tier_status():
            if row.recommendation.to == row.class_name:
                continue
            session.say(f"{cid_text(row.content)}: to {row.recommendation.to}: {row.recommendation.reason}")
            try:
                done = await client.move(
                    row.content,
                    row.recommendation.to,
                    k=row.recommendation.k,
                    m=row.recommendation.m,
                    term=term,
                    price_max=parse_price_max(max_price),
                    confirm=confirm,
                )
            except DDSError as error:
                failed.append({"content": cid_text(row.content), "error": error.to_dict()})
                session.say(f"not moved: {error.message}")
            else:
                moved.append(done)
        return moved, failed

    moved, failed = with_client(session, work)
    session.result(
        {"moved": [fields(each) for each in moved], "failed": failed},
        f"{len(moved)} contents moved" + (f", {len(failed)} could not be" if failed else ""),
    )
    if failed:
        raise typer.Exit(1)

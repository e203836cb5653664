"""`dds put`: store files and directories; the ContentID alone goes to standard output."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dds.apps.cli.cid import STDIN, Chunker, ChunkerOption, HiddenOption, check_paths
from dds.apps.cli.session import Session, command, fields, progress_on, with_client
from dds.primitives.cid import cid_text
from dds.primitives.errors import InputError
from dds.primitives.ids import id_text
from dds.primitives.units import K_MAX, N_MAX, human_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from dds.runtime.client import Client
    from dds.runtime.offers import Offer
    from dds.runtime.results import PutOptions, PutResult
    from dds.wire.origin import Payment

ClassName = Literal["auto", "standard", "hot", "archive", "custom"]


def register(app: typer.Typer) -> None:
    command(app)(put)


def put(
    session: Session,
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Files or directories; - reads standard input.")],
    class_name: Annotated[
        ClassName,
        typer.Option(
            "--class",
            help="auto: by the class policy (dds policy show); standard: any 10 of 16 fragments suffice; hot: 10 of 20; "
            "archive: 16 of 32; custom: -k and -m.",
        ),
    ] = "auto",
    k: Annotated[int | None, typer.Option("-k", help="Data fragments a stripe (class custom).")] = None,
    m: Annotated[int | None, typer.Option("-m", help="Parity fragments a stripe (class custom).")] = None,
    chunker: ChunkerOption = "fixed",
    ack: Annotated[
        Literal["all", "fast"],
        typer.Option(
            help="all: every fragment has a durable receipt. fast: k + 2m/3 have; a running origin node does the rest."
        ),
    ] = "all",
    dedup: Annotated[
        Literal["network", "home", "off"],
        typer.Option(help="What need not be sent: what the network has; what this home has put; nothing."),
    ] = "network",
    hidden: HiddenOption = False,
    term: Annotated[str, typer.Option(metavar="TERM", help="How long it is paid for: 30d, 12h, or a number of epochs.")] = "",
    max_price: Annotated[
        str, typer.Option("--max-price", metavar="AMOUNT", help="The most per TiB of fragments and 720 epochs.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept the quote without being asked.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Store nothing: show which class it gets and why, how safe it is, what it costs.")
    ] = False,
) -> None:
    """Store PATH on the network and print its ContentID."""
    options = replace(_options(class_name, k, m, chunker, ack, hidden, dedup), term=term, price_max=parse_price_max(max_price))
    check_paths(paths)

    if explain:
        from dds.apps.cli.policy import explain_puts

        explain_puts(session, paths, options)
        return
    confirm = quote_prompt(session, accept=yes)

    async def work(client: Client) -> None:
        for path in paths:
            source = sys.stdin.buffer if path == STDIN else Path(path)
            with progress_on(session) as report:
                result = await client.put(source, options, report, confirm=confirm)
            session.result({"path": path, **fields(result)}, cid_text(result.content))
            for line in summary(result):
                session.say(line)

    with_client(session, work)


def _options(class_name: str, k: int | None, m: int | None, chunker: Chunker, ack: str, hidden: bool, dedup: str) -> PutOptions:
    from dds.runtime.results import PutOptions

    if class_name != "custom" and (k is not None or m is not None):
        raise InputError("-k and -m name a geometry of your own", hint="add: --class custom")
    if class_name == "custom":
        if k is None or m is None:
            raise InputError("class custom needs both -k and -m", hint="for example: --class custom -k 4 -m 3")
        if not 1 <= k <= K_MAX or m < 1 or k + m > N_MAX:
            raise InputError(f"no such geometry: {k}+{m}", hint=f"k is 1 to {K_MAX}, m at least 1, k + m at most {N_MAX}")
    return PutOptions(class_name=class_name, k=k, m=m, chunker=chunker, hidden=hidden, ack=ack, dedup=dedup)


def parse_price_max(text: str) -> int | None:
    """A limit per TiB and 720 epochs as one per MiB-epoch; None where none is given."""
    from dds.primitives.money import parse_tokens
    from dds.protocol.quote import price_per_mib_epoch

    return price_per_mib_epoch(parse_tokens(text)) if text else None


def quote_prompt(session: Session, *, accept: bool, question: str = "Store it?") -> Callable[[Offer], bool]:
    """Shows the quote on standard error; accepted by --yes, by the home's own setting, or by whoever is at the terminal."""
    accept = accept or session.open_home().client_config().accept_quotes

    def confirm(offer: Offer) -> bool:
        for line in quote_lines(offer):
            session.say(line)
        if accept:
            return True
        if session.json or not sys.stdin.isatty():
            return False
        return typer.confirm(question, err=True)

    return confirm


def quote_lines(offer: Offer) -> list[str]:
    """A quote for people."""
    from dds.primitives.money import format_tokens
    from dds.protocol.quote import price_per_tib_month

    quote = offer.quote
    hours = quote.term_epochs * offer.epoch_ms / 3_600_000
    length = f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.1f} hours"
    return [
        f"quote: at most {format_tokens(quote.total)} for {human_bytes(quote.stored_bytes)} on the nodes, "
        f"{quote.term_epochs:,} epochs ({length})",
        f"       rent {format_tokens(quote.rent)}, fee {format_tokens(quote.fee)}, "
        f"repair reserve {format_tokens(quote.reserve)} (comes back if unused)",
        f"       price now {format_tokens(price_per_tib_month(offer.price))} per TiB and 720 epochs; "
        f"from escrow {format_tokens(quote.total - offer.deposit)}, from your account {format_tokens(offer.deposit)}",
    ]


def paid(payment: Payment) -> str:
    """What was charged, for people."""
    from dds.primitives.money import format_tokens

    what = f"{payment.segments} segment{'s' * (payment.segments != 1)}"
    what += f", {payment.sponsored} that were stored before" if payment.sponsored else ""
    return f"paid {format_tokens(payment.total)} into contract {id_text(payment.contract)[:12]}... for {what}"


def summary(result: PutResult) -> list[str]:
    """What a person wants to know about a put."""
    new = result.dag_bytes - result.reused_bytes
    speed = f"{human_bytes(int(result.content_bytes / result.seconds))}/s" if result.seconds > 0 else "at once"
    what = f"{result.files:,} files, " if result.kind == "directory" else ""
    lines = [f"{what}{human_bytes(result.content_bytes)} in {result.seconds:.1f} s ({speed})"]
    if result.encoded_bytes:
        lines.append(
            f"stored {human_bytes(result.encoded_bytes)} as fragments, parity included "
            f"({result.encoded_bytes / max(1, new):.2f} x what was new), "
            f"on {result.nodes} nodes of {result.operators} operators in {result.regions} regions"
        )
    own_bytes = result.reused_bytes - result.reused_from_others_bytes
    if own_bytes:
        lines.append(f"{human_bytes(own_bytes)} were already on the network, from an earlier put of yours: not sent again")
    if result.reused_from_others_bytes:
        size = human_bytes(result.reused_from_others_bytes)
        lines.append(f"{size} were already on the network, from another publisher: read back, checked, not sent again")
    repeated = max(0, result.dag_bytes - result.unique_bytes)
    squeezed = max(0, result.unique_bytes - result.reused_stored_bytes - result.stored_bytes)
    if repeated or squeezed:
        lines.append(f"saved {human_bytes(repeated)} by deduplication, {human_bytes(squeezed)} by compression")
    lines.append(f"sent {human_bytes(result.sent_bytes)}")
    if result.payment is not None:
        lines.append(paid(result.payment))
    return lines + [f"note: {note}" for note in result.notes]

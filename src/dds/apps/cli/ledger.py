"""`dds ledger`: the ledger itself: where it stands, whether every rule was kept, its blocks as a file, and running one.

`verify` trusts nobody's word: it fetches the genesis and every block and applies the rules anew (ledger_replay.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dds.apps.cli import ledger_host
from dds.apps.cli.ledger_session import Desk, with_ledger
from dds.apps.cli.ledger_text import duration_text, facts, table
from dds.apps.cli.session import Session, command, command_hint, group
from dds.primitives.errors import InputError, IntegrityError
from dds.primitives.money import format_tokens

if TYPE_CHECKING:
    from dds.apps.cli.ledger_replay import Replayed
    from dds.ledger.records import Chain
    from dds.wire.ledger_api import BlockReply, Head

STDOUT: Final = "-"
BLOCKS_AT_ONCE: Final = 8


def app() -> typer.Typer:
    """The `ledger` group."""
    made = group("ledger", "The ledger: where it stands, checking all of it, running one.")
    for run in (status, verify, export):
        command(made)(run)
    command(made, "init")(ledger_host.init)
    command(made, "run")(ledger_host.run)
    return made


def status(
    session: Session,
    where: Annotated[bool, typer.Option("--where", help="Also where all the money is: applies every block anew.")] = False,
) -> None:
    """Show where the ledger stands: engine, height, epoch, root, and the supply of money."""

    async def work(desk: Desk) -> tuple[Head, Chain, Replayed | None]:
        head, chain = await desk.client.head(), await desk.chain()
        return head, chain, await _replay(desk, head) if where else None

    head, chain, found = with_ledger(session, work)
    held = {} if found is None else {"held": found.held, "owed": found.owed, "holds": not found.problems}
    lines = [describe(head, chain)] + ([] if found is None else ["", held_table(found)])
    session.result({**status_document(head, chain), **held}, "\n".join(lines))
    if found is None:
        session.detail(f"where all of it is: {command_hint('ledger status --where', session)}")
    else:
        _insist(found)


def verify(session: Session) -> None:
    """Fetch all blocks, apply the rules anew, and compare the root and every invariant. Ends with 5 where they differ."""

    async def work(desk: Desk) -> Replayed:
        return await _replay(desk, await desk.client.head())

    found = with_ledger(session, work)
    session.result(verify_document(found), describe_verified(found))
    _insist(found)


async def _replay(desk: Desk, head: Head) -> Replayed:
    from dds.apps.cli.ledger_replay import replay

    with block_progress(desk.session, head.height) as report:
        return await replay(await desk.client.genesis(), blocks_to(desk, head.height), head, report)


def _insist(found: Replayed) -> None:
    """
    Raises:
        IntegrityError: something does not hold.
    """
    if found.problems:
        more = f" (and {len(found.problems) - 1} more)" if found.problems[1:] else ""
        raise IntegrityError(
            f"the ledger does not hold: {found.problems[0]}{more}",
            hint="do not trust this ledger's host; keep its blocks as evidence: dds ledger export FILE",
            problems=list(found.problems),
        )


def export(
    session: Session,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; - is standard output.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace what is at FILE.")] = False,
) -> None:
    """Write every block as one JSON object a line: height, time, root, transactions (hex) and what became of each;
    the first has the genesis too."""
    target = None if file == STDOUT else Path(file)
    if target is not None and not force and os.path.lexists(target):
        raise InputError(f"{target} exists already", hint="choose another place, or replace it with --force")

    async def work(desk: Desk) -> int:
        from dds.wire.codec import encode

        head, genesis = await desk.client.head(), encode(await desk.client.genesis())
        with _output(target) as write, block_progress(session, head.height) as report:
            async for block in blocks_to(desk, head.height):
                write(block_line(block, genesis if block.height == 1 else b""))
                report(block.height)
        return head.height

    count = with_ledger(session, work)
    if target is not None:
        session.result({"file": str(target), "blocks": count}, str(target))
        session.say(f"{count:,} blocks")


def status_document(head: Head, chain: Chain) -> dict[str, object]:
    """For machines; money in base units."""
    return {
        "network": head.network,
        "engine": head.engine,
        "height": head.height,
        "time_ms": head.time_ms,
        "epoch": head.epoch,
        "root": head.root.hex(),
        "genesis": head.genesis_hash.hex(),
        "nodes": chain.nodes,
        "supply": {
            "genesis": chain.genesis_supply,
            "minted": chain.minted,
            "burned": chain.burned,
            "total": chain.genesis_supply + chain.minted - chain.burned,
            "treasury": chain.treasury,
            "repair_reserve": chain.repair_reserve,
        },
    }


def describe(head: Head, chain: Chain) -> str:
    """The status, a line a fact."""
    into = head.time_ms - head.genesis_ms - head.epoch * head.epoch_ms
    return facts(
        [
            ("network", head.network),
            ("engine", head.engine),
            ("height", f"{head.height:,}"),
            ("epoch", f"{head.epoch:,}, {duration_text(max(0, into))} into its {duration_text(head.epoch_ms)}"),
            ("root", head.root.hex()),
            ("genesis", head.genesis_hash.hex()),
            ("nodes", f"{chain.nodes:,}"),
            ("supply", supply_line(chain)),
            ("treasury", format_tokens(chain.treasury)),
            ("repairs", f"{format_tokens(chain.repair_reserve)} in the repair reserve"),
        ]
    )


def supply_line(chain: Chain) -> str:
    """genesis + minted - burned = total."""
    total = chain.genesis_supply + chain.minted - chain.burned
    return (
        f"{format_tokens(chain.genesis_supply)} at genesis + {format_tokens(chain.minted)} minted "
        f"- {format_tokens(chain.burned)} burned = {format_tokens(total)}"
    )


def verify_document(found: Replayed) -> dict[str, object]:
    return {
        "holds": not found.problems,
        "height": found.height,
        "transactions": found.transactions,
        "refused": found.refused,
        "root": found.root.hex(),
        "held": found.held,
        "owed": found.owed,
        "problems": list(found.problems),
    }


def describe_verified(found: Replayed) -> str:
    """What was checked, and where the money is."""
    lines = [
        f"{found.height:,} blocks, {found.transactions:,} transactions ({found.refused:,} refused) applied anew",
        f"root {found.root.hex()}",
        "",
        held_table(found),
        "",
    ]
    lines += [f"WRONG: {problem}" for problem in found.problems] or ["every root, every outcome and every invariant holds"]
    return "\n".join(lines)


def held_table(found: Replayed) -> str:
    """Money by kind of purse, its sum, and what the sum must be."""
    rows = [(name, format_tokens(amount)) for name, amount in found.held.items() if amount]
    rows += [("together", format_tokens(sum(found.held.values()))), ("genesis + minted - burned", format_tokens(found.owed))]
    return table(("where the money is", "amount"), rows, right=(1,))


def block_line(block: BlockReply, genesis: bytes = b"") -> str:
    """A block as JSON; a transaction's bytes are hex. The first one has the genesis too, so that a file says all there is."""
    import json

    txs = [{"raw": raw.hex(), "code": code} for raw, code in zip(block.txs, block.codes, strict=True)]
    began = {"genesis": genesis.hex()} if genesis else {}
    return json.dumps({"height": block.height, "time_ms": block.time_ms, "root": block.root.hex(), "txs": txs, **began})


async def blocks_to(desk: Desk, height: int) -> AsyncIterator[BlockReply]:
    """Blocks 1 to `height`, a few asked for at once."""
    import asyncio

    for first in range(1, height + 1, BLOCKS_AT_ONCE):
        wanted = range(first, min(first + BLOCKS_AT_ONCE, height + 1))
        for block in await asyncio.gather(*(desk.client.block(at) for at in wanted)):
            yield block


@contextmanager
def _output(target: Path | None) -> Iterator[Callable[[str], object]]:
    """Writes lines: to standard output, or to a file that is there whole or not at all."""
    if target is None:
        yield lambda line: print(line, flush=True)
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as out:
            yield lambda line: out.write(line + "\n")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def block_progress(session: Session, height: int) -> Iterator[Callable[[int], None]]:
    """How many blocks are done, on one line of a terminal."""
    if session.json or not sys.stderr.isatty():
        yield lambda _done: None
        return

    def report(done: int) -> None:
        if done % 50 == 0 or done == height:
            print(f"\r\033[Kblock {done:,} of {height:,}", end="", file=sys.stderr, flush=True)

    try:
        yield report
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)

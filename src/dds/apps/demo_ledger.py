"""The demonstration's part about money: a quote, what was charged, who was paid for what he proved, and who was not.

Everything is read from the ledger with its proofs, and every claim is checked: a node whose disk was emptied passes no audit
from then on and is paid for no epoch after; what an account earned is the sum of its events; all blocks applied anew give the
same root, and no unit of money is lost or made.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final

from dds.apps.cli.ledger_replay import replay
from dds.apps.cli.put import quote_lines
from dds.apps.demo_stage import Scene, claim
from dds.ledger.explain import explain_account
from dds.ledger.records import ACCOUNTS, CONTRACTS, STANDINGS, Standing, number_key
from dds.ledger.rules.standing import passes_in
from dds.primitives.ids import parse_id
from dds.primitives.money import format_tokens
from dds.runtime.audit_ledger import EpochClock
from dds.runtime.ledger_client import LedgerClient, open_ledger
from dds.runtime.offers import Offer
from dds.wire.ledger_api import BlockReply
from dds.wire.origin import Payment

EPOCH_MS: Final = 3_000
EPOCHS_WATCHED: Final = 2  # whole ones, judged, after the disk was emptied
CLOSED_AFTER: Final = 2  # an epoch's audits are reported in the next one, and closed at its end
PATIENCE_S: Final = 60.0
READS_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class Earner:
    """One node on the ledger."""

    name: str
    number: int
    account: bytes
    passed: int  # epochs, of those watched
    balance: int


def show_offer(scene: Scene, offer: Offer) -> bool:
    """Show the quote, and accept it."""
    for line in quote_lines(offer):
        name, _, rest = line.partition(":") if line.startswith("quote:") else ("", "", line.strip())
        scene.stage.fact(name, rest.strip())
    return True


def show_payment(scene: Scene, payment: Payment | None) -> None:
    claim(payment is not None, "nothing was paid")
    assert payment is not None
    scene.stage.fact("paid", f"{format_tokens(payment.total)}: rent, fee and repair reserve, for {payment.term_epochs} epochs")
    contract = asyncio.run(_contract_line(scene, payment.contract))
    scene.stage.fact("contract", contract)


async def _contract_line(scene: Scene, contract: bytes) -> str:
    async with _ledger(scene) as ledger:
        found = await ledger.find(CONTRACTS, contract)
    assert found is not None
    left = format_tokens(found.escrow)
    return f"{found.segments} segments on the ledger, {found.rent_bytes:,} bytes rented; {left} left in escrow"


def watch_pay(scene: Scene, busiest: str) -> None:
    """Empty the busiest holder's disk, wait, and compare what the ledger says of everybody."""
    scene.stage.step("One node's disk is emptied; the others go on proving what they hold, and are paid")
    _empty(scene, busiest)
    scene.stage.fact("emptied", f"{busiest}: its store is gone, it runs on")
    first, last, rows = asyncio.run(_watch(scene))
    scene.stage.fact("audits", f"of epochs {first} to {last} ({EPOCH_MS / 1000:.0f} s each), judged by a quorum of witnesses")
    paid = [row for row in rows if row.passed]
    for row in sorted(paid, key=lambda row: -row.balance)[:3]:
        scene.stage.fact(row.name, f"passed {row.passed} of {last - first + 1}; earned {format_tokens(row.balance)} so far")
    emptied = next(row for row in rows if row.name == busiest)
    scene.stage.fact(busiest, f"passed {emptied.passed} of {last - first + 1}: nothing earned in these epochs")
    claim(emptied.passed == 0, f"{busiest} holds nothing and passed {emptied.passed} audits")
    claim(any(row.passed >= EPOCHS_WATCHED and row.balance for row in paid), "nobody was paid")
    scene.stage.good(f"{len(paid)} nodes proved what they hold and are paid; the emptied one is not")


def audit_the_ledger(scene: Scene) -> None:
    """Apply every block anew, and explain every account."""
    scene.stage.step("Check the books: every block applied anew, every unit explained")
    problems, lines, explained = asyncio.run(_audit(scene))
    for name, value in lines:
        scene.stage.fact(name, value)
    claim(not problems, "; ".join(problems))
    scene.stage.good(f"same root, every invariant holds; for {explained} nodes the sum of their events is their balance")


def _empty(scene: Scene, name: str) -> None:
    scene.devnet.kill([name])
    shutil.rmtree(scene.devnet.node_home(name).store_dir)
    scene.devnet.start([name])


def _ledger(scene: Scene) -> AbstractAsyncContextManager[LedgerClient]:
    config = scene.creator.client_config()
    return open_ledger(config.ledger, network=config.network)


async def _watch(scene: Scene) -> tuple[int, int, list[Earner]]:
    """The first and last epoch watched, whole ones after now, and how everybody did.

    Until EPOCHS_WATCHED of them were judged and paid: an epoch that finds no quorum, on a busy machine say, counts for nobody.
    """
    async with _ledger(scene) as ledger:
        clock = EpochClock(ledger)
        first = await clock.start() + 1
        now, rows = first + EPOCHS_WATCHED + CLOSED_AFTER - 2, list[Earner]()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while not any(row.passed >= EPOCHS_WATCHED and row.balance for row in rows):
                    now = await clock.after(now)
                    rows = await _earners(scene, ledger, first, now - CLOSED_AFTER + 1)
        claim(bool(rows), f"the ledger's epochs stood still for {PATIENCE_S:.0f} s")
        return first, now - CLOSED_AFTER, rows


async def _earners(scene: Scene, ledger: LedgerClient, first: int, end: int) -> list[Earner]:
    members = scene.devnet.members()  # registered by genesis, in this order
    standings: Sequence[Standing | None] = await ledger.find_many([(STANDINGS, number_key(at)) for at in range(len(members))])
    accounts = await ledger.find_many([(ACCOUNTS, parse_id(member.id)) for member in members])
    return [
        Earner(
            member.name,
            number,
            parse_id(member.id),
            passes_in(standing, first, end)[0] if standing is not None else 0,
            account.balance if account is not None else 0,
        )
        for number, (member, standing, account) in enumerate(zip(members, standings, accounts, strict=True))
    ]


async def _audit(scene: Scene) -> tuple[list[str], list[tuple[str, str]], int]:
    async with _ledger(scene) as ledger:
        head = await ledger.head()

        async def blocks() -> AsyncIterator[BlockReply]:
            for height in range(1, head.height + 1):
                yield await ledger.block(height)

        found = await replay(await ledger.genesis(), blocks(), head)
        problems = list(found.problems)
        members = scene.devnet.members()
        for member in members:
            if not await _adds_up(ledger, parse_id(member.id)):
                problems.append(f"the events of {member.name} do not add up to its balance")
    lines = [
        ("blocks", f"{found.height}, {found.transactions} transactions, {found.refused} refused"),
        *((name, format_tokens(amount)) for name, amount in found.held.items() if amount),
        ("together", format_tokens(sum(found.held.values()))),
        ("must be", f"{format_tokens(found.owed)} = genesis + minted - burned"),
    ]
    return problems, lines, len(members)


async def _adds_up(ledger: LedgerClient, account: bytes) -> bool:
    """Whether the account's events sum to its balance; the ledger goes on meanwhile, so both are read between equal looks."""
    for _ in range(READS_MAX):
        before = await ledger.find(ACCOUNTS, account)
        explanation = explain_account([row.event async for row in ledger.all_events(account=account)], account)
        if before == await ledger.find(ACCOUNTS, account):
            return explanation.unexplained(0, before.balance if before is not None else 0) == 0
    return False

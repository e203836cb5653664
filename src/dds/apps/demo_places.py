"""The demonstration's part about places: a whole region goes, and an edge near the reader serves what is read again.

The edge runs only for its own part: the reads before it come from the nodes that the demonstration kills and turns into liars.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from dds.apps.demo_stage import Scene, claim
from dds.ledger.records import ACCOUNTS
from dds.primitives.cid import CID
from dds.primitives.ids import parse_id
from dds.primitives.money import TOKEN, format_tokens
from dds.primitives.units import human_bytes
from dds.runtime.client import Client
from dds.runtime.ledger_client import open_ledger
from dds.runtime.results import GetResult
from dds.storage.home import Home
from dds.wire.ledger import Transfer

EDGE: Final = "edge-00"
WARM_S: Final = 60.0  # for the edge to fetch what was asked for
REDEEMED_S: Final = 60.0
POCKET_MONEY: Final = 2 * TOKEN  # for the reader: its first deposit, and a rest
T = TypeVar("T")


class WithClient(Protocol):
    """One operation in a session of its own."""

    def __call__(self, home: Home, use: Callable[[Client], Coroutine[Any, Any, T]]) -> T: ...


Compare = Callable[[Path, Path], int]


def lose_region(scene: Scene, content: CID, with_client: WithClient, compare: Compare) -> None:
    """All nodes of a region go at once, and everything is read."""
    region = next(member.region for member in reversed(scene.devnet.members()) if member.name != EDGE)
    scene.stage.step(f"A whole region goes: {region}")
    gone = [row.name for row in scene.devnet.outage("region", region)]
    scene.stage.fact("gone", ", ".join(gone))
    target = scene.work / "fetched-without-a-region"
    got = with_client(scene.reader, lambda client: client.get(content, target))
    scene.stage.fact("time", f"{got.seconds:.1f} s, {got.decoded_stripes} stripes rebuilt")
    scene.stage.good(f"{compare(scene.source, target):,} files compared byte by byte: all identical")
    scene.devnet.restore(gone)


def read_at_the_edge(scene: Scene, content: CID, with_client: WithClient, compare: Compare) -> None:
    """Read twice beside an edge: the second time it serves, and is promised its money."""
    scene.stage.step("An edge cache near the reader: what is asked for again comes from there, and is paid for")
    scene.devnet.start([EDGE])
    asyncio.run(_give_pocket_money(scene))
    deadline = time.monotonic() + WARM_S
    for attempt in range(1, 100):
        target = scene.work / f"fetched-beside-the-edge-{attempt}"
        got: GetResult = with_client(scene.reader, lambda client, target=target: client.get(content, target))  # type: ignore[misc]
        scene.stage.fact(
            f"read {attempt}",
            f"{got.seconds:.1f} s, {human_bytes(got.edge_bytes)} of {human_bytes(got.moved_bytes)} from the edge",
        )
        count = compare(scene.source, target)
        if 2 * got.edge_bytes > got.moved_bytes and got.paid:
            break
        claim(time.monotonic() < deadline, f"the edge serves nothing after {WARM_S:.0f} s")
    scene.stage.fact("promised", f"{format_tokens(got.paid)} in vouchers")
    scene.stage.good(f"{count:,} files compared byte by byte: all identical, whoever sent them")


def show_edge_pay(scene: Scene) -> None:
    """Wait until the ledger has paid it."""
    paid = asyncio.run(_redeemed(scene))
    claim(paid > 0, f"{EDGE} had not redeemed its vouchers after {REDEEMED_S:.0f} s")
    scene.stage.fact(EDGE, f"redeemed its vouchers: {format_tokens(paid)} on its account")


async def _give_pocket_money(scene: Scene) -> None:
    """A reader who is nobody yet gets what its first deposit takes."""
    config = scene.creator.client_config()
    async with open_ledger(config.ledger, network=config.network) as ledger:
        await ledger.submit(scene.creator.identity(), Transfer(scene.reader.identity().public, POCKET_MONEY))


async def _redeemed(scene: Scene) -> int:
    config = scene.creator.client_config()
    account = next(parse_id(member.id) for member in scene.devnet.members() if member.name == EDGE)
    deadline = time.monotonic() + REDEEMED_S
    async with open_ledger(config.ledger, network=config.network) as ledger:
        while time.monotonic() < deadline:
            found = await ledger.find(ACCOUNTS, account)
            if found is not None and found.balance:
                return found.balance
            await asyncio.sleep(0.2)
    return 0

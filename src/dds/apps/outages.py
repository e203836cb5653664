"""`python -m dds.apps.outages` (`make outages`): does every object read while a whole region, or a whole operator, is gone?

It brings up a network of 30 storage and 12 archive nodes in 6 regions, of 12 operators, on a ledger that pays them; stores
objects of the standard and the archive class; then takes down every region and every operator in turn, each time reading every
object with a client that starts anew, and prints what was read. Ends with 1 when an object did not come back byte for byte.

Decides what is stored and what is taken down; nothing about how it survives (docs/spec/placement.md).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from dds.apps.cli import exits
from dds.apps.cli.ledger_text import table
from dds.primitives.cid import CID, cid_text
from dds.primitives.errors import DDSError
from dds.primitives.units import human_bytes
from dds.runtime.client import Client, open_client
from dds.runtime.devnet import Devnet, Label
from dds.runtime.devnet_guard import guard
from dds.runtime.devnet_shape import Shape
from dds.runtime.results import PutOptions
from dds.storage.home import Home

OBJECTS: Final = 200
ARCHIVED: Final = 20  # of them, in the archive class
LARGE_EVERY: Final = 50  # most content is small; every so manyth object has several MB
LARGE_BYTES: Final = 3_000_000
SMALL_BYTES_MAX: Final = 30_000
AT_ONCE: Final = 8
CAPACITY_BYTES: Final = 2 << 30
SHAPE: Final = Shape(nodes=30, regions=6, operators=12, asn=12)


@dataclass(frozen=True, slots=True)
class Stored:
    """One object that was put, by its number."""

    number: int
    content: CID
    class_name: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was read while something was gone."""

    gone: str
    nodes: int
    unread: tuple[str, ...]  # object and reason
    seconds: float


def bytes_of(number: int) -> bytes:
    """Object `number`: incompressible, its own, the same each time."""
    source = random.Random(number)  # noqa: S311 - content to compare with, no secret
    size = LARGE_BYTES + number if number % LARGE_EVERY == 0 else source.randrange(1, SMALL_BYTES_MAX)
    return source.randbytes(size)


async def put_all(home: Home, classes: Sequence[str], at_once: int = AT_ONCE) -> list[Stored]:
    """Store one object for each class that is named.

    Raises:
        DDSError: one could not be stored; the others are left as they are.
    """
    room = asyncio.Semaphore(at_once)

    async def put(client: Client, number: int, class_name: str) -> Stored:
        async with room:
            done = await client.put(BytesIO(bytes_of(number)), PutOptions(class_name=class_name))
            return Stored(number, done.content, class_name)

    async with open_client(home) as client:
        try:
            async with asyncio.TaskGroup() as group:
                puts = [group.create_task(put(client, number, name)) for number, name in enumerate(classes)]
        except* DDSError as failed:
            problem: Exception = failed.exceptions[0]
        else:
            return [done.result() for done in puts]
    raise problem


async def read_all(home: Home, objects: Iterable[Stored]) -> list[str]:
    """What did not come back byte for byte, and why. The client starts anew: it knows nothing of who was there before."""
    room = asyncio.Semaphore(AT_ONCE)

    async def problem_of(client: Client, stored: Stored) -> str:
        async with room:
            out = BytesIO()
            try:
                await client.get(stored.content, out)
            except DDSError as error:
                return f"{stored.class_name} {cid_text(stored.content)}: {error.message}"
            same = out.getvalue() == bytes_of(stored.number)
            return "" if same else f"{stored.class_name} {cid_text(stored.content)}: other bytes"

    async with open_client(home) as client:
        said = await asyncio.gather(*(problem_of(client, stored) for stored in objects))
    return [problem for problem in said if problem]


def outages(devnet: Devnet) -> list[tuple[Label, str]]:
    """Every region, then every operator."""
    members = devnet.members()
    regions = dict.fromkeys(member.region for member in members)
    operators = dict.fromkeys(member.operator for member in members)
    return [*(("region", region) for region in regions), *(("operator", operator) for operator in operators)]


def survive(devnet: Devnet, objects: Sequence[Stored]) -> Iterator[Outcome]:
    """Take each label down, read everything, bring it back."""
    for label, value in outages(devnet):
        down = devnet.outage(label, value)
        began = time.monotonic()
        unread = asyncio.run(read_all(devnet.home, objects))
        yield Outcome(f"{label} {value}", len(down), tuple(unread), time.monotonic() - began)
        devnet.restore()


def play(devnet: Devnet, objects: int, archived: int) -> bool:
    """Returns:
    whether every object was read each time.
    """
    devnet.up(SHAPE, capacity_bytes=CAPACITY_BYTES)
    print(f"{SHAPE.described()}", flush=True)
    began = time.monotonic()
    stored = asyncio.run(put_all(devnet.home, ["standard"] * (objects - archived) + ["archive"] * archived))
    size = sum(len(bytes_of(number)) for number in range(objects))
    took = time.monotonic() - began
    what = f"{objects} objects, {archived} of them archived, {human_bytes(size)}"
    print(f"{what}, stored in {took:.1f} s: {objects / took:.1f} a second", flush=True)
    outcomes = []
    for outcome in survive(devnet, stored):
        outcomes.append(outcome)
        print(f"{outcome.gone}: {objects - len(outcome.unread)} of {objects} read", flush=True)
    rows = [(each.gone, each.nodes, objects - len(each.unread), f"{each.seconds:.1f}") for each in outcomes]
    print("\n" + table(("gone", "nodes", f"read of {objects}", "seconds"), rows, right=(1, 2, 3)))
    for each in outcomes:
        for problem in each.unread:
            print(f"{each.gone}: {problem}", file=sys.stderr)
    return not any(each.unread for each in outcomes)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dds.apps.outages", allow_abbrev=False)
    parser.add_argument("--objects", type=int, default=OBJECTS, help=f"how many [{OBJECTS}]")
    parser.add_argument("--archive", type=int, default=ARCHIVED, help=f"of them, in the archive class [{ARCHIVED}]")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.archive <= arguments.objects or arguments.objects < 1:
        parser.error("--archive is at most --objects, and one object is the least")
    try:
        with tempfile.TemporaryDirectory(prefix="dds-outages-") as work, guard(Path(work) / "home", Path(work)):
            devnet = Devnet(Home.open(Path(work) / "home"))
            try:
                held = play(devnet, arguments.objects, arguments.archive)
            finally:
                devnet.down(purge=True)
    except DDSError as error:
        return exits.tell_error(error, as_json=False)
    return exits.OK if held else exits.FAILED


if __name__ == "__main__":
    sys.exit(main())

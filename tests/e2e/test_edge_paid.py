"""An edge of a paid network: what it serves is read faster, checked, paid by voucher, and the voucher is redeemed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dds.primitives.ids import parse_id
from dds.primitives.money import TOKEN
from dds.primitives.units import KIB, MIB
from dds.runtime.devnet import EDGE_FREE_READ_BYTES_PER_DAY
from dds.storage.home import Home
from dds.storage.purse_book import PurseBook
from tests.e2e.devnet_cli import Program, running_devnet, same_file, wait_until, write_random

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("edge-paid")]

SIZE_BYTES, BLOCKS = 5 * MIB, 6  # the root and five chunks
EDGE, THERE = "edge-01", "region-1"  # where that edge and the reader are; the object was put from region-0
RTT_S = 0.08
PRICE = 1_862  # base units per KiB
METADATA_BYTES_MAX = 64 * KIB  # who is there, terms, voucher
ATTEMPTS_MAX = 20


@pytest.fixture(scope="module")
def dds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    home = tmp_path_factory.mktemp("edge-paid") / "home"
    shape = ("--nodes", "8", "--regions", "4", "--operators", "8", "--ecn", "2", "--latency", "80", "--epoch", "2")
    with running_devnet(home, *shape, "--ledger", "embedded") as program:
        yield program


def read_from_storage(dds: Program) -> int:
    """Content bytes that this home has taken from storing nodes so far, by its own book: none of them was promised for yet."""
    home = Home(dds.home)
    book = PurseBook(home.catalog_file, home.client_config().network, home.identity().public)
    try:
        tabs = book.tabs()
    finally:
        book.close()
    return sum(tabs[node].bytes for row in dds.nodes() if "ssn" in row["roles"] and (node := parse_id(row["id"])) in tabs)


def is_warm(dds: Program) -> bool:
    return len(list((dds.home / "devnet" / "nodes" / EDGE / "edge").glob("*/ba*"))) == BLOCKS


def balance(dds: Program, account: str) -> int:
    found: int = dds.json("wallet", "show", account)["balance"]
    return found


def test_the_second_read_from_another_region_comes_faster_from_an_edge_that_is_paid_on_the_ledger(
    dds: Program, tmp_path: Path
) -> None:
    source = write_random(tmp_path / "source", SIZE_BYTES, seed=21)
    content = dds.json("put", "--class", "custom", "-k", "4", "-m", "2", source)["content"]
    first = dds.json("get", content, "--region", THERE, "-o", tmp_path / "first")
    assert same_file(source, tmp_path / "first")
    assert (first["edge_bytes"], first["paid"]) == (0, 0)
    wait_until(lambda: is_warm(dds))

    before, promised = read_from_storage(dds), 0
    assert before > SIZE_BYTES // 2  # the first read
    for attempt in range(ATTEMPTS_MAX):  # on a machine that stands still, a reader does not wait for the edge
        second = dds.json("get", content, "--region", THERE, "-o", tmp_path / f"second-{attempt}")
        assert same_file(source, tmp_path / f"second-{attempt}")
        promised += second["paid"]
        if (after := read_from_storage(dds)) == before:
            break
        before = after
    assert after == before
    assert second["culprits"] == []
    assert second["edge_bytes"] > SIZE_BYTES
    assert second["moved_bytes"] < second["edge_bytes"] + METADATA_BYTES_MAX
    assert second["seconds"] + RTT_S < first["seconds"]

    owed = (second["edge_bytes"] - EDGE_FREE_READ_BYTES_PER_DAY) * PRICE // KIB
    assert owed <= promised <= (attempt + 1) * second["edge_bytes"] * PRICE // KIB
    wait_until(lambda: dds.json("node", "earnings", EDGE)["redeemed"] == promised)
    story = dds.json("explain", EDGE, "--limit", 1000)
    assert sum(row["delta"] for row in story["events"] if row["name"] == "retrieval") == promised
    assert balance(dds, next(row["id"] for row in dds.nodes() if row["name"] == EDGE)) == promised
    assert dds.json("wallet", "show")["deposit"] == TOKEN - promised

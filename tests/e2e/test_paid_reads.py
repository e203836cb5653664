"""Reading that is paid for, on a devnet with a ledger: on credit, by voucher, redeemed; and who does not pay is told so."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from dds.primitives.money import TOKEN
from dds.primitives.units import KIB
from dds.runtime.reading_meter import BOOK_FILE
from dds.storage.home import Home, NodeHome, load_client_config, load_node_config, write_client_config, write_node_config
from dds.storage.reading_book import Earnings, ReadingBook
from tests.e2e.devnet_cli import Program, running_devnet, same_file, wait_until, write_random

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("paid")]

NODES = 6
CLASS = ("--class", "custom", "-k", "2", "-m", "1")
SIZE_BYTES = 6_000_000


@pytest.fixture(scope="module")
def dds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    home = tmp_path_factory.mktemp("reads") / "home"
    shape = ("--nodes", str(NODES), "--regions", "3", "--operators", "6", "--epoch", "2")
    with running_devnet(home, *shape, "--ledger", "embedded") as program:
        yield program


def make_reading_dear(dds: Program) -> None:
    """No allowance and little credit, as each operator may set it; the nodes start anew with that."""
    names = dds.names()
    dds.run("devnet", "kill", *names)
    for name in names:
        path = NodeHome(dds.home / "devnet" / "nodes" / name).config_file
        config = dataclasses.replace(load_node_config(path), free_read_bytes_per_day=0, read_debt_bytes_max=256 * KIB)
        write_node_config(path, config)
    dds.run("devnet", "start", *names)


def earnings(dds: Program) -> list[Earnings]:
    """Of all nodes, out of their books while they write them."""
    books = [ReadingBook(path / BOOK_FILE) for path in (dds.home / "devnet" / "nodes").iterdir()]
    try:
        return [book.earnings() for book in books]
    finally:
        for book in books:
            book.close()


def test_reads_beyond_the_allowance_are_paid_and_redeemed_and_who_does_not_pay_is_told(dds: Program, tmp_path: Path) -> None:
    source = write_random(tmp_path / "source", SIZE_BYTES, seed=11)
    content = dds.json("put", *CLASS, source)["content"]
    free = dds.json("get", content, "-o", tmp_path / "free")
    assert free["paid"] == 0 and dds.json("wallet", "show")["deposit"] == 0  # within the allowance of a day

    make_reading_dear(dds)
    got = dds.json("get", content, "-o", tmp_path / "paid")
    assert same_file(source, tmp_path / "paid")
    price = 1_862
    assert SIZE_BYTES // 2 * price // KIB < got["paid"] <= got["moved_bytes"] * price // KIB

    wait_until(lambda: sum(each.redeemed for each in earnings(dds)) == got["paid"], timeout_s=120)
    assert sum(each.promised for each in earnings(dds)) == got["paid"] == TOKEN - dds.json("wallet", "show")["deposit"]
    name = next(name for name in dds.names() if dds.json("node", "earnings", name)["redeemed"])
    story, said = dds.json("explain", name, "--limit", 1000), dds.json("node", "earnings", name)
    assert sum(row["delta"] for row in story["events"] if row["name"] == "retrieval") == said["redeemed"]

    stingy = tmp_path / "stingy"
    stingy.mkdir(mode=0o700)
    own = load_client_config(Home(dds.home).config_file)
    write_client_config(Home(stingy).config_file, dataclasses.replace(own, reading_deposit=0))
    reader = Program(stingy)
    # What was under way when the limit was reached still comes, so the first read may be done on credit.
    wait_until(lambda: reader.attempt("get", content, "-o", tmp_path / "credit", "--force") == 4, timeout_s=120)
    error = reader.error("get", content, "-o", tmp_path / "none", code=4)
    assert "1,862 base units per KiB" in error["message"] and "reading_deposit" in error["hint"]
    assert not (tmp_path / "none").exists()

"""Putting content that is paid for, on a devnet with a ledger: quote, escrow, receipts, and the money back."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dds.primitives.money import TOKEN
from dds.runtime import processes
from dds.storage.home import load_client_config, write_client_config
from tests.e2e.devnet_cli import Program, running_devnet, running_origin, same_file, wait_until, write_random

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("paid")]

CLASS = ("--class", "custom", "-k", "4", "-m", "2")
NODES = 8


@pytest.fixture(scope="module")
def dds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    home = tmp_path_factory.mktemp("paid") / "home"
    shape = ("--nodes", str(NODES), "--regions", "4", "--operators", "8", "--epoch", "4")
    with running_devnet(home, *shape, "--ledger", "embedded") as program:
        yield program


def wallet(dds: Program) -> dict[str, Any]:
    found: dict[str, Any] = dds.json("wallet", "show")
    return found


def reserved(dds: Program) -> int:
    return sum(contract["reserved"] for contract in dds.json("contract", "list")["contracts"])


def put(dds: Program, path: Path, *options: object) -> dict[str, Any]:
    made: dict[str, Any] = dds.json("put", *CLASS, *options, path)
    return made


def other_home(dds: Program, directory: Path, **changes: Any) -> Program:
    """A home of somebody else on the same network."""
    import dataclasses

    directory.mkdir(mode=0o700)
    config = load_client_config(dds.home / "config.toml")
    write_client_config(directory / "config.toml", dataclasses.replace(config, **changes))
    return Program(directory)


def test_a_put_costs_what_it_says_and_no_more_than_the_quote(dds: Program, tmp_path: Path) -> None:
    before = wallet(dds)
    made = put(dds, write_random(tmp_path / "one", 3_000_000, seed=1))
    payment, after = made["payment"], wallet(dds)
    assert payment["segments"] == 1 and payment["rent"] > 0
    assert payment["fee"] == -(-payment["rent"] // 50) and payment["reserve"] == -(-payment["rent"] // 10)
    spent = payment["rent"] + payment["fee"] + payment["reserve"]
    assert before["total"] - after["total"] == spent
    assert after["escrow"] >= 0 and before["balance"] - after["balance"] == spent + after["escrow"] - before["escrow"]


def test_the_same_again_is_paid_by_extending_not_by_storing(dds: Program, tmp_path: Path) -> None:
    path = write_random(tmp_path / "again", 2_000_000, seed=2)
    first, second = put(dds, path), put(dds, path)
    assert first["payment"]["segments"] == 1
    assert second["sent_bytes"] == 0 and second["payment"]["segments"] == 0


def test_a_declined_quote_stores_and_costs_nothing(dds: Program, tmp_path: Path) -> None:
    careful = other_home(dds, tmp_path / "careful", accept_quotes=False)
    shutil.copy(dds.home / "identity.key", careful.home / "identity.key")
    before = wallet(dds)
    done = careful.run("put", *CLASS, write_random(tmp_path / "dear", 100_000, seed=3), code=2)
    assert b"quote: at most" in done.stderr and b"--yes" in done.stderr
    assert wallet(dds)["nonce"] == before["nonce"]
    careful.run("put", "--yes", *CLASS, tmp_path / "dear")


def test_a_price_above_the_limit_is_refused_before_anything_is_sent(dds: Program, tmp_path: Path) -> None:
    error = dds.error("put", *CLASS, "--max-price", "0.1", write_random(tmp_path / "cheap", 100_000, seed=4), code=2)
    assert "above your limit" in error["message"]


def test_an_account_without_money_is_told_what_it_lacks(dds: Program, tmp_path: Path) -> None:
    poor = other_home(dds, tmp_path / "poor")
    error = poor.error("put", *CLASS, write_random(tmp_path / "wish", 100_000, seed=5), code=2)
    assert "the account has 0 ECHO" in error["message"] and "wallet" in error["hint"]


def test_nodes_store_nothing_that_nobody_pays_for(dds: Program, tmp_path: Path) -> None:
    free_rider = other_home(dds, tmp_path / "rider", ledger="")
    error = free_rider.error("put", *CLASS, write_random(tmp_path / "ride", 100_000, seed=6), code=4)
    assert error["code"] == "not-enough-nodes"


def test_a_put_that_fails_half_way_gets_its_money_back(dds: Program, tmp_path: Path) -> None:
    before = wallet(dds)
    names = dds.names()
    dds.run("devnet", "kill", *names[: NODES - 4])  # four are left, six are needed
    try:
        dds.run("put", *CLASS, write_random(tmp_path / "lost", 2_000_000, seed=7), code=4)
        after = wallet(dds)
        assert (after["balance"], after["escrow"]) == (before["balance"], before["escrow"])
    finally:
        dds.heal()


def test_a_put_that_is_interrupted_half_way_gets_its_money_back(dds: Program, tmp_path: Path) -> None:
    before = wallet(dds)
    names = dds.names()
    dds.run("devnet", "pause", *names[: NODES - 4])  # connected and silent: the put can but wait
    try:
        running = dds.start("put", *CLASS, write_random(tmp_path / "stopped", 2_000_000, seed=10))
        wait_until(lambda: reserved(dds) > 0, timeout_s=30)
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
        after = wallet(dds)
        assert running.returncode == 130
        assert (after["balance"], after["escrow"], reserved(dds)) == (before["balance"], before["escrow"], 0)
    finally:
        dds.heal()


def test_what_is_handed_to_the_origin_daemon_is_paid_for_too(dds: Program, tmp_path: Path) -> None:
    dds.run("node", "init", "--role", "origin")
    before = wallet(dds)
    with running_origin(dds) as origin:
        content = dds.text("put", *CLASS, "--ack", "fast", write_random(tmp_path / "fast", 1_000_000, seed=10))
        wait_until(lambda: origin.state_of(content) == "done")
    assert wallet(dds)["total"] < before["total"]


def test_reads_need_no_ledger(dds: Program, tmp_path: Path) -> None:
    path = write_random(tmp_path / "read", 1_000_000, seed=8)
    content = put(dds, path)["content"]
    root = dds.home / "devnet" / "ledger" / "host-0"
    (process,) = processes.find([root]).values()
    processes.kill([process])
    dds.run("get", content, "-o", tmp_path / "copy")
    assert same_file(path, tmp_path / "copy")
    error = dds.error("put", *CLASS, write_random(tmp_path / "later", 1_000, seed=9), code=4)
    assert error["message"].startswith("the ledger cannot be reached")
    dds.run("devnet", "start", *dds.names())  # brings the ledger back too
    assert wallet(dds)["balance"] < 10_000 * TOKEN

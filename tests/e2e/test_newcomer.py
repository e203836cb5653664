"""A node that joins a running network by the command line: on probation first, then like any other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dds.ledger.records import STANDINGS, Standing, number_key
from dds.runtime.ledger_client import open_ledger
from dds.storage.home import Home
from tests.e2e.devnet_cli import TIMEOUT_S, Program, running_devnet, running_origin, write_random

pytestmark = pytest.mark.e2e

SHAPE = ("--nodes", "3", "--regions", "3", "--operators", "3", "--capacity", "2GiB", "--ledger", "embedded", "--epoch", "1")


def registered(dds: Program) -> dict[str, Any]:
    """The newcomer as the ledger has it."""
    entry: dict[str, Any] = dds.json("stake", "show")["registered"][0]
    return entry


async def passes(dds: Program, number: int, count: int) -> None:
    """Wait until the node has passed so many audits."""
    config = Home.open(dds.home).client_config()
    async with open_ledger(config.ledger, network=config.network) as ledger, asyncio.timeout(TIMEOUT_S):
        while ((await ledger.find(STANDINGS, number_key(number))) or Standing()).passed < count:
            await asyncio.sleep(0.2)


def checks(told: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [check for check in told["checks"] if check["name"] == name]


def test_a_newcomer_is_drawn_on_probation_and_vetted_after_its_audits(tmp_path: Path) -> None:
    with running_devnet(tmp_path / "home", *SHAPE) as dds:
        labels = ("--region", "region-3", "--operator", "newcomer", "--subnet", "subnet-new", "--capacity", "2GiB")
        node = dds.text("node", "init", *labels)
        with running_origin(dds):
            stranger = dds.run("doctor", "--node", dds.home / "node", code=1).stdout
            assert b"the ledger does not know this node" in stranger
            dds.run("stake", "bond", "150", "--region", "region-3", "--yes")
            dds.run("stake", "register", "--pool", "50", "--yes")
            assert registered(dds)["vetting"].startswith("0 of 10 audits")

            # Four fragments on four nodes: it is drawn, though its weight is small. Before its first share no audit is passed.
            dds.run("put", "--class", "custom", "-k", "2", "-m", "2", write_random(tmp_path / "file", 200_000, seed=1))
            assert registered(dds)["assignments"] == 1

            asyncio.run(passes(dds, registered(dds)["number"], 10))
            assert registered(dds)["vetting"] == "vetted"
            assert "vetted" in dds.text("explain", node)
            told = dds.json("doctor", "--node", dds.home / "node")
            assert told["ok"], told
            assert checks(told, "vetting")[0]["found"] == "vetted"
            assert any("reachable" in check["found"] for check in checks(told, "outside"))

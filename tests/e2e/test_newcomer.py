"""A node that joins a running network by the command line: on probation first, then like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.devnet_cli import Program, running_devnet, running_origin, wait_until, write_random

pytestmark = pytest.mark.e2e

SHAPE = ("--nodes", "4", "--regions", "4", "--operators", "4", "--capacity", "2GiB", "--ledger", "embedded", "--epoch", "1")


def registered(dds: Program) -> dict[str, Any]:
    """The newcomer as the ledger has it."""
    entry: dict[str, Any] = dds.json("stake", "show")["registered"][0]
    return entry


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

            numbers = iter(range(20))  # five nodes for four fragments: it cannot be left out for long
            while registered(dds)["assignments"] == 0:  # no audit passed before the first: that one is drawn on probation
                source = write_random(tmp_path / "file", 200_000, seed=next(numbers))
                dds.run("put", "--class", "custom", "-k", "2", "-m", "2", source)

            wait_until(lambda: registered(dds)["vetting"] == "vetted", timeout_s=120)
            assert "vetted" in dds.text("explain", node)
            told = dds.json("doctor", "--node", dds.home / "node")
            assert told["ok"], told
            assert checks(told, "vetting")[0]["found"] == "vetted"
            assert any("reachable" in check["found"] for check in checks(told, "outside"))

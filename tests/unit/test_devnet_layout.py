"""What a devnet looks like before anything runs: labels, ports, refusals."""

import os
import socket
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from dds.primitives.errors import ConfigError, InputError
from dds.runtime.devnet import Devnet, Shape, free_ports
from dds.runtime.devnet_engines import LedgerProcesses
from dds.storage.home import ClientConfig, Home, load_node_config, write_client_config

NAMES = ["node-10", "node-11"]


class Resting(LedgerProcesses):
    def start(self) -> None: ...


class Refusing(Devnet):
    """A devnet that is laid out and never started."""

    def _start(self, *_: object, **__: object) -> None: ...

    @property
    def _ledger(self) -> LedgerProcesses:
        return Resting(super()._ledger.root)


@pytest.fixture
def devnet(tmp_path: Path) -> Devnet:
    return Refusing(Home.open(tmp_path / "home"))


def test_the_default_labels_let_any_16_of_20_satisfy_the_placement_rules(devnet: Devnet) -> None:
    rows = devnet.up()
    assert max(Counter(row.region for row in rows).values()) == 4  # of at most 5
    assert max(Counter(row.operator for row in rows).values()) == 2  # of at most 2
    assert (len(rows), len({row.region for row in rows}), len({row.operator for row in rows})) == (20, 5, 10)
    assert len({load_node_config(devnet.node_home(row.name).config_file).subnet for row in rows}) == 20


def test_every_node_and_the_client_know_all_nodes(devnet: Devnet) -> None:
    rows = devnet.up(Shape(7, 3, 4))
    known = {f"{row.id}@{row.address}" for row in rows}
    assert set(devnet.home.client_config().bootstrap) == known
    for row in rows:
        config = load_node_config(devnet.node_home(row.name).config_file)
        assert set(config.bootstrap) == known - {f"{row.id}@{row.address}"}
        assert config.network == devnet.home.client_config().network
        assert f"127.0.0.1:{config.port}" == row.address


def test_addresses_and_keys_stay_when_it_starts_again(devnet: Devnet) -> None:
    before = devnet.up(Shape(3, 1, 3))
    assert devnet.up() == before
    with pytest.raises(InputError, match="3 nodes"):
        devnet.up(Shape(4, 1, 3))
    assert devnet.down(purge=True) == 0
    assert not devnet.exists
    assert {row.id for row in devnet.up(Shape(3, 1, 3))}.isdisjoint({row.id for row in before})


def test_a_home_that_belongs_to_another_network_is_refused(devnet: Devnet) -> None:
    write_client_config(devnet.home.config_file, ClientConfig("elsewhere"))
    with pytest.raises(ConfigError, match="elsewhere"):
        devnet.up()
    assert not devnet.exists


@pytest.mark.parametrize("shape", [Shape(0, 1, 1), Shape(201, 1, 1), Shape(3, 4, 1), Shape(3, 0, 1), Shape(3, 1, 4)])
def test_impossible_shapes_are_refused_and_leave_nothing(devnet: Devnet, shape: Shape) -> None:
    with pytest.raises(InputError):
        devnet.up(shape)
    assert not devnet.exists
    assert not devnet.home.config_file.exists()


def test_unknown_nodes_are_refused_by_name(devnet: Devnet) -> None:
    with pytest.raises(ConfigError, match="no devnet"):
        devnet.status()
    devnet.up(Shape(3, 1, 1))
    for act in (devnet.kill, devnet.start, devnet.pause, devnet.resume, devnet.stop):
        with pytest.raises(InputError, match="node-07"):
            act(["node-00", "node-07"])


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("dds devn", ["devnet"]),
        ("dds devnet pa", ["pause"]),
        ("dds put --ch", ["--chunker"]),
        ("dds devnet kill node-1", NAMES),
    ],
)
def test_the_shell_completes_commands_options_and_node_names(devnet: Devnet, words: str, offered: list[str]) -> None:
    devnet.up(Shape(12, 1, 1))
    asked = {"_DDS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "dds.apps.cli.main"],
        env={**os.environ, **asked, "DDS_HOME": str(devnet.home.root)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert (done.stdout.split(), done.stderr) == (offered, "")


def test_ports_are_distinct_free_for_both_protocols_and_not_ephemeral() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports) < ephemeral
    for a, b in combinations([(port, kind) for port in ports[:3] for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)], 2):
        with socket.socket(socket.AF_INET, a[1]) as first, socket.socket(socket.AF_INET, b[1]) as second:
            first.bind(("127.0.0.1", a[0]))
            second.bind(("127.0.0.1", b[0]))

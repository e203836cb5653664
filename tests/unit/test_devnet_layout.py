"""What a devnet looks like before anything runs: labels, ports, refusals."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from dds.primitives.errors import ConfigError, InputError
from dds.primitives.ids import id_text
from dds.runtime.devnet import Devnet, free_ports
from dds.runtime.devnet_engines import LedgerProcesses
from dds.runtime.devnet_shape import Shape, parse_roles
from dds.storage.home import ClientConfig, Home, load_node_config, write_client_config
from dds.storage.ledger_home import LedgerHome

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


def test_archive_and_edge_nodes_stand_beside_the_storage_nodes_on_subnets_of_their_own(devnet: Devnet) -> None:
    rows = devnet.up(Shape(30, 6, 12, asn=12, ecn=6))
    archive, edges = [row for row in rows if row.name.startswith("asn-")], [row for row in rows if row.name.startswith("edge-")]
    assert {row.roles for row in archive} == {("asn",)}
    assert {row.roles for row in edges} == {("ecn",)}
    assert (len(archive), len(edges), len(rows)) == (12, 6, 48)
    assert max(Counter(row.operator for row in archive).values()) == 1
    assert set(Counter(row.region for row in archive).values()) == {2}
    assert {row.region for row in edges} == {f"region-{number}" for number in range(6)}
    configs = [load_node_config(devnet.node_home(row.name).config_file) for row in rows]
    assert len({config.subnet for config in configs}) == 48
    assert {config.free_read_bytes_per_day for config in configs if "ecn" in config.roles} == {64 << 10}
    assert len({config.free_read_bytes_per_day for config in configs}) == 2


def test_a_node_has_the_roles_it_is_given_and_a_witness_stays_one(devnet: Devnet) -> None:
    shape = Shape(6, 2, 3, asn=1, roles=parse_roles(["node-00=ssn,ecn", "node-04=asn"]))
    rows = {row.name: row.roles for row in devnet.up(shape)}
    assert (rows["node-00"], rows["node-01"], rows["node-04"]) == (("ssn", "ecn", "witness"), ("ssn", "witness"), ("asn",))
    assert devnet.up(shape) == devnet.up()


@pytest.mark.parametrize(
    "text", ["node-00", "node-00=", "=ssn", "node-00=cook", "node-00=ssn,ssn", "node-00=origin", "node-9=ssn"]
)
def test_roles_that_cannot_be_are_refused(devnet: Devnet, text: str) -> None:
    with pytest.raises(InputError):
        devnet.up(Shape(3, 1, 1, roles=parse_roles([text])))
    assert not devnet.exists


def test_the_ledger_of_a_devnet_begins_with_every_node_and_its_roles(devnet: Devnet) -> None:
    rows = devnet.up(Shape(6, 2, 3, asn=3, ecn=2))
    genesis = LedgerHome(devnet.home.devnet_dir / "ledger" / "host-0").genesis()
    by_id = {id_text(node.node_id): node for node in genesis.nodes}
    assert {row.id: tuple(sorted(row.roles)) for row in rows} == {name: node.roles for name, node in by_id.items()}
    assert all(node.capacity_bytes > 0 and node.pool > 0 for node in genesis.nodes)
    assert [row.name for row in rows if "witness" in row.roles] == ["node-00", "node-01", "node-02"]


def test_latency_is_written_for_every_node_and_for_the_home(devnet: Devnet) -> None:
    rows = devnet.up(Shape(4, 2, 2, ecn=1, latency_ms=80))
    assert {load_node_config(devnet.node_home(row.name).config_file).simulated_rtt_ms for row in rows} == {80}
    own = devnet.home.client_config()
    assert (own.region, own.simulated_rtt_ms) == ("region-0", 80)


def test_a_devnet_of_an_older_version_still_starts(devnet: Devnet) -> None:
    before = devnet.up(Shape(3, 1, 3))
    file = devnet.home.devnet_dir / "devnet.json"
    plan = json.loads(file.read_bytes())
    for name in ("asn", "ecn", "latency_ms", "roles"):
        del plan["shape"][name]
    file.write_text(json.dumps(plan))
    assert devnet.up() == before


def test_an_outage_names_the_labels_that_there_are(devnet: Devnet) -> None:
    devnet.up(Shape(6, 2, 3, asn=2))
    assert devnet.with_label("region", "region-1") == ["node-01", "node-03", "node-05", "asn-01"]
    assert devnet.with_label("operator", "operator-1") == ["node-01", "node-04", "asn-01"]
    assert devnet.with_label("subnet", "subnet-7") == ["asn-01"]
    with pytest.raises(InputError, match="region-9") as refused:
        devnet.outage("region", "region-9")
    assert refused.value.hint == "regions are region-0, region-1"

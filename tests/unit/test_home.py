import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dds.primitives.errors import ConfigError, InputError
from dds.primitives.ids import id_text
from dds.storage.home import (
    ClientConfig,
    Home,
    NodeConfig,
    NodeHome,
    NodeState,
    home_path,
    load_client_config,
    load_node_config,
    parse_host_port,
    parse_node_address,
    write_client_config,
    write_node_config,
)

NODE = id_text(bytes(range(32)))


def test_written_configurations_read_back_the_same(tmp_path: Path) -> None:
    client = ClientConfig(
        network="net-1", bootstrap=(f"{NODE}@127.0.0.1:7001",), dht_bootstrap=("[::1]:7002",), ledger=f"{NODE}@[::1]:7003"
    )
    node = NodeConfig(name="n00", network="net-1", port=7001, roles=("ssn", "origin"), advertised=("example.org:80",))
    write_client_config(tmp_path / "config.toml", client)
    write_node_config(tmp_path / "node.toml", node)
    assert load_client_config(tmp_path / "config.toml") == client
    assert load_node_config(tmp_path / "node.toml") == node
    assert stat.S_IMODE((tmp_path / "node.toml").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('name = "a"', "network"),
        ('name = "a"\nnetwork = "n"\nport = 70000', "port"),
        ('name = "a"\nnetwork = "n"\nport = "7000"', "port"),
        ('name = "a"\nnetwork = "n"\nroles = ["king"]', "roles"),
        ('name = "a"\nnetwork = "n"\nroles = []', "roles"),
        ('name = "../a"\nnetwork = "n"', "name"),
        ('name = "a"\nnetwork = "n"\ncapacity_bytes = -1', "capacity_bytes"),
        ('name = "a"\nnetwork = "n"\nbootstrap = ["nobody"]', "bootstrap"),
        ('name = "a"\nnetwork = "n"\ncapacity = 1', "capacity"),
        ('name = "a"\nnetwork = "n"\nmemory_bytes_max = 1e300', "memory_bytes_max"),
    ],
)
def test_a_bad_value_is_refused_naming_file_and_key(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_node_config(path)
    assert str(path) in caught.value.message
    assert key in caught.value.message


@pytest.mark.parametrize(
    "address", ["nobody", f"{NODE}@", f"{NODE}@host", f"{NODE}@host:0", f"{NODE[:-1]}1@host:1", "127.0.0.1:7001"]
)
def test_a_ledger_that_is_no_node_address_is_refused(tmp_path: Path, address: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'network = "n"\nledger = "{address}"\n')
    with pytest.raises(ConfigError) as caught:
        load_client_config(path)
    assert str(path) in caught.value.message


def test_a_home_without_a_ledger_is_a_home(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('network = "n"\n')
    assert load_client_config(path).ledger == ""


@given(st.binary(max_size=200))
def test_foreign_bytes_are_a_config_error_or_a_configuration(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.toml"
    path.write_bytes(b'network = "n"\n' + raw)
    with suppress(ConfigError):
        assert load_client_config(path).network == "n"


def test_what_could_not_be_read_again_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name"):
        write_node_config(tmp_path / "node.toml", NodeConfig(name='a"\n', network="n"))
    assert not list(tmp_path.iterdir())


def test_addresses_are_split_and_nonsense_is_refused() -> None:
    assert parse_node_address(f"{NODE}@127.0.0.1:7001") == (bytes(range(32)), "127.0.0.1", 7001)
    assert parse_host_port("[::1]:80") == ("::1", 80)
    for text in ("", "host", "host:", ":80", "::1:80", "[host]:80", "h:0", "h:65536", "h:٣", "h:-1", f"{NODE}:1"):
        with pytest.raises(InputError):
            parse_node_address(text)
    for text in ("", "host", "host:", ":80", "::1:80", "h:0", "h:65536", "h:٣", "h:-1"):
        with pytest.raises(InputError):
            parse_host_port(text)


def test_the_home_is_the_option_then_the_variable_then_the_dot_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDS_HOME", str(tmp_path / "variable"))
    assert home_path(tmp_path / "option") == tmp_path / "option"
    assert home_path() == tmp_path / "variable"
    monkeypatch.delenv("DDS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home_path() == tmp_path / ".dds"


def test_a_new_home_is_closed_to_others_and_not_connected(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "a" / "b")
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700
    with pytest.raises(ConfigError, match="not connected"):
        home.client_config()


def test_a_home_that_others_can_write_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chmod(shared, 0o777)
    with pytest.raises(ConfigError, match="written by others"):
        Home.open(shared)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="not a directory"):
        Home.open(tmp_path / "file")


def test_a_torn_state_file_is_no_state(tmp_path: Path) -> None:
    node = NodeHome(tmp_path)
    assert node.read_state() is None
    state = NodeState(pid=7, id=NODE, address="127.0.0.1:7001")
    node.write_state(state)
    assert node.read_state() == state
    node.state_file.write_bytes(node.state_file.read_bytes()[:-3])
    assert node.read_state() is None

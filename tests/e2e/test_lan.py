"""On one LAN (here the loopback): a home that knows no address at all reads what a devnet stores."""

from __future__ import annotations

from pathlib import Path

import pytest

from dds.storage.home import ClientConfig, NodeHome, load_node_config, private_directory, write_client_config
from tests.e2e.devnet_cli import Program, running_devnet
from tests.e2e.node_process import NodeProcess
from tests.lan_multicast import LOOPBACK, need_multicast

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("lan")]  # they would hear each other


def test_get_on_the_lan_needs_no_bootstrap(tmp_path: Path) -> None:
    need_multicast()
    content = bytes(range(256)) * 500
    (tmp_path / "file").write_bytes(content)
    with running_devnet(tmp_path / "home", "--nodes", "8") as program:
        cid = program.text("put", tmp_path / "file").split()[0]
        known = load_node_config(NodeHome(next(iter((tmp_path / "home" / "devnet" / "nodes").iterdir()))).config_file)
        shared = {"network": known.network, "bootstrap": known.bootstrap, "dht_bootstrap": known.dht_bootstrap}
        with NodeProcess(tmp_path / "found", lan=True, **shared) as node:
            home = private_directory(tmp_path / "reader")
            write_client_config(home / "config.toml", ClientConfig(known.network, lan=True, lan_host=LOOPBACK))
            reader = Program(home)
            reader.run("get", cid, "-o", tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == content
            (check,) = [each for each in reader.json("doctor")["checks"] if each["name"] == "lan"]
            assert check["grade"] == "ok"
            assert "1 of 1 nodes found answer" in check["found"]
            assert node.stop() == 0

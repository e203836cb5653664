"""The directory of one ledger host, and its configuration file.

    ROOT/  0700
      ledger.toml     the engine, its address, and what the engine needs
      genesis.bin     what the ledger began with: the same file at every host, byte for byte
      ledger.key      the host's Ed25519 seed, 0600: its NodeID is what clients pin
      ledger.sqlite   state, blocks and events
      ledger.log, state.json

Decides names and limits; does not decide what an engine does with its options.
Source: docs/operate/ledger-embedded.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from dds.ledger.genesis import GENESIS_BYTES_MAX, Genesis
from dds.primitives.errors import ConfigError, FormatError
from dds.storage.home import Host, Port, load_config, private_directory, write_atomic, write_config
from dds.storage.keyfile import load_or_create_key
from dds.wire.codec import decode, encode

SERVERS_MAX: Final = 16
Url = Annotated[str, msgspec.Meta(pattern=r"^[a-z]+://[!-~]{1,256}$")]
HostID = Annotated[str, msgspec.Meta(pattern=r"^[a-z2-7]{52}$")]


@dataclass(frozen=True, slots=True)
class LedgerConfig:
    """ledger.toml."""

    engine: Literal["embedded", "nats"] = "embedded"
    host: Host = "127.0.0.1"  # bound; never all interfaces unless the operator writes so
    port: Port = 0  # 0: any free one at the first start, kept from then on
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    nats_servers: Annotated[tuple[Url, ...], msgspec.Meta(max_length=SERVERS_MAX)] = ()
    nats_sequencers: Annotated[tuple[HostID, ...], msgspec.Meta(max_length=SERVERS_MAX)] = ()  # the same list at each host


@dataclass(frozen=True, slots=True)
class LedgerState:
    """state.json: written by a running host once it serves, removed at a clean stop."""

    pid: int
    id: str  # the host's NodeID in text form
    address: str  # host:port
    network: str
    engine: str
    started_ms: int


@dataclass(frozen=True, slots=True)
class LedgerHome:
    """The files of one host."""

    root: Path

    @property
    def config_file(self) -> Path:
        return self.root / "ledger.toml"

    @property
    def genesis_file(self) -> Path:
        return self.root / "genesis.bin"

    @property
    def key_file(self) -> Path:
        return self.root / "ledger.key"

    @property
    def store_file(self) -> Path:
        return self.root / "ledger.sqlite"

    @property
    def log_file(self) -> Path:
        return self.root / "ledger.log"

    @property
    def state_file(self) -> Path:
        return self.root / "state.json"

    def config(self) -> LedgerConfig:
        """
        Raises:
            ConfigError: naming the file and the key.
        """
        return load_config(self.config_file, LedgerConfig)

    def write_config(self, config: LedgerConfig) -> None:
        write_config(self.config_file, config)

    def genesis(self) -> Genesis:
        """
        Raises:
            ConfigError: missing, too large, or not a genesis in its one canonical form.
        """
        try:
            with self.genesis_file.open("rb") as file:
                raw = file.read(GENESIS_BYTES_MAX + 1)
            genesis = decode(raw, Genesis, max_bytes=GENESIS_BYTES_MAX)
        except OSError as error:
            raise ConfigError(f"cannot read {self.genesis_file}: {error.strerror}") from None
        except FormatError as error:
            raise ConfigError(f"{self.genesis_file}: {error.message}") from None
        if encode(genesis) != raw:
            raise ConfigError(f"{self.genesis_file} is not in its canonical form")
        return genesis

    def read_state(self) -> LedgerState | None:
        """What the host wrote last; None when there is none. It does not prove that the process still lives."""
        try:
            return msgspec.json.decode(self.state_file.read_bytes(), type=LedgerState)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def write_state(self, state: LedgerState) -> None:
        write_atomic(self.state_file, msgspec.json.encode(state))


def create_ledger_home(root: Path, genesis: Genesis, config: LedgerConfig | None = None) -> LedgerHome:
    """Lay out a host's directory; `python -m dds.runtime.ledger_daemon --home ROOT` then runs it.

    Raises:
        ConfigError: there is a ledger already.
    """
    home = LedgerHome(private_directory(root))
    if home.genesis_file.exists():
        raise ConfigError(f"{root} is the home of a ledger already")
    load_or_create_key(home.key_file)
    home.write_config(config or LedgerConfig())
    write_atomic(home.genesis_file, encode(genesis))
    return home

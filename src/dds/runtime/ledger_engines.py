"""Which engine a ledger's configuration means: the one place that knows them all.

Decides nothing but that. Engines are imported when they are asked for: one host carries one of them.
"""

from __future__ import annotations

from pathlib import Path

from dds.engines.port import Engine
from dds.engines.replica import Replica
from dds.ledger.genesis import Genesis
from dds.primitives.errors import ConfigError
from dds.primitives.ids import parse_id
from dds.primitives.keys import SigningKey
from dds.storage.ledger_home import LedgerConfig


def open_engine(config: LedgerConfig, path: Path, genesis: Genesis, key: SigningKey) -> Engine:
    """The engine of a host whose ledger is the file `path`; `key` is the host's. It is not started yet. May take seconds.

    Raises:
        ConfigError: what the engine needs is missing, or the file is another network's ledger, or in use.
        StorageError: the disk failed.
    """
    match config.engine:
        case "embedded":
            from dds.engines.embedded import EmbeddedEngine

            return EmbeddedEngine(Replica.open(path, genesis, engine=config.engine))
        case "nats":
            return _open_nats(config, path, genesis, key)


def _open_nats(config: LedgerConfig, path: Path, genesis: Genesis, key: SigningKey) -> Engine:
    from dds.engines.nats import NatsEngine
    from dds.engines.nats_log import NatsLog

    if not config.nats_servers:
        raise ConfigError("the engine is nats, and nats_servers names no server", hint='nats_servers = ["nats://host:4222"]')
    sequencers = [parse_id(text, "sequencer") for text in config.nats_sequencers] or [key.public]
    log = NatsLog(config.nats_servers, genesis.network)
    return NatsEngine(Replica.open(path, genesis, engine=config.engine), key, sequencers, log)

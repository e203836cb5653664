"""A local net of CometBFT validators: their files, their processes, found by pid.

Decides the configuration that DDS wants of CometBFT (block and transaction sizes, empty blocks so that time goes on, nothing
indexed, nothing bound but loopback) and the genesis document that follows from ours. For tests and the devnet; an operator
among strangers makes keys with CometBFT itself and takes the same settings (docs/operate/ledger-cometbft.md).
Source: CometBFT v0.38, docs/core/configuration.md.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dds.engines.abci_app import app_state, chain_id
from dds.ledger.genesis import Genesis
from dds.primitives.errors import ConfigError
from dds.primitives.hashing import sha256
from dds.primitives.keys import SEED_BYTES, SigningKey
from dds.primitives.units import MIB
from dds.wire.ledger import TX_BYTES_MAX

BINARY_VARIABLE: Final = "DDS_COMETBFT"
BINARY_IN_TREE: Final = Path(".tools/bin/cometbft")  # `make cometbft` puts it there
BLOCK_BYTES_MAX: Final = 4 * MIB
MEMPOOL_TXS_MAX: Final = 20_000
MEMPOOL_BYTES_MAX: Final = 64 * MIB
VOTING_POWER: Final = 10
BLOCKS_PER_EPOCH_MIN: Final = 4  # empty ones, so that an epoch's end is late by a quarter of it at most
EMPTY_BLOCK_MS: Final = (250, 60_000)  # the least and the most between empty blocks


@dataclass(frozen=True, slots=True)
class Timing:
    """Of consensus, in ms. The defaults are for one machine; over the internet CometBFT's own (3000, 1000, 1000) are right."""

    propose_ms: int = 1000
    vote_ms: int = 300
    commit_ms: int = 200


@dataclass(frozen=True, slots=True)
class CometNode:
    """One validator in `home`. Ports are on 127.0.0.1; `proxy_app` is where it finds its application."""

    home: Path
    p2p_port: int
    rpc_port: int
    proxy_app: str

    @property
    def rpc(self) -> str:
        return f"http://127.0.0.1:{self.rpc_port}"

    @property
    def log_file(self) -> Path:
        return self.home / "cometbft.log"


def find_binary() -> Path | None:
    """$DDS_COMETBFT, else .tools/bin/cometbft under the working directory, else the PATH's."""
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        return Path(named)
    if BINARY_IN_TREE.is_file():
        return BINARY_IN_TREE.absolute()
    found = shutil.which("cometbft")
    return None if found is None else Path(found)


def lay_out(nodes: Sequence[CometNode], genesis: Genesis, *, genesis_time_ms: int, timing: Timing = Timing()) -> None:
    """Write every validator's keys, configuration and the one genesis document.

    Raises:
        ConfigError: one of the homes is there already.
    """
    keys = [SigningKey(secrets.token_bytes(SEED_BYTES)) for _ in nodes]
    peer_keys = [SigningKey(secrets.token_bytes(SEED_BYTES)) for _ in nodes]
    peers = [f"{_address(key)}@127.0.0.1:{node.p2p_port}" for node, key in zip(nodes, peer_keys, strict=True)]
    document = _genesis_document(genesis, [key.public for key in keys], genesis_time_ms)
    for number, node in enumerate(nodes):
        if node.home.exists():
            raise ConfigError(f"{node.home} is there already")
        for name in ("config", "data"):
            (node.home / name).mkdir(mode=0o700, parents=True)
        others = [peer for at, peer in enumerate(peers) if at != number]
        _write(node.home / "config/config.toml", _config(node, others, genesis.params.epoch_ms, timing))
        _write(node.home / "config/genesis.json", json.dumps(document, indent=1))
        _write(node.home / "config/node_key.json", json.dumps({"priv_key": _private(peer_keys[number])}))
        _write(node.home / "config/priv_validator_key.json", json.dumps(_validator_key(keys[number])))
        _write(node.home / "data/priv_validator_state.json", '{"height": "0", "round": 0, "step": 0}')


def command(home: Path, binary: Path) -> list[str]:
    """The command line, by which a validator is also recognised (runtime/processes.py)."""
    return [str(binary), "start", "--home", str(home)]


def start(node: CometNode, binary: Path) -> subprocess.Popen[bytes]:
    """Start the validator in a session of its own, its log appended to `log_file`; the caller ends it by its pid.

    Raises:
        ConfigError: the binary cannot be run.
    """
    try:
        with node.log_file.open("ab") as log:
            return subprocess.Popen(
                command(node.home, binary), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
    except OSError as error:
        raise ConfigError(f"cannot run {binary}: {error.strerror}", hint="make cometbft, or set DDS_COMETBFT") from None


def empty_block_ms(epoch_ms: int) -> int:
    """How long CometBFT waits for transactions before it makes a block without."""
    least, most = EMPTY_BLOCK_MS
    return min(max(epoch_ms // BLOCKS_PER_EPOCH_MIN, least), most)


def _config(node: CometNode, peers: Sequence[str], epoch_ms: int, timing: Timing) -> str:
    """What differs from CometBFT's defaults."""
    return f"""\
proxy_app = "{node.proxy_app}"
moniker = "{node.home.name}"
log_level = "info"

[rpc]
laddr = "tcp://127.0.0.1:{node.rpc_port}"
pprof_laddr = ""

[p2p]
laddr = "tcp://127.0.0.1:{node.p2p_port}"
persistent_peers = "{",".join(peers)}"
addr_book_strict = false
allow_duplicate_ip = true
pex = false

[mempool]
size = {MEMPOOL_TXS_MAX}
max_txs_bytes = {MEMPOOL_BYTES_MAX}
max_tx_bytes = {TX_BYTES_MAX}
cache_size = {2 * MEMPOOL_TXS_MAX}

[consensus]
timeout_propose = "{timing.propose_ms}ms"
timeout_prevote = "{timing.vote_ms}ms"
timeout_precommit = "{timing.vote_ms}ms"
timeout_commit = "{timing.commit_ms}ms"
create_empty_blocks = true
create_empty_blocks_interval = "{empty_block_ms(epoch_ms)}ms"

[tx_index]
indexer = "null"
"""


def _genesis_document(genesis: Genesis, validators: Sequence[bytes], time_ms: int) -> dict[str, object]:
    return {
        "genesis_time": datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "chain_id": chain_id(genesis),
        "initial_height": "1",
        "consensus_params": {
            "block": {"max_bytes": str(BLOCK_BYTES_MAX), "max_gas": "-1"},
            "evidence": {"max_age_num_blocks": "100000", "max_age_duration": "172800000000000", "max_bytes": "1048576"},
            "validator": {"pub_key_types": ["ed25519"]},
            "version": {"app": "0"},
            "abci": {"vote_extensions_enable_height": "0"},
        },
        "validators": [{"pub_key": _public(key), "power": str(VOTING_POWER), "name": ""} for key in validators],
        "app_hash": "",
        "app_state": app_state(genesis),
    }


def _validator_key(key: SigningKey) -> dict[str, object]:
    return {"address": _address(key).upper(), "pub_key": _public(key.public), "priv_key": _private(key)}


def _public(key: bytes) -> dict[str, str]:
    return {"type": "tendermint/PubKeyEd25519", "value": base64.b64encode(key).decode()}


def _private(key: SigningKey) -> dict[str, str]:
    return {"type": "tendermint/PrivKeyEd25519", "value": base64.b64encode(key.seed + key.public).decode()}


def _address(key: SigningKey) -> str:
    return sha256(key.public)[:20].hex()


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)

"""Real CometBFT validators for tests, each with an application of its own; nothing is left behind whatever the test does."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dds.engines.comet_net import CometNode, Timing, find_binary, lay_out, start
from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount
from dds.ledger.params import devnet_params
from dds.primitives.keys import SigningKey
from dds.wire.codec import encode

BINARY = find_binary()
needs_cometbft = pytest.mark.skipif(
    BINARY is None, reason="no CometBFT here: `make cometbft` builds it where Go is, or name a binary in DDS_COMETBFT"
)
FAST = Timing(propose_ms=600, vote_ms=200, commit_ms=100)
KEYS = tuple(SigningKey(bytes([number]) * 32) for number in range(1, 9))
NETWORK = "comet"
STEP_S = 0.05
END_S = 10.0


def genesis_now(epoch_ms: int = 2_000) -> Genesis:
    """KEYS have a million units each; epoch 0 begins now."""
    params = devnet_params(time.time_ns() // 1_000_000, epoch_ms)
    return Genesis(GENESIS_VERSION, NETWORK, params, tuple(GenesisAccount(key.public, 10**6) for key in KEYS))


@dataclass
class Member:
    """A validator and its application. The application of one that a test plays itself is not started here."""

    node: CometNode
    store: Path
    genesis_file: Path
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start_app(self, *fault: object) -> None:
        argv = [sys.executable, "-m", "tests.comet_app", str(self.store), str(self.genesis_file), self.node.proxy_app]
        self.processes["app"] = subprocess.Popen([*argv, *map(str, fault)], stdin=subprocess.DEVNULL)
        wait_until(self._app_listens, 30, f"{self.node.home.name}'s application to listen")

    def start_comet(self) -> None:
        assert BINARY is not None
        self.processes["comet"] = start(self.node, BINARY)

    def kill(self) -> None:
        """SIGKILL, both at once; returns when they are gone."""
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait(END_S)
        self.processes.clear()

    def forget(self) -> None:
        """Empty the ledger and CometBFT's blocks, as an operator does after a divergence; the votes it cast stay known."""
        for file in self.store.parent.glob(self.store.name + "*"):
            file.unlink()
        assert BINARY is not None
        subprocess.run([BINARY, "reset-state", "--home", self.node.home], check=True, stdout=subprocess.DEVNULL)

    def rpc(self, method: str) -> Any:
        with urllib.request.urlopen(f"{self.node.rpc}/{method}", timeout=5) as answer:
            return json.load(answer)["result"]

    def committed(self) -> tuple[int, bytes]:
        """Height and root of its application; (-1, empty) while it does not answer."""
        try:
            response = self.rpc("abci_info")["response"]
        except (OSError, KeyError):
            return -1, b""
        return int(response.get("last_block_height", 0)), base64.b64decode(response.get("last_block_app_hash", ""))

    @property
    def height(self) -> int:
        return self.committed()[0]

    def log_text(self) -> str:
        return self.node.log_file.read_text(errors="replace")

    def _app_listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
            probe.connect(self.node.proxy_app.removeprefix("unix://"))
            return True
        assert self.processes["app"].poll() is None, "the application ended"
        return False


@contextmanager
def comet_net(count: int, genesis: Genesis) -> Iterator[list[Member]]:
    """`count` validators laid out, none started. Their homes are in a directory with a short name: sockets need that."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dds-comet-")))
        genesis_file = home / "genesis"
        genesis_file.write_bytes(encode(genesis))
        ports = free_ports(2 * count)
        members = []
        for number in range(count):
            node = CometNode(home / f"c{number}", ports[2 * number], ports[2 * number + 1], f"unix://{home}/app{number}.sock")
            members.append(Member(node, home / f"ledger{number}", genesis_file))
            stack.callback(members[-1].kill)
        lay_out([member.node for member in members], genesis, genesis_time_ms=genesis.params.genesis_ms, timing=FAST)
        yield members


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(STEP_S)

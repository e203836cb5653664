"""Accepts connections, finishes their TLS handshakes within limits and sweeps out those that last too long.

Decides: nothing by itself; it applies connections.py to real sockets. HTTP is aiohttp's, behind `protocol_factory`. Connections
are counted from accept() on, so half-open ones and those that never finish a handshake are limited too.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

from dds.primitives.errors import ConfigError
from dds.transport.connections import Connection, ConnectionTable
from dds.transport.limits import ServerCounters, ServerLimits

BACKLOG: Final = 256
SWEEP_S: Final = 0.5
TLS_CLOSE_TIMEOUT_S: Final = 1.0
OUT_OF_FILES_PAUSE_S: Final = 0.1
_OUT_OF: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))

_log = logging.getLogger(__name__)


class Listener:
    """One listening socket and the connections that came in through it."""

    def __init__(
        self,
        context: ssl.SSLContext,
        limits: ServerLimits,
        counters: ServerCounters,
        protocol_factory: Callable[[Connection], asyncio.Protocol],
        is_pressed: Callable[[], bool],
    ) -> None:
        self.table = ConnectionTable(limits, counters)
        self._context = context
        self._limits = limits
        self._counters = counters
        self._protocol_factory = protocol_factory
        self._is_pressed = is_pressed
        self._socket: socket.socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._handshakes: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> int:
        """Bind exactly one address of `host`, begin to accept, return the port.

        Raises:
            ConfigError: no such address here, or the port is taken.
        """
        loop = asyncio.get_running_loop()
        try:
            family, kind, protocol, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
            self._socket = _listen(family, kind, protocol, address)
        except OSError as error:
            raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
        self._tasks = [loop.create_task(self._accept(self._socket)), loop.create_task(self._sweep())]
        return int(self._socket.getsockname()[1])

    async def close(self) -> None:
        """Stop accepting and abandon unfinished handshakes; finished connections stay."""
        tasks = [*self._tasks, *self._handshakes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _OUT_OF:  # the connection stays in the kernel's queue; trying again at once would spin
                    _log.warning("cannot accept connections: %s", error.strerror)
                    await asyncio.sleep(OUT_OF_FILES_PAUSE_S)
                continue
            connection = Connection(str(address[0]), lambda: None, loop.time())
            if not self.table.admit(connection, loop.time()):
                accepted.close()
                continue
            task = loop.create_task(self._handshake(accepted, connection))
            connection.abort = _canceller(task)
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _handshake(self, accepted: socket.socket, connection: Connection) -> None:
        """Up to the end of the handshake; from then on the connection's life is its protocol's, which ends it in the table."""
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                lambda: self._protocol_factory(connection),
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.handshake_timeout_s,
                ssl_shutdown_timeout=TLS_CLOSE_TIMEOUT_S,
            )
        except (OSError, asyncio.CancelledError) as error:  # ssl.SSLError and timeouts are OSErrors
            self._counters.handshakes_failed += 1
            self.table.remove(connection)
            accepted.close()
            _log.debug("no handshake with %s: %s", connection.address, error)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            self.table.cut_overdue(loop.time(), pressed=self._is_pressed())


def _canceller(task: asyncio.Task[None]) -> Callable[[], None]:
    def cancel() -> None:
        task.cancel()

    return cancel


def _listen(family: int, kind: int, protocol: int, address: object) -> socket.socket:
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setblocking(False)
        listening.bind(address)  # type: ignore[arg-type]  # as getaddrinfo gave it for this family
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening

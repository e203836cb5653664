"""The socket that CometBFT dials: four connections, each answered in the order of its requests.

Decides where requests run (all on one thread, so that the application needs no locks) and when a connection ends: at the first
bytes that are no request, and at the first request that has no truthful answer. CometBFT stops when a connection of its own
ends, which is right: a validator that can't tell its state must not vote.
Source: CometBFT v0.38, spec/abci/abci++_client_server.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from dds.engines.abci_app import Application
from dds.engines.abci_pb2 import Request, Response, ResponseException
from dds.engines.abci_wire import Frames, frame
from dds.primitives.errors import ConfigError, DDSError, FormatError
from dds.primitives.units import KIB

READ_BYTES: Final = 256 * KIB
CONNECTIONS_MAX: Final = 16  # CometBFT has four; a restarted one may overlap with its predecessor
SOCKET_PATH_BYTES_MAX: Final = 100  # the kernel's limit is 108

_log = logging.getLogger(__name__)


class AbciServer:
    """`address`: unix:///path (the directory must be the operator's own), or tcp://127.0.0.1:port; port 0 takes a free one."""

    def __init__(self, application: Application, address: str) -> None:
        self._application = application
        self._address = address
        self._thread = ThreadPoolExecutor(1, "abci")
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Bind and begin to answer; the address as bound.

        Raises:
            ConfigError: no such address, or it is taken.
        """
        problem = f"{self._address!r} is no address for CometBFT"
        try:
            parts = urlsplit(self._address)
            if parts.scheme == "unix":
                return await self._listen_unix(Path(parts.path))
            if parts.scheme == "tcp" and parts.port is not None and ip_address(parts.hostname or "").is_loopback:
                self._server = await asyncio.start_server(self._serve, parts.hostname, parts.port)
                return "tcp://{}:{}".format(*self._server.sockets[0].getsockname()[:2])
        except ValueError as error:
            problem += f": {error}"
        except OSError as error:
            raise ConfigError(f"cannot listen on {self._address}: {error.strerror or error}") from None
        raise ConfigError(problem, hint="unix:///path or tcp://127.0.0.1:port; whoever can dial it is believed")

    async def stop(self) -> None:
        """Let the answer under way be finished, then end every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)

    async def _listen_unix(self, path: Path) -> str:
        if len(str(path).encode()) > SOCKET_PATH_BYTES_MAX:
            raise ConfigError(f"{path} is too long for a socket's name", hint="use tcp://127.0.0.1:port")
        if path.is_socket():  # left by a process that was killed; two servers of one state are kept apart by the state's lock
            path.unlink()
        self._server = await asyncio.start_unix_server(self._serve, path)
        path.chmod(0o600)
        return self._address

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= CONNECTIONS_MAX:
            _log.warning("more than %d connections from CometBFT; the newest is closed", CONNECTIONS_MAX)
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass  # CometBFT went away, or we stop
        finally:
            self._connections.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either side ends it. Whatever came in one read is answered in one write: a Flush needs nothing more."""
        loop, frames = asyncio.get_running_loop(), Frames()
        while data := await reader.read(READ_BYTES):
            frames.feed(data)
            requests: list[Request] = []
            broken = _gather(frames, requests)
            answers, failed = await loop.run_in_executor(self._thread, self._answer, requests)
            writer.write(answers)
            await writer.drain()
            if broken is not None:
                _log.error("a connection to CometBFT is closed: %s", broken.message)
            if broken is not None or failed:
                return

    def _answer(self, requests: Sequence[Request]) -> tuple[bytes, bool]:
        """The answers as frames, and whether the last of them is that there is none."""
        answers = bytearray()
        for request in requests:
            try:
                answers += frame(self._application.answer(request))
            except Exception as error:  # ours or not: unanswered, CometBFT would wait for ever; told so, it stops and says why
                _log.error("cannot answer CometBFT's %s", request.WhichOneof("value"), exc_info=not isinstance(error, DDSError))
                answers += frame(Response(exception=ResponseException(error=str(error))))
                return bytes(answers), True
        return bytes(answers), False


def _gather(frames: Frames, requests: list[Request]) -> FormatError | None:
    """Take the whole requests; what is wrong with the bytes behind them, if anything."""
    try:
        requests.extend(frames.requests())
    except FormatError as error:
        return error
    return None

"""A second way to nodes that cannot be dialled: TCP connections carried over iroh (QUIC, hole punching, relays).

Decides how a connection of the peer protocol travels between two iroh endpoints. What travels is the same TLS 1.3 stream as
ever, so identity, limits and messages are those of the first transport (docs/spec/identity.md), and nothing that iroh or a
relay says is believed: whoever answers must still prove the NodeID that was dialled. A node's iroh id is its NodeID: both are
the Ed25519 key.

    client -> 127.0.0.1 (a port for each node) -> QUIC stream -> the node's endpoint -> the node's own server port

One QUIC connection a node, one stream for each TCP connection. Source: docs/spec/nat.md; ADR 0030; iroh 1.x.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dds.primitives.errors import ConfigError, PeerUnreachable
from dds.primitives.ids import NodeID, id_text
from dds.primitives.keys import SigningKey
from dds.primitives.units import KIB

if TYPE_CHECKING:
    import iroh

log = logging.getLogger(__name__)

ALPN: Final = b"dds/tcp/1"
CONNECT_S: Final = 15.0  # hole punching and a relay's detour included
CLOSE_S: Final = 3.0
PIECE_BYTES: Final = 64 * KIB
NODES_MAX: Final = 256  # that a client keeps a way to
STREAMS_PER_CONNECTION_MAX: Final = 32
CONNECTIONS_MAX: Final = 256  # that an endpoint accepts at the same time
CONNECTIONS_PER_KEY_MAX: Final = 8  # of those

Address = tuple[str, int]
Hints = Callable[[NodeID], Sequence[str]]  # what a node's record says: "https://..." relays, "host:port" of its UDP socket


@dataclass(slots=True, eq=False)
class _Caller:
    """One connection that came in."""

    connection: iroh.Connection | None = None  # None until it is made
    key: bytes = b""
    streams: int = 0
    idle_since_s: float = 0.0


class IrohLink:
    """One iroh endpoint with our own key. `start`, then `serve` and `way_to` as needed, `stop` at the end."""

    def __init__(self, key: SigningKey, hints: Hints, *, relays: Sequence[str] = ()) -> None:
        """
        Raises:
            ConfigError: iroh is not installed.
        """
        self._iroh = _import_iroh()
        self._key, self._hints, self._relays = key, hints, tuple(relays)
        self._endpoint: iroh.Endpoint | None = None
        self._connections: dict[NodeID, asyncio.Task[iroh.Connection]] = {}
        self._doors: dict[NodeID, asyncio.Task[asyncio.Server]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._callers: set[_Caller] = set()

    async def start(self, host: str, port: int = 0) -> None:
        """Bind the endpoint's UDP socket.

        Raises:
            ConfigError: the address or a relay cannot be used.
        """
        iroh = self._iroh
        builder = iroh.EndpointBuilder()
        builder.apply_minimal()
        builder.secret_key(self._key.seed)
        builder.alpns([ALPN])
        try:
            mode = iroh.RelayMode.custom_from_urls(list(self._relays)) if self._relays else iroh.RelayMode.disabled()
            builder.relay_mode(mode)
            builder.bind_addr(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
            self._endpoint = await builder.bind()
        except iroh.IrohError as error:
            raise ConfigError(f"iroh cannot use {host}:{port} with {len(self._relays)} relays: {error}") from None

    @property
    def addresses(self) -> list[str]:
        """What the own node record says: the relays, then where the UDP socket is bound."""
        assert self._endpoint is not None
        return [*self._relays, *self._endpoint.addr().direct_addresses()]

    async def stop(self) -> None:
        for door in self._doors.values():
            _close(door)
        waiting = [*self._tasks, *self._connections.values()]
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        self._doors.clear()
        self._connections.clear()
        if self._endpoint is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._endpoint.close()

    # -- being reached --------------------------------------------------------------------------------------------------------

    def serve(self, target: Address) -> None:
        """Carry every stream that comes to `target`: the node's own server."""
        self._spawn(self._accept(target))

    async def _accept(self, target: Address) -> None:
        assert self._endpoint is not None
        while (incoming := await self._endpoint.accept_next()) is not None:
            if len(self._callers) >= CONNECTIONS_MAX and not self._drop_idlest(self._callers):
                with contextlib.suppress(self._iroh.IrohError):  # it may have gone by itself: others are still to be let in
                    await incoming.refuse()
                continue
            caller = _Caller()
            self._callers.add(caller)
            self._spawn(self._carry_all(caller, incoming, target))

    def _drop_idlest(self, among: Iterable[_Caller]) -> bool:
        """Close a connection that carries nothing: of the key that has the most of them, the one that is idle for longest.
        Whoever has but one is the last to lose it, and a client whose connection died makes another."""
        idle = [caller for caller in among if caller.connection is not None and not caller.streams]
        if not idle:
            return False
        held = Counter(caller.key for caller in idle)
        victim = min(idle, key=lambda caller: (-held[caller.key], caller.idle_since_s))
        self._callers.discard(victim)
        assert victim.connection is not None
        victim.connection.close(0, b"idle")
        return True

    async def _carry_all(self, caller: _Caller, incoming: iroh.Incoming, target: Address) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                connection = await (await incoming.accept()).connect()
            key = bytes(connection.remote_id().to_bytes())
            others = [other for other in self._callers if other.key == key]
            if len(others) >= CONNECTIONS_PER_KEY_MAX and not self._drop_idlest(others):
                connection.close(0, b"too many")
                return
            caller.connection, caller.key, caller.idle_since_s = connection, key, asyncio.get_running_loop().time()
            connection.set_max_concurrent_bi_streams(STREAMS_PER_CONNECTION_MAX)
            while True:
                stream = await connection.accept_bi()
                caller.streams += 1
                self._spawn(self._carry_one(caller, stream, target))
        except (self._iroh.IrohError, TimeoutError) as error:
            log.debug("an iroh connection ended: %s", error)
        finally:
            self._callers.discard(caller)

    async def _carry_one(self, caller: _Caller, stream: iroh.BiStream, target: Address) -> None:
        try:
            await self._carry_to(stream, target)
        finally:
            caller.streams -= 1
            caller.idle_since_s = asyncio.get_running_loop().time()

    async def _carry_to(self, stream: iroh.BiStream, target: Address) -> None:
        try:
            reader, writer = await asyncio.open_connection(*target)
        except OSError as error:
            log.warning("the node's own port does not answer: %s", error)
            with contextlib.suppress(self._iroh.IrohError):
                await stream.send().reset(1)
            return
        await _splice(stream, reader, writer)

    # -- reaching -------------------------------------------------------------------------------------------------------------

    async def way_to(self, node: NodeID) -> Address | None:
        """A local address behind which the node's server answers; None where the node has no endpoint that we know of."""
        if not self._hints(node) or self._endpoint is None:
            return None
        door = self._doors.get(node)
        if door is None:
            if len(self._doors) >= NODES_MAX:
                self._shut(next(iter(self._doors)))
            door = self._doors[node] = asyncio.create_task(self._open_door(node))
        await asyncio.wait((door,))  # cancelled with another, or failed: this node has no door now, and may have one later
        if door.cancelled() or door.exception() is not None:
            if self._doors.get(node) is door:
                del self._doors[node]
            return None
        host, port = door.result().sockets[0].getsockname()[:2]
        return str(host), int(port)

    async def _open_door(self, node: NodeID) -> asyncio.Server:
        async def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                stream = await self._stream_to(node)
            except PeerUnreachable as error:
                log.info("%s", error.message)
                writer.close()
                return
            await _splice(stream, reader, writer)

        return await asyncio.start_server(enter, "127.0.0.1", 0)

    def _shut(self, node: NodeID) -> None:
        door = self._doors.pop(node)
        self._connections.pop(node, None)  # it ends with its last stream
        _close(door)

    async def _stream_to(self, node: NodeID) -> iroh.BiStream:
        """On the connection that is there; on a new one where that has died.

        Raises:
            PeerUnreachable
        """
        error: Exception | None = None
        for _ in range(2):
            task = self._connections.get(node)
            if task is None:
                task = self._connections[node] = asyncio.create_task(self._connect(node))
            try:
                async with asyncio.timeout(CONNECT_S):
                    return await (await asyncio.shield(task)).open_bi()
            except (self._iroh.IrohError, TimeoutError) as failure:
                error = failure
                if self._connections.get(node) is task:
                    del self._connections[node]
        raise PeerUnreachable(f"not reached over iroh: {error or 'no answer in time'}", peer=id_text(node))

    async def _connect(self, node: NodeID) -> iroh.Connection:
        iroh = self._iroh
        assert self._endpoint is not None
        hints = self._hints(node)
        relay = next((hint for hint in hints if hint.startswith("https://")), None)
        direct = [hint for hint in hints if not hint.startswith("https://")]
        target = iroh.EndpointAddr(iroh.EndpointId.from_bytes(bytes(node)), relay, direct)
        async with asyncio.timeout(CONNECT_S):
            return await self._endpoint.connect(target, ALPN)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _close(door: asyncio.Task[asyncio.Server]) -> None:
    door.cancel()
    if door.done() and not door.cancelled() and door.exception() is None:
        door.result().close()


async def _splice(stream: iroh.BiStream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Both directions until the local one has ended; what one side breaks off is broken off for the other. TLS knows no half of
    a connection: when the local server or client has closed, nothing that still comes has a taker, and a stranger that never
    ends its stream must not keep a socket here."""
    inward = asyncio.create_task(_from_stream(stream.recv(), writer))
    outward = asyncio.create_task(_to_stream(reader, stream.send()))
    try:
        done, _ = await asyncio.wait((inward, outward), return_when=asyncio.FIRST_COMPLETED)
        if outward not in done and inward.exception() is None:
            done, _ = await asyncio.wait((outward,))
        for task in done:
            if (error := task.exception()) is not None:
                log.debug("a connection over iroh ended: %s", error)
    finally:
        for task in (inward, outward):
            task.cancel()
        await asyncio.gather(inward, outward, return_exceptions=True)
        writer.close()


async def _from_stream(source: iroh.RecvStream, writer: asyncio.StreamWriter) -> None:
    while piece := await source.read(PIECE_BYTES):
        writer.write(piece)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def _to_stream(reader: asyncio.StreamReader, sink: iroh.SendStream) -> None:
    while piece := await reader.read(PIECE_BYTES):
        await sink.write_all(piece)
    await sink.finish()


def _import_iroh() -> Any:
    """
    Raises:
        ConfigError: it is not installed.
    """
    try:
        import iroh
        from iroh import iroh_ffi
    except ImportError:
        raise ConfigError("iroh is not installed", hint="pip install 'echonet-dds[nat]', or set iroh = false") from None
    if iroh_ffi._UniffiRustBufferBuilder.write is not _write_bytes:
        setattr(iroh_ffi._UniffiRustBufferBuilder, "write", _write_bytes)  # noqa: B010 - a method of another's class
    return iroh


def _write_bytes(self: Any, value: bytes) -> None:
    """In place of the binding's own, which copies byte by byte in Python: 1 MiB took 0.3 s and takes 0.1 ms."""
    with self._reserve(len(value)):
        start = ctypes.addressof(self.rbuf.data.contents) + self.rbuf.len
        ctypes.memmove(start, bytes(value), len(value))

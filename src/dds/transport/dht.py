"""The distributed hash table: OpenDHT 4.4 behind an asyncio face.

Decides: how OpenDHT is bound, shut down and kept from blocking the event loop, and the limits on keys, values, counts and
time. Does not decide what a value means: values are opaque bytes, and nothing that comes back is trusted here (sealing,
signatures and expiry are wire/discovery.py's, the choice among records protocol/discovery.py's).

Source: OpenDHT's own sources, release 4.4 (python/opendht.pyx, src/dhtrunner.cpp). What they do not document, and what this
module therefore guarantees:

- A DHT thread of OpenDHT's holds its mutex while it waits for the GIL to run a callback, and the binding never releases the
  GIL. Any call that needs that mutex (`registerType`, `getBound`, `join`) is therefore made only when no callback can be
  under way: before the first operation, or after the last one ended. Otherwise both threads would wait for ever.
- A port that cannot be bound ends the whole process (a C++ exception nobody catches): the bind is tried here first.
- `InfoHash(raw)` silently gives the zero key for 20 raw bytes; only the hexadecimal form names a key.
- `cancelListen` releases the callback that was registered *last*, whichever is cancelled; see `_cancel_listen`.
- Values larger than 64 KiB never call back; a callback under way at shutdown may never come: sizes are checked first, and
  every wait has a timeout.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import ipaddress
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from types import ModuleType
from typing import Any

from dds.primitives.errors import ConfigError, LimitError, UnavailableError
from dds.primitives.hashing import tagged_hash

KEY_BYTES = 20
VALUE_BYTES_MAX = 4096  # OpenDHT's own bound is 64 KiB; our records have 250 to 900
VALUES_SEEN_MAX = 8192  # values looked at in one get; a stranger can put thousands under a key
LISTEN_BACKLOG_MAX = 4096  # values of one listener that wait for the event loop
CONCURRENT_GETS_MAX = 32
CONCURRENT_PUTS_MAX = 32
LISTENERS_MAX = 64
GET_TIMEOUT_S = 10.0
PUT_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
EXIT_TIMEOUT_S = 1.0


class ValueType(IntEnum):
    """The kinds of value we store. The number is OpenDHT's type id; every node of a network must register the same."""

    PROVIDER = 0x0DD1
    NODE = 0x0DD2


VALUE_LIFETIME = {ValueType.PROVIDER: timedelta(hours=24), ValueType.NODE: timedelta(minutes=15)}


@dataclass(frozen=True)
class Address:
    host: str  # an IP address; a name is allowed only where we dial
    port: int


def network_number(network: str) -> int:
    """OpenDHT's network id for a network's name: 32 bits, never 0 (which is the public network)."""
    return int.from_bytes(tagged_hash(b"dds/dht-network/v1", network.encode())[:4], "big") or 1


class Listener:
    """A running `listen`. `cancel` may be called any number of times; no callback runs after it returns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._waiting: deque[bytes] = deque()
        self._scheduled = False
        self._cancel: Callable[[], None] | None = None
        self.dropped = 0  # values lost because the event loop did not keep up
        self.closed = False

    def cancel(self) -> None:
        self.closed = True
        self._waiting.clear()
        if self._cancel is not None:
            cancel, self._cancel = self._cancel, None
            cancel()

    def on_value(self, value: Any, expired: bool) -> bool:
        """On OpenDHT's thread."""
        if self.closed or expired:
            return not self.closed
        data: bytes = value.data
        if len(data) > VALUE_BYTES_MAX or len(self._waiting) >= LISTEN_BACKLOG_MAX:
            self.dropped += 1
            return True
        self._waiting.append(data)
        if not self._scheduled:
            self._scheduled = True
            _call_soon(self._loop, self._drain)
        return True

    def _drain(self) -> None:
        self._scheduled = False
        for _ in range(len(self._waiting)):
            if self.closed:
                return
            self._callback(self._waiting.popleft())


class _Get:
    """One get: values are gathered on OpenDHT's thread and handed to the event loop once."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit: int, accept: Callable[[bytes], bool] | None, seen_max: int
    ) -> None:
        self._loop = loop
        self._limit = limit
        self._accept = accept
        self._seen_left = seen_max
        self._values: dict[bytes, None] = {}
        self._done: asyncio.Future[None] = loop.create_future()
        self.closed = False

    def on_value(self, value: Any) -> bool:
        """On OpenDHT's thread. True: go on."""
        if self.closed:
            return False
        self._seen_left -= 1
        data: bytes = value.data
        if len(data) <= VALUE_BYTES_MAX and data not in self._values and (self._accept is None or self._accept(data)):
            self._values[data] = None
        return len(self._values) < self._limit and self._seen_left > 0

    def on_done(self, _ok: bool, _nodes: object) -> None:
        """On OpenDHT's thread."""
        _call_soon(self._loop, _resolve, self._done, None)

    async def result(self, timeout_s: float) -> list[bytes]:
        try:
            async with asyncio.timeout(timeout_s):
                await self._done
        except TimeoutError:
            pass  # what has come so far is the answer
        finally:
            self.closed = True
        return list(self._values)[: self._limit]


class DHTNode:
    """One OpenDHT node. All methods belong to the event loop that called `start`.

    Args:
        network: the network's name; nodes of different names never talk to each other.
    """

    def __init__(self, network: str) -> None:
        self.network = network
        self._runner: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: set[Listener] = set()
        self._gets = asyncio.Semaphore(CONCURRENT_GETS_MAX)
        self._puts = asyncio.Semaphore(CONCURRENT_PUTS_MAX)
        self._address: Address | None = None

    @property
    def running(self) -> bool:
        return self._runner is not None

    @property
    def host(self) -> str:
        return self._bound.host

    @property
    def port(self) -> int:
        """The UDP port, known once started."""
        return self._bound.port

    @property
    def _bound(self) -> Address:
        if self._address is None:
            raise UnavailableError("the DHT node is not running")
        return self._address

    async def start(self, host: str, port: int = 0, bootstrap: Sequence[tuple[str, int]] = ()) -> None:
        """Bind exactly `host` (an IP address; port 0: any free one) and join through the bootstrap nodes, if any.

        Joining goes on in the background: a get or put waits for it, within its own timeout.

        Raises:
            ConfigError: the address cannot be bound.
        """
        assert self._runner is None
        self._loop = asyncio.get_running_loop()
        _try_bind(host, port)
        dht = _opendht()
        config = dht.DhtConfig()
        config.setNetwork(network_number(self.network))
        config.setPeerDiscovery(False, False)  # multicast would leave the bound address
        runner = dht.DhtRunner()
        is_v6 = ipaddress.ip_address(host).version == 6
        runner.run(port=port, ipv4="" if is_v6 else host, ipv6=host if is_v6 else "", config=config)
        for kind, lifetime in VALUE_LIFETIME.items():
            runner.registerType(dht.ValueType(int(kind), kind.name.lower(), lifetime))
        bound = runner.getBound(socket.AF_INET6 if is_v6 else socket.AF_INET)
        self._address = Address(host, bound.getPort())
        self._runner = runner
        _live.add(self)
        for peer_host, peer_port in bootstrap:
            self.bootstrap(peer_host, peer_port)

    def bootstrap(self, host: str, port: int) -> None:
        """Tell OpenDHT of one more node to join through; it keeps trying by itself."""
        self._require().bootstrap(host, str(port))

    async def put(self, key: bytes, value: bytes, value_type: ValueType, *, timeout_s: float = PUT_TIMEOUT_S) -> bool:
        """Store `value` on the nodes next to `key` until the type's lifetime is over.

        A second put adds a value, it never replaces one: records carry a sequence number and the newest wins.

        Returns:
            Whether another node took it in time. False is no proof that none did.

        Raises:
            LimitError: the value is larger than VALUE_BYTES_MAX.
            UnavailableError: not started, or stopped.
        """
        if len(value) > VALUE_BYTES_MAX:
            raise LimitError(f"a DHT value of {len(value)} bytes exceeds {VALUE_BYTES_MAX}", actual=len(value))
        dht = _opendht()
        async with self._puts:
            runner, loop = self._require(), asyncio.get_running_loop()
            done: asyncio.Future[bool] = loop.create_future()
            runner.put(
                _info_hash(dht, key),
                dht.Value(value, int(value_type)),
                lambda ok, _nodes: _call_soon(loop, _resolve, done, bool(ok)),
            )
            try:
                async with asyncio.timeout(timeout_s):
                    return await done
            except TimeoutError:
                return False

    async def get(
        self,
        key: bytes,
        *,
        limit: int,
        timeout_s: float = GET_TIMEOUT_S,
        accept: Callable[[bytes], bool] | None = None,
        seen_max: int = VALUES_SEEN_MAX,
    ) -> list[bytes]:
        """Distinct values under `key`, in order of arrival; ends early when `limit` of them are there.

        `accept` sees each value first; those it refuses count towards `seen_max` but not `limit`. It runs on OpenDHT's
        thread, so it must be quick, touch no shared state, and not raise.

        Raises:
            UnavailableError: not started, or stopped.
        """
        dht = _opendht()
        async with self._gets:
            runner = self._require()
            query = _Get(asyncio.get_running_loop(), limit, accept, seen_max)
            runner.get(_info_hash(dht, key), query.on_value, query.on_done)
            return await query.result(timeout_s)

    def listen(self, key: bytes, callback: Callable[[bytes], None]) -> Listener:
        """Call `callback` in the event loop with each value put under `key`, present ones first.

        Raises:
            LimitError: more than LISTENERS_MAX at once.
            UnavailableError: not started, or stopped.
        """
        runner, dht = self._require(), _opendht()
        if len(self._listeners) >= LISTENERS_MAX:
            raise LimitError(f"more than {LISTENERS_MAX} DHT listeners")
        listener = Listener(asyncio.get_running_loop(), callback)
        token = runner.listen(_info_hash(dht, key), listener.on_value)

        def cancel() -> None:
            self._listeners.discard(listener)
            _cancel_listen(runner, token)

        listener._cancel = cancel
        self._listeners.add(listener)
        return listener

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Leave the network. Operations under way end with what they have.

        Returns:
            Whether OpenDHT's threads ended in time; if not, they end by themselves once their last operation has.
        """
        if self._runner is None:
            return True
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        self._close(lambda: _call_soon(loop, ended.set))
        try:
            async with asyncio.timeout(timeout_s):
                await ended.wait()
        except TimeoutError:
            return False
        return True

    def _close(self, on_end: Callable[[], None]) -> None:
        runner, self._runner = self._runner, None
        _live.discard(self)
        for listener in list(self._listeners):
            listener.cancel()
        threading.Thread(target=_shut_down, args=(runner, on_end), name="dht-stop", daemon=True).start()

    def _require(self) -> Any:
        if self._runner is None:
            raise UnavailableError("the DHT node is not running")
        return self._runner


def _opendht() -> ModuleType:
    """Loaded on first use: a process without a DHT node does not pay its 10 MB."""
    import opendht

    module: ModuleType = opendht
    return module


def _info_hash(dht: ModuleType, key: bytes) -> Any:
    assert len(key) == KEY_BYTES
    return dht.InfoHash(key.hex().encode())


def _try_bind(host: str, port: int) -> None:
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, port))
    except (OSError, OverflowError, ValueError) as error:
        raise ConfigError(f"the DHT cannot bind UDP {host} port {port}: {error}", hint="name a free port, or 0") from None


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object) -> None:
    """From another thread; a loop that has closed has nobody left to tell."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        return


def _resolve(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():
        future.set_result(value)


def _cancel_listen(runner: Any, token: Any) -> None:
    """Cancel without letting the binding free a callback that OpenDHT may still call.

    The binding keeps the newest callback in a dict of the *class* and drops one reference to whatever is there. It is given
    a sentinel with a reference to lose; the listener's own callback (some hundred bytes) stays alive for the process.
    """
    sentinel = object()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(sentinel))
    token._cb["cb"] = sentinel
    runner.cancelListen(token)


def _shut_down(runner: Any, on_end: Callable[[], None]) -> None:
    """End OpenDHT's threads once no operation is left.

    The lock's own C method is the callback: no Python code runs in it, so that the DHT thread cannot lose the GIL inside
    the callback, holding the mutex that `join` (which keeps the GIL) is about to need.
    """
    last_operation = threading.Lock()
    last_operation.acquire()
    runner.shutdown(last_operation.release)
    last_operation.acquire()  # waits without the GIL
    runner.join()
    on_end()


_live: weakref.WeakSet[DHTNode] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """A process that ends without `stop` must not hang in OpenDHT's destructor."""
    for node in list(_live):
        ended = threading.Event()
        node._close(ended.set)
        ended.wait(EXIT_TIMEOUT_S)

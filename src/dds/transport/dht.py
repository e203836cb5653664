"""The distributed hash table: OpenDHT 4.4 behind an asyncio face.

Decides: how OpenDHT is bound, shut down and kept from blocking the event loop, and the limits on keys, values, counts and
time. Does not decide what a value means: values are opaque bytes, and nothing that comes back is trusted here (sealing,
signatures and expiry are wire/discovery.py's, the choice among records protocol/discovery.py's).

Source: OpenDHT's own sources, release 4.4 (python/opendht.pyx, src/dhtrunner.cpp). What they do not document, and what this
module therefore guarantees:

- OpenDHT's thread holds a mutex while it waits for the GIL to run a callback, and the binding never releases the GIL. A
  call that needs this mutex while a callback is due would stop both threads for ever. So `registerType` and `getBound` are
  called before the first operation only, and `join`, which ends the threads, goes around the binding (`_join`).
- A port that cannot be bound ends the whole process (a C++ exception that nobody catches): the bind is tried here first.
- `InfoHash(raw)` silently gives the zero key for 20 raw bytes; only the hexadecimal form names a key.
- `cancelListen` frees the callback that was registered *last*, whichever is cancelled (a crash later on), and where only
  IPv4 is bound OpenDHT forgets its listeners' tokens, so that nothing can be cancelled: listeners are only ever muted.
- Values larger than 64 KiB never call back, and operations under way at the end may not: sizes are checked first, every
  wait has a timeout, and `stop` answers whoever still waits.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import ipaddress
import socket
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
    HOOK = 0x0DD3
    LASTING = 0x0DD4  # providers whose records are good for longer than a day


VALUE_LIFETIME = {
    ValueType.PROVIDER: timedelta(hours=24),
    ValueType.NODE: timedelta(minutes=15),
    ValueType.HOOK: timedelta(days=7),
    ValueType.LASTING: timedelta(days=7),
}


def network_number(network: str) -> int:
    """OpenDHT's network id for a network's name: 32 bits, never 0 (which is the public network)."""
    return int.from_bytes(tagged_hash(b"dds/dht-network/v1", network.encode())[:4], "big") or 1


class Listener:
    """A running `listen`. No callback runs after `cancel`; OpenDHT itself goes on listening until the node stops."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._waiting: deque[bytes] = deque()
        self._scheduled = False
        self.dropped = 0  # values lost because the event loop did not keep up
        self.closed = False

    def cancel(self) -> None:
        self.closed = True
        self._waiting.clear()

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


class _Pending:
    """An operation whose answer OpenDHT's thread gives, at most once and perhaps never."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[bool] = self._loop.create_future()
        self.closed = False

    def on_done(self, ok: bool, _nodes: object) -> None:
        """On OpenDHT's thread."""
        if not self.closed:
            _call_soon(self._loop, self.resolve, bool(ok))

    def resolve(self, ok: bool) -> None:
        if not self._done.done():
            self._done.set_result(ok)

    async def wait(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._done
        except TimeoutError:
            return False
        finally:
            self.closed = True


class _Get(_Pending):
    """One get: values are gathered on OpenDHT's thread and handed to the event loop once."""

    def __init__(self, limit: int, seen_max: int, accept: Callable[[bytes], bool] | None) -> None:
        super().__init__()
        self._limit = limit
        self._seen_left = seen_max
        self._accept = accept
        self._values: dict[bytes, None] = {}

    def on_value(self, value: Any) -> bool:
        """On OpenDHT's thread. True: go on."""
        if self.closed:
            return False
        self._seen_left -= 1
        data: bytes = value.data
        if len(data) <= VALUE_BYTES_MAX and data not in self._values and (self._accept is None or self._accept(data)):
            self._values[data] = None
        return len(self._values) < self._limit and self._seen_left > 0

    def values(self) -> list[bytes]:
        return list(self._values)[: self._limit]


class DHTNode:
    """One OpenDHT node. All methods belong to the event loop that called `start`; a stopped node stays stopped.

    Args:
        network: the network's name; nodes of different names never talk to each other.
    """

    def __init__(self, network: str) -> None:
        self.network = network
        self._runner: Any = None
        self._listeners: list[Listener] = []
        self._pending: set[_Pending] = set()
        self._gets = asyncio.Semaphore(CONCURRENT_GETS_MAX)
        self._puts = asyncio.Semaphore(CONCURRENT_PUTS_MAX)
        self._host, self._port = "", 0

    @property
    def running(self) -> bool:
        return self._runner is not None

    @property
    def host(self) -> str:
        return self._host

    @property
    def port(self) -> int:
        """The UDP port that was bound; 0 before `start`."""
        return self._port

    async def start(self, host: str, port: int = 0, bootstrap: Sequence[tuple[str, int]] = ()) -> None:
        """Bind exactly `host` (an IP address; port 0: any free one) and join through the bootstrap nodes, if any.

        Joining goes on in the background: a get or put waits for it, within its own timeout.

        Raises:
            ConfigError: the address cannot be bound.
        """
        assert not self.running
        is_v6 = _try_bind(host, port)
        dht = _opendht()
        config = dht.DhtConfig()
        config.setNetwork(network_number(self.network))
        config.setPeerDiscovery(False, False)  # it would multicast
        runner = dht.DhtRunner()
        runner.run(port=port, ipv4="" if is_v6 else host, ipv6=host if is_v6 else "", config=config)
        for kind, lifetime in VALUE_LIFETIME.items():
            runner.registerType(dht.ValueType(int(kind), kind.name.lower(), lifetime))
        self._host, self._port = host, runner.getBound(socket.AF_INET6 if is_v6 else socket.AF_INET).getPort()
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
            runner, operation = self._require(), _Pending()
            with self._waiting(operation):
                runner.put(_info_hash(dht, key), dht.Value(value, int(value_type)), operation.on_done)
                return await operation.wait(timeout_s)

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

        What has come when the time is over, or the node stops, is the answer. `accept` sees each value first; those it
        refuses count towards `seen_max` but not `limit`. It runs on OpenDHT's thread, so it must be quick, touch no shared
        state, and not raise.

        Raises:
            UnavailableError: not started, or stopped.
        """
        dht = _opendht()
        async with self._gets:
            runner, operation = self._require(), _Get(limit, seen_max, accept)
            with self._waiting(operation):
                runner.get(_info_hash(dht, key), operation.on_value, operation.on_done)
                await operation.wait(timeout_s)
            return operation.values()

    def listen(self, key: bytes, callback: Callable[[bytes], None]) -> Listener:
        """Call `callback` in the event loop with each value put under `key`, those already there first.

        A node listens to a fixed set of keys for its whole life (see Listener): LISTENERS_MAX counts cancelled ones too.
        On a node bound to an IPv6 address OpenDHT 4.4 listens to nobody (it gives up where the IPv4 search is missing).

        Raises:
            LimitError: more than LISTENERS_MAX.
            UnavailableError: not started, or stopped.
        """
        runner = self._require()
        if len(self._listeners) >= LISTENERS_MAX:
            raise LimitError(f"more than {LISTENERS_MAX} DHT listeners")
        listener = Listener(asyncio.get_running_loop(), callback)
        self._listeners.append(listener)
        runner.listen(_info_hash(_opendht(), key), listener.on_value)
        return listener

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> bool:
        """Leave the network. Gets under way end with what they have, puts with False.

        Returns:
            Whether OpenDHT's threads ended in time.
        """
        if not self.running:
            return True
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        for operation in list(self._pending):
            operation.resolve(False)
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
        for listener in self._listeners:
            listener.cancel()
        for operation in self._pending:
            operation.closed = True
        threading.Thread(target=_join, args=(runner, on_end), name="dht-stop", daemon=True).start()

    @contextmanager
    def _waiting(self, operation: _Pending) -> Iterator[None]:
        self._pending.add(operation)
        try:
            yield
        finally:
            self._pending.discard(operation)

    def _require(self) -> Any:
        if self._runner is None:
            raise UnavailableError("the DHT node is not running")
        return self._runner


def _opendht() -> ModuleType:
    """Loaded on first use: a process without a DHT node does not pay for it."""
    import opendht

    module: ModuleType = opendht
    return module


def _info_hash(dht: ModuleType, key: bytes) -> Any:
    assert len(key) == KEY_BYTES
    return dht.InfoHash(key.hex().encode())


def _try_bind(host: str, port: int) -> bool:
    """Whether `host` is IPv6; ConfigError where it cannot be bound."""
    try:
        is_v6 = ipaddress.ip_address(host).version == 6
        with socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((host, port))
    except (OSError, OverflowError, ValueError) as error:
        raise ConfigError(f"the DHT cannot bind UDP {host} port {port}: {error}", hint="name a free port, or 0") from None
    return is_v6


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object) -> None:
    """From another thread; a loop that has closed has nobody left to tell."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *args)


_CPP_JOIN = "_ZN3dht9DhtRunner4joinEv"  # dht::DhtRunner::join(), Itanium C++ ABI
_SHARED_POINTER_BYTES = 2 * ctypes.sizeof(ctypes.c_void_p)
_unjoined: list[object] = []


def _join(runner: Any, on_end: Callable[[], None]) -> None:
    """End OpenDHT's threads: the C++ `join`, with the GIL released, so that a callback under way can finish.

    A runner object is the binding's base object followed by one shared pointer. Should another build look different, the
    runner is kept alive and unjoined until the process ends: its destructor would hang just as the binding's `join`.
    """
    kind = type(runner)
    offset = kind.__mro__[1].__basicsize__
    library = ctypes.CDLL(sys.modules[kind.__module__].__file__)
    if kind.__basicsize__ != offset + _SHARED_POINTER_BYTES or not hasattr(library, _CPP_JOIN):
        _unjoined.append(runner)
        on_end()
        return
    join = getattr(library, _CPP_JOIN)
    join.argtypes, join.restype = [ctypes.c_void_p], None
    join(ctypes.c_void_p.from_address(id(runner) + offset))
    on_end()


_live: weakref.WeakSet[DHTNode] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    """A process that ends without `stop` must not hang in OpenDHT's destructor."""
    for node in list(_live):
        ended = threading.Event()
        node._close(ended.set)
        ended.wait(EXIT_TIMEOUT_S)

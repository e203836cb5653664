"""Which connections a server keeps: admission, phases, and when a phase has lasted too long.

Decides: who is let in when there are too many, who makes room, and which transfers are too slow. Owns no socket and no clock:
time is an argument, and a connection is ended through the `abort` it came with.

A connection is always in one phase. HANDSHAKE and FRESH (no request yet) and IDLE (between requests) are *quiet*: at a limit,
the one that has been quiet longest makes room for a newcomer, so holding connections open locks nobody out. RECEIVING and
SENDING move a body, at no less than a minimum rate; while other requests wait for memory, a stricter one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from dds.primitives.ids import NodeID
from dds.transport.limits import ServerCounters, ServerLimits


class Phase(Enum):
    HANDSHAKE = auto()
    FRESH = auto()
    IDLE = auto()
    WAITING = auto()  # for room in memory
    RECEIVING = auto()
    HANDLING = auto()
    SENDING = auto()


_QUIET = frozenset((Phase.HANDSHAKE, Phase.FRESH, Phase.IDLE))
_MOVING = frozenset((Phase.RECEIVING, Phase.SENDING))


@dataclass(slots=True, eq=False)
class Connection:
    address: str
    abort: Callable[[], None]
    since_s: float  # start of the phase
    phase: Phase = Phase.HANDSHAKE
    moving_bytes: int = 0  # size of the body in RECEIVING and SENDING
    peer: NodeID | None = None  # known from the end of the handshake on
    give_up: Callable[[], None] | None = None  # ends the handler in HANDLING; a timer for every request would cost more

    def enter(self, phase: Phase, now_s: float, moving_bytes: int = 0) -> None:
        self.phase, self.since_s, self.moving_bytes = phase, now_s, moving_bytes

    @property
    def is_quiet(self) -> bool:
        return self.phase in _QUIET


def transfer_deadline_s(size_bytes: int, limits: ServerLimits, *, pressed: bool) -> float:
    """How long a body of `size_bytes` may take, seconds."""
    if pressed:
        return limits.pressed_grace_s + size_bytes / limits.pressed_bytes_per_s_min
    return limits.transfer_grace_s + size_bytes / limits.transfer_bytes_per_s_min


class ConnectionTable:
    """All connections of a server, from before their handshake to after their end."""

    def __init__(self, limits: ServerLimits, counters: ServerCounters) -> None:
        self._limits = limits
        self._counters = counters
        self._all: set[Connection] = set()
        self._per_address: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._all))

    def admit(self, connection: Connection, now_s: float) -> bool:
        """Take a connection in, at a limit by ending the quietest one; False when nobody can make room."""
        full_here = self._per_address[connection.address] >= self._limits.connections_per_address_max
        if full_here or len(self._all) >= self._limits.connections_max:
            quietest = self._quietest(connection.address if full_here else None, now_s)
            if quietest is None:
                self._counters.connections_refused += 1
                return False
            self._counters.connections_displaced += 1
            self.remove(quietest)
            quietest.abort()
        self._all.add(connection)
        self._per_address[connection.address] += 1
        self._counters.connections_accepted += 1
        self._counters.connections_now = len(self._all)
        return True

    def remove(self, connection: Connection) -> None:
        """Forget a connection; a second time does nothing."""
        if connection not in self._all:
            return
        self._all.remove(connection)
        self._per_address[connection.address] -= 1
        if not self._per_address[connection.address]:
            del self._per_address[connection.address]
        self._counters.connections_now = len(self._all)

    def cut_overdue(self, now_s: float, *, pressed: bool) -> None:
        """End what has lasted too long. `pressed`: requests are waiting for memory that slow transfers hold."""
        for connection in self:
            lasted_s = now_s - connection.since_s
            if connection.phase in _MOVING:
                if lasted_s > transfer_deadline_s(connection.moving_bytes, self._limits, pressed=pressed):
                    self._counters.transfers_cut += 1
                    connection.abort()
            elif connection.phase is Phase.HANDLING:
                if lasted_s > self._limits.handler_timeout_s and connection.give_up is not None:
                    connection.give_up()
            elif connection.phase is Phase.FRESH and lasted_s > self._limits.headers_timeout_s:
                self._counters.connections_timed_out += 1
                connection.abort()

    def _quietest(self, address: str | None, now_s: float) -> Connection | None:
        quiet = [c for c in self._all if c.is_quiet and (address is None or c.address == address)]
        longest = min(quiet, key=lambda c: c.since_s, default=None)
        return longest if longest is not None and now_s - longest.since_s >= self._limits.newcomer_patience_s else None

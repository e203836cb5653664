"""What one end of the transport will spend on the other, and what it has spent.

Decides: the limits of a server and a client, with defaults fit for a home connection and bodies of about 1 MiB, and the shape
of their counters. Limits hold against hostile peers; none of them is a quality-of-service promise.

Memory of a server is bounded by `bodies_bytes_max` (request and reply bodies together) plus `connections_max` times what TLS
and HTTP buffers of one connection hold: 40 KiB idle, up to half a MiB while a peer floods it (measured on uvloop 0.23).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from dds.primitives.units import KIB, MIB

ERROR_BODY_BYTES_MAX: Final = 4 * KIB  # of a peer's error that a client looks at
HEADER_LINE_BYTES_MAX: Final = 4 * KIB
HEADERS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class ServerLimits:
    connections_max: int = 512
    connections_per_address_max: int = 256  # all nodes of a network on one machine share an address
    handshake_timeout_s: float = 5.0
    headers_timeout_s: float = 10.0  # from the end of the handshake to the end of the first request's headers
    idle_timeout_s: float = 75.0  # between requests; longer than any client of ours keeps a connection
    newcomer_patience_s: float = 2.0  # at the connection limit, a connection quiet for this long makes room for a new one

    bodies_bytes_max: int = 64 * MIB  # request and reply bodies in memory, over all connections
    waiting_max: int = 256  # requests that wait for room among the bodies; the next one is told to come back later
    waiting_timeout_s: float = 5.0
    transfer_grace_s: float = 10.0  # a body may take this long ...
    transfer_bytes_per_s_min: int = 16 * KIB  # ... and its size at this rate
    pressed_grace_s: float = 2.0  # the same two while others wait for room
    pressed_bytes_per_s_min: int = 256 * KIB
    handler_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class ClientLimits:
    connections_max: int = 256
    connections_per_peer_max: int = 8
    connect_timeout_s: float = 5.0  # TCP and TLS together, over all addresses of the peer
    idle_timeout_s: float = 30.0
    peers_max: int = 16_384  # address book and counters; the peer learned first is forgotten first
    addresses_per_peer_max: int = 8


@dataclass(slots=True)
class Traffic:
    """Bodies exchanged with one peer. What a cancelled or failed transfer moved counts too; headers and TLS do not."""

    requests: int = 0
    failures: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0

    def add(self, other: Traffic) -> None:
        self.requests += other.requests
        self.failures += other.failures
        self.sent_bytes += other.sent_bytes
        self.received_bytes += other.received_bytes


@dataclass(slots=True)
class ServerCounters:
    """Plain integers that only grow, except the three that end in `_now`."""

    connections_accepted: int = 0
    connections_refused: int = 0  # over a limit, before any TLS
    connections_displaced: int = 0  # quiet ones that made room for a newcomer
    connections_timed_out: int = 0  # no request within `headers_timeout_s`
    handshakes_failed: int = 0
    transfers_cut: int = 0  # bodies slower than allowed
    received_bytes: int = 0  # bodies only
    sent_bytes: int = 0
    connections_now: int = 0
    requests_now: int = 0
    bodies_bytes_now: int = 0
    requests: dict[tuple[str, int], int] = field(default_factory=dict)  # by ("GET /path/{name}", status)

    def count_request(self, route: str, status: int) -> None:
        self.requests[route, status] = self.requests.get((route, status), 0) + 1

    def requests_total(self) -> int:
        return sum(self.requests.values())


def by_status(requests: Mapping[tuple[str, int], int]) -> dict[int, int]:
    """Requests by HTTP status, over all routes."""
    totals: dict[int, int] = {}
    for (_, status), count in requests.items():
        totals[status] = totals.get(status, 0) + count
    return totals

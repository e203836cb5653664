"""How many bytes an edge may fetch for what its readers miss.

A small request can name blocks worth gigabytes, and asking is free. So what an edge fetches follows what it serves: a burst, a
few bytes for each that it served, and a trickle with time. All readers together have such an account and each has one of its
own, a quarter of it, so that no stranger uses up what the others need. Decides what may be fetched and who it is charged to;
does not decide what is worth it (protocol/edge_cache.py), nor count it (runtime/warming.py). Pure: time comes in as argument.

Source: docs/spec/retrieval.md, "Warming".
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from dds.primitives.units import KIB, MIB

BURST_BYTES: Final = 256 * MIB  # an account holds no more, and begins with it
FETCHED_PER_SERVED: Final = 4
REFILL_BYTES_PER_S: Final = 256 * KIB
READERS_SHARE: Final = 4  # a reader's own burst and refill are those of all, divided by this
READERS_MAX: Final = 1024  # accounts; beyond them the one that was used least recently is forgotten
IPV6_PREFIX_BITS: Final = 64  # what one subscriber has


@dataclass(slots=True)
class _Account:
    burst: int
    refill_per_s: int
    level: float
    at_s: float

    def refill(self, now_s: float) -> None:
        self.add((now_s - self.at_s) * self.refill_per_s)
        self.at_s = now_s

    def add(self, byte_count: float) -> None:
        self.level = min(self.burst, self.level + byte_count)


class WarmingBudget:
    """One edge's. Readers are named by `account_of`."""

    def __init__(self) -> None:
        self._all = _Account(BURST_BYTES, REFILL_BYTES_PER_S, BURST_BYTES, 0.0)
        self._readers: OrderedDict[str, _Account] = OrderedDict()

    @property
    def left_bytes(self) -> int:
        """Of all readers together, when it was last looked at; below 0 where blocks were larger than thought."""
        return int(self._all.level)

    def served(self, reader: str, byte_count: int, now_s: float) -> None:
        """A reader got bytes: for that the edge is there, and may fetch more."""
        for account in (self._all, self._account(reader, now_s)):
            account.refill(now_s)
            account.add(FETCHED_PER_SERVED * byte_count)

    def spend(self, readers: Iterable[str], byte_count: int, now_s: float) -> str | None:
        """Take bytes from the first of these readers whose account has them, and from that of all; None: they cannot be had."""
        self._all.refill(now_s)
        if self._all.level < byte_count:
            return None
        for reader in readers:
            account = self._account(reader, now_s)
            account.refill(now_s)
            if account.level >= byte_count:
                account.level -= byte_count
                self._all.level -= byte_count
                return reader
        return None

    def settle(self, reader: str, byte_count: int, now_s: float) -> None:
        """Give back what was spent and not needed; a negative number takes what was needed beyond it."""
        for account in (self._all, self._account(reader, now_s)):
            account.add(byte_count)

    def _account(self, reader: str, now_s: float) -> _Account:
        account = self._readers.get(reader)
        if account is None:
            burst = BURST_BYTES // READERS_SHARE
            account = self._readers[reader] = _Account(burst, REFILL_BYTES_PER_S // READERS_SHARE, burst, now_s)
            if len(self._readers) > READERS_MAX:
                self._readers.popitem(last=False)
        self._readers.move_to_end(reader)
        return account


def account_of(address: str) -> str:
    """Who a reader is to the budget: where its connection comes from. Keys cost nothing, so they are not what is counted."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, IPV6_PREFIX_BITS), strict=False))

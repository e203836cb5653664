"""Rules of dialling back: whom a node does the favour, which addresses it tries, whom it asks itself.

A node that dials wherever a stranger says is a port scanner for hire. So: the addresses are those of the caller's own signed
record, and of those only the ones on the very machine that its connection came from; at most DIALBACKS_AT_ONCE_MAX run at a
time, and each caller and all together have a budget. What moves flows from the caller to us: asking costs the caller more than
anybody else. Pure: time comes in as an argument.

Source: docs/spec/wire.md, "Dial-back"; docs/adr/0029-dial-back.md.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from dds.primitives.errors import FormatError, InputError, LimitError
from dds.primitives.ids import NodeID
from dds.protocol.peers import Peer
from dds.wire.discovery import NODE, NodeRecord, is_current, open_record

DIALBACKS_AT_ONCE_MAX: Final = 4
PEER_EVERY_S: Final = 15.0  # one for each caller, on the average ...
PEER_BURST: Final = 4  # ... and so many at once
TOTAL_EVERY_S: Final = 1.0  # for all callers together
TOTAL_BURST: Final = 32
CALLERS_REMEMBERED_MAX: Final = 1024


class DialbackGate:
    """Who may ask now. A caller is forgotten after CALLERS_REMEMBERED_MAX others, which the common budget spreads over more
    time than its own budget needs to be whole again."""

    def __init__(self) -> None:
        self._now_running = 0
        self._total_free_s = 0.0  # when the budget would be whole again
        self._peer_free_s: OrderedDict[NodeID, float] = OrderedDict()

    def enter(self, peer: NodeID, now_s: float) -> None:
        """Take a place; `leave` gives it back.

        Raises:
            LimitError: too many at once, too many of this caller, or of all.
        """
        if self._now_running >= DIALBACKS_AT_ONCE_MAX:
            raise LimitError("this node dials back for others already", hint="try again in some seconds")
        of_peer = _later(self._peer_free_s.get(peer, 0.0), now_s, PEER_EVERY_S, PEER_BURST)
        of_all = _later(self._total_free_s, now_s, TOTAL_EVERY_S, TOTAL_BURST)
        if of_peer is None or of_all is None:
            raise LimitError("this node was asked to dial back too often", hint=f"at most every {PEER_EVERY_S:.0f} s")
        self._now_running += 1
        self._total_free_s = of_all
        self._peer_free_s[peer] = of_peer
        self._peer_free_s.move_to_end(peer)
        while len(self._peer_free_s) > CALLERS_REMEMBERED_MAX:
            self._peer_free_s.popitem(last=False)

    def leave(self) -> None:
        self._now_running -= 1


def _later(free_s: float, now_s: float, every_s: float, burst: int) -> float | None:
    """When the budget is whole again after one more; None: it has nothing left (the generic cell rate algorithm)."""
    start = max(free_s, now_s)
    return None if start - now_s > every_s * (burst - 1) else start + every_s


def callers_record(raw: bytes, caller: NodeID, network: str, now_ms: int) -> NodeRecord:
    """The record that a caller sent of itself.

    Raises:
        FormatError, IntegrityError, UnsupportedVersion: not a signed node record of this network.
        InputError: another node's, or out of date.
    """
    record = open_record(raw, NODE, network)
    if record.node_id != caller:
        raise InputError("the record is another node's", hint="send your own; only the caller is dialled back")
    if not is_current(record, NODE, now_ms):
        raise InputError(f"the record is out of date where the clock says {now_ms} ms", hint="is your clock right?")
    return record


def may_dial(resolved: Iterable[str], source: str, *, tunnelled: bool = False) -> bool:
    """Whether one of the addresses that a host stands for is the machine that the caller's connection came from. `tunnelled`:
    connections from anywhere reach this node through its own loopback (iroh), so that one from there says nothing."""
    try:
        wanted = _plain(source)
        if tunnelled and wanted.is_loopback:
            return False
        return any(_plain(each) == wanted for each in resolved)
    except ValueError:
        return False


def _plain(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 address seen through an IPv6 socket is the IPv4 address."""
    found = ipaddress.ip_address(text.partition("%")[0])
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found


def choose_observers(candidates: Sequence[Peer], own: NodeRecord, limit: int) -> list[Peer]:
    """Up to `limit` peers that see a node from as many regions and operators as there are, the best candidates first."""
    left = [peer for peer in candidates if peer.record is not None]
    chosen: list[Peer] = []
    regions: set[str] = set()
    operators = {own.operator}
    while left and len(chosen) < limit:
        best = min(left, key=lambda peer: _familiar(peer, regions, operators))
        left.remove(best)
        chosen.append(best)
        assert best.record is not None
        regions.add(best.record.region)
        operators.add(best.record.operator)
    return chosen


def _familiar(peer: Peer, regions: set[str], operators: set[str]) -> tuple[bool, bool]:
    assert peer.record is not None
    return peer.record.region in regions, peer.record.operator in operators


def check_transfer(wanted: int, got: int) -> None:
    """
    Raises:
        FormatError: the caller sent another number of bytes than it had agreed to.
    """
    if got != wanted:
        raise FormatError(f"{wanted} bytes were agreed on, {got} came", expected=wanted, actual=got)

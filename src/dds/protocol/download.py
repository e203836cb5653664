"""Reading part of one stripe, sans I/O: whom to ask for what, when to hedge, when k fragments are enough to decode.

Wanted are column ranges of data slots. Each slot is asked of its systematic holder first: on a healthy network that is one
request a slot and no decoding. A slot whose holder fails, is known to be bad, or is slower than its peers becomes *missing*;
then other fragments are fetched over the hull of the missing slots' columns (the code works column by column, so any column
range decodes alone) until k of them cover it. Slow requests are not cancelled: whichever k arrive first win. For every slow
request one fragment more than needed is on its way, since the ones asked in its stead may be slow too.

Requests are bounded without a counter: a holder is asked for an index once directly, once over the first hull and once over
the hull of everything wanted; those that failed without hanging are asked once more before the read is given up. The host
ends every request at its own hard timeout, so a read always ends.

With k = 1 every fragment is a verbatim copy and the same rules hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dds.primitives.ids import NodeID


@dataclass(frozen=True, slots=True)
class Wanted:
    """Columns [lo, hi) of a data slot, in bytes."""

    slot: int
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask `node` for bytes [lo, hi) of fragment `index`."""

    ticket: int
    index: int
    node: NodeID
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class Cancel:
    ticket: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The stripe's bytes are at hand: `direct` slots as they came, the rest by decoding columns [lo, hi) from `sources`."""

    direct: dict[int, int]  # slot -> ticket
    missing: tuple[int, ...]
    lo: int
    hi: int
    sources: dict[int, int]  # fragment index -> ticket, k of them, each covering [lo, hi); empty when nothing is missing


@dataclass(frozen=True, slots=True)
class Stuck:
    """Fewer than k fragments can be had; `tried` says where each of the others was and what came of it."""

    have: int
    need: int
    tried: dict[int, list[tuple[NodeID, str]]]


Effect = Fetch | Cancel | Ready | Stuck


@dataclass(slots=True)
class _Try:
    fetch: Fetch
    started: float
    state: Literal["flying", "slow", "done", "failed", "excused"] = "flying"
    late: bool = False  # it outlived the hedge delay

    def covers(self, lo: int, hi: int) -> bool:
        return self.fetch.lo <= lo and self.fetch.hi >= hi


@dataclass(slots=True)
class StripeRead:
    """One stripe's read.

    Args:
        k, m: the stripe's geometry.
        wanted: at most one range per slot.
        holders: for each fragment index the nodes that may have it, best first; avoided ones are left out or put last.
        doubtful: indices whose first holder should not be waited for (known bad or slow): decoded around from the start
            when enough others are there.
        preference: the order in which fragments are asked for decoding; the rest follow, parity first.
    """

    k: int
    m: int
    wanted: Sequence[Wanted]
    holders: Mapping[int, Sequence[NodeID]]
    doubtful: frozenset[int] = frozenset()
    preference: Sequence[int] = ()
    _tries: list[_Try] = field(default_factory=list)
    _by_index: dict[int, list[_Try]] = field(default_factory=dict)
    _log: dict[int, list[tuple[NodeID, str]]] = field(default_factory=dict)
    _hull: tuple[int, int] | None = None  # what fragments for decoding are asked for
    _excused: bool = False
    over: bool = False

    def offer(self, index: int, node: NodeID, lo: int, hi: int) -> int:
        """Before `start`: bytes [lo, hi) of a fragment are at hand already. Returns their ticket."""
        attempt = _Try(Fetch(len(self._tries), index, node, lo, hi), started=0.0, state="done")
        self._tries.append(attempt)
        self._by_index.setdefault(index, []).append(attempt)
        return attempt.fetch.ticket

    def start(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self.k > 1:
            _, _, missing = self._sort_wanted()
            for want in missing:
                if want.slot not in self.doubtful:
                    effects += self._ask(want.slot, want.lo, want.hi, now)
        return [*effects, *self._decide(now)]

    def arrived(self, ticket: int, now: float) -> list[Effect]:
        """The exact bytes asked for came."""
        attempt = self._tries[ticket]
        if self.over or attempt.state not in ("flying", "slow"):
            return []
        attempt.state = "done"
        return self._decide(now)

    def failed(self, ticket: int, why: str, now: float) -> list[Effect]:
        """The request failed, or what arrived turned out to be wrong."""
        attempt = self._tries[ticket]
        if self.over or attempt.state in ("failed", "excused"):
            return []
        attempt.state = "failed"
        self._log.setdefault(attempt.fetch.index, []).append((attempt.fetch.node, why))
        return self._decide(now)

    def tick(self, now: float, hedge_s: float) -> list[Effect]:
        """Requests older than `hedge_s` no longer count on: others are asked beside them."""
        if self.over:
            return []
        slow = [t for t in self._tries if t.state == "flying" and now - t.started > hedge_s]
        for attempt in slow:
            attempt.state, attempt.late = "slow", True
        return self._decide(now) if slow else []

    def slow_nodes(self) -> set[NodeID]:
        return {attempt.fetch.node for attempt in self._tries if attempt.state == "slow"}

    # -- decisions ------------------------------------------------------------------------------------------------------

    def _decide(self, now: float) -> list[Effect]:
        direct, pending, missing = self._sort_wanted()
        if not missing:
            return [] if pending else self._finish(Ready(direct, (), 0, 0, {}))
        undecided = [*missing, *pending]
        if len(self._arrived_over(*_hull_of(undecided))) < self.k:
            undecided = missing  # what is pending still has to come itself
        lo, hi = _hull_of(undecided)
        arrived = self._arrived_over(lo, hi)
        if len(arrived) < self.k:
            return self._gather(lo, hi, arrived, now)
        if undecided is missing and pending:
            return []
        slots = tuple(sorted(want.slot for want in undecided))
        return self._finish(Ready(direct, slots, lo, hi, dict(list(arrived.items())[: self.k])))

    def _sort_wanted(self) -> tuple[dict[int, int], list[Wanted], list[Wanted]]:
        """Wanted slots that are here, on their way, and missing."""
        direct: dict[int, int] = {}
        pending: list[Wanted] = []
        missing: list[Wanted] = []
        for want in self.wanted:
            tries = self._tries if self.k == 1 else self._by_index.get(want.slot, ())
            fit = [attempt for attempt in tries if attempt.covers(want.lo, want.hi)]
            done = next((attempt.fetch.ticket for attempt in fit if attempt.state == "done"), None)
            if done is not None:
                direct[want.slot] = done
            elif any(attempt.state == "flying" for attempt in fit):
                pending.append(want)
            else:
                missing.append(want)
        return direct, pending, missing

    def _arrived_over(self, lo: int, hi: int) -> dict[int, int]:
        return {t.fetch.index: t.fetch.ticket for t in self._tries if t.state == "done" and t.covers(lo, hi)}

    def _gather(self, lo: int, hi: int, arrived: Mapping[int, int], now: float) -> list[Effect]:
        """Ask for as many more fragments as are needed to reach k over [lo, hi), and one for each slow request."""
        effects: list[Effect] = []
        useful = {t.fetch.index for t in self._tries if t.state == "flying" and t.covers(lo, hi)} | arrived.keys()
        enough = self.k + sum(t.state == "slow" for t in self._tries)
        for index in self._order():
            if len(useful) >= enough:
                break
            if index not in useful and (asked := self._ask(index, *self._columns(lo, hi), now)):
                effects += asked
                useful.add(index)
        if len(useful) >= self.k or any(t.state in ("slow", "flying") for t in self._tries):
            return effects
        if self._excuse():
            return [*effects, *self._decide(now)]
        tried = {index: list(self._log.get(index, ())) for index in range(self.k + self.m) if index not in arrived}
        return [*effects, *self._finish(Stuck(len(arrived), self.k, tried))]

    def _columns(self, lo: int, hi: int) -> tuple[int, int]:
        """The columns to ask for: grows at most once, so that no holder is asked for every step of a widening hull."""
        if self._hull is None:
            self._hull = lo, hi
        elif not (self._hull[0] <= lo and hi <= self._hull[1]):
            self._hull = _hull_of(self.wanted)
        return self._hull

    def _excuse(self) -> bool:
        """Once: let those that failed without hanging be asked again; a connection may break for a passing reason."""
        excusable = [t for t in self._tries if t.state == "failed" and not t.late]
        if self._excused or not excusable:
            return False
        self._excused = True
        for attempt in excusable:
            attempt.state = "excused"
        return True

    def _order(self) -> list[int]:
        preferred = [index for index in self.preference if index < self.k + self.m]
        rest = [*range(self.k, self.k + self.m), *range(self.k)]
        order = list(dict.fromkeys([*preferred, *rest]))
        # Doubtful ones are the last resort.
        return [i for i in order if i not in self.doubtful] + [i for i in order if i in self.doubtful]

    def _ask(self, index: int, lo: int, hi: int, now: float) -> list[Effect]:
        """Ask the first holder that neither failed nor is slow."""
        tries = self._by_index.setdefault(index, [])
        bad = {attempt.fetch.node for attempt in tries if attempt.state in ("failed", "slow")}
        node = next((node for node in self.holders.get(index, ()) if node not in bad), None)
        if node is None:
            return []
        fetch = Fetch(len(self._tries), index, node, lo, hi)
        attempt = _Try(fetch, now)
        self._tries.append(attempt)
        tries.append(attempt)
        return [fetch]

    def _finish(self, outcome: Ready | Stuck) -> list[Effect]:
        self.over = True
        open_tickets = [t.fetch.ticket for t in self._tries if t.state in ("flying", "slow")]
        return [*(Cancel(ticket) for ticket in open_tickets), outcome]


def _hull_of(wanted: Sequence[Wanted]) -> tuple[int, int]:
    return min(want.lo for want in wanted), max(want.hi for want in wanted)

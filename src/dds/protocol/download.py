"""Reading part of one stripe, sans I/O: whom to ask for what, when to hedge, when k fragments are enough to decode.

Wanted are column ranges of data slots. Each slot is asked of its systematic holder first: on a healthy network that is one
request a slot and no decoding. A slot whose holder fails, is known to be bad, or is slower than its peers becomes *missing*;
then other fragments are fetched over the hull of the missing slots' columns (the code works column by column, so any column
range decodes alone) until k of them cover it. Slow requests are not cancelled: whichever k arrive first win.

With k = 1 every fragment is a verbatim copy and the same rules hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dds.primitives.ids import NodeID

HEDGES_MAX: Final = 64  # extra requests for one stripe; a bound on waste, not a policy


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
    """Fewer than k fragments can be had; `tried` says where each index was and what came of it."""

    have: int
    need: int
    tried: dict[int, list[tuple[NodeID, str]]]


Effect = Fetch | Cancel | Ready | Stuck


@dataclass(slots=True)
class _Try:
    fetch: Fetch
    started: float
    state: str = "flying"  # flying, slow, done, failed

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
    """

    k: int
    m: int
    wanted: Sequence[Wanted]
    holders: Mapping[int, Sequence[NodeID]]
    doubtful: frozenset[int] = frozenset()
    preference: Sequence[int] = ()  # order in which fragments are asked for decoding; the rest follow by index
    _tries: list[_Try] = field(default_factory=list)
    _asked: dict[int, int] = field(default_factory=dict)  # index -> how many of its holders were asked
    _log: dict[int, list[tuple[NodeID, str]]] = field(default_factory=dict)
    _extra: int = 0
    over: bool = False

    def start(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self.k > 1:
            for want in self.wanted:
                if want.slot not in self.doubtful:
                    effects += self._ask(want.slot, want.lo, want.hi, now)
        return [*effects, *self._decide(now)]

    def arrived(self, ticket: int, now: float) -> list[Effect]:
        """The exact bytes asked for came."""
        attempt = self._tries[ticket]
        if self.over or attempt.state == "failed":
            return []
        attempt.state = "done"
        return self._decide(now)

    def failed(self, ticket: int, why: str, now: float) -> list[Effect]:
        attempt = self._tries[ticket]
        if self.over:
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
            attempt.state = "slow"
        return self._decide(now) if slow else []

    def slow_nodes(self) -> set[NodeID]:
        return {attempt.fetch.node for attempt in self._tries if attempt.state == "slow"}

    # -- decisions ------------------------------------------------------------------------------------------------------

    def _decide(self, now: float) -> list[Effect]:
        direct, pending, missing = self._sort_wanted()
        if not missing:
            if pending:
                return []
            return self._finish(Ready(direct, (), 0, 0, {}))
        lo = min(want.lo for want in missing)
        hi = max(want.hi for want in missing)
        arrived = self._arrived_over(lo, hi)
        if len(arrived) >= self.k:
            if pending:
                return []
            slots = tuple(want.slot for want in missing)
            sources = dict(list(arrived.items())[: self.k])
            return self._finish(Ready(direct, slots, lo, hi, sources))
        return self._gather(lo, hi, len(arrived), now)

    def _sort_wanted(self) -> tuple[dict[int, int], list[Wanted], list[Wanted]]:
        """Wanted slots that are here, on their way, and missing."""
        direct: dict[int, int] = {}
        pending: list[Wanted] = []
        missing: list[Wanted] = []
        for want in self.wanted:
            done = self._ticket_for(want, "done")
            if done is not None:
                direct[want.slot] = done
            elif self._ticket_for(want, "flying") is not None:
                pending.append(want)
            else:
                missing.append(want)
        return direct, pending, missing

    def _ticket_for(self, want: Wanted, state: str) -> int | None:
        for attempt in self._tries:
            same = attempt.fetch.index == want.slot or self.k == 1
            if same and attempt.state == state and attempt.covers(want.lo, want.hi):
                return attempt.fetch.ticket
        return None

    def _arrived_over(self, lo: int, hi: int) -> dict[int, int]:
        return {t.fetch.index: t.fetch.ticket for t in self._tries if t.state == "done" and t.covers(lo, hi)}

    def _gather(self, lo: int, hi: int, arrived: int, now: float) -> list[Effect]:
        """Ask for as many more fragments as are needed to reach k over [lo, hi)."""
        effects: list[Effect] = []
        coming = {t.fetch.index for t in self._tries if t.state == "flying" and t.covers(lo, hi)}
        useful = arrived + len(coming)
        for index in self._order():
            if useful >= self.k or self._extra >= HEDGES_MAX:
                break
            if index in coming or self._has(index, lo, hi):
                continue
            asked = self._ask(index, lo, hi, now)
            effects += asked
            useful += bool(asked)
            self._extra += bool(asked)
        if useful >= self.k or self._hopeful():
            return effects
        tried = {index: list(rows) for index, rows in self._log.items()}
        return [*effects, *self._finish(Stuck(arrived, self.k, tried))]

    def _hopeful(self) -> bool:
        """Slow requests may still come in."""
        return any(attempt.state in ("slow", "flying") for attempt in self._tries)

    def _order(self) -> list[int]:
        preferred = [index for index in self.preference if index < self.k + self.m]
        rest = [*range(self.k, self.k + self.m), *range(self.k)]
        order = list(dict.fromkeys([*preferred, *rest]))
        # Doubtful ones are the last resort.
        return [i for i in order if i not in self.doubtful] + [i for i in order if i in self.doubtful]

    def _has(self, index: int, lo: int, hi: int) -> bool:
        return any(t.fetch.index == index and t.state in ("done", "flying") and t.covers(lo, hi) for t in self._tries)

    def _ask(self, index: int, lo: int, hi: int, now: float) -> list[Effect]:
        nodes = self.holders.get(index, ())
        at = self._asked.get(index, 0)
        done_narrow = any(t.fetch.index == index and t.state == "done" for t in self._tries)
        if done_narrow and nodes:  # a good holder gave a narrower range: ask it again for the wider one
            node = next(t.fetch.node for t in self._tries if t.fetch.index == index and t.state == "done")
        elif at < len(nodes):
            node = nodes[at]
            self._asked[index] = at + 1
        else:
            self._log.setdefault(index, [])
            return []
        fetch = Fetch(len(self._tries), index, node, lo, hi)
        self._tries.append(_Try(fetch, now))
        return [fetch]

    def _finish(self, outcome: Ready | Stuck) -> list[Effect]:
        self.over = True
        open_tickets = [t.fetch.ticket for t in self._tries if t.state in ("flying", "slow")]
        return [*(Cancel(ticket) for ticket in open_tickets), outcome]

"""Hosting `StripeRead` in the simulator, as the client's asyncio host does, with checks at every effect.

A reader reads stripe after stripe and remembers its nodes in a real `NodeRanking`: avoided holders become doubtful, slow and
failed ones are struck, and the hedge delay follows what was measured. Wrong bytes are found by their hash when they arrive.
A broken promise raises `Violation`.

What is checked: `Ready` names requests that arrived whole and cover what is wanted, k distinct fragments where decoding is
needed; `Stuck` comes only when fewer than k fragments can be had, and names every holder; requests stay within bounds; open
requests are cancelled, and nothing follows the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, assert_never

from dds.primitives.ids import ID_BYTES, NodeID
from dds.protocol.download import Cancel, Effect, Fetch, Ready, StripeRead, Stuck, Wanted
from dds.protocol.ranking import NodeRanking
from dds.sim.clock import Clock, Timer
from dds.sim.nodes import Fault, Outcome, SimNode
from dds.sim.upload_run import TICK_S, require

READ_S_MAX: Final = 3600.0
AT_HAND: Final = NodeID(b"\xff" * ID_BYTES)  # where bytes came from that are here already


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Geometry, what is wanted of each stripe, and how the host behaves."""

    k: int = 10
    m: int = 6
    slot_bytes: int = 1 << 20
    timeout_s: float = 30.0  # of one request
    hedge_s: float | None = None  # None: as the ranking measures


@dataclass(frozen=True, slots=True)
class ReadReport:
    outcome: Ready | Stuck
    seconds: float
    requests: int


class Reader:
    """Reads of stripes whose fragments lie at the same holders; what is learnt in one read serves the next."""

    def __init__(self, nodes: Mapping[NodeID, SimNode], holders: Mapping[int, Sequence[NodeID]], plan: ReadPlan) -> None:
        self.clock, self.ranking, self.plan = Clock(), NodeRanking(), plan
        self.nodes, self.holders = nodes, holders

    def whole(self) -> list[Wanted]:
        return [Wanted(slot, 0, self.plan.slot_bytes) for slot in range(self.plan.k)]

    def read(self, wanted: Sequence[Wanted], at_hand: Sequence[tuple[int, int, int]] = ()) -> ReadReport:
        """Read a stripe; `at_hand` are bytes (index, lo, hi) that earlier reads brought."""
        return StripeRun(self, wanted, at_hand).run()


class StripeRun:
    """One stripe's read; `run` plays it to its end."""

    def __init__(self, reader: Reader, wanted: Sequence[Wanted], at_hand: Sequence[tuple[int, int, int]]) -> None:
        self._reader, self._wanted, self._plan = reader, wanted, reader.plan
        now = reader.clock.now
        avoided = {node for node in reader.nodes if reader.ranking.avoided(node, now)}
        holders = {i: sorted(nodes, key=lambda node: node in avoided) for i, nodes in reader.holders.items()}
        doubtful = frozenset(index for index, nodes in holders.items() if nodes and nodes[0] in avoided)
        self._machine = StripeRead(reader.plan.k, reader.plan.m, wanted, holders, doubtful)
        self._began = now
        self._fetches: dict[int, Fetch] = {}
        self._open: dict[int, list[Timer]] = {}
        self._good: set[int] = set()
        self._failed: set[tuple[int, NodeID]] = set()
        self._outcome: Ready | Stuck | None = None
        for index, lo, hi in at_hand:
            fetch = Fetch(self._machine.offer(index, AT_HAND, lo, hi), index, AT_HAND, lo, hi)
            self._fetches[fetch.ticket] = fetch
            self._good.add(fetch.ticket)
        self._offered = len(at_hand)

    def run(self) -> ReadReport:
        clock = self._reader.clock
        self._perform(self._machine.start(clock.now))
        clock.after(TICK_S, self._tick)
        ended = clock.run(lambda: self._outcome is not None, clock.now + READ_S_MAX)
        require(ended and self._outcome is not None, "every read ends")
        assert self._outcome is not None
        for node in self._machine.slow_nodes():
            self._reader.ranking.struck(node, clock.now)
        return ReadReport(self._outcome, clock.now - self._began, len(self._fetches) - self._offered)

    # -- the host -------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        hedge_s = self._plan.hedge_s if self._plan.hedge_s is not None else self._reader.ranking.hedge_s()
        if self._outcome is None:
            self._perform(self._machine.tick(self._reader.clock.now, hedge_s))
            self._reader.clock.after(TICK_S, self._tick)

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            require(self._outcome is None, "nothing follows the end")
            match effect:
                case Fetch():
                    self._fetch(effect)
                case Cancel(ticket):
                    self._drop(ticket)
                case Ready():
                    self._check_ready(effect)
                    self._end(effect)
                case Stuck():
                    self._check_stuck(effect)
                    self._end(effect)
                case _:
                    assert_never(effect)

    def _fetch(self, fetch: Fetch) -> None:
        require(fetch.ticket == len(self._fetches), "tickets count up")
        require(fetch.node in self._reader.holders.get(fetch.index, ()), "only holders are asked")
        clock = self._reader.clock
        node = self._reader.nodes[fetch.node]
        self._fetches[fetch.ticket] = fetch
        self._check_bounds(fetch)
        answer = node.answer(clock.now, fetch.hi - fetch.lo)
        started = clock.now
        self._open[fetch.ticket] = [
            clock.at(answer.at, lambda: self._answered(fetch, answer.outcome, started)),
            clock.after(self._plan.timeout_s, lambda: self._fail(fetch, "timed out")),
        ]

    def _answered(self, fetch: Fetch, outcome: Outcome, started: float) -> None:
        clock, ranking = self._reader.clock, self._reader.ranking
        if outcome is Outcome.WRONG:
            ranking.lied(fetch.node)
        if outcome is not Outcome.OK:
            self._fail(fetch, outcome.value)
            return
        self._drop(fetch.ticket)
        self._good.add(fetch.ticket)
        ranking.succeeded(fetch.node, clock.now - started)
        self._perform(self._machine.arrived(fetch.ticket, clock.now))

    def _fail(self, fetch: Fetch, why: str) -> None:
        self._drop(fetch.ticket)
        self._failed.add((fetch.index, fetch.node))
        self._reader.ranking.struck(fetch.node, self._reader.clock.now)
        self._perform(self._machine.failed(fetch.ticket, why, self._reader.clock.now))

    def _drop(self, ticket: int) -> None:
        require(ticket in self._open, "only open requests are cancelled")
        for timer in self._open.pop(ticket):
            timer.cancel()

    def _end(self, outcome: Ready | Stuck) -> None:
        require(not self._open, "what is still open is cancelled")
        require(self._machine.over, "the machine knows that it is over")
        self._outcome = outcome

    # -- promises -------------------------------------------------------------------------------------------------------

    def _check_bounds(self, fetch: Fetch) -> None:
        same = [f for f in self._fetches.values() if (f.index, f.node) == (fetch.index, fetch.node)]
        ranges = {(f.lo, f.hi) for f in same}
        require(len(ranges) <= 3, "a holder is asked directly, over one hull, and over the whole")
        again = [f for f in same if (f.lo, f.hi) == (fetch.lo, fetch.hi)]
        allowed = 2 if (fetch.index, fetch.node) in self._failed else 1
        require(len(again) <= allowed, "only what failed is asked again, once")

    def _check_ready(self, ready: Ready) -> None:
        wants = {want.slot: want for want in self._wanted}
        require(not ready.direct.keys() & set(ready.missing), "a slot is either here or missing")
        require(ready.direct.keys() | set(ready.missing) == wants.keys(), "every wanted slot is accounted for")
        for slot, ticket in ready.direct.items():
            fetch = self._fetches[ticket]
            require(fetch.index == slot or self._plan.k == 1, "a direct slot came from its own fragment")
            self._check_covers(ticket, wants[slot].lo, wants[slot].hi)
        for slot in ready.missing:
            require(ready.lo <= wants[slot].lo and wants[slot].hi <= ready.hi, "the decoded columns hold what is wanted")
        require(len(ready.sources) == (self._plan.k if ready.missing else 0), "k sources where decoding is needed")
        for index, ticket in ready.sources.items():
            require(self._fetches[ticket].index == index, "a source is what it is called")
            self._check_covers(ticket, ready.lo, ready.hi)

    def _check_covers(self, ticket: int, lo: int, hi: int) -> None:
        fetch = self._fetches[ticket]
        require(ticket in self._good and fetch.lo <= lo and hi <= fetch.hi, "only whole, good arrivals count")

    def _check_stuck(self, stuck: Stuck) -> None:
        lacking = [want for want in self._wanted if not self._came(want.slot, want.lo, want.hi)]
        lo, hi = min(want.lo for want in lacking), max(want.hi for want in lacking)
        gone = {i for i in range(self._plan.k + self._plan.m) if self._failed_everywhere(i) and not self._came(i, lo, hi)}
        require(self._plan.k + self._plan.m - len(gone) < self._plan.k, "stuck only when fewer than k can be had")
        require(stuck.have < stuck.need == self._plan.k, "stuck says how many are short")
        require(gone <= stuck.tried.keys(), "stuck tells of everything that is gone")
        for index in gone:
            named = {node for node, _ in stuck.tried[index]}
            require(named == set(self._reader.holders.get(index, ())), "stuck names every holder of what is gone")

    def _came(self, index: int, lo: int, hi: int) -> bool:
        fetches = [self._fetches[ticket] for ticket in self._good]
        return any(f.index == index and f.lo <= lo and hi <= f.hi for f in fetches)

    def _failed_everywhere(self, index: int) -> bool:
        """Whether each holder of the index failed, and its fault excuses that."""
        holders = self._reader.holders.get(index, ())
        return all((index, node) in self._failed and self._reader.nodes[node].fault is not Fault.NONE for node in holders)


def holders_of(rng: Random, nodes: Sequence[SimNode], indices: int, extra: float = 0.0) -> dict[int, list[NodeID]]:
    """One holder an index, and with chance `extra` a second one (a repair, a cache)."""
    order = rng.sample(nodes, len(nodes))
    holders = {index: [order[index].node_id] for index in range(indices)}
    for index, row in holders.items():
        if rng.random() < extra:
            row.append(rng.choice([n for n in order if n.node_id != order[index].node_id]).node_id)
    return holders

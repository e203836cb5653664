"""Deriving a segment's assignments again: a ledger applied anew up to its end, with an eye on the draws of some segments.

Decides whether who holds a segment follows from the draws that were made for it: its reservation's, then each redraw's. Spares
may have stood in. It does not trust what the ledger's host says of a draw: candidates, weights, beacon and seed are those of
the state as it was when the transaction came, and the draw is made again.
Source: docs/spec/placement.md, "Explaining a draw".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from dds.apps.cli.ledger_replay import Copy
from dds.ledger.faults import Refused
from dds.ledger.genesis import GENESIS_BYTES_MAX, Genesis
from dds.ledger.machine import MISTAKES, TxResult
from dds.ledger.records import CONTRACTS, SEGMENTS, Assignment, Holding, Segment, reservation_id
from dds.ledger.rules.reservations import redrawn, reservations_drawn
from dds.ledger.state import State
from dds.placement.explain import Drawing, redo
from dds.primitives.errors import FormatError, InputError, NotFoundError
from dds.primitives.ids import NodeID, id_text
from dds.wire.codec import decode
from dds.wire.ledger import Redraw, Reencode, RegisterSegments, Reserve, Tx, open_tx
from dds.wire.ledger_api import BlockReply

LINE_BYTES_MAX: Final = 64 << 20  # of an exported file: the first has the genesis, twice its bytes in hex
Hex = Annotated[str, msgspec.Meta(pattern="^([0-9a-f][0-9a-f])*$")]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One draw for a segment."""

    number: int  # 0: the reservation's; r: the r-th redraw
    height: int
    epoch: int
    indices: tuple[int, ...]
    drawing: Drawing


@dataclass(frozen=True, slots=True)
class Seat:
    """One index of a segment: who holds it, and how that came about."""

    index: int
    node: NodeID | None
    state: str
    draw: int
    how: str
    follows: bool = True  # from the draws


@dataclass(frozen=True, slots=True)
class Derived:
    """A segment's draws, and whether its assignments follow from them."""

    segment_id: bytes
    segment: Segment
    draws: tuple[Drawn, ...]
    seats: tuple[Seat, ...]
    problems: tuple[str, ...]


@dataclass(slots=True)
class DrawWatch:
    """Keeps the draws of some segments while the ledger is applied. `wanted`: segment id -> the reservation it came of."""

    wanted: Mapping[bytes, bytes]
    draws: dict[bytes, list[Drawn]] = field(default_factory=dict)  # by segment id
    _maybe: list[tuple[bytes, Drawn]] = field(default_factory=list)  # of the transaction that is being applied

    def before(self, state: State, tx: Tx, height: int) -> None:
        try:
            match tx.body:
                case Reserve():
                    self._maybe = list(self._reserved(state, tx, tx.body, height))
                case Redraw(segment_id=segment_id) if segment_id in self.wanted:
                    self._maybe = list(self._redrawn(state, tx, tx.body, height))
                case _:
                    self._maybe = []
        except (Refused, *MISTAKES):  # then the transaction itself is refused too
            self._maybe = []
        finally:
            state.drop()

    def after(self, result: TxResult) -> None:
        for segment_id, drawn in self._maybe if result.ok else ():
            self.draws.setdefault(segment_id, []).append(drawn)

    def _reserved(self, state: State, tx: Tx, body: Reserve, height: int) -> Iterator[tuple[bytes, Drawn]]:
        contract = state.find(CONTRACTS, body.contract)
        counters = range(0) if contract is None else range(contract.reservations, contract.reservations + body.count)
        made = {reservation_id(body.contract, counter) for counter in counters}
        if made.isdisjoint(self.wanted.values()):
            return
        drawings = reservations_drawn(state, tx, body)
        for segment_id, reservation in self.wanted.items():
            if reservation in drawings:
                yield segment_id, Drawn(0, height, state.epoch, tuple(range(body.width)), drawings[reservation])

    def _redrawn(self, state: State, tx: Tx, body: Redraw, height: int) -> Iterator[tuple[bytes, Drawn]]:
        segment = state.find(SEGMENTS, body.segment_id)
        if segment is not None and segment.reservation == self.wanted[body.segment_id]:
            drawing = redrawn(state, tx, body)
            yield body.segment_id, Drawn(segment.redraws + 1, height, state.epoch, tuple(body.indices), drawing)


def derive(copy: Copy, watch: DrawWatch, segment_id: bytes) -> Derived:
    """Compare a segment's assignments in the ledger, which `copy` is at its end, with what the draws give.

    Raises:
        NotFoundError: the ledger has no such segment any more.
    """
    said = copy.state.find(SEGMENTS, segment_id)
    if said is None:
        raise NotFoundError(f"the ledger has no segment {id_text(segment_id)} at height {copy.height}")
    draws = tuple(watch.draws.get(segment_id, ()))
    problems: list[str] = []
    if not draws or draws[0].number:
        problems.append("no block has the reservation that the segment is said to have come of")
    problems += [
        f"draw {each.number}, made again, gives other nodes" for each in draws if redo(each.drawing) != each.drawing.found
    ]
    numbers = {each.node for each in said.assignments if each.state != Holding.FREED}
    nodes = {number: NodeID(copy.state.node(number).node_id) for number in numbers}
    seats = tuple(_seat(index, each, nodes, draws) for index, each in enumerate(said.assignments))
    problems += [f"index {seat.index}: {seat.how}" for seat in seats if not seat.follows]
    return Derived(segment_id, said, draws, seats, tuple(problems))


def _seat(index: int, held: Assignment, nodes: Mapping[int, NodeID], draws: Sequence[Drawn]) -> Seat:
    state = Holding(held.state).name.lower()
    if held.state == Holding.FREED:
        return Seat(index, None, state, held.draw, "nobody holds it now: it waits for a redraw")
    node = nodes[held.node]
    drawn = next((each for each in draws if each.number == held.draw and index in each.indices), None)
    if drawn is None:
        return Seat(index, node, state, held.draw, f"held by {id_text(node)}, and no draw was made for it", follows=False)
    found = drawn.drawing.found
    due = found.chosen[drawn.indices.index(index)]
    if node == due:
        return Seat(index, node, state, held.draw, "as drawn" if not held.draw else f"as drawn by redraw {held.draw}")
    missed = f"drawn {id_text(due)[:12]} did not take it"
    if held.draw == 0 and node in found.spares:
        return Seat(index, node, state, 0, f"{missed}; spare {found.spares.index(node)} stands in")
    if held.draw == 0 and node in found.chosen:
        return Seat(index, node, state, 0, f"{missed}; the node drawn for index {found.chosen.index(node)} stands in")
    return Seat(index, node, state, held.draw, f"held by {id_text(node)}, drawn was {id_text(due)}", follows=False)


# -- from a file ------------------------------------------------------------------------------------------------------------


class _ExportedTx(msgspec.Struct, frozen=True):
    raw: Hex
    code: str


class _ExportedBlock(msgspec.Struct, frozen=True):
    height: int
    time_ms: int
    root: Hex
    txs: tuple[_ExportedTx, ...]
    genesis: Hex = ""


@dataclass(frozen=True, slots=True)
class Exported:
    """A file that `dds ledger export` wrote; read anew for each pass, a line at a time."""

    path: Path

    def genesis(self) -> Genesis:
        """
        Raises:
            InputError: the file does not begin with it.
        """
        first = next(self._lines(), None)
        if first is None or not first.genesis:
            raise InputError(f"{self.path} does not begin with a genesis", hint="write it anew: dds ledger export FILE --force")
        try:
            return decode(bytes.fromhex(first.genesis), Genesis, max_bytes=GENESIS_BYTES_MAX)
        except FormatError as error:
            raise InputError(f"{self.path}: its genesis does not hold: {error.message}") from None

    def blocks(self) -> Iterator[BlockReply]:
        """
        Raises:
            InputError: a line that is no block.
        """
        for line in self._lines():
            raws = tuple(bytes.fromhex(each.raw) for each in line.txs)
            yield BlockReply(line.height, line.time_ms, bytes.fromhex(line.root), raws, tuple(each.code for each in line.txs))

    def _lines(self) -> Iterator[_ExportedBlock]:
        decoder = msgspec.json.Decoder(_ExportedBlock)
        try:
            with self.path.open("rb") as file:
                number = 0
                while line := file.readline(LINE_BYTES_MAX):
                    number += 1
                    yield decoder.decode(line)
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from None
        except msgspec.DecodeError as error:
            raise InputError(f"{self.path}, line {number}: not a block of a ledger: {error}") from None


def last_reservations(blocks: Iterable[BlockReply], network: str, wanted: Sequence[bytes]) -> dict[bytes, bytes]:
    """By segment id the reservation that it came of last, of those registered in these blocks."""
    found: dict[bytes, bytes] = {}
    for block in blocks:
        for raw, code in zip(block.txs, block.codes, strict=True):
            if not code and any(segment_id in raw for segment_id in wanted):
                found |= {entry.segment_id: entry.reservation for entry in _entries(raw, network) if entry.segment_id in wanted}
    return found


def _entries(raw: bytes, network: str) -> list[Any]:
    """The segments that a transaction registers."""
    try:
        body = open_tx(raw, network).body
    except FormatError:
        return []  # the replay will say so
    match body:
        case RegisterSegments():
            return list(body.segments)
        case Reencode():
            return [body.segment]
        case _:
            return []

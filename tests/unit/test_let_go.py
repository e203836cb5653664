"""A paid node lets go of what the ledger no longer assigns to it: in its time, after asking twice, and never on a guess."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dds.ledger.facts import Key
from dds.ledger.params import Params
from dds.ledger.records import CHAIN, NUMBERS, PARAMS, RESERVATIONS, SEGMENTS, Assignment, Chain, Holding, NumberOf, Reservation
from dds.ledger.records import Segment as LedgerSegment
from dds.primitives.errors import PeerUnreachable, UnavailableError
from dds.primitives.ids import NodeID, SegmentID
from dds.primitives.keys import SigningKey
from dds.runtime.let_go import LetGo, keep_without_ledger
from dds.runtime.metrics import Registry
from dds.runtime.node_service import Receipted
from dds.storage.fragment_store import FragmentStore, StoreConfig
from dds.storage.reader import HoldKey
from dds.storage.upkeep import Upkeep
from dds.wire.ledger import AnyBody
from dds.wire.segment import EncodingRecord
from tests.store_kit import OWNER, UPLOAD, Clock, content_of, raw_of, segment_of

NODE, NUMBER, OTHER = NodeID(b"n" * 32), 3, 4
RESERVATION = b"r" * 32
WINDOW_MS = 60_000


class Books:
    """A ledger's entries, as a light client would prove them."""

    def __init__(self) -> None:
        self.epoch, self.away, self.genesis_ms = 10, False, 0
        self.segments: dict[bytes, LedgerSegment] = {}
        self.reservations: dict[bytes, Reservation] = {}

    async def find_many(self, wanted: Sequence[Key], /) -> list[Any]:
        if self.away:
            raise PeerUnreachable("the ledger is away", peer="host")
        return [self._find(*key) for key in wanted]

    def _find(self, table: Any, identifier: bytes) -> Any:
        alone: dict[Any, Any] = {
            CHAIN: Chain(epoch=self.epoch),
            PARAMS: Params(genesis_ms=self.genesis_ms),
            NUMBERS: NumberOf(NUMBER),
        }
        many: dict[Any, dict[bytes, Any]] = {SEGMENTS: self.segments, RESERVATIONS: self.reservations}
        return alone[table] if table in alone else many[table].get(identifier)

    async def submit(self, _key: SigningKey, _body: AnyBody, /) -> object:
        raise AssertionError("letting go sends nothing")

    def assign(self, what: EncodingRecord, node: int, state: Holding = Holding.ACTIVE) -> None:
        """Index 0 to `node`."""
        self.segments[what.segment_id] = LedgerSegment(
            what.root(), b"e" * 32, RESERVATION, 1, 2, (), 0, (Assignment(node=node, state=int(state)),), (), 1
        )


class Said:
    """What is announced now."""

    def __init__(self) -> None:
        self.held: set[tuple[SegmentID, int]] = set()

    def announce_segment(self, segment_id: SegmentID, index: int) -> None:
        self.held.add((segment_id, index))

    def withdraw_segment(self, segment_id: SegmentID, index: int) -> None:
        self.held.discard((segment_id, index))


class Node:
    """A store with one share, and the job under test."""

    def __init__(self, directory: Path) -> None:
        self.clock, self.books, self.said = Clock(), Books(), Said()
        self.store = FragmentStore(directory / "store", StoreConfig(1 << 30, trash_window_ms=WINDOW_MS), clock=self.clock)
        self.directory = directory
        self.open()
        self.what = segment_of([content_of(1, 5000)])
        self.share = HoldKey(self.what.segment_id, self.what.root(), 0)

    def open(self) -> None:
        self.metrics = Registry()
        self.job = LetGo(NODE, self.store, self.books, self.directory, self.said, self.metrics)

    def store_free(self) -> EncodingRecord:
        """Another segment, of 3000 bytes, as a node keeps it that knows no ledger."""
        free = segment_of([content_of(7, 3000)], "free")
        self.store.stage(UPLOAD, OWNER, content_of(7, 3000))
        self.store.commit(UPLOAD, OWNER, free, raw_of(free), 0)
        return free

    def commit(self, what: EncodingRecord, reservation: bytes = b"") -> None:
        self.store.stage(UPLOAD, OWNER, content_of(1, 5000))
        self.store.commit(UPLOAD, OWNER, what, raw_of(what), 0)
        self.said.announce_segment(what.segment_id, 0)
        if reservation:
            self.job.committed(Receipted(b"", what, 0, None, None), reservation)  # type: ignore[arg-type]

    async def pass_epochs(self, count: int) -> int:
        released = 0
        for _ in range(count):
            self.books.epoch += 1
            released += await self.job.look_through()
        return released

    async def sweep(self) -> int:
        upkeep = Upkeep(self.store)
        return upkeep.sweep_step(approved=await self.job.recheck(upkeep.due())).purged

    def is_held(self) -> bool:
        return self.store.holding([self.what.segment_id]) == [[0]]

    def read(self) -> bytes:
        return self.store.read(self.what.records[0][0].root)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    await made.job.look_through()  # as at a start: it knows its ledger before anything comes
    made.commit(made.what, RESERVATION)
    yield made
    made.job.close()
    made.store.close()


async def test_what_is_assigned_stays_for_ever(node: Node) -> None:
    node.books.assign(node.what, NUMBER)
    assert await node.pass_epochs(50) == 0
    node.books.assign(node.what, NUMBER, Holding.PENDING)
    assert await node.pass_epochs(50) == 0


async def test_what_another_node_holds_goes_after_its_epochs_and_its_window_and_is_read_until_then(node: Node) -> None:
    node.books.assign(node.what, OTHER)
    wait = Params().release_epochs
    assert await node.pass_epochs(wait) == 0 and node.is_held()
    assert await node.pass_epochs(1) == 1
    assert not node.is_held() and node.said.held == set()
    assert node.read() == content_of(1, 5000)
    node.clock.now_ms += WINDOW_MS
    used = node.store.stats().trash_bytes
    assert await node.sweep() == 1
    assert (used, node.store.stats().trash_bytes) == (5000, 0)


async def test_a_share_of_a_former_encoding_goes_although_the_node_holds_the_index_in_the_present_one(node: Node) -> None:
    other = replace_root(node.what)
    node.books.segments[node.what.segment_id] = LedgerSegment(
        other.root(), b"e" * 32, RESERVATION, 1, 2, (), 0, (Assignment(node=NUMBER, state=int(Holding.ACTIVE)),), (), 1
    )
    assert await node.pass_epochs(Params().release_epochs + 1) == 1


def replace_root(what: EncodingRecord) -> EncodingRecord:
    return segment_of([content_of(2, 5000)], "other")


async def test_an_ended_segment_goes_too(node: Node) -> None:
    assert await node.pass_epochs(Params().release_epochs + 1) == 1


async def test_nothing_goes_while_the_ledger_does_not_answer(node: Node) -> None:
    await node.pass_epochs(Params().release_epochs)
    node.books.away = True
    with pytest.raises(PeerUnreachable):
        await node.pass_epochs(9)
    assert node.is_held()
    node.books.away = False
    assert await node.pass_epochs(1) == 1
    node.clock.now_ms += 10 * WINDOW_MS
    node.books.away = True
    assert await node.sweep() == 0
    node.books.away = False
    assert await node.sweep() == 1


async def test_what_is_assigned_again_leaves_the_trash(node: Node) -> None:
    await node.pass_epochs(Params().release_epochs + 1)
    node.books.assign(node.what, NUMBER)
    node.clock.now_ms += 10 * WINDOW_MS
    assert await node.sweep() == 0
    assert node.is_held() and node.said.held == {(node.what.segment_id, 0)}


async def test_a_share_waits_for_its_reservation_however_long_that_is_open(node: Node) -> None:
    node.commit(node.what, RESERVATION)
    expires = node.books.epoch + 30
    made = Reservation(b"c" * 32, 1, expires, 5000, (NUMBER,), ())
    node.books.reservations[RESERVATION] = made
    assert await node.pass_epochs(29) == 0
    node.books.reservations[RESERVATION] = replace(made, expires_epoch=expires)
    assert await node.pass_epochs(Params().release_epochs + 1) == 1


async def test_a_commit_begins_the_time_anew(node: Node) -> None:
    await node.pass_epochs(Params().release_epochs)
    node.commit(node.what, RESERVATION)
    assert await node.pass_epochs(Params().release_epochs) == 0
    assert await node.pass_epochs(1) == 1


async def test_the_time_goes_on_over_a_restart(node: Node) -> None:
    await node.pass_epochs(Params().release_epochs)
    node.job.close()
    node.open()
    assert await node.pass_epochs(1) == 1


async def test_a_break_in_which_it_was_assigned_begins_the_time_anew(node: Node) -> None:
    await node.pass_epochs(Params().release_epochs)
    node.books.assign(node.what, NUMBER)
    await node.pass_epochs(1)
    del node.books.segments[node.what.segment_id]
    assert await node.pass_epochs(Params().release_epochs) == 0


async def test_another_ledger_of_the_same_name_takes_nothing_away(node: Node) -> None:
    """The node is registered there too, and its epochs are far ahead: it knows nothing of what was stored here."""
    node.books.assign(node.what, NUMBER)
    await node.pass_epochs(1)
    node.job.close()
    node.books.segments.clear()
    node.books.genesis_ms, node.books.epoch = 77, 5000
    node.open()
    for _ in range(2 * Params().release_epochs):
        with pytest.raises(UnavailableError, match="another ledger"):
            await node.pass_epochs(1)
    assert node.is_held()


async def test_another_ledger_empties_no_trash(node: Node) -> None:
    await node.pass_epochs(Params().release_epochs + 1)
    node.clock.now_ms += 10 * WINDOW_MS
    node.books.genesis_ms = 77
    assert await node.sweep() == 0
    node.books.genesis_ms = 0
    assert await node.sweep() == 1


async def test_a_ledger_that_was_set_back_takes_nothing_away_until_it_has_caught_up(node: Node) -> None:
    """Its host was restored from a copy of before the segment was registered, and the node was started anew."""
    await node.pass_epochs(1)  # committed, and not registered yet
    node.books.assign(node.what, NUMBER)
    await node.pass_epochs(40)
    node.job.close()
    node.books.segments.clear()
    node.books.epoch -= 30
    node.open()
    for _ in range(2 * Params().release_epochs):
        with pytest.raises(UnavailableError, match="went back"):
            await node.pass_epochs(1)
    assert node.is_held()


async def test_what_is_in_the_trash_without_a_note_leaves_it(node: Node) -> None:
    await node.pass_epochs(Params().release_epochs + 1)
    node.job.close()
    (node.directory / "unassigned.sqlite").unlink()
    node.open()
    node.clock.now_ms += 10 * WINDOW_MS
    assert await node.sweep() == 0
    assert node.is_held() and node.said.held == {(node.what.segment_id, 0)}


async def test_what_was_stored_before_the_node_named_a_ledger_is_kept_and_counted(node: Node) -> None:
    free = node.store_free()
    assert await node.pass_epochs(3 * Params().release_epochs) == 1  # the paid one
    assert node.store.holding([free.segment_id, node.what.segment_id]) == [[0], []]
    assert "dds_shares_without_ledger_bytes 3000" in node.metrics.render()
    node.clock.now_ms += 10 * WINDOW_MS
    assert await node.sweep() == 1
    assert node.store.holding([free.segment_id]) == [[0]]


async def test_a_commit_for_another_ledger_that_never_said_which_it_is_is_no_evidence(tmp_path: Path) -> None:
    """Paid by one that was named for an hour, before the first look; then the node is given another one."""
    node = Node(tmp_path)
    node.commit(node.what, RESERVATION)
    assert await node.pass_epochs(3 * Params().release_epochs) == 0
    assert node.is_held()
    node.job.close()
    node.store.close()


async def test_a_share_of_a_free_node_goes_once_this_ledger_has_assigned_and_freed_it(node: Node) -> None:
    free = node.store_free()
    node.books.assign(free, NUMBER)
    await node.pass_epochs(1)
    node.books.assign(free, NUMBER, Holding.FREED)
    await node.pass_epochs(Params().release_epochs + 1)
    assert node.store.holding([free.segment_id]) == [[]]


async def test_a_node_that_names_no_ledger_any_more_empties_no_trash(node: Node) -> None:
    await node.pass_epochs(Params().release_epochs + 1)
    assert not node.is_held()
    node.clock.now_ms += 10 * WINDOW_MS
    upkeep = Upkeep(node.store)
    approved = await keep_without_ledger(node.store, node.said, upkeep.due())
    assert upkeep.sweep_step(approved=approved).purged == 0
    assert node.is_held() and node.said.held == {(node.what.segment_id, 0)}
    assert await node.pass_epochs(1) == 1  # it names the ledger again


async def test_a_commit_that_comes_while_the_ledger_is_asked_is_not_released(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.pass_epochs(Params().release_epochs)
    seen = node.job._notes.seen

    def seen_then_commit(*args: Any) -> Any:
        since = seen(*args)
        node.commit(node.what, RESERVATION)
        return since

    monkeypatch.setattr(node.job._notes, "seen", seen_then_commit)
    assert await node.pass_epochs(1) == 0
    assert node.is_held() and node.said.held == {(node.what.segment_id, 0)}


async def test_a_share_that_was_released_between_its_commit_and_the_note_of_it_is_held(node: Node) -> None:
    node.store.stage(UPLOAD, OWNER, content_of(1, 5000))
    node.store.commit(UPLOAD, OWNER, node.what, raw_of(node.what), 0)
    node.store.release(node.what.segment_id, 0, node.what.root())
    node.job.committed(Receipted(b"", node.what, 0, None, None), RESERVATION)  # type: ignore[arg-type]
    assert node.is_held()

"""Who may write to a paid node: the one who pays, what was reserved, once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from dds.erasure.geometry import Geometry
from dds.ledger.records import NODES, RESERVATIONS, Reservation, number_key
from dds.primitives.errors import PaymentRequired
from dds.primitives.ids import NodeID
from dds.runtime.admission import Admission
from dds.runtime.contract_desk import ContractDesk
from dds.runtime.ledger_client import open_ledger
from dds.runtime.offers import Reserved, accept
from dds.wire.api import CommitRequest
from tests.ledger_desk import CREATOR, NETWORK, STRANGER, LedgerDesk, ledger_desk

FRAGMENT = 1 << 20
WRITER = NodeID(CREATOR.public)


@pytest.fixture
def books(tmp_path: Path) -> Iterator[LedgerDesk]:
    with ledger_desk(tmp_path) as made:
        yield made


def tried(books: LedgerDesk, *commits: tuple[NodeID, bytes, int, bytes], late_epochs: int = 0) -> list[int | str]:
    """What each commit (writer, stripes, index, encoding) under one reservation comes to: the bytes allowed, or the refusal."""

    async def one(
        door: Admission, reserved: Reserved, writer: NodeID, stripes: bytes, index: int, encoding: bytes
    ) -> int | str:
        try:
            return await door.check(
                writer, CommitRequest(bytes(16), index, encoding, [], None, reserved.id + stripes), reserved.ticket
            )
        except PaymentRequired as error:
            return error.message

    async def work() -> list[int | str]:
        async with open_ledger(books.home.client_config().ledger, network=NETWORK) as ledger:
            desk = ContractDesk(ledger, CREATOR, "custom-2-1", Geometry(2, 1), "720", None, accept)
            await desk.begin(FRAGMENT)
            reserved = await desk.reserve(3, 1, FRAGMENT)
            books.pass_epochs(late_epochs)
            made = books.replica.find(RESERVATIONS, reserved.id)
            assert isinstance(made, Reservation)
            node = books.replica.find(NODES, number_key(made.chosen[0]))
            assert node is not None
            door = Admission(ledger, NodeID(node.node_id), lambda: books.now_ms[0])
            return [await one(door, reserved, *commit) for commit in commits]

    return asyncio.run(work())


def test_the_same_commit_passes_as_often_as_it_comes(books: LedgerDesk) -> None:
    assert tried(books, *2 * [(WRITER, b"stripes", 0, b"encoding")]) == [FRAGMENT, FRAGMENT]


def test_a_strangers_commit_neither_passes_nor_uses_the_reservation_up(books: LedgerDesk) -> None:
    stranger = NodeID(STRANGER.public), b"stripes", 0, b"junk"
    assert tried(books, stranger, (WRITER, b"stripes", 0, b"encoding")) == ["the reservation is another publisher's", FRAGMENT]


@pytest.mark.parametrize(
    "second", [(b"stripes", 0, b"other"), (b"stripes", 1, b"encoding"), (b"others", 0, b"other"), (b"others", 0, b"encoding!")]
)
def test_a_reservation_serves_one_share_at_a_node(books: LedgerDesk, second: tuple[bytes, int, bytes]) -> None:
    done = tried(books, (WRITER, b"stripes", 0, b"encoding"), (WRITER, *second))
    assert done == [FRAGMENT, "the reservation has served another share here"]


def test_an_old_ticket_does_not_hold(books: LedgerDesk) -> None:
    assert tried(books, (WRITER, b"stripes", 0, b"encoding"), late_epochs=1) == ["the ticket is too old"]

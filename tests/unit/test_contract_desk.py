"""The desk that pays for a put, against a real ledger: whatever happens half-way, the money is where it belongs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from dds.erasure.geometry import Geometry
from dds.ledger.records import ACCOUNTS, CONTRACTS, Contract, contract_id
from dds.primitives.errors import UnavailableError
from dds.primitives.money import TOKEN
from dds.runtime import contract_desk
from dds.runtime.contract_desk import ContractDesk
from dds.runtime.escrow_claims import EscrowClaims
from dds.runtime.ledger_client import open_ledger
from dds.runtime.offers import accept
from dds.wire.codec import decode
from dds.wire.ledger import OpenContract, Transfer
from dds.wire.ledger_api import EntriesReply, Head, open_head
from tests.ledger_desk import CREATOR, CREATOR_TOKENS, NETWORK, OPERATOR, LedgerDesk, ledger_desk
from tests.store_kit import segment_of

CLASS = "custom-2-1"
FRAGMENT = 1 << 20


@pytest.fixture
def books(tmp_path: Path) -> Iterator[LedgerDesk]:
    with ledger_desk(tmp_path) as made:
        yield made


@asynccontextmanager
async def a_put(books: LedgerDesk, term: str = "720") -> AsyncIterator[ContractDesk]:
    async with open_ledger(books.home.client_config().ledger, network=NETWORK) as ledger:
        yield ContractDesk(ledger, CREATOR, CLASS, Geometry(2, 1), term, None, accept)


@asynccontextmanager
async def a_session(books: LedgerDesk) -> AsyncIterator[Callable[[], ContractDesk]]:
    """Gives desks that share what those of one program share."""
    async with open_ledger(books.home.client_config().ledger, network=NETWORK) as ledger:
        claims = EscrowClaims()
        yield lambda: ContractDesk(ledger, CREATOR, CLASS, Geometry(2, 1), "720", None, accept, claims)


def contract(books: LedgerDesk) -> Contract:
    found = books.replica.find(CONTRACTS, contract_id(CREATOR.public, CLASS))
    assert found is not None
    return found


def balance(books: LedgerDesk) -> int:
    found = books.replica.find(ACCOUNTS, CREATOR.public)
    assert found is not None
    return found.balance


def test_a_put_that_fails_gets_everything_back(books: LedgerDesk) -> None:
    async def fails() -> None:
        async with a_put(books) as desk:
            await desk.begin(FRAGMENT)
            await desk.reserve(3, 1, FRAGMENT)
            await desk.reserve(3, 1, FRAGMENT)
            assert balance(books) < CREATOR_TOKENS * TOKEN and contract(books).reserved > 0
            await desk.fail()

    asyncio.run(fails())
    assert (contract(books).escrow, contract(books).reserved) == (0, 0)
    assert balance(books) == CREATOR_TOKENS * TOKEN


def test_a_reservation_that_is_closed_already_keeps_no_other_open(books: LedgerDesk) -> None:
    async def fails() -> None:
        async with a_put(books) as desk, a_put(books) as other:
            await desk.begin(FRAGMENT)
            first = await desk.reserve(3, 1, FRAGMENT)
            await desk.reserve(3, 1, FRAGMENT)
            await other.begin(0)
            await other._cancel([first.id])
            await desk.fail()

    asyncio.run(fails())
    assert contract(books).reserved == 0


def test_what_a_killed_put_had_reserved_is_cancelled_by_the_next_once_it_has_expired(books: LedgerDesk) -> None:
    async def is_killed() -> None:
        async with a_put(books) as desk:
            await desk.begin(FRAGMENT)
            await desk.reserve(3, 1, FRAGMENT)

    async def begins() -> None:
        async with a_put(books) as desk:
            await desk.begin(0)

    asyncio.run(is_killed())
    earmarked = contract(books).reserved
    asyncio.run(begins())
    assert contract(books).reserved == earmarked > 0  # it may be another put's, which goes on
    books.pass_epochs(books.replica.params.reservation_epochs)
    books.send(OPERATOR, Transfer(CREATOR.public, 1))  # a block of the later epoch
    asyncio.run(begins())
    assert contract(books).reserved == 0


def test_two_puts_at_once_do_not_starve_each_other_of_escrow(books: LedgerDesk) -> None:
    async def both() -> None:
        async with a_put(books) as one, a_put(books) as two:
            await one.begin(2 * FRAGMENT)
            await two.begin(2 * FRAGMENT)  # finds the first one's deposit, and counts on it
            for _ in range(2):
                await one.reserve(3, 1, FRAGMENT)
                await two.reserve(3, 1, FRAGMENT)

    asyncio.run(both())
    assert contract(books).reservations == 4 and contract(books).escrow >= contract(books).reserved


@pytest.mark.parametrize("programs", [1, 3])
def test_many_puts_at_once_all_get_what_they_reserve_and_those_that_fail_get_their_money_back(
    books: LedgerDesk, programs: int
) -> None:
    async def pays(desk: ContractDesk, fails: bool) -> int:
        await desk.begin(4 * FRAGMENT)
        for _ in range(2):
            await desk.reserve(3, 1, FRAGMENT)
        if fails:
            await desk.fail()
            return desk.spent.deposited
        desk.end()
        return desk.spent.deposited

    async def all_at_once() -> int:
        async with AsyncExitStack() as stack:
            opened = [await stack.enter_async_context(a_session(books)) for _ in range(programs)]
            puts = [pays(opened[number % programs](), fails=number % 4 == 3) for number in range(12)]
            return sum(await asyncio.gather(*puts))

    deposited = asyncio.run(all_at_once())
    assert contract(books).reservations == 24
    # nine puts' reservations stay, three puts' are cancelled
    assert contract(books).escrow == deposited >= contract(books).reserved > 0
    assert balance(books) == CREATOR_TOKENS * TOKEN - contract(books).escrow


def test_a_put_that_fails_leaves_what_another_counts_on(books: LedgerDesk) -> None:
    async def both() -> None:
        async with a_session(books) as desk:
            fails, stays = desk(), desk()
            for one in (fails, stays):
                await one.begin(4 * FRAGMENT)
                await one.reserve(3, 1, FRAGMENT)
            deposited = stays.spent.deposited
            await fails.fail()
            await stays.reserve(3, 1, FRAGMENT)
            assert stays.spent.deposited == deposited
            await stays.fail()

    asyncio.run(both())
    assert (contract(books).escrow, balance(books)) == (0, CREATOR_TOKENS * TOKEN)


def test_the_deposit_of_a_put_under_way_is_none_for_the_next_one(books: LedgerDesk) -> None:
    async def both() -> None:
        async with a_session(books) as desk:
            first, second = desk(), desk()
            await first.begin(4 * FRAGMENT)
            await first.reserve(3, 1, FRAGMENT)
            (offer, other) = await first.offer(4 * FRAGMENT), await second.offer(4 * FRAGMENT)
            assert other.escrow < offer.escrow / 2  # what one reservation took less than was quoted for it
            first.end()
            assert (await second.offer(4 * FRAGMENT)).escrow == offer.escrow

    asyncio.run(both())


def test_a_put_that_is_cancelled_while_it_reserves_gets_everything_back(books: LedgerDesk) -> None:
    async def is_cancelled() -> None:
        async with a_session(books) as desk:
            one = desk()
            await one.begin(FRAGMENT)
            reserving = asyncio.create_task(one.reserve(3, 1, FRAGMENT))
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # its transactions are under way
            reserving.cancel()
            await asyncio.gather(reserving, return_exceptions=True)
            await one.fail()

    asyncio.run(is_cancelled())
    assert contract(books).reservations == 1
    assert (contract(books).escrow, contract(books).reserved, balance(books)) == (0, 0, CREATOR_TOKENS * TOKEN)


def test_a_put_that_reserves_more_than_was_agreed_tops_up_each_time(books: LedgerDesk) -> None:
    async def reserves() -> None:
        async with a_put(books) as desk:
            await desk.begin(2 * FRAGMENT)
            for size in (10 * FRAGMENT, FRAGMENT, FRAGMENT):  # the first takes what was agreed, and more
                await desk.reserve(3, 1, size)
            await desk.fail()

    asyncio.run(reserves())
    assert balance(books) == CREATOR_TOKENS * TOKEN


def test_a_put_that_relies_on_what_nobody_pays_for_fails(books: LedgerDesk) -> None:
    record = segment_of([b"stored in an earlier life of the ledger"])

    async def reuses() -> None:
        async with a_put(books) as desk:
            await desk.begin(FRAGMENT)
            await desk.reuse(record.segment_id, record, {0})

    with pytest.raises(UnavailableError, match="nobody is paid for it"):
        asyncio.run(reuses())


def test_a_put_keeps_the_term_and_the_price_limit_that_its_contract_was_given(books: LedgerDesk) -> None:
    books.send(CREATOR, OpenContract(CLASS, 2, 1, 48, 1_400, 0))

    async def begins() -> None:
        async with a_put(books, term="") as desk:
            await desk.begin(FRAGMENT)

    asyncio.run(begins())
    assert (contract(books).term_epochs, contract(books).price_max) == (48, 1_400)


def test_a_ticket_is_proven_anew_when_an_upload_takes_long(books: LedgerDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def takes_long() -> None:
        async with a_put(books) as desk:
            await desk.begin(FRAGMENT)
            reserved = await desk.reserve(3, 1, FRAGMENT)
            assert await desk.ticket(reserved) == reserved.ticket
            await asyncio.to_thread(books.send, CREATOR, Transfer(OPERATOR.public, 1))  # the ledger goes on
            monkeypatch.setattr(contract_desk, "TICKET_RENEWED_S", 0.0)
            renewed = await desk.ticket(reserved)
            assert head_of(renewed).height > head_of(reserved.ticket).height

    asyncio.run(takes_long())


def head_of(ticket: bytes) -> Head:
    return open_head(decode(ticket, EntriesReply).head, NETWORK)[0]

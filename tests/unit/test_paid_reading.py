"""Paying for reads: real servers and a real ledger on loopback; what is free, owed, promised, redeemed, and who is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from dds.ledger.records import ACCOUNTS, DEPOSITS
from dds.primitives.errors import ConfigError, PeerRefused
from dds.primitives.ids import NodeID
from dds.primitives.keys import SigningKey
from dds.primitives.money import TOKEN
from dds.primitives.units import KIB
from dds.protocol.reading_account import ReadingPolicy
from dds.transport.client import PeerClient
from dds.wire.ledger import Deposit, RequestWithdrawal, Withdraw
from dds.wire.retrieval import ReadingTerms, VoucherRequest
from dds.wire.vouchers import ANY_NODE, Grant, Voucher, grant_name, sign_grant, sign_voucher
from tests.ledger_desk import CREATOR, NETWORK, NODES, OPERATOR, STRANGER, LedgerDesk, ledger_desk
from tests.paid_site import BLOCK_BYTES, BLOCK_COST, NODE_KEY, PATH, PRICE, PaidSite, paid_site, reading

NO_LEDGER = f"{'a' * 52}@127.0.0.1:1"


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[LedgerDesk]:
    with ledger_desk(tmp_path) as made:
        yield made


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def balance(desk: LedgerDesk, account: bytes) -> int:
    found = desk.replica.find(ACCOUNTS, account)
    return found.balance if found else 0


def deposit_of(desk: LedgerDesk, account: bytes) -> int:
    found = desk.replica.find(DEPOSITS, account)
    return found.amount + found.leaving if found else 0


async def send_voucher(site: PaidSite, client: PeerClient, voucher: bytes, grant: bytes = b"") -> ReadingTerms:
    request = VoucherRequest(voucher, grant)
    return await client.call(site.node_id, "/v1/reading/voucher", request, ReadingTerms, max_bytes=KIB, timeout_s=20)


async def read_on_credit(site: PaidSite, client: PeerClient) -> PeerRefused:
    """Read until the node refuses, which it does after four blocks; the refusal."""
    for _ in range(4):
        await site.read(client)
    with pytest.raises(PeerRefused) as refused:
        await site.read(client)
    return refused.value


def voucher_of(key: SigningKey, cumulative: int, *, node: bytes = NODE_KEY.public, epoch: int = 0) -> bytes:
    return sign_voucher(key, Voucher(1, NETWORK, key.public, node, cumulative, epoch))


def test_a_willing_reader_pays_exactly_for_what_it_read_and_the_node_redeems_it(desk: LedgerDesk, tmp_path: Path) -> None:
    async def work() -> None:
        async with paid_site(desk, tmp_path / "node") as site:
            async with reading(desk, tmp_path / "reader", site) as (client, purse):
                for _ in range(40):
                    assert len(await site.read(client)) == BLOCK_BYTES
                paid = await purse.settle()
            assert 36 * BLOCK_COST <= paid <= 40 * BLOCK_COST
            assert deposit_of(desk, CREATOR.public) == TOKEN
            before = balance(desk, OPERATOR.public)
            assert await site.meter.redeemer.redeem() == paid
            assert balance(desk, OPERATOR.public) - before == paid == TOKEN - deposit_of(desk, CREATOR.public)
            assert await site.meter.redeemer.redeem() == 0

    run(work())


def test_an_unwilling_reader_is_stopped_politely_and_told_how_to_go_on(desk: LedgerDesk, tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            paid_site(desk, tmp_path / "node") as site,
            reading(desk, tmp_path / "reader", site, deposit=0) as (client, purse),
        ):
            refusal = await read_on_credit(site, client)
            assert (refusal.status, refusal.remote_code) == (402, "payment-required")
            assert f"{PRICE:,} base units per KiB" in refusal.message and "owed" in refusal.message
            assert "reading_deposit" in str(refusal.hint) and "reading_deposit" in str(purse.hint())
            assert desk.replica.find(DEPOSITS, CREATOR.public) is None

    run(work())


def test_reads_within_the_allowance_touch_no_ledger(desk: LedgerDesk, tmp_path: Path) -> None:
    async def work() -> None:
        free = ReadingPolicy(PRICE, 8 * BLOCK_BYTES, 0)
        async with (
            paid_site(desk, tmp_path / "node", free, ledger=NO_LEDGER) as site,
            reading(desk, tmp_path / "reader", site, ledger=NO_LEDGER) as (client, purse),
        ):
            for _ in range(8):
                await site.read(client)
            assert await purse.settle() == 0

    run(work())


def test_a_node_that_hangs_is_not_paid_for_what_was_given_up(desk: LedgerDesk, tmp_path: Path) -> None:
    """A hedged read breaks off what does not come; a node that never sends a byte must not be paid for what was asked."""

    async def story() -> None:
        async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(60)

        silent = await asyncio.start_server(hang, "127.0.0.1", 0)
        async with paid_site(desk, tmp_path / "node") as site, reading(desk, tmp_path / "reader", site) as (client, purse):
            node = NodeID(STRANGER.public)
            client.learn(node, [silent.sockets[0].getsockname()[:2]])
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await client.get(node, PATH, max_bytes=BLOCK_BYTES, timeout_s=20, range=(0, BLOCK_BYTES))
            purse._note()
            assert purse._book.tab(node).bytes == 0
            purse.gave_up(site.node_id, PATH, 2 * BLOCK_BYTES)  # an honest one is slow now and then
            await site.read(client)
            purse._note()
            assert purse._book.tab(site.node_id).bytes == 2 * BLOCK_BYTES
        silent.close()

    run(story())


def test_a_price_above_the_limit_is_not_paid(desk: LedgerDesk, tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            paid_site(desk, tmp_path / "node") as site,
            reading(desk, tmp_path / "reader", site, price_max=PRICE - 1) as (client, purse),
        ):
            await read_on_credit(site, client)
            assert "reading_price_max" in str(purse.hint())

    run(work())


def test_neither_a_restart_of_the_node_nor_of_the_reader_forgets_anything(desk: LedgerDesk, tmp_path: Path) -> None:
    async def work() -> None:
        for round_ in range(3):
            async with (
                paid_site(desk, tmp_path / "node") as site,
                reading(desk, tmp_path / "reader", site) as (client, purse),
            ):
                for _ in range(16):
                    await site.read(client)
                await purse.settle()
                raw = await client.get(site.node_id, "/v1/reading/terms", max_bytes=KIB, timeout_s=20)
                assert raw and deposit_of(desk, CREATOR.public) > 0
                terms = site.meter._terms(NodeID(CREATOR.public))
                assert terms.read_bytes == (round_ + 1) * 16 * BLOCK_BYTES
                assert terms.owed == (round_ + 1) * 16 * BLOCK_COST
                assert await site.meter.redeemer.redeem() <= 16 * BLOCK_COST + 4 * BLOCK_COST
        async with (
            paid_site(desk, tmp_path / "node") as site,
            reading(desk, tmp_path / "reader", site, deposit=0) as (client, _),
        ):
            owed = site.meter._terms(NodeID(CREATOR.public))
            for _ in range(4 - (owed.owed - owed.paid) // BLOCK_COST):
                await site.read(client)
            with pytest.raises(PeerRefused):
                await site.read(client)

    run(work())


def test_forged_foreign_and_replayed_vouchers_buy_nothing(desk: LedgerDesk, tmp_path: Path) -> None:
    desk.send(CREATOR, Deposit(TOKEN))

    async def work() -> None:
        async with (
            paid_site(desk, tmp_path / "node") as site,
            reading(desk, tmp_path / "thief", site, key=STRANGER, deposit=0) as (thief, _),
            reading(desk, tmp_path / "reader", site, deposit=0) as (client, _),
        ):
            await read_on_credit(site, client)
            genuine = voucher_of(CREATOR, 4 * BLOCK_COST)
            await send_voucher(site, client, genuine)
            await site.read(client)
            await read_on_credit(site, thief)
            forged = bytearray(genuine)
            forged[-1] ^= 1
            others = voucher_of(STRANGER, 4 * BLOCK_COST, node=NODES[1].public)
            for raw in (genuine, bytes(forged), others, b"", genuine[:-1]):
                with pytest.raises(PeerRefused) as refused:
                    await send_voucher(site, thief, raw)
                assert refused.value.status in (400, 422)
                with pytest.raises(PeerRefused):
                    await site.read(thief)
            for _ in range(3):
                await site.read(client)
            said = await send_voucher(site, client, genuine)  # again
            assert said.paid == 4 * BLOCK_COST and said.owed == 8 * BLOCK_COST
            with pytest.raises(PeerRefused):
                await site.read(client)

    run(work())


def test_a_voucher_without_a_deposit_behind_it_buys_nothing(desk: LedgerDesk, tmp_path: Path) -> None:
    async def work() -> None:
        async with (
            paid_site(desk, tmp_path / "node") as site,
            reading(desk, tmp_path / "reader", site, key=STRANGER, deposit=0) as (client, _),
        ):
            await read_on_credit(site, client)
            said = await send_voucher(site, client, voucher_of(STRANGER, 4 * BLOCK_COST))
            assert said.paid == 0
            with pytest.raises(PeerRefused):
                await site.read(client)

    run(work())


def test_a_voucher_far_beyond_what_is_owed_is_refused(desk: LedgerDesk, tmp_path: Path) -> None:
    desk.send(CREATOR, Deposit(TOKEN))

    async def work() -> None:
        async with (
            paid_site(desk, tmp_path / "node") as site,
            reading(desk, tmp_path / "reader", site, deposit=0) as (client, _),
        ):
            with pytest.raises(PeerRefused, match="more than is owed"):
                await send_voucher(site, client, voucher_of(CREATOR, TOKEN))

    run(work())


def test_a_payer_whose_deposit_is_gone_loses_its_credit(desk: LedgerDesk, tmp_path: Path) -> None:
    desk.send(CREATOR, Deposit(TOKEN))

    async def work() -> None:
        async with (
            paid_site(desk, tmp_path / "node") as site,
            reading(desk, tmp_path / "reader", site, deposit=0) as (client, _),
        ):
            await read_on_credit(site, client)
            assert (await send_voucher(site, client, voucher_of(CREATOR, 4 * BLOCK_COST))).paid == 4 * BLOCK_COST
            await asyncio.to_thread(desk.send, CREATOR, RequestWithdrawal(TOKEN))
            desk.pass_epochs(25)
            await asyncio.to_thread(desk.send, CREATOR, Withdraw())
            assert await site.meter.redeemer.redeem() == 0
            with pytest.raises(PeerRefused):
                await site.read(client)

    run(work())


def test_a_lost_catalog_does_not_lock_its_reader_out(desk: LedgerDesk, tmp_path: Path) -> None:
    """It finds its older promises on the ledger. What it owes and does not remember stays open: less than a debt."""

    async def work() -> None:
        async with paid_site(desk, tmp_path / "node") as site:
            async with reading(desk, tmp_path / "reader", site) as (client, purse):
                for _ in range(18):
                    await site.read(client)
                await purse.settle()
            assert await site.meter.redeemer.redeem() > 0
            async with reading(desk, tmp_path / "new", site) as (client, purse):
                for _ in range(20):
                    await site.read(client)

    run(work())


def test_a_node_that_lost_its_accounts_is_not_paid_twice_for_the_same(desk: LedgerDesk, tmp_path: Path) -> None:
    async def work() -> None:
        async with reading(desk, tmp_path / "reader") as (client, purse):
            for name in ("node", "again"):
                async with paid_site(desk, tmp_path / name) as site:
                    client.learn(site.node_id, [("127.0.0.1", int(site.address.rpartition(":")[2]))])
                    for _ in range(20):
                        await site.read(client)
                    assert 16 * BLOCK_COST <= await site.meter.redeemer.redeem() <= 20 * BLOCK_COST
            assert purse.paid <= 40 * BLOCK_COST

    run(work())


def test_a_sponsors_grant_pays_for_the_one_it_names(desk: LedgerDesk, tmp_path: Path) -> None:
    desk.send(CREATOR, Deposit(TOKEN))
    grant = Grant(1, NETWORK, CREATOR.public, STRANGER.public, 12 * BLOCK_COST, ANY_NODE, 100, bytes(32))
    raw = sign_grant(CREATOR, grant)

    async def work() -> None:
        async with paid_site(desk, tmp_path / "node") as site:
            async with reading(desk, tmp_path / "reader", site, key=STRANGER, deposit=0, grant=raw) as (client, purse):
                for _ in range(12 + 4):
                    await site.read(client)
                with pytest.raises(PeerRefused):
                    await site.read(client)
                assert purse.paid == 12 * BLOCK_COST
            assert await site.meter.redeemer.redeem() == 12 * BLOCK_COST == TOKEN - deposit_of(desk, CREATOR.public)
            stolen = Voucher(1, NETWORK, CREATOR.public, site.node_id, 99, 0, grant_name(grant))
            async with reading(desk, tmp_path / "other", site, key=OPERATOR, deposit=0) as (other, _):
                with pytest.raises(PeerRefused):
                    await send_voucher(site, other, sign_voucher(OPERATOR, stolen), raw)

            with pytest.raises(ConfigError, match="the grant is for"):
                await reading(desk, tmp_path / "wrong", key=OPERATOR, grant=raw).__aenter__()

    run(work())


def test_anonymous_readers_of_an_address_share_a_small_allowance(desk: LedgerDesk, tmp_path: Path) -> None:
    async def work() -> None:
        async with paid_site(desk, tmp_path / "node", ReadingPolicy(PRICE, 16 * BLOCK_BYTES, 4 * BLOCK_BYTES)) as site:
            for number in range(2):
                async with PeerClient(None, network=NETWORK) as client:
                    client.learn(site.node_id, [("127.0.0.1", int(site.address.rpartition(":")[2]))])
                    if number == 0:
                        await site.read(client)
                    else:
                        with pytest.raises(PeerRefused, match="anonymous"):
                            await site.read(client)

    run(work())


def test_a_batch_with_a_bad_voucher_pays_the_others(desk: LedgerDesk, tmp_path: Path) -> None:
    """A grant that ends between two looks at the ledger must not hold up who pays for itself."""
    desk.send(CREATOR, Deposit(TOKEN))
    grant = Grant(1, NETWORK, CREATOR.public, STRANGER.public, TOKEN // 2, ANY_NODE, 1, bytes(32))

    async def work() -> None:
        async with (
            paid_site(desk, tmp_path / "node") as site,
            reading(desk, tmp_path / "one", site) as (client, _),
            reading(desk, tmp_path / "two", site, key=STRANGER, grant=sign_grant(CREATOR, grant)) as (granted, _),
        ):
            for reader in (client, granted):
                for _ in range(8):
                    await site.read(reader)
            held = site.meter._book.vouchers()
            assert len(held) == 2
            desk.pass_epochs(3)
            await asyncio.to_thread(desk.send, OPERATOR, Deposit(1))  # a block of a later epoch
            await site.meter.redeemer._submit(held)
            assert balance(desk, CREATOR.public) and TOKEN - deposit_of(desk, CREATOR.public) == 4 * BLOCK_COST

    run(work())

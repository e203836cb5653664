"""What an edge fetches follows what it serves: a burst, a multiple of that, a trickle; and each reader has a share of it."""

from __future__ import annotations

import asyncio

import pytest

from dds.primitives.cid import CID, cid_of
from dds.primitives.units import MIB
from dds.protocol import warming_budget as budgets
from dds.protocol.warming_budget import (
    BURST_BYTES,
    FETCHED_PER_SERVED,
    READERS_MAX,
    READERS_SHARE,
    REFILL_BYTES_PER_S,
    WarmingBudget,
    account_of,
)
from dds.runtime import warming
from dds.runtime.warming import Warmer
from tests.unit.test_warming import Shelf, Source

OWN_BYTES = BURST_BYTES // READERS_SHARE


def spent(budget: WarmingBudget, reader: str, now_s: float = 0.0) -> int:
    """All that a reader gets, in MiB."""
    count = 0
    while budget.spend([reader], MIB, now_s) is not None:
        count += 1
    return count


def test_one_reader_cannot_use_up_what_the_others_need() -> None:
    budget = WarmingBudget()
    assert spent(budget, "stranger") == OWN_BYTES // MIB
    assert spent(budget, "other") == OWN_BYTES // MIB


def test_all_readers_together_get_no_more_than_the_burst() -> None:
    budget = WarmingBudget()
    assert sum(spent(budget, f"{number}") for number in range(100)) == BURST_BYTES // MIB


def test_what_is_served_and_time_allow_for_more() -> None:
    budget = WarmingBudget()
    spent(budget, "reader")
    budget.served("reader", 3 * MIB, 0.0)
    assert spent(budget, "reader") == 3 * FETCHED_PER_SERVED
    budget.served("other", MIB, 0.0)
    assert spent(budget, "reader") == 0
    later_s = 10 * MIB * READERS_SHARE / REFILL_BYTES_PER_S
    assert spent(budget, "reader", later_s) == 10
    assert spent(budget, "reader", 1e9) == OWN_BYTES // MIB  # it does not pile up


def test_what_was_not_needed_is_given_back_and_what_was_needed_beyond_it_is_taken() -> None:
    budget = WarmingBudget()
    assert budget.spend(["reader"], OWN_BYTES, 0.0) == "reader"
    budget.settle("reader", 5 * MIB, 0.0)
    assert spent(budget, "reader") == 5
    budget.settle("reader", -2 * MIB, 0.0)
    budget.served("reader", MIB, 0.0)
    assert spent(budget, "reader") == FETCHED_PER_SERVED - 2


def test_a_job_of_several_readers_is_charged_to_one_that_can_pay() -> None:
    budget = WarmingBudget()
    spent(budget, "stranger")
    assert budget.spend(["stranger", "reader"], MIB, 0.0) == "reader"


def test_readers_beyond_the_bound_are_forgotten() -> None:
    budget = WarmingBudget()
    for number in range(READERS_MAX + 10):
        budget.served(f"{number}", 1, 0.0)
    assert len(budget._readers) == READERS_MAX


@pytest.mark.parametrize(
    ("address", "account"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_reader_is_where_it_comes_from(address: str, account: str) -> None:
    assert account_of(address) == account


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> list[CID]:
    """40 leaves of 100 KiB that the nodes have, and a budget of 16 MiB, 4 MiB for each reader."""
    monkeypatch.setattr(warming, "_Source", Source)
    monkeypatch.setattr(warming, "BATCH_BLOCKS", 2)
    monkeypatch.setattr(warming, "LINGER_S", 0.0)
    monkeypatch.setattr(budgets, "BURST_BYTES", 16 * MIB)
    monkeypatch.setattr(budgets, "REFILL_BYTES_PER_S", 0)
    monkeypatch.setattr(Source, "delay_s", 0.0)
    made = [bytes([number]) * (100 << 10) for number in range(40)]
    monkeypatch.setattr(Source, "blocks", {cid_of(data): data for data in made})
    return list(Source.blocks)


async def warmed(warmer: Warmer, content: CID, cids: list[CID], reader: str) -> None:
    assert warmer.want(content, cids, reader=reader)
    async with asyncio.timeout(20):
        while warmer.busy:
            await asyncio.sleep(0.005)


async def test_a_small_request_does_not_make_an_edge_fetch_more_than_its_reader_is_worth(blocks: list[CID]) -> None:
    shelf = Shelf()
    warmer = Warmer(lambda: None, shelf)  # type: ignore[arg-type, return-value]
    warmer.start()
    await warmed(warmer, blocks[0], blocks, "stranger")
    fetched = warmer.counters.fetched_bytes
    assert 2 * MIB <= fetched <= 4 * MIB < len(blocks) * (100 << 10) + MIB
    assert warmer.counters.over_budget == 1
    await warmed(warmer, blocks[0], blocks, "stranger")
    assert warmer.counters.fetched_bytes == fetched

    await warmed(warmer, blocks[1], [blocks[-1]], "reader")  # another one has a share of its own
    assert blocks[-1] in shelf.kept
    fetched = warmer.counters.fetched_bytes
    warmer.served("stranger", 2 * MIB)
    await warmed(warmer, blocks[2], blocks, "stranger")
    assert warmer.counters.fetched_bytes > fetched
    await warmer.stop()

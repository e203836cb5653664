"""Accounts and purses under any sequence of reads, payments and time: nobody serves or promises more than is covered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dds.primitives.errors import DDSError, PaymentRequired
from dds.primitives.units import KIB, MIB
from dds.protocol.reading_account import DAY_MS, ReaderAccount, ReaderAccounts, ReadingPolicy
from dds.protocol.reading_purse import Tab, next_promise
from dds.wire.retrieval import ReadingTerms

REPLY_BYTES_MAX = 1 << 20
PAYER = b"p" * 32

policies = st.builds(ReadingPolicy, st.integers(1, 10_000), st.integers(0, 1 << 24), st.integers(0, 1 << 24))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, REPLY_BYTES_MAX)),
        st.tuples(st.just("wait"), st.integers(-DAY_MS, 2 * DAY_MS)),
        st.tuples(st.just("promise"), st.integers(0, 1 << 40)),
        st.tuples(st.just("cover"), st.integers(0, 1 << 40)),
    ),
    max_size=60,
)


@given(policies, steps)
def test_a_node_never_serves_more_unpaid_bytes_than_time_gave_free_and_the_debt_limit(
    policy: ReadingPolicy, moves: list[tuple[str, int]]
) -> None:
    """Paid is what a promise with money behind it says, at its highest: a deposit that vanishes later cannot undo reads."""
    accounts = ReaderAccounts(policy)
    now = start = latest = 10 * DAY_MS
    read = paid_for = 0
    accounts.of(b"reader", now)
    for what, amount in moves:
        if what == "wait":
            now = max(0, now + amount)
            latest = max(latest, now)
        elif what == "read" and accounts.admits(b"reader", now):
            accounts.charge(b"reader", amount, now)
            read += amount
        elif what == "promise":
            try:
                accounts.promise(b"reader", PAYER, amount, now, covered=amount, base=0)
            except DDSError:
                continue
        elif what == "cover":
            accounts.cover(b"reader", PAYER, amount)
        paid_for = max(paid_for, accounts.of(b"reader", now).credit)
        free = policy.free_bytes_per_day + (latest - start) * policy.free_bytes_per_day // DAY_MS + 1
        assert read <= free + policy.debt_bytes_max + paid_for * KIB // policy.price + 1 + REPLY_BYTES_MAX


@given(policies, st.lists(st.tuples(st.integers(0, 1 << 22), st.integers(0, 1 << 34)), max_size=20), st.integers(0, 1 << 34))
def test_an_older_or_replayed_voucher_changes_nothing(
    policy: ReadingPolicy, history: list[tuple[int, int]], replayed: int
) -> None:
    account = ReaderAccount(0, 0)
    for byte_count, cumulative in history:
        account.charge(policy, byte_count)
        try:
            account.promise(policy, PAYER, cumulative, covered=1 << 50, base=0)
        except DDSError:
            continue
    best = account.promises[PAYER].cumulative if account.promises else 0
    before = account.owed, account.paid, account.unpaid_parts
    try:
        is_better = account.promise(policy, PAYER, min(replayed, best), covered=1 << 50, base=0)
    except DDSError:
        is_better = False
    assert not is_better or best == 0
    assert (account.owed, account.paid, account.unpaid_parts) == before


terms = st.builds(
    ReadingTerms,
    price=st.integers(0, 1 << 40),
    free_bytes=st.integers(0, 1 << 40),
    debt_bytes_max=st.integers(0, 1 << 40),
    read_bytes=st.integers(0, 1 << 40),
    owed=st.integers(0, (1 << 63) - 1),
    paid=st.integers(0, (1 << 63) - 1),
)


@given(st.integers(1, 10_000), st.lists(st.tuples(st.integers(0, 1 << 24), terms, st.integers(0, 1 << 40)), max_size=30))
def test_a_reader_never_promises_more_than_it_read_for_whatever_the_node_says(
    price_max: int, rounds: list[tuple[int, ReadingTerms, int]]
) -> None:
    tab, read = Tab(), 0
    for byte_count, said, at_hand in rounds:
        read += byte_count
        tab = Tab(tab.promised, tab.bytes + byte_count)
        try:
            step = next_promise(tab, said, price_max=price_max, at_hand=at_hand)
        except PaymentRequired:
            assert said.price > price_max
            continue
        assert step.tab.promised >= tab.promised and step.tab.bytes >= 0
        assert step.amount <= at_hand and step.tab.promised <= max(tab.promised, said.owed)
        assert step.tab.promised * KIB <= read * price_max
        tab = step.tab


@given(policies.filter(lambda p: p.debt_bytes_max >= REPLY_BYTES_MAX), st.lists(st.integers(1, REPLY_BYTES_MAX), max_size=40))
def test_a_reader_that_pays_what_it_can_is_always_served(policy: ReadingPolicy, reads: list[int]) -> None:
    """Rounding on both sides leaves less open than the debt limit, for ever."""
    accounts, tab = ReaderAccounts(policy), Tab()
    for byte_count in reads:
        if not accounts.admits(b"reader", 0):
            account = accounts.of(b"reader", 0)
            said = ReadingTerms(policy.price, 0, policy.debt_bytes_max, account.read_bytes, account.owed, account.paid)
            tab = next_promise(tab, said, price_max=policy.price, at_hand=1 << 60).tab
            accounts.promise(b"reader", PAYER, tab.promised, 0, covered=tab.promised, base=0)
            assert accounts.admits(b"reader", 0)
        accounts.charge(b"reader", byte_count, 0)
        tab = Tab(tab.promised, tab.bytes + byte_count)


def test_promises_without_money_displace_no_reader_that_pays() -> None:
    """Keys and vouchers cost nothing: a flood of both must not make a node forget what others have paid ahead."""
    policy = ReadingPolicy(1000, 0, MIB)
    accounts = ReaderAccounts(policy, accounts_max=4)
    accounts.promise(b"honest", b"payer", 1000, 0, covered=1 << 40, base=0)
    for number in range(8):
        accounts.promise(b"stranger %d" % number, b"of nothing", 1, number, covered=0, base=0)
    assert accounts.of(b"honest", 100).paid == 1000
    assert len(accounts) == 5


def test_a_promise_that_gets_its_money_later_counts_as_paying() -> None:
    accounts = ReaderAccounts(ReadingPolicy(1000, 0, MIB), accounts_max=2)
    accounts.promise(b"late", b"payer", 1000, 0, covered=0, base=0)
    accounts.cover(b"late", b"payer", 5000)
    for number in range(4):
        accounts.of(b"stranger %d" % number, number)
    assert accounts.of(b"late", 100).paid == 1000

"""A node's accounts of those who read from it: what is free, what is owed, when it stops serving.

Each reader has an allowance that fills with time (a token bucket of one day's bytes). What it reads beyond is owed, up to the
debt limit; then it is refused until it pays or time passes: what accrues pays a debt before it is free again, so that no
disagreement about a few bytes lasts. A promise (the best voucher of a payer, or of a grant) counts as payment as far as the
ledger has shown money behind it, and only beyond what was paid on it before this account was opened.

So nobody ever has read more unpaid bytes here than the allowance of the time that passed, the debt limit, and the replies that
were under way when it was reached. Pure: time comes in as milliseconds, money in base units; whoever reads is named by opaque
bytes. Does not decide which voucher is genuine (runtime/reading_meter.py). Source: docs/spec/retrieval.md, "Paying for reads".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from dds.primitives.errors import InputError, LimitError
from dds.primitives.units import KIB, MIB

DAY_MS: Final = 86_400_000
ACCOUNTS_MAX: Final = 16_384  # of readers that have paid, and as many of others
PROMISES_PER_READER_MAX: Final = 8  # its own, and of grants
PREPAID_BYTES_MIN: Final = MIB  # a voucher may promise so much more than is owed, or the debt limit where that is more
ANONYMOUS_SHARE: Final = 16  # all anonymous readers of an address block together have this part of one reader's allowance


@dataclass(frozen=True, slots=True)
class ReadingPolicy:
    """What a node asks of a reader. `price`: base units per KiB, at least 1."""

    price: int
    free_bytes_per_day: int
    debt_bytes_max: int

    def anonymous(self) -> ReadingPolicy:
        """For readers that cannot be told apart, nor pay: no debts."""
        return ReadingPolicy(self.price, self.free_bytes_per_day // ANONYMOUS_SHARE, 0)


@dataclass(slots=True)
class Promise:
    """The best voucher of one payer, or of one grant."""

    cumulative: int
    base: int  # of it was paid on the ledger before this account knew it: for what was read in forgotten times
    covered: int  # the ledger has shown money up to this cumulative amount

    @property
    def credit(self) -> int:
        return max(0, min(self.cumulative, self.covered) - self.base)


@dataclass(slots=True)
class ReaderAccount:
    """One reader's. `at_ms`: until when time is accounted for."""

    at_ms: int
    free_bytes: int
    rest: int = 0  # accrued parts of a byte: byte-milliseconds per day
    read_bytes: int = 0  # ever, free ones included
    owed_parts: int = 0  # bytes x price of all that was not free, less what time has forgiven: KIB parts of a base unit
    promises: dict[bytes, Promise] = field(default_factory=dict)  # by payer, or payer || grant
    credit: int = 0  # of the promises together

    @property
    def unpaid_parts(self) -> int:
        """Negative: prepaid."""
        return self.owed_parts - self.credit * KIB

    @property
    def bases(self) -> int:
        return sum(promise.base for promise in self.promises.values())

    @property
    def owed(self) -> int:
        """Cumulative, with what was paid in forgotten times: what promises must come to."""
        return -(-self.owed_parts // KIB) + self.bases

    @property
    def paid(self) -> int:
        return self.credit + self.bases

    def accrue(self, policy: ReadingPolicy, now_ms: int) -> None:
        """Let time pass; a clock that went back lets none."""
        elapsed_ms = now_ms - self.at_ms
        if elapsed_ms <= 0:
            return
        self.at_ms = now_ms
        gained, self.rest = divmod(elapsed_ms * policy.free_bytes_per_day + self.rest, DAY_MS)
        unpaid = self.unpaid_parts
        if gained and unpaid > 0:
            forgiven = min(unpaid, gained * policy.price)
            self.owed_parts -= forgiven
            gained -= -(-forgiven // policy.price)
        self.free_bytes = min(self.free_bytes + gained, policy.free_bytes_per_day)

    def may_read(self, policy: ReadingPolicy) -> bool:
        return self.free_bytes > 0 or self.unpaid_parts < policy.debt_bytes_max * policy.price

    def charge(self, policy: ReadingPolicy, byte_count: int) -> None:
        free = min(self.free_bytes, byte_count)
        self.free_bytes -= free
        self.read_bytes += byte_count
        self.owed_parts += (byte_count - free) * policy.price

    def promise(self, policy: ReadingPolicy, payer: bytes, cumulative: int, *, covered: int, base: int) -> bool:
        """Take a voucher; whether it is better than what was there. `base` counts for a payer that is new here.

        Raises:
            InputError: it promises far more than is owed: a reader that errs is told so.
            LimitError: too many payers for one reader.
        """
        known = self.promises.get(payer)
        if known is None and len(self.promises) >= PROMISES_PER_READER_MAX:
            raise LimitError(f"a reader pays by at most {PROMISES_PER_READER_MAX} payers and grants here")
        before = known or Promise(0, base, covered)
        prepaid_max = max(policy.debt_bytes_max, PREPAID_BYTES_MIN) * policy.price
        promised = sum(max(0, each.cumulative - each.base) for each in self.promises.values())
        new = promised - max(0, before.cumulative - before.base) + max(0, cumulative - before.base)
        if cumulative > before.cumulative and new * KIB > max(0, self.owed_parts) + prepaid_max:
            raise InputError("the voucher promises more than is owed here", hint="ask for GET /v1/reading/terms")
        is_better = known is None or cumulative > known.cumulative
        self.promises[payer] = Promise(max(cumulative, before.cumulative), before.base, max(covered, before.base))
        self._count_credit()
        return is_better

    def cover(self, payer: bytes, covered: int) -> None:
        """What the ledger shows money for has changed."""
        known = self.promises.get(payer)
        if known is not None:
            known.covered = covered
            self._count_credit()

    def _count_credit(self) -> None:
        self.credit = sum(promise.credit for promise in self.promises.values())


class ReaderAccounts:
    """All of them, bounded: the reader that was longest away is forgotten first, those that never paid before others."""

    def __init__(self, policy: ReadingPolicy, *, accounts_max: int = ACCOUNTS_MAX) -> None:
        self.policy, self._anonymous = policy, policy.anonymous()
        self._max = accounts_max
        self._paying: OrderedDict[bytes, ReaderAccount] = OrderedDict()
        self._others: OrderedDict[bytes, ReaderAccount] = OrderedDict()
        self._changed: set[bytes] = set()
        self._forgotten: set[bytes] = set()

    def restore(self, accounts: Iterable[tuple[bytes, ReaderAccount]]) -> None:
        """As they were saved, longest away first."""
        for reader, account in accounts:
            account._count_credit()
            (self._paying if account.credit else self._others)[reader] = account

    def of(self, reader: bytes, now_ms: int, *, anonymous: bool = False) -> ReaderAccount:
        """The reader's account as it stands at this time; a new one where there is none."""
        policy = self._anonymous if anonymous else self.policy
        known = self._paying if reader in self._paying else self._others
        account = known.get(reader)
        if account is None:
            account = known[reader] = ReaderAccount(now_ms, policy.free_bytes_per_day)
            self._forget_one_of(known)
        else:
            known.move_to_end(reader)
            account.accrue(policy, now_ms)
        return account

    def admits(self, reader: bytes, now_ms: int, *, anonymous: bool = False) -> bool:
        return self.of(reader, now_ms, anonymous=anonymous).may_read(self._anonymous if anonymous else self.policy)

    def charge(self, reader: bytes, byte_count: int, now_ms: int, *, anonymous: bool = False) -> None:
        self.of(reader, now_ms, anonymous=anonymous).charge(self._anonymous if anonymous else self.policy, byte_count)
        self._changed.add(reader)

    def promise(self, reader: bytes, payer: bytes, cumulative: int, now_ms: int, *, covered: int, base: int) -> bool:
        """As `ReaderAccount.promise`."""
        account = self.of(reader, now_ms)
        is_better = account.promise(self.policy, payer, cumulative, covered=covered, base=base)
        self._changed.add(reader)
        self._count_as_paying(reader)
        return is_better

    def _count_as_paying(self, reader: bytes) -> None:
        """A promise without money behind it costs nothing to make, and displaces nobody who pays."""
        account = self._others.get(reader)
        if account is not None and account.credit:
            self._paying[reader] = self._others.pop(reader)
            self._forget_one_of(self._paying)

    def cover(self, reader: bytes, payer: bytes, covered: int) -> None:
        account = self._paying.get(reader) or self._others.get(reader)
        if account is not None:
            account.cover(payer, covered)
            self._count_as_paying(reader)

    def take_changes(self) -> tuple[list[tuple[bytes, ReaderAccount]], list[bytes]]:
        """What is to be saved since the last call: changed accounts, and whom to forget."""
        both = ((reader, self._paying.get(reader) or self._others.get(reader)) for reader in sorted(self._changed))
        changed = [(reader, account) for reader, account in both if account is not None]
        forgotten = sorted(self._forgotten)
        self._changed, self._forgotten = set(), set()
        return changed, forgotten

    def __len__(self) -> int:
        return len(self._paying) + len(self._others)

    def _forget_one_of(self, accounts: OrderedDict[bytes, ReaderAccount]) -> None:
        if len(accounts) > self._max:
            reader, _ = accounts.popitem(last=False)
            self._changed.discard(reader)
            self._forgotten.add(reader)

"""A node takes its readers' vouchers to the ledger: in batches, now and then, or when a lot has come together.

Decides when, and which vouchers go: those that the ledger will pay something for now, looked up just before. A batch that is
refused goes again one by one, so that one bad voucher holds up no other. Afterwards it says what the ledger still shows money
for: a payer whose deposit is empty loses its credit. Does not decide what is paid (ledger/rules/retrieval.py).
Source: docs/spec/retrieval.md, "Paying for reads".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Final

from dds.primitives.errors import DDSError, LedgerRefused
from dds.primitives.ids import ID_BYTES
from dds.primitives.keys import SigningKey
from dds.primitives.money import TOKEN, format_tokens
from dds.runtime.audit_ledger import EpochClock, LedgerPort
from dds.runtime.logs import event
from dds.runtime.reading_backing import Backing, Backings
from dds.storage.reading_book import HeldVoucher, ReadingBook
from dds.wire.ledger import BATCH_MAX, RedeemVouchers
from dds.wire.vouchers import Grant, open_grant

AT_PART: Final = 0.5  # of an epoch: away from its boundaries and from settling
ENOUGH: Final = TOKEN // 10  # base units: so much new money is fetched before its time

Covered = Callable[[bytes, bytes, int], None]  # reader, payer, the cumulative amount with money behind it
_log: Final = logging.getLogger("dds.redeemer")


class Redeemer:
    """Use `run`, which goes on for ever."""

    def __init__(
        self,
        key: SigningKey,
        network: str,
        book: ReadingBook,
        ledger: LedgerPort,
        backings: Backings,
        covered: Covered,
        pool: Executor,
        every_epochs: int,
    ) -> None:
        self._key, self._network, self._book, self._ledger = key, network, book, ledger
        self._backings, self._tell_covered, self._pool = backings, covered, pool
        self._every = every_epochs
        self._clock = EpochClock(ledger)
        self._enough = asyncio.Event()

    def wake_for(self, open_amount: int) -> None:
        """A voucher that is worth so much was taken."""
        if open_amount >= ENOUGH:
            self._enough.set()

    async def run(self) -> None:
        """
        Raises:
            DDSError: the ledger cannot be asked at the start; to be run again.
        """
        epoch = await self._clock.start()
        while True:
            await self._pause_until(epoch + self._every)
            self._enough.clear()
            try:
                epoch = await self._clock.start()
                await self.redeem()
            except DDSError as error:
                event(_log, logging.WARNING, "vouchers could not be redeemed", epoch=epoch, error=error)
                await self._clock.pause()

    async def _pause_until(self, epoch: int) -> None:
        try:
            async with asyncio.timeout(max(0.0, self._clock.seconds_until(epoch, AT_PART))):
                await self._enough.wait()
        except TimeoutError:
            return

    async def redeem(self) -> int:
        """Redeem all that is worth something now; how much came.

        Raises:
            DDSError
        """
        loop = asyncio.get_running_loop()
        waiting = [
            held for held in await loop.run_in_executor(self._pool, self._book.vouchers) if held.redeemed < held.cumulative
        ]
        total = 0
        for batch in _batches(waiting):
            before = await self._look(batch)
            worth = [held for held, backing in zip(batch, before, strict=True) if _worth(held, backing)]
            if worth:
                await self._submit(worth)
            after = await self._look(batch) if worth else before
            total += sum(new.paid - old.paid for old, new in zip(before, after, strict=True))
            rows = [(held.reader, held.payer, now.covered, now.paid) for held, now in zip(batch, after, strict=True)]
            await loop.run_in_executor(self._pool, self._book.note_ledger, rows)
            for reader, payer, covered, _ in rows:
                self._tell_covered(reader, payer, covered)
        if total:
            event(_log, logging.INFO, "vouchers redeemed", amount=format_tokens(total))
        return total

    async def _look(self, batch: Sequence[HeldVoucher]) -> list[Backing]:
        return await self._backings.now([(held.payer, self._grant_of(held)) for held in batch])

    def _grant_of(self, held: HeldVoucher) -> Grant | None:
        return open_grant(held.grant, self._network) if len(held.payer) > ID_BYTES else None

    async def _submit(self, batch: Sequence[HeldVoucher]) -> None:
        try:
            await self._ledger.submit(self._key, _body(batch))
        except LedgerRefused as refusal:
            event(_log, logging.WARNING, "a batch of vouchers was refused", vouchers=len(batch), error=refusal)
            if len(batch) > 1:
                for held in batch:
                    await self._submit([held])


def _worth(held: HeldVoucher, backing: Backing) -> bool:
    return backing.paid < min(held.cumulative, backing.covered)


def _body(batch: Sequence[HeldVoucher]) -> RedeemVouchers:
    return RedeemVouchers(sorted({held.voucher for held in batch}), sorted({held.grant for held in batch if held.grant}))


def _batches(waiting: Sequence[HeldVoucher]) -> Iterator[Sequence[HeldVoucher]]:
    return (waiting[at : at + BATCH_MAX] for at in range(0, len(waiting), BATCH_MAX))

"""One account's transactions on their way to the ledger: the one place of a program where its nonces are handed out.

Decides which nonce a transaction gets, what goes together in one request and what is signed anew. What is submitted while a
request is under way waits, and goes in the next one with everything else that waits: several callers share a block.

Another program may use the same account. Its transaction then takes a nonce that was meant for one of ours, which is refused
as `bad-nonce` and used nothing up: it is signed anew with the ledger's next nonce, after a moment that differs from program to
program. Each time a transaction is signed it has bytes of its own (a random salt), so that a lost answer is asked for by
exactly those bytes and nothing else is ever taken for it (`submit` below, as ledger_client.py gives it): nothing that may have
been done is signed again. Where the ledger cannot be had any more, the caller is told that nobody knows.

Order: those of one call are done in their order. Where one of them came too late, and one behind it was refused, both go again,
for the second may have needed the first.

Source: docs/spec/ledger.md, "Transactions".
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from dds.primitives.keys import SigningKey
from dds.wire.ledger import TX_BYTES_MAX, TX_SALT_BYTES_MAX, AnyBody, sign_tx
from dds.wire.ledger_api import SUBMIT_BYTES_MAX, SUBMIT_TXS_MAX, TxOutcome

BAD_NONCE: Final = "bad-nonce"
NONCE_ATTEMPTS_MAX: Final = 24  # of one transaction
CONTENDED_PAUSE_S: Final = 0.004  # the longest before the second attempt; doubled each time
CONTENDED_PAUSE_S_MAX: Final = 0.25

AskNonce = Callable[[bytes], Awaitable[int]]
Submit = Callable[[Sequence[bytes]], Awaitable[list[TxOutcome]]]
Sent = tuple[bytes, TxOutcome]  # the signed bytes, and what became of them


@dataclass(slots=True, eq=False)
class _Item:
    """One body; `call` is shared by those that were handed in together."""

    body: AnyBody
    call: object
    done: asyncio.Future[Sent]
    attempts: int = 0


class AccountSender:
    """Of one key, in one event loop. `ask_nonce` gives the account's next nonce; `submit` sends signed bytes, again where the
    answer was lost, and returns what became of each."""

    def __init__(self, key: SigningKey, network: str, ask_nonce: AskNonce, submit: Submit) -> None:
        self._key, self._network = key, network
        self._ask_nonce, self._submit = ask_nonce, submit
        self._waiting: list[_Item] = []
        self._nonce: int | None = None  # the next, where it is known
        self._task: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        return self._task is None

    async def send(self, bodies: Sequence[AnyBody]) -> list[Sent]:
        """Returns when all of them are final. Who is cancelled does not learn what becomes of those under way; those that
        still waited are not sent.

        Raises:
            RemoteError: the ledger cannot be had; nobody can say what became of those that were under way.
        """
        loop, call = asyncio.get_running_loop(), object()
        items = [_Item(body, call, loop.create_future()) for body in bodies]
        self._waiting += items
        if items and self._task is None:
            self._task = loop.create_task(self._run(), name="ledger-sender")
        try:
            return [await item.done for item in items]
        finally:
            for item in items:  # one has failed, or the caller is cancelled: nobody waits for the others
                if not item.done.cancel() and not item.done.cancelled():
                    item.done.exception()

    async def _run(self) -> None:
        """Round after round, until nothing waits."""
        batch: list[_Item] = []
        try:
            while batch := self._take():
                await self._pause(batch)
                await self._round(batch)
        finally:  # cancelled, with its loop: nobody will send what is left
            self._task = None
            for item in (*batch, *self._waiting):
                item.done.cancel()
            self._waiting.clear()

    def _take(self) -> list[_Item]:
        """As many as a request may have."""
        self._waiting = [item for item in self._waiting if not item.done.cancelled()]
        batch, self._waiting = self._waiting[:SUBMIT_TXS_MAX], self._waiting[SUBMIT_TXS_MAX:]
        return batch

    async def _pause(self, batch: Sequence[_Item]) -> None:
        """Programs that met in a nonce must not meet again: each waits for a random while."""
        attempts = max(item.attempts for item in batch)
        if attempts:
            longest_s = min(CONTENDED_PAUSE_S * 2 ** (attempts - 1), CONTENDED_PAUSE_S_MAX)
            await asyncio.sleep(random.uniform(0, longest_s))  # noqa: S311 - to spread, not to hide

    async def _round(self, batch: list[_Item]) -> None:
        """One request: sign, send, settle what is final, put the rest back in front."""
        try:
            nonce = await self._next_nonce()
            raws = self._signed(batch, nonce)
            batch, behind = batch[: len(raws)], batch[len(raws) :]
            self._waiting[:0] = behind
            outcomes = await self._submit(raws)
        except Exception as error:  # whoever waits for it decides
            for item in batch:
                if not item.done.done():
                    item.done.set_exception(error)
            return
        if all(outcome.code == "" for outcome in outcomes):
            self._nonce = nonce + len(raws)
        late = self._settle(batch, raws, outcomes)
        self._waiting[:0] = late

    async def _next_nonce(self) -> int:
        """Known from before, or asked; taken out of memory until it is known what became of it."""
        known, self._nonce = self._nonce, None
        return await self._ask_nonce(self._key.public) if known is None else known

    def _signed(self, batch: Sequence[_Item], nonce: int) -> list[bytes]:
        """As many of them as fit into a request."""
        raws: list[bytes] = []
        size = 0
        for place, item in enumerate(batch):
            raw = sign_tx(self._key, self._network, nonce + place, item.body, os.urandom(TX_SALT_BYTES_MAX))
            size += len(raw) + 8
            if raws and size > SUBMIT_BYTES_MAX - TX_BYTES_MAX:
                break
            raws.append(raw)
        return raws

    def _settle(self, batch: Sequence[_Item], raws: Sequence[bytes], outcomes: Sequence[TxOutcome]) -> list[_Item]:
        """Those that are to go again, in their order."""
        late: list[_Item] = []
        late_calls: set[object] = set()
        for item, raw, outcome in zip(batch, raws, outcomes, strict=True):
            item.attempts += 1
            is_late = outcome.code == BAD_NONCE or (bool(outcome.code) and item.call in late_calls)
            if is_late and item.attempts < NONCE_ATTEMPTS_MAX:
                late.append(item)
                late_calls.add(item.call)
            elif not item.done.done():
                item.done.set_result((raw, outcome))
        return late

"""What money the ledger shows behind readers' vouchers: deposits, and what was paid from them to this node already.

Decides how long an answer holds. Proven by the ledger client; nothing here holds money for this node (docs/spec/ledger.md,
"Retrieval"). A payer is named by its account, followed by a grant's name where it pays under one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dds.ledger.records import CHAIN, DEPOSITS, PAID, DepositEntry, Paid
from dds.ledger.rules.retrieval import direct_key, grant_key
from dds.primitives.errors import DDSError, UnavailableError
from dds.primitives.ids import ID_BYTES, NodeID
from dds.runtime.audit_ledger import LedgerPort
from dds.wire.vouchers import Grant

CHECK_TIMEOUT_S: Final = 5.0  # for the ledger, while a reader waits
HOLDS_MS: Final = 60_000  # for an amount within what there was
RECHECK_MS: Final = 500  # for more: a deposit may just have been made
CHECKS_MAX: Final = 4  # side by side
REMEMBERED_MAX: Final = 16_384
ENTRIES: Final = 3  # of the ledger, a payer

Payer = tuple[bytes, Grant | None]


@dataclass(frozen=True, slots=True)
class Backing:
    """Cumulative amounts, in base units."""

    paid: int  # to this node
    covered: int  # what it was paid and what there is for more
    epoch: int
    at_ms: int


class Backings:
    """For one node."""

    def __init__(self, ledger: LedgerPort, node: NodeID, now_ms: Callable[[], int]) -> None:
        self._ledger, self._node, self._now_ms = ledger, node, now_ms
        self._known: dict[bytes, Backing] = {}
        self._checks = asyncio.Semaphore(CHECKS_MAX)

    async def of(self, payer: bytes, grant: Grant | None, cumulative: int) -> Backing | None:
        """What the ledger says, or said a short while ago; None when it was never asked and cannot be."""
        known = self._known.get(payer)
        if known is not None:
            age_ms = self._now_ms() - known.at_ms
            if age_ms < (HOLDS_MS if cumulative <= known.covered else RECHECK_MS):
                return known
        try:
            async with self._checks, asyncio.timeout(CHECK_TIMEOUT_S):
                (found,) = await self.now([(payer, grant)])
        except (DDSError, TimeoutError):
            return known
        return found

    async def now(self, payers: Sequence[Payer]) -> list[Backing]:
        """As the ledger has it at this moment, in the order asked.

        Raises:
            DDSError: it cannot be asked.
        """
        keys: list[tuple[Any, bytes]] = [(CHAIN, b"")]
        for payer, grant in payers:
            account, name = payer[:ID_BYTES], payer[ID_BYTES:]
            own = direct_key(account, self._node)
            keys += [(DEPOSITS, account), (PAID, grant_key(name, self._node) if grant else own)]
            keys.append((PAID, grant_key(name) if grant else own))
        chain, *found = await self._ledger.find_many(keys)
        if chain is None:
            raise UnavailableError("the ledger has no genesis")
        at_ms = self._now_ms()
        backings = [
            _backing(grant, *found[ENTRIES * at : ENTRIES * (at + 1)], epoch=chain.epoch, at_ms=at_ms)
            for at, (_, grant) in enumerate(payers)
        ]
        for (payer, _), backing in zip(payers, backings, strict=True):
            self._known.pop(payer, None)
            self._known[payer] = backing
        while len(self._known) > REMEMBERED_MAX:
            del self._known[next(iter(self._known))]
        return backings


def _backing(
    grant: Grant | None, deposit: DepositEntry | None, paid: Paid | None, total: Paid | None, *, epoch: int, at_ms: int
) -> Backing:
    there = deposit.amount + deposit.leaving if deposit else 0
    if grant is not None:
        left = grant.amount - (total.amount if total else 0) if epoch <= grant.expires_epoch else 0
        there = min(there, left)
    sofar = paid.amount if paid else 0
    return Backing(sofar, sofar + there, epoch, at_ms)

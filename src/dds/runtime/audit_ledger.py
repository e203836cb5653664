"""How auditors and witnesses look at the ledger: entries as they are needed, and when the next epoch has begun.

Decides how often the ledger is asked: once when an epoch should have begun, a few times more where it is late, and otherwise
only for the entries of a challenge. Does not decide how entries are proven (ledger_client.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from dds.ledger.facts import Entries, Key, NotLoaded, Reader
from dds.ledger.params import Params
from dds.ledger.records import CHAIN, PARAMS, Chain
from dds.primitives.errors import DDSError, UnavailableError
from dds.primitives.keys import SigningKey
from dds.runtime.logs import event
from dds.wire.ledger import AnyBody

T = TypeVar("T")
_log: Final = logging.getLogger("dds.audits")
CHAIN_KEY: Final[Key] = (CHAIN, b"")

ROUNDS_MAX: Final = 64  # of fetching what the next look lacks; an inventory's trie is a few pages deep
LATE_POLLS: Final = 8  # an epoch, while the ledger does not say that the next one has begun
PAST_BOUNDARY: Final = 100  # parts of an epoch: so much later than its beginning the ledger is asked


class LedgerPort(Protocol):
    """What is asked of a ledger client (`LedgerClient` is one)."""

    async def find_many(self, wanted: Sequence[Key], /) -> list[Any]:
        """The entries in order, None for what is not there.

        Raises:
            DDSError: the ledger cannot be asked, or its answer is not proven.
        """
        ...

    async def submit(self, key: SigningKey, body: AnyBody, /) -> object:
        """Returns when it is final.

        Raises:
            LedgerRefused: the rules say no.
            DDSError: nobody can say what became of it.
        """
        ...


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


async def look_up(port: LedgerPort, look: Callable[[Reader], T], known: Entries | None = None) -> T:
    """`look` over proven entries, which are fetched as it asks for them.

    Each request ends with the chain's entry, so that none is needed for the epoch alone. `known`: where entries are kept for
    other looks in the same epoch; after an error it is to be given up.

    Raises:
        UnavailableError: the epoch changed meanwhile, so that entries of two epochs may have been mixed; try again.
        DDSError: the ledger cannot be asked.
    """
    entries = Entries() if known is None else known
    for _ in range(ROUNDS_MAX):
        try:
            return look(entries)
        except NotLoaded as lack:
            await _fetch(port, entries, [key for key in dict.fromkeys(lack.keys) if key != CHAIN_KEY])
    raise UnavailableError("the ledger's answers lead nowhere")


async def _fetch(port: LedgerPort, entries: Entries, keys: list[Key]) -> None:
    """A long list takes several answers, so the first one begins with the chain, and every one ends with it."""
    before: Chain | None
    try:
        before, asked = entries.find(CHAIN), [*keys, CHAIN_KEY]
        values = await port.find_many(asked)
    except NotLoaded:
        before, *values = await port.find_many([CHAIN_KEY, *keys, CHAIN_KEY])
        entries.put(CHAIN_KEY, before)
    now = values.pop()
    if now is None or before is None or now.epoch != before.epoch:
        raise UnavailableError("the ledger's epoch changed while it was read")
    for key, value in zip(keys, values, strict=True):
        entries.put(key, value)


class EpochClock:
    """When epochs begin, by this machine's clock; that one has begun is for the ledger to say."""

    def __init__(self, port: LedgerPort, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._port, self._clock_ms = port, clock_ms
        self._params = Params()

    async def start(self) -> int:
        """The present epoch.

        Raises:
            DDSError
        """
        chain, params = await self._port.find_many([CHAIN_KEY, (PARAMS, b"")])
        if chain is None or params is None:
            raise UnavailableError("the ledger has no genesis")
        self._params = params
        return int(chain.epoch)

    async def after(self, epoch: int) -> int:
        """Sleep until an epoch later than `epoch` has begun, however long the ledger is away; which one it is."""
        await self.until(epoch + 1, 1 / PAST_BOUNDARY)
        while True:
            try:
                (chain,) = await self._port.find_many([CHAIN_KEY])
            except DDSError as error:
                event(_log, logging.WARNING, "the ledger does not say which epoch it is", error=error)
            else:
                if chain is not None and chain.epoch > epoch:
                    return int(chain.epoch)
            await self.pause()

    async def pause(self) -> None:
        """Before the ledger is asked again."""
        await asyncio.sleep(self.epoch_s / LATE_POLLS)

    async def until(self, epoch: int, part: float) -> None:
        """Sleep until `part` (0..1) of an epoch is over; at once where that is past."""
        await asyncio.sleep(max(0.0, self.seconds_until(epoch, part)))

    def seconds_until(self, epoch: int, part: float) -> float:
        """Negative: so long ago."""
        at_ms = self._params.genesis_ms + (epoch + part) * self._params.epoch_ms
        return (at_ms - self._clock_ms()) / 1000

    @property
    def epoch_s(self) -> float:
        return self._params.epoch_ms / 1000

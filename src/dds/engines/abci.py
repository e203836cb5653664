"""One member of a ledger that strangers keep together: CometBFT orders and agrees, our replica applies.

Decides how a transaction goes to the local CometBFT and when it is final: when this replica has made its block durable. Does
not start CometBFT, nor choose validators (docs/operate/ledger-cometbft.md).
Source: docs/spec/ledger.md, "Blocks"; docs/adr/0019-cometbft.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from dds.engines.abci_app import Application
from dds.engines.abci_server import AbciServer
from dds.engines.comet_rpc import CometRpc
from dds.engines.port import Outcome
from dds.engines.replica import Replica, outcomes
from dds.ledger.machine import BlockResult, TxResult
from dds.primitives.errors import DDSError, UnavailableError
from dds.primitives.hashing import sha256
from dds.wire.ledger_api import Head

SUBMIT_TIMEOUT_S: Final = 30.0
USED: Final = Outcome(0, "bad-nonce", "the same bytes were sent before")  # they count once, for who sent them first


class AbciEngine:
    """An `Engine`. `listen`: where CometBFT finds us, its `proxy_app`; `rpc`: where we find it, http://host:port."""

    name = "abci"

    def __init__(self, replica: Replica, *, listen: str, rpc: str, submit_timeout_s: float = SUBMIT_TIMEOUT_S) -> None:
        self._replica, self._listen = replica, listen
        self._rpc = CometRpc(rpc)
        self._submit_timeout_s = submit_timeout_s
        self._waits = _Waits()

    @property
    def replica(self) -> Replica:
        return self._replica

    def head(self) -> Head:
        return self._replica.head()

    async def start(self) -> None:
        """Let CometBFT dial. Until it does reads are answered, and `submit` is not.

        Raises:
            ConfigError: the address cannot be bound.
        """
        self._server = AbciServer(Application(self._replica, _Watcher(self._waits)), self._listen)
        await self._server.start()

    async def stop(self) -> None:
        self._waits.abandon(UnavailableError("the ledger is stopping"))
        await self._rpc.close()
        await self._server.stop()

    async def submit(self, raws: Sequence[bytes]) -> list[Outcome]:
        """As engines/port.py says. What CometBFT does not take into a block has an outcome of height 0.

        Raises:
            UnavailableError: CometBFT is not there or full, or no block came in time.
        """
        problems = await asyncio.to_thread(self._replica.screen, raws)
        sound = [raw for raw, problem in zip(raws, problems, strict=True) if problem is None]
        judged = iter(await self._order(sound))
        return [next(judged) if problem is None else Outcome(0, problem.code, problem.message) for problem in problems]

    async def _order(self, raws: Sequence[bytes]) -> list[Outcome]:
        """The outcomes of transactions that are sound."""
        with self._waits.begin(raws) as waits:
            try:
                async with asyncio.timeout(self._submit_timeout_s):
                    for at in sorted(await self._rpc.broadcast(raws)):
                        if await asyncio.to_thread(self._replica.outcome_of, raws[at]) is not None and not waits[at].done():
                            waits[at].set_result(USED)
                    return [await wait for wait in waits]
            except TimeoutError:
                raise UnavailableError(
                    f"{sum(not wait.done() for wait in waits)} of {len(raws)} transactions are in no block after "
                    f"{self._submit_timeout_s:g} s",
                    hint="validators with over two thirds of the voting power must be up; sending the same bytes again is safe",
                ) from None


class _Waits:
    """Who waits for which transaction. Every caller has futures of its own, so that one who gives up disturbs no other."""

    def __init__(self) -> None:
        self._by_id: dict[bytes, list[asyncio.Future[Outcome]]] = {}

    @contextmanager
    def begin(self, raws: Sequence[bytes]) -> Iterator[list[asyncio.Future[Outcome]]]:
        loop = asyncio.get_running_loop()
        waits = [(sha256(raw), loop.create_future()) for raw in raws]
        for tx_id, wait in waits:
            self._by_id.setdefault(tx_id, []).append(wait)
        try:
            yield [wait for _, wait in waits]
        finally:
            for tx_id, wait in waits:
                wait.cancel()  # nothing, where it is done
                self._forget(tx_id, wait)

    def settle(self, tx_id: bytes, outcome: Outcome) -> None:
        for place, wait in enumerate(self._by_id.pop(tx_id, ())):
            if not wait.done():
                wait.set_result(outcome if place == 0 else USED)

    def abandon(self, error: DDSError) -> None:
        for waits in self._by_id.values():
            for wait in waits:
                if not wait.done():
                    wait.set_exception(error)
                    wait.exception()  # of a call's many only the first is awaited

    def _forget(self, tx_id: bytes, wait: asyncio.Future[Outcome]) -> None:
        waits = self._by_id.get(tx_id, [])
        if wait in waits:
            waits.remove(wait)
        if not waits:
            self._by_id.pop(tx_id, None)


class _Watcher:
    """Carries what the application's thread hears over to the loop."""

    def __init__(self, waits: _Waits) -> None:
        self._waits = waits
        self._loop = asyncio.get_running_loop()

    def refused(self, raw: bytes, refusal: TxResult) -> None:
        self._loop.call_soon_threadsafe(self._waits.settle, sha256(raw), Outcome(0, refusal.code, refusal.message))

    def committed(self, height: int, txs: Sequence[bytes], result: BlockResult) -> None:
        self._loop.call_soon_threadsafe(self._settle, txs, outcomes(height, result.results))

    def _settle(self, txs: Sequence[bytes], judged: Sequence[Outcome]) -> None:
        for raw, outcome in zip(txs, judged, strict=True):
            self._waits.settle(sha256(raw), outcome)

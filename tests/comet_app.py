"""A validator's application alone, as a process of its own: `python -m tests.comet_app STORE GENESIS LISTEN [fault HEIGHT]`.

Faults: `diverge` gives itself money that no block gave, at HEIGHT; `die` kills itself between FinalizeBlock and Commit of the
first block from HEIGHT on that has transactions.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from dds.engines.abci_app import Application
from dds.engines.abci_server import AbciServer
from dds.engines.replica import Replica
from dds.ledger.genesis import Genesis
from dds.ledger.machine import BlockResult, TxResult
from dds.wire.codec import decode


class Nobody:
    """Waits for nothing."""

    def refused(self, raw: bytes, refusal: TxResult) -> None: ...

    def committed(self, height: int, txs: Sequence[bytes], result: BlockResult) -> None: ...


class FaultyReplica(Replica):
    fault, fault_height = "", 0

    def apply(self, height: int, time_ms: int, txs: Sequence[bytes]) -> BlockResult:
        if (self.fault, height) == ("diverge", self.fault_height):
            chain = self._state.chain
            self._state.set_chain(treasury=chain.treasury + 1)
            self._state.keep()
        return super().apply(height, time_ms, txs)

    def commit(self) -> None:
        record = self._pending and self._pending.record
        if self.fault == "die" and record is not None and record.txs and self.height + 1 >= self.fault_height:
            os.kill(os.getpid(), signal.SIGKILL)
        super().commit()


async def main(store: str, genesis_file: str, listen: str, fault: str = "", height: str = "0") -> None:
    genesis = decode(Path(genesis_file).read_bytes(), Genesis)
    FaultyReplica.fault, FaultyReplica.fault_height = fault, int(height)
    replica = FaultyReplica.open(Path(store), genesis, engine="abci")
    server = AbciServer(Application(replica, Nobody()), listen)
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop()
    replica.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""A ledger host as a process of its own that dies in the middle of a block, for tests of `kill -9`.

    python -m tests.nats_host ADDRESS NETWORK GENESIS_MS DIRECTORY DIES_AT

It submits transfers of ANNA one by one and prints each one's height when it is final. In block DIES_AT it is killed after the
block was applied and before it was committed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import ClassVar

from dds.engines.nats import NatsEngine
from dds.engines.nats_log import NatsLog
from dds.engines.replica import Replica
from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount
from dds.ledger.params import devnet_params
from dds.primitives.keys import SigningKey
from dds.wire.ledger import Transfer, sign_tx

KEYS = tuple(SigningKey(bytes([number]) * 32) for number in (1, 2, 3))  # of the ledger's hosts
EPOCH_MS = 3_600_000
ANNA, BERT = SigningKey(b"a" * 32), SigningKey(b"b" * 32)  # with FUNDS each
FUNDS = 1_000_000


def small_genesis(network: str, genesis_ms: int, epoch_ms: int = EPOCH_MS) -> Genesis:
    funded = tuple(GenesisAccount(account.public, FUNDS) for account in (ANNA, BERT))
    return Genesis(GENESIS_VERSION, network, devnet_params(genesis_ms, epoch_ms), funded)


def transfer(network: str, nonce: int, amount: int = 1, sender: SigningKey = ANNA) -> bytes:
    """From one of the two to the other."""
    to = BERT if sender is ANNA else ANNA
    return sign_tx(sender, network, nonce, Transfer(to.public, amount))


class MortalReplica(Replica):
    dies_at: ClassVar[int] = 0

    def commit(self) -> None:
        if self.dies_at and self.height + 1 == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        super().commit()


async def run(address: str, network: str, genesis_ms: int, directory: Path, dies_at: int) -> None:
    genesis = small_genesis(network, genesis_ms)
    replica = MortalReplica.open(directory / "ledger.db", genesis, engine="nats")
    MortalReplica.dies_at = dies_at
    engine = NatsEngine(replica, KEYS[2], [key.public for key in KEYS], NatsLog([address], network))
    await engine.start()
    for nonce in range(dies_at):
        (outcome,) = await engine.submit([transfer(network, nonce)])
        print(outcome.height, flush=True)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5])))

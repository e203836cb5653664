"""A process that makes blocks until it is killed: `python -m tests.ledger_writer FILE`.

Each block moves one unit in each of 20 transactions; after its commit the height is written to standard output.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dds.engines.replica import Replica
from dds.ledger.records import ACCOUNTS
from tests.ledger_kit import ANNA, EPOCH_MS, START_MS, small_genesis, transfer

TXS_PER_BLOCK = 20


def main() -> None:
    replica = Replica.open(Path(sys.argv[1]), small_genesis())
    account = replica.find(ACCOUNTS, ANNA.public)
    assert account is not None
    nonce = account.nonce
    while True:
        raws = [transfer(nonce + each) for each in range(TXS_PER_BLOCK)]
        replica.apply(replica.height + 1, START_MS + (replica.height + 1) * EPOCH_MS // 3, raws)
        replica.commit()
        nonce += TXS_PER_BLOCK
        print(replica.height, flush=True)


if __name__ == "__main__":
    main()

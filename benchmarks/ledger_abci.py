"""How fast a validator's application finalizes blocks: the socket server, driven as CometBFT drives it.

Blocks of 500 signed transfers over a loopback socket, with the ledger on disk. Once with transactions that were never seen
before, as when a validator catches up, once after CheckTx of each, as when it takes part. Against bare PyNaCl verification of
the same number of signatures on one core in the same run; the aim for FinalizeBlock is 4,000 transactions a second.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from benchmarks.rows import Row
from dds.engines.abci_app import Application
from dds.engines.abci_pb2 import Request, RequestCheckTx
from dds.engines.abci_server import AbciServer
from dds.engines.replica import Replica
from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount
from dds.ledger.params import Params
from dds.primitives.keys import SigningKey, verify
from dds.wire.ledger import Transfer, sign_tx
from tests.abci_client import AbciClient, Recorder, connected

BLOCK_TXS = 500
BLOCKS = 10  # of each kind
NETWORK = "bench"
TARGET_PER_S = 4000.0  # of FinalizeBlock
KEYS = tuple(SigningKey(number.to_bytes(32, "big")) for number in range(1, BLOCK_TXS + 1))


def run() -> list[Row]:
    """All rows; some ten seconds."""
    return asyncio.run(_measure())


async def _measure() -> list[Row]:
    genesis = Genesis(GENESIS_VERSION, NETWORK, Params(), tuple(GenesisAccount(key.public, 10**9) for key in KEYS))
    blocks = [[_transfer(at, nonce) for at in range(BLOCK_TXS)] for nonce in range(2 * BLOCKS)]
    verify_s = _bare_verify_s()
    with tempfile.TemporaryDirectory() as home:
        replica = Replica.open(Path(home) / "ledger", genesis, engine="abci")
        server = AbciServer(Application(replica, Recorder()), "tcp://127.0.0.1:0")
        try:
            async with connected(await server.start()) as client:
                await client.begin(genesis)
                unseen = [await _block_s(client, number, blocks[number - 1]) for number in range(1, BLOCKS + 1)]
                checked = []
                for number in range(BLOCKS + 1, 2 * BLOCKS + 1):
                    await client.ask(*(Request(check_tx=RequestCheckTx(tx=raw)) for raw in blocks[number - 1]))
                    checked.append(await _block_s(client, number, blocks[number - 1]))
        finally:
            await server.stop()
            replica.close()
    return [*_rows("never seen", unseen, verify_s), *_rows("checked before", checked, verify_s)]


async def _block_s(client: AbciClient, height: int, txs: list[bytes]) -> tuple[float, float]:
    """Seconds until FinalizeBlock, and until Commit, was answered."""
    started = time.perf_counter()
    answer = await client.finalize(height, txs, time_ms=height)
    finalized = time.perf_counter()
    await client.commit()
    assert not any(result.code for result in answer.tx_results)
    return finalized - started, time.perf_counter() - started


def _transfer(at: int, nonce: int) -> bytes:
    return sign_tx(KEYS[at], NETWORK, nonce, Transfer(KEYS[(at + 1) % BLOCK_TXS].public, 1))


def _bare_verify_s() -> float:
    """Seconds for as many signatures as a block has."""
    message = bytes(100)
    signatures = [(key.public, key.sign(message)) for key in KEYS]
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        assert all(verify(public, signature, message) for public, signature in signatures)
        best = min(best, time.perf_counter() - started)
    return best


def _rows(kind: str, blocks: list[tuple[float, float]], verify_s: float) -> list[Row]:
    """Of the median blocks, so that one checkpoint of the database decides nothing."""
    finalize_s, whole_s = (sorted(each)[len(blocks) // 2] for each in zip(*blocks, strict=True))
    baseline = round(BLOCK_TXS / verify_s)
    target = round(TARGET_PER_S / baseline, 3)
    return [
        Row(f"ABCI FinalizeBlock, {kind}", BLOCK_TXS / finalize_s, "tx/s", baseline, verify_s / finalize_s, target),
        Row(f"ABCI FinalizeBlock and Commit, {kind}", BLOCK_TXS / whole_s, "tx/s", baseline, verify_s / whole_s),
    ]

"""The ledger: signed transfers a second through the embedded engine, and a ledger with a million accounts.

Transfers go through everything that a host does with them but HTTP: signature, nonce, rule, tree, SQLite with its sync. They
are held against nothing but verifying the same signatures in one thread. The large ledger has a million accounts and a hundred
thousand segments of 16 assignments, all in memory.
"""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import psutil
from msgspec.structs import replace

from benchmarks.rows import Row
from dds.engines.embedded import EmbeddedEngine, system_time_ms
from dds.engines.replica import Replica
from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount, GenesisNode, GenesisOperator
from dds.ledger.params import Params
from dds.ledger.records import ACCOUNTS, SEGMENTS, Account, Assignment, Holding, Segment, SponsorEntry
from dds.ledger.state import State
from dds.ledger.tree import verify_proof
from dds.primitives.hashing import sha256
from dds.primitives.keys import SigningKey
from dds.primitives.money import TOKEN
from dds.primitives.units import KIB, MIB
from dds.wire.codec import encode
from dds.wire.ledger import TX_TAG, StripeRun, Transfer, sign_tx
from dds.wire.ledger_api import BLOCK_TXS_MAX, BUCKET_COUNT
from dds.wire.signed import open_signed

NETWORK: Final = "bench"
SENDERS: Final = 500
TRANSFERS: Final = 10_000
SINGLES: Final = 100
NODES: Final = 1_000
OPERATORS: Final = 300
BOUNDARIES: Final = 5
ACCOUNTS_LARGE: Final = 1_000_000
SEGMENTS_LARGE: Final = 100_000
PROOFS: Final = 2_000
BATCH: Final = 50_000  # entries written at once


def run() -> Iterator[Row]:
    yield from _throughput()
    yield from _large()


# ---- throughput


def _throughput() -> Iterator[Row]:
    keys = [SigningKey(number.to_bytes(32, "big")) for number in range(SENDERS)]
    raws = [
        sign_tx(keys[number % SENDERS], NETWORK, number // SENDERS, Transfer(keys[number * 7 % SENDERS].public, 1))
        for number in range(TRANSFERS)
    ]
    verify_s = _verify_s(raws)
    with tempfile.TemporaryDirectory() as scratch:
        batched_s, single_s = asyncio.run(_submit(Path(scratch), keys, raws))
    per_s, bare_per_s = len(raws) / batched_s, len(raws) / verify_s
    yield Row("ledger: signed transfers in blocks of 500 / bare verify", per_s, "tx/s", bare_per_s, per_s / bare_per_s, 0.3)
    yield Row("ledger: signed transfers, one after another", 1 / single_s, "tx/s")


def _verify_s(raws: Sequence[bytes]) -> float:
    began = time.perf_counter()
    for raw in raws:
        open_signed(raw, TX_TAG, NETWORK, max_bytes=len(raw))
    return time.perf_counter() - began


async def _submit(scratch: Path, keys: Sequence[SigningKey], raws: Sequence[bytes]) -> tuple[float, float]:
    """Seconds for all of `raws`, and for one transfer alone."""
    accounts = tuple(GenesisAccount(key.public, TOKEN) for key in keys)
    genesis = Genesis(GENESIS_VERSION, NETWORK, Params(genesis_ms=system_time_ms()), accounts)
    engine = EmbeddedEngine(Replica.open(scratch / "ledger.sqlite", genesis))
    await engine.start()
    began = time.perf_counter()
    for at in range(0, len(raws), 4 * BLOCK_TXS_MAX):
        outcomes = await engine.submit(raws[at : at + 4 * BLOCK_TXS_MAX])
        assert all(outcome.ok for outcome in outcomes)
    batched_s = time.perf_counter() - began
    nonce = len(raws) // len(keys)
    singles = [sign_tx(keys[0], NETWORK, nonce + number, Transfer(keys[1].public, 1)) for number in range(SINGLES)]
    began = time.perf_counter()
    for raw in singles:
        (outcome,) = await engine.submit([raw])
        assert outcome.ok
    single_s = (time.perf_counter() - began) / SINGLES
    await engine.stop()
    return batched_s, single_s


# ---- a million accounts


def _large() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "ledger.sqlite"
        filling = f"from pathlib import Path; from benchmarks.ledger import fill; fill(Path({str(path)!r}))"
        subprocess.run([sys.executable, "-c", filling], check=True)  # elsewhere: its memory must not be counted, nor reused
        genesis = genesis_with_nodes()
        before = psutil.Process().memory_info().rss
        began = time.perf_counter()
        replica = Replica.open(path, genesis)
        yield Row("ledger: opening 10^6 accounts and 10^5 segments", time.perf_counter() - began, "s")
        for number in range(BUCKET_COUNT):
            replica._tree._bucket(number)
        memory = psutil.Process().memory_info().rss - before
        yield Row("ledger: memory, every entry touched, against 1 GiB", memory / MIB, "MiB", 1024, memory / MIB / 1024, 1.0)
        yield from _boundaries(replica, genesis)
        yield from _proofs(replica)
        replica.close()


def fill(path: Path) -> None:
    """A ledger of that size on disk, written past the rules: they would take hours."""
    replica = Replica.open(path, genesis_with_nodes())
    state = State(replica._tree)
    for number in range(ACCOUNTS_LARGE):
        state.put(ACCOUNTS, secrets.token_bytes(32), Account(number * TOKEN, number))
        if number % BATCH == BATCH - 1:
            _write(replica, state)
    for number in range(SEGMENTS_LARGE):
        state.put(SEGMENTS, secrets.token_bytes(32), _segment(number))
        if number % BATCH == BATCH - 1:
            _write(replica, state)
    replica.close()


def _write(replica: Replica, state: State) -> None:
    state.keep()
    staged = replica._tree.stage(state.changes())
    head = replica._store.head()
    assert head is not None
    replica._store.commit(
        type(head)(0, head.time_ms, staged.root, head.genesis_hash), staged.changes, staged.leaves(), None, ()
    )
    replica._tree.keep(staged)
    state.committed()


def genesis_with_nodes() -> Genesis:
    operators = tuple(GenesisOperator(_id(b"operator", number), 1000 * TOKEN, ("eu",)) for number in range(OPERATORS))
    nodes = tuple(
        GenesisNode(
            node_id=_id(b"node", number),
            operator=operators[number % OPERATORS].account,
            payout=operators[number % OPERATORS].account,
            roles=("ssn", "witness"),
            region="eu",
            subnet=f"subnet{number}",
            capacity_bytes=1 << 42,
            ask_price=1_325,
            term_epochs_max=10_000,
            pool=100 * TOKEN,
        )
        for number in range(NODES)
    )
    return Genesis(GENESIS_VERSION, NETWORK, Params(), operators=operators, nodes=nodes)


def _id(kind: bytes, number: int) -> bytes:
    return sha256(kind + number.to_bytes(8, "big"))


def _segment(number: int) -> Segment:
    """16 assignments of a full segment."""
    share = Assignment((number * 16) % NODES, Holding.ACTIVE, 6 * MIB, 1_600, 3, 3, 10**9, 0, 0)
    sponsor = SponsorEntry(_id(b"contract", number % 1000), (1 << 6) - 1, 1_325, 3, 8_000, 10**10, 10**9)
    return Segment(
        segment_root=_id(b"root", number),
        encoding_hash=_id(b"encoding", number),
        reservation=_id(b"reservation", number),
        price=1_325,
        loss_tolerance=6,
        stripes=(StripeRun(6, 10, 6, MIB),),
        released=0,
        assignments=tuple(replace(share, node=(number * 16 + index) % NODES) for index in range(16)),
        sponsors=(sponsor,),
        registered_epoch=3,
    )


def _boundaries(replica: Replica, genesis: Genesis) -> Iterator[Row]:
    """The time of a block in which an epoch ends, and of what of it is not the sync of the disk."""
    whole_s, applying_s = [], []
    for epoch in range(1, BOUNDARIES + 1):
        began = time.perf_counter()
        replica.apply(replica.height + 1, genesis.params.genesis_ms + epoch * genesis.params.epoch_ms, [])
        applied = time.perf_counter()
        replica.commit()
        whole_s.append(time.perf_counter() - began)
        applying_s.append(applied - began)
    slowest = max(whole_s) * 1000
    yield Row("ledger: slowest epoch boundary, 1,000 nodes", slowest, "ms", 100, slowest / 100, 1.0)
    yield Row("ledger: of it applying, median", median(applying_s) * 1000, "ms")


def _proofs(replica: Replica) -> Iterator[Row]:
    keys = [key for number in range(64) for key in replica._tree._bucket(number * 1000)][:PROOFS]
    began = time.perf_counter()
    proven = [(key, replica.get(key), replica.prove(key)) for key in keys]
    built_s = (time.perf_counter() - began) / len(keys)
    began = time.perf_counter()
    assert all(verify_proof(proof, key, value, replica.root) for key, value, proof in proven)
    verified_s = (time.perf_counter() - began) / len(keys)
    both_ms = (built_s + verified_s) * 1000
    yield Row("ledger: one proof, built and verified", both_ms, "ms", 1.0, both_ms, 1.0)
    size = sum(len(encode(proof)) for _, _, proof in proven) / len(proven)
    yield Row("ledger: one proof", size / KIB, "KiB")

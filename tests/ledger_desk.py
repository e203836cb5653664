"""A ledger with a host of its own in a thread beside the test, and a home that is connected to it.

    with ledger_desk(tmp_path) as desk:
        assert desk.run("wallet", "show") == 0

The commands run in the test's own thread, as `dds` runs them, over a real TLS connection on loopback. Time stands still until
the test moves it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dds.apps.cli.main import run
from dds.engines.embedded import EmbeddedEngine
from dds.engines.replica import Replica
from dds.ledger import rent
from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount, GenesisNode, GenesisOperator
from dds.ledger.params import Params
from dds.ledger.records import CONTRACTS, RESERVATIONS, contract_id, reservation_id
from dds.primitives.hashing import sha256
from dds.primitives.ids import id_text
from dds.primitives.keys import SigningKey
from dds.primitives.money import TOKEN
from dds.runtime.ledger_client import open_ledger
from dds.runtime.ledger_host import LedgerHost
from dds.storage.home import ClientConfig, Home, write_client_config
from dds.storage.keyfile import create_key
from dds.wire.ledger import AnyBody, RegisterSegments, Reserve, SegmentEntry, StripeRun, WitnessReport, stripes_hash
from dds.wire.receipts import RECEIPT_VERSION, Receipt, sign_receipt
from tests.discovery_samples import NETWORK as NETWORK

BEGAN_MS = 1_800_000_000_000
EPOCH_MS = 3_600_000
HOST_KEY, OPERATOR = SigningKey(b"\x21" * 32), SigningKey(b"\x22" * 32)
CREATOR, STRANGER = SigningKey(b"\x23" * 32), SigningKey(b"\x24" * 32)
NODES = [SigningKey(bytes([0x40 + number]) * 32) for number in range(3)]
CREATOR_TOKENS = 1_000
SLOT_BYTES = 1 << 18


@dataclass
class LedgerDesk:
    """What a test has in hand."""

    home: Home
    replica: Replica
    now_ms: list[int] = field(default_factory=lambda: [BEGAN_MS])

    def run(self, *argv: str) -> int:
        """One command line on this home; the exit code."""
        return run(["--home", str(self.home.root), *argv])

    def send(self, key: SigningKey, *bodies: AnyBody) -> None:
        """Transactions of others, by the client that everybody uses."""

        async def submit() -> None:
            async with open_ledger(self.home.client_config().ledger, network=NETWORK) as client:
                for body in bodies:
                    await client.submit(key, body)

        asyncio.run(submit())

    def store(self, class_name: str, name: bytes) -> None:
        """Reserve and register one segment of two stripes, 2+1, under the creator's contract, with every node's receipt."""
        contract, stripes = contract_id(CREATOR.public, class_name), [StripeRun(2, 2, 1, SLOT_BYTES)]
        found = self.replica.find(CONTRACTS, contract)
        assert found is not None
        self.send(CREATOR, Reserve(contract, 1, 3, 1, 2 * SLOT_BYTES))
        identifier = reservation_id(contract, found.reservations)
        reservation = self.replica.find(RESERVATIONS, identifier)
        assert reservation is not None
        segment, root = sha256(name), sha256(b"root of " + name)
        receipts = [
            Receipt(
                RECEIPT_VERSION, NETWORK, identifier + stripes_hash(stripes), segment, root, index, NODES[number].public,
                rent.stripes_bytes(stripes, index), rent.leaf_count(stripes, index), 0,
            )
            for index, number in enumerate(reservation.chosen)
        ]  # fmt: skip
        raws = [sign_receipt(NODES[number], each) for number, each in zip(reservation.chosen, receipts, strict=True)]
        self.send(CREATOR, RegisterSegments([SegmentEntry(identifier, segment, root, sha256(b"record"), stripes, raws)]))

    def report(self, *passed: int) -> None:
        """The witness says who passed the present epoch's audits, and the next epoch begins."""
        bits = sum(1 << number for number in passed)
        self.send(NODES[0], WitnessReport(self.replica.params.epoch_of(self.now_ms[0]), bytes([bits]), [], b"", b""))
        self.pass_epochs(1)

    def pass_epochs(self, count: int) -> None:
        """The next block is so much later."""
        self.now_ms[0] += count * EPOCH_MS


def genesis() -> Genesis:
    """A creator with money, an operator with three nodes that ask different prices; the first of them is the witness too."""
    nodes = tuple(
        GenesisNode(
            node_id=key.public,
            operator=OPERATOR.public,
            payout=OPERATOR.public,
            roles=("ssn", "witness") if number == 0 else ("ssn",),
            region=f"region-{number}",
            subnet=f"net-{number}",
            capacity_bytes=1 << 40,
            ask_price=1000 + 100 * (2 - number),
            term_epochs_max=8766,
            pool=50 * TOKEN,
        )
        for number, key in enumerate(NODES)
    )
    return Genesis(
        GENESIS_VERSION,
        NETWORK,
        Params(genesis_ms=BEGAN_MS, epoch_ms=EPOCH_MS),
        (GenesisAccount(CREATOR.public, CREATOR_TOKENS * TOKEN), GenesisAccount(OPERATOR.public, 500 * TOKEN)),
        (GenesisOperator(OPERATOR.public, 200 * TOKEN, ("region-0",)),),
        nodes,
    )


@contextmanager
def ledger_desk(directory: Path) -> Iterator[LedgerDesk]:
    """The creator's home, with the operator's key as its wallet `operator`, connected to a running ledger."""
    home = Home.open(directory / "home")
    create_key(home.identity_file, CREATOR.seed)
    create_key(home.wallets_dir / "operator.key", OPERATOR.seed)
    desk = LedgerDesk(home, Replica.open(directory / "ledger.sqlite", genesis()))
    with _hosted(desk) as port:
        write_client_config(home.config_file, ClientConfig(NETWORK, ledger=f"{id_text(HOST_KEY.public)}@127.0.0.1:{port}"))
        yield desk


@contextmanager
def _hosted(desk: LedgerDesk) -> Iterator[int]:
    """The host in a thread with a loop of its own, until the block ends; its port."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="ledger-host", daemon=True)
    thread.start()
    stack = AsyncExitStack()

    async def start() -> int:
        engine = EmbeddedEngine(desk.replica, now_ms=lambda: desk.now_ms[0])
        host = LedgerHost(HOST_KEY, engine, genesis())
        return await host.start(stack)

    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
        desk.replica.close()

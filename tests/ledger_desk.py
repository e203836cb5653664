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
from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount, GenesisNode, GenesisOperator
from dds.ledger.params import Params
from dds.primitives.ids import id_text
from dds.primitives.keys import SigningKey
from dds.primitives.money import TOKEN
from dds.runtime.ledger_host import LedgerHost
from dds.storage.home import ClientConfig, Home, write_client_config
from dds.storage.keyfile import create_key

NETWORK = "desk"
BEGAN_MS = 1_800_000_000_000
EPOCH_MS = 3_600_000
HOST_KEY, OPERATOR = SigningKey(b"\x21" * 32), SigningKey(b"\x22" * 32)
CREATOR, STRANGER = SigningKey(b"\x23" * 32), SigningKey(b"\x24" * 32)
NODES = [SigningKey(bytes([0x40 + number]) * 32) for number in range(3)]
CREATOR_TOKENS = 1_000


@dataclass
class LedgerDesk:
    """What a test has in hand."""

    home: Home
    replica: Replica
    now_ms: list[int] = field(default_factory=lambda: [BEGAN_MS])

    def run(self, *argv: str) -> int:
        """One command line on this home; the exit code."""
        return run(["--home", str(self.home.root), *argv])

    def pass_epochs(self, count: int) -> None:
        """The next block is so much later."""
        self.now_ms[0] += count * EPOCH_MS


def genesis() -> Genesis:
    """A creator with money, an operator with three nodes that ask different prices."""
    nodes = tuple(
        GenesisNode(
            key.public, OPERATOR.public, OPERATOR.public, ("ssn",), f"region-{number}", f"net-{number}",
            capacity_bytes=1 << 40, ask_price=1000 + 500 * (2 - number), term_epochs_max=8766, pool=50 * TOKEN,
        )
        for number, key in enumerate(NODES)
    )  # fmt: skip
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
        host = LedgerHost(HOST_KEY, EmbeddedEngine(desk.replica, now_ms=lambda: desk.now_ms[0]))
        return await host.start(stack)

    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(stack.aclose(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
        desk.replica.close()

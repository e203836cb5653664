"""Opening many signed transactions: the hot spot of every engine (50 us each), so it is done once and on two cores.

Decides who verifies where, and what is remembered. A transaction that a mempool has opened is not verified again when it comes
in a block. PyNaCl lets go of the interpreter's lock while it verifies, so threads do help (docs/adr/0017-ledger-host.md).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from dds.primitives.errors import FormatError
from dds.primitives.hashing import sha256
from dds.primitives.units import MIB
from dds.wire.ledger import Tx, open_tx

THREADS: Final = 2
SHARE_MIN: Final = 16  # transactions; fewer are not worth a thread
REMEMBERED_BYTES_MAX: Final = 32 * MIB  # of transactions that were opened and are in no block yet

Opened = Tx | FormatError


class Opener:
    """Opens transactions of one network. Safe for threads."""

    def __init__(self, network: str) -> None:
        self._network = network
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="verify")
        self._known: OrderedDict[bytes, tuple[Tx, int]] = OrderedDict()
        self._known_bytes = 0
        self._lock = threading.Lock()

    def open(self, raw: bytes, *, remember: bool = False) -> Opened:
        """The transaction, or why it is none. `remember`: it is likely to come again."""
        known = self._known.get(sha256(raw))
        if known is not None:
            return known[0]
        try:
            tx = open_tx(raw, self._network)
        except FormatError as error:
            return error
        if remember:
            self._remember(tx, len(raw))
        return tx

    def open_many(self, raws: Sequence[bytes], *, remember: bool = False) -> list[Opened]:
        """All of them, in order."""

        def opened(part: Sequence[bytes]) -> list[Opened]:
            return [self.open(raw, remember=remember) for raw in part]

        share = max(SHARE_MIN, -(-len(raws) // THREADS))
        parts = [raws[at : at + share] for at in range(0, len(raws), share)]
        if len(parts) < 2:
            return opened(raws)
        return [each for part in self._pool.map(opened, parts) for each in part]

    def forget(self, raws: Sequence[bytes]) -> None:
        """They are in a block."""
        with self._lock:
            if self._known:
                for raw in raws:
                    self._drop(sha256(raw))

    def close(self) -> None:
        self._pool.shutdown()

    def _remember(self, tx: Tx, size: int) -> None:
        with self._lock:
            self._drop(tx.tx_id)
            self._known[tx.tx_id] = (tx, size)
            self._known_bytes += size
            while self._known_bytes > REMEMBERED_BYTES_MAX:
                self._drop(next(iter(self._known)))

    def _drop(self, tx_id: bytes) -> None:
        known = self._known.pop(tx_id, None)
        if known is not None:
            self._known_bytes -= known[1]

"""Applying a ledger's blocks anew, in memory, and comparing everything that its host said of them.

Decides what counts as a difference: a root, a transaction's outcome, an invariant of the whole state, the head. Stops at the
first block whose root differs, for whatever comes after it differs too.
Source: docs/spec/ledger.md, "Blocks" and "Conservation".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from dds.ledger.audit_money import check_state
from dds.ledger.genesis import Genesis, apply_genesis
from dds.ledger.machine import Context, TxResult, apply_tx, begin_block
from dds.ledger.money import held, owed_to_all
from dds.ledger.records import BY_PREFIX
from dds.ledger.state import State
from dds.ledger.tree import BucketTree
from dds.primitives.errors import FormatError
from dds.wire.codec import encode
from dds.wire.ledger import Tx, open_tx
from dds.wire.ledger_api import BlockReply, Head, genesis_hash


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of it; no problems: everything holds."""

    height: int
    transactions: int
    refused: int
    root: bytes
    held: dict[str, int]  # base units by kind of purse
    owed: int  # genesis + minted - burned
    problems: tuple[str, ...]


class Watch(Protocol):
    """Looks on while transactions are applied."""

    def before(self, state: State, tx: Tx, height: int) -> None:
        """The transaction comes next; whatever this does to `state` is to be dropped again."""

    def after(self, result: TxResult) -> None:
        """What became of it."""


@dataclass(slots=True)
class Copy:
    """A ledger in memory, block by block."""

    genesis: Genesis
    watch: Watch | None = None
    height: int = 0
    time_ms: int = 0
    transactions: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)
    entries: dict[bytes, bytes] = field(default_factory=dict)
    tree: BucketTree = field(default_factory=BucketTree)
    state: State = field(init=False)

    def __post_init__(self) -> None:
        self.time_ms = self.genesis.params.genesis_ms
        self.state = State(self.entries)
        apply_genesis(self.state, self.genesis)
        self._keep()

    def apply(self, block: BlockReply) -> bool:
        """The next block. False: it gave another root than its host said, and nothing more can be compared."""
        if block.height != self.height + 1 or block.time_ms < self.time_ms:
            self.problems.append(f"block {block.height} cannot follow {self.height}: its height or its time runs back")
            return False
        begin_block(self.state, Context(block.height, block.time_ms))
        results = [self._apply_raw(raw, block.height) for raw in block.txs]
        self._keep()
        self.height, self.time_ms = block.height, block.time_ms
        self.transactions += len(results)
        self.refused += sum(not result.ok for result in results)
        self._compare([result.code for result in results], block)
        if self.tree.root != block.root:
            self.problems.append(f"block {block.height}: the root is {self.tree.root.hex()}, its host said {block.root.hex()}")
        return self.tree.root == block.root

    def _apply_raw(self, raw: bytes, height: int) -> TxResult:
        try:
            tx = open_tx(raw, self.genesis.network)
        except FormatError as error:
            return TxResult(error.code, error.message)
        if self.watch is not None:
            self.watch.before(self.state, tx, height)
        result = apply_tx(self.state, tx)
        if self.watch is not None:
            self.watch.after(result)
        return result

    def _compare(self, codes: list[str], block: BlockReply) -> None:
        if len(codes) != len(block.codes):
            self.problems.append(
                f"block {block.height}: {len(codes)} transactions, its host tells of {len(block.codes)} outcomes"
            )
        for at, (code, said) in enumerate(zip(codes, block.codes, strict=False)):
            if code != said:
                tx = f"block {block.height}, transaction {at}"
                self.problems.append(f"{tx}: it became {code or 'done'!r}, its host said {said or 'done'!r}")

    def records(self) -> Iterator[tuple[bytes, Any]]:
        """Every entry, decoded."""
        decoders = {prefix: msgspec.msgpack.Decoder(table.kind) for prefix, table in BY_PREFIX.items()}
        return ((key, decoders[key[:1]].decode(raw)) for key, raw in sorted(self.entries.items()))

    def _keep(self) -> None:
        changes = self.state.changes()
        self.tree.update(changes)
        for key, value in changes.items():
            if value is None:
                self.entries.pop(key, None)
            else:
                self.entries[key] = value
        self.state.committed()


async def replay(
    genesis: Genesis, blocks: AsyncIterator[BlockReply], head: Head, report: Callable[[int], None] = lambda _height: None
) -> Replayed:
    """Apply `blocks` on `genesis` and compare with what `head` says.

    Returns:
        what was found; it never raises for a ledger that does not hold.
    """
    copy = Copy(genesis)
    if genesis_hash(encode(genesis)) != head.genesis_hash:
        copy.problems.append("the genesis that the host gave is not the one in its head")
    async for block in blocks:
        if not copy.apply(block):
            break
        report(copy.height)
    if copy.height == head.height and copy.tree.root != head.root and not copy.problems:
        copy.problems.append(f"the root at height {copy.height} is {copy.tree.root.hex()}, the head says {head.root.hex()}")
    if copy.height < head.height and not copy.problems:
        copy.problems.append(f"the blocks end at {copy.height}, the head says {head.height}")
    copy.problems += check_state(copy.records())
    return Replayed(
        height=copy.height,
        transactions=copy.transactions,
        refused=copy.refused,
        root=copy.tree.root,
        held=held(copy.records()),
        owed=owed_to_all(copy.state.chain),
        problems=tuple(copy.problems),
    )

"""One copy of the ledger: applies blocks that an engine has ordered, and answers from what is committed.

Decides what of a block becomes durable and when it becomes visible: `apply` computes, `commit` makes durable and visible,
`abandon` forgets. Does not decide the order of transactions nor a block's time. Equal blocks give equal roots wherever they are
applied; the state depends on transactions and their times, not on where one block ends.

Reads (`find`, `prove`, `events`, `block`, `outcome_of`) are safe from any thread and never see a block before its commit.
Everything that applies is for one thread at a time.
Source: docs/spec/ledger.md, "Blocks".
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

import msgspec

from dds.engines.opening import Opened, Opener
from dds.engines.port import Outcome
from dds.ledger.events import Event
from dds.ledger.genesis import Genesis, apply_genesis
from dds.ledger.machine import BlockResult, Context, TxResult, apply_tx, begin_block
from dds.ledger.params import Params
from dds.ledger.records import ACCOUNTS, BY_PREFIX, NOBODY, Table, V
from dds.ledger.state import State
from dds.ledger.tree import BucketTree, Staged, bucket_of, leaf_of
from dds.primitives.errors import ConfigError, CorruptError, FormatError
from dds.primitives.hashing import sha256
from dds.storage.ledger_store import BlockRecord, EventEntry, LedgerStore, StoredEvent, StoredHead, TxEntry
from dds.wire.codec import decode, encode
from dds.wire.ledger import AnyBody, Tx, tx_name
from dds.wire.ledger_api import HEAD_VERSION, MESSAGE_CHARS_MAX, Head, Proof, genesis_hash

EPOCH_CHANGE: Final = "epoch"  # the name under which an epoch's events stand
_names: dict[type, str] = {}
_decoders = {prefix: msgspec.msgpack.Decoder(table.kind) for prefix, table in BY_PREFIX.items()}


@dataclass(frozen=True, slots=True)
class _Pending:
    """An applied block that is not durable."""

    head: StoredHead
    staged: Staged
    record: BlockRecord | None
    txs: Sequence[TxEntry]
    raws: Sequence[bytes] = ()  # as they came; the record has those that used their nonces up


@dataclass(frozen=True, slots=True)
class Proven:
    """Entries as of one head."""

    head: Head
    entries: Sequence[tuple[bytes | None, Proof]]


class Replica:
    """Use `open`. `height`, `time_ms` and `root` are of the last committed block; genesis is height 0."""

    def __init__(self, store: LedgerStore, genesis: Genesis, engine: str) -> None:
        self.genesis, self.network, self.engine = genesis, genesis.network, engine
        self.genesis_hash = genesis_hash(encode(genesis))
        self._store = store
        self._opener = Opener(genesis.network)
        self._lock = threading.Lock()  # of the committed tree, against its change
        self._head = store.head()
        self._tree = BucketTree(store.bucket, store.leaves())
        self._state, self._scratch = State(self._tree), State(self._tree)
        self._pending: _Pending | None = None

    @classmethod
    def open(
        cls, path: Path, genesis: Genesis, *, engine: str = "embedded", factory: type[sqlite3.Connection] = sqlite3.Connection
    ) -> Replica:
        """Open the ledger at `path`; an empty one becomes `genesis`.

        Raises:
            ConfigError: it is another network's ledger, in use, or not one.
            CorruptError: its entries and its root do not belong together.
            StorageError: the disk failed.
        """
        store = LedgerStore(path, factory=factory)
        try:
            replica = cls(store, genesis, engine)
            replica._begin()
        except BaseException:
            store.close()
            raise
        return replica

    def _begin(self) -> None:
        if self._head is None:
            apply_genesis(self._state, self.genesis)
            staged = self._tree.stage(self._state.changes())
            self._pending = _Pending(
                StoredHead(0, self.genesis.params.genesis_ms, staged.root, self.genesis_hash), staged, None, ()
            )
            self.commit()
        elif self._head.genesis_hash != self.genesis_hash:
            raise ConfigError(
                f"{self._store.path} is the ledger of another network", hint="give it the genesis that it began with"
            )
        elif self._head.root != self._tree.root:
            raise CorruptError(f"{self._store.path} is damaged: its leaves do not give its root")

    def close(self) -> None:
        self._opener.close()
        self._store.close()

    # ---- the last committed block

    @property
    def _last(self) -> StoredHead:
        assert self._head is not None, "the genesis is committed by open"
        return self._head

    @property
    def height(self) -> int:
        return self._last.height

    @property
    def time_ms(self) -> int:
        return self._last.time_ms

    @property
    def root(self) -> bytes:
        return self._last.root

    @property
    def params(self) -> Params:
        return self.genesis.params

    @property
    def epoch(self) -> int:
        return self.params.epoch_of(self.time_ms)

    def head(self) -> Head:
        last, params = self._last, self.params
        return Head(
            version=HEAD_VERSION,
            network=self.network,
            genesis_hash=self.genesis_hash,
            engine=self.engine,
            height=last.height,
            time_ms=last.time_ms,
            epoch=params.epoch_of(last.time_ms),
            epoch_ms=params.epoch_ms,
            genesis_ms=params.genesis_ms,
            root=last.root,
        )

    # ---- applying

    def apply(self, height: int, time_ms: int, txs: Sequence[bytes]) -> BlockResult:
        """Compute the next block; nothing is durable or visible. A `time_ms` before the last block's counts as the last's.

        An applied block that was not committed is forgotten first: it was only proposed.
        """
        assert height == self.height + 1, f"block {height} cannot follow {self.height}"
        self.abandon()
        time_ms = max(time_ms, self.time_ms)
        opened = self._opener.open_many(txs)
        try:
            began = begin_block(self._state, Context(height, time_ms))
            entries = [_epoch_entry(began)] if began else []
            results: list[TxResult] = []
            kept: list[tuple[bytes, TxResult]] = []
            for raw, tx in zip(txs, opened, strict=True):
                used = isinstance(tx, Tx) and _nonce_fits(self._state, tx)
                result = _apply(self._state, tx)
                results.append(result)
                if isinstance(tx, Tx) and used:  # else it changed nothing: nobody shall fill the disk with what costs nothing
                    entries.append(_tx_entry(len(kept), tx, result))
                    kept.append((raw, result))
            staged = self._tree.stage(self._state.changes())
        except BaseException:  # a bug in a rule: the state must not keep half a block
            self._state.abandon()
            raise
        record = BlockRecord(
            time_ms,
            staged.root,
            tuple(raw for raw, _ in kept),
            tuple(result.code for _, result in kept),
            tuple(result.message[:MESSAGE_CHARS_MAX] for _, result in kept),
        )
        self._pending = _Pending(StoredHead(height, time_ms, staged.root, self.genesis_hash), staged, record, entries, txs)
        return BlockResult(tuple(results), began)

    @property
    def root_next(self) -> bytes:
        """The root after the applied block."""
        assert self._pending is not None, "no block is applied"
        return self._pending.head.root

    def commit(self) -> None:
        """Make the applied block durable, then visible.

        Raises:
            StorageError, DiskFullError: it is neither; the block is still applied, and may be committed again or abandoned.
        """
        pending = self._pending
        assert pending is not None, "no block is applied"
        self._store.commit(pending.head, pending.staged.changes, pending.staged.leaves(), pending.record, pending.txs)
        with self._lock:
            self._tree.keep(pending.staged)
            self._head = pending.head
        self._state.committed()
        self._scratch = State(self._tree)
        self._pending = None
        self._opener.forget(pending.raws)

    def abandon(self) -> None:
        """Forget the applied block, if there is one."""
        if self._pending is not None:
            self._state.abandon()
            self._pending = None

    # ---- what would be

    def simulate(self, time_ms: int, txs: Sequence[bytes]) -> list[TxResult]:
        """What these transactions would do as the next block. Changes nothing."""
        state = State(self._tree)
        begin_block(state, Context(self.height + 1, max(time_ms, self.time_ms)))
        return [_apply(state, tx) for tx in self._opener.open_many(txs)]

    def screen(self, raws: Sequence[bytes]) -> list[FormatError | None]:
        """Of each, why it is no transaction of this network; None where it is one, which `apply` then verifies no more."""
        opened = self._opener.open_many(raws, remember=True)
        return [each if isinstance(each, FormatError) else None for each in opened]

    def admit(self, raw: bytes) -> TxResult | None:
        """None where the transaction will use its nonce up after all those admitted since the last commit, also where its rule
        will refuse it: it belongs into a block. Else why not."""
        tx = self._opener.open(raw, remember=True)
        is_used = isinstance(tx, Tx) and _nonce_fits(self._scratch, tx)
        result = _apply(self._scratch, tx)
        return None if is_used else result

    def fitting(self, time_ms: int, txs: Sequence[bytes]) -> list[bytes]:
        """Those of the transactions that would use their nonces up as the next block. Changes nothing."""
        state = State(self._tree)
        begin_block(state, Context(self.height + 1, max(time_ms, self.time_ms)))
        kept = []
        for raw, tx in zip(txs, self._opener.open_many(txs), strict=True):
            if isinstance(tx, Tx) and _nonce_fits(state, tx):
                apply_tx(state, tx)
                kept.append(raw)
        return kept

    # ---- reading what is committed

    def get(self, key: bytes) -> bytes | None:
        """An entry's canonical bytes."""
        with self._lock:
            return self._tree.get(key)

    def find(self, table: Table[V], identifier: bytes = b"") -> V | None:
        raw = self.get(table.key(identifier))
        return None if raw is None else cast(V, _decoders[table.prefix].decode(raw))

    def prove(self, key: bytes) -> Proof:
        with self._lock:
            return self._tree.prove(key)

    def prove_many(self, keys: Sequence[bytes]) -> Proven:
        """Entries and their proofs, all under one head."""
        with self._lock:
            return Proven(self.head(), [(self._tree.get(key), self._tree.prove(key)) for key in keys])

    def events(
        self,
        *,
        account: bytes | None = None,
        node: int | None = None,
        contract: bytes | None = None,
        segment: bytes | None = None,
        tx_id: bytes | None = None,
        after: int = 0,
        limit: int,
    ) -> list[StoredEvent]:
        """Events that fit every filter which is not None, behind the cursor `after`, oldest first."""
        filters = {"account": account, "node": node, "contract": contract, "segment": segment, "tx_id": tx_id}
        return self._store.events({name: value for name, value in filters.items() if value is not None}, after, limit)

    def block(self, height: int) -> BlockRecord | None:
        """A committed block; the genesis (0) is none."""
        return self._store.block(height)

    def blocks(self, first_height: int = 1) -> Iterator[tuple[int, BlockRecord]]:
        """(height, block) from `first_height` up to the last one committed."""
        for height in range(max(1, first_height), self.height + 1):
            record = self.block(height)
            assert record is not None, f"block {height} is missing"
            yield height, record

    def outcome_of(self, raw: bytes) -> Outcome | None:
        """What became of a transaction that used its nonce up; None: it is in no block."""
        tx_id = sha256(raw)
        place = self._store.place_of(tx_id)
        record = None if place is None else self.block(place.height)
        if place is None or record is None:
            return None
        stored = self._store.events({"tx_id": tx_id}, 0, place.events) if place.events else []
        events = tuple(decode(row.event, Event) for row in stored)
        return Outcome(place.height, record.codes[place.position], record.messages[place.position], events)

    def recompute_root(self) -> bytes:
        """The root of the entries on disk, from nothing else."""
        listings: dict[int, list[tuple[bytes, bytes]]] = {}
        for key, value in self._store.entries():
            listings.setdefault(bucket_of(key), []).append((key, sha256(value)))
        return BucketTree(leaves=((number, leaf_of(listing)) for number, listing in listings.items())).root


def _apply(state: State, tx: Opened) -> TxResult:
    return TxResult(tx.code, tx.message) if isinstance(tx, FormatError) else apply_tx(state, tx)


def _nonce_fits(state: State, tx: Tx) -> bool:
    account = state.find(ACCOUNTS, tx.sender)
    return account is not None and account.nonce == tx.nonce


def _name_of(body: AnyBody) -> str:
    """`tx_name` by type: spelling it out takes a tenth of what a transfer does."""
    kind = type(body)
    return _names.get(kind) or _names.setdefault(kind, tx_name(body))


def _epoch_entry(events: Sequence[Event]) -> TxEntry:
    return TxEntry(b"", EPOCH_CHANGE, -1, False, [_event_entry(event) for event in events])


def _tx_entry(position: int, tx: Tx, result: TxResult) -> TxEntry:
    return TxEntry(tx.tx_id, _name_of(tx.body), position, True, [_event_entry(event) for event in result.events])


def _event_entry(event: Event) -> EventEntry:
    return EventEntry(
        encode(event),
        event.account or None,
        None if event.node == NOBODY else event.node,
        event.contract or None,
        event.segment or None,
    )


def outcomes(height: int, results: Sequence[TxResult]) -> list[Outcome]:
    """A committed block's results as an engine answers them."""
    return [Outcome(height, result.code, result.message, result.events) for result in results]

"""A small living ledger: operators, nodes, publishers and readers with real keys, whose every transaction is watched.

Decides who there is, how blocks are made and written down, and what must hold after every transaction and block
(`ledger_watch.py` has the models). What is done in it is chosen in `ledger_moves.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount, GenesisNode, GenesisOperator, apply_genesis
from dds.ledger.machine import Context, TxResult, apply_block, apply_raw, begin_block
from dds.ledger.params import Params
from dds.ledger.records import ACCOUNTS, BY_PREFIX, CHAIN, EPOCHS, Account, Chain, EpochRecord, Table, V, number_key
from dds.ledger.rules.holding import touch
from dds.ledger.rules.witnesses import quorum
from dds.ledger.state import State
from dds.ledger.tree import BucketTree
from dds.primitives.hashing import sha256
from dds.primitives.keys import SigningKey
from dds.wire.ledger import AnyBody, WitnessReport, sign_tx
from tests.ledger_watch import Watch

NETWORK = "world"
EPOCH_MS = 1_000
FUNDS = 10**12
BOND_MIN = 10**9
POOL = 10**8
OPERATORS, NEWCOMERS, PUBLISHERS, READERS = 8, 2, 3, 2
STORERS = 14
STORING = (("asn",), ("asn", "ssn"), ("ssn",))  # what a node stores, by its number modulo 3
REGIONS = ("east", "north", "west")
GENESIS_SUPPLY = (
    (OPERATORS + NEWCOMERS + PUBLISHERS + READERS) * FUNDS
    + sum(2 + at for at in range(OPERATORS)) * BOND_MIN
    + (5 + STORERS) * POOL
)


def key_of(name: str) -> SigningKey:
    return SigningKey(sha256(name.encode()))


def world_params(**changes: Any) -> Params:
    """Everything comes soon, and there is too little emission for all subsidies: both are where mistakes hide."""
    short = Params(
        epoch_ms=EPOCH_MS,
        supply_cap=GENESIS_SUPPLY + 10**6,
        emission_rate=10**8,  # a hundred in the first epoch
        price_start=50_000,
        collateral_epochs=100,
        reservation_epochs=3,
        bond_min=BOND_MIN,
        bond_need_per_tib=10**12,
        capacity_bytes_min=1 << 18,
        unbonding_epochs=6,
        evidence_epochs=6,
        jail_epochs=3,
        audit_leaves=4,
        down_epochs=4,
        downtime_window_epochs=3,
        downtime_windows=8,
        vetted_audits=4,
        vetted_epochs=4,
        withdrawal_epochs=2,
        cost_decline_ppm=900_000,
    )
    return msgspec.structs.replace(short, **changes)


class World:
    """Nodes 0 to 4 are witnesses (0 and 1 store too), those behind them store. `block` is open until `end_block`."""

    def __init__(self, params: Params | None = None) -> None:
        self.params = params or world_params()
        self.operators = [key_of(f"operator {at}") for at in range(OPERATORS)]
        self.newcomers = [key_of(f"newcomer {at}") for at in range(NEWCOMERS)]
        self.publishers = [key_of(f"publisher {at}") for at in range(PUBLISHERS)]
        self.readers = [key_of(f"reader {at}") for at in range(READERS)]
        self.nodes = [key_of(f"node {at}") for at in range(5 + STORERS)]
        self.spare_nodes = [key_of(f"spare node {at}") for at in range(8)]
        everybody = [*self.operators, *self.newcomers, *self.publishers, *self.readers, *self.nodes, *self.spare_nodes]
        self.keys = {key.public: key for key in everybody}
        self.base: dict[bytes, bytes] = {}
        self.tables: dict[bytes, dict[bytes, Any]] = {prefix: {} for prefix in BY_PREFIX}
        self.written: dict[bytes, bytes | None] = {}  # by the open block, so far
        self.state = State(self.base)
        self.genesis = self._genesis()
        apply_genesis(self.state, self.genesis)
        self.watch = Watch(self.tables)
        self.tree = BucketTree()
        self.time_ms = 0
        self.blocks: list[tuple[int, list[bytes]]] = [(0, [])]
        self.done: Counter[str] = Counter()  # transactions that were kept, by body
        self.refused: Counter[str] = Counter()  # by code
        self.made = 0  # names of segments, grants and secrets
        self._absorb()
        self._durable()

    def _genesis(self) -> Genesis:
        rich = [*self.operators, *self.newcomers, *self.publishers, *self.readers]
        return Genesis(
            GENESIS_VERSION,
            NETWORK,
            self.params,
            tuple(GenesisAccount(key.public, FUNDS) for key in rich),
            tuple(GenesisOperator(key.public, (2 + at) * BOND_MIN, REGIONS[:1]) for at, key in enumerate(self.operators)),
            tuple(self._genesis_node(number, key) for number, key in enumerate(self.nodes)),
        )

    def _genesis_node(self, number: int, key: SigningKey) -> GenesisNode:
        operator = self.operators[number % OPERATORS]
        return GenesisNode(
            node_id=key.public,
            operator=operator.public,
            payout=operator.public if number % 2 else key_of(f"payout {number}").public,
            roles=(("ssn", "witness") if number < 2 else ("witness",)) if number < 5 else STORING[number % 3],
            region=REGIONS[number % 3],
            subnet=f"net-{number}",
            capacity_bytes=(8 + number) << 20,
            ask_price=20_000 + 1_500 * number,
            term_epochs_max=200,
            pool=POOL,
        )

    # -- what there is ------------------------------------------------------------------------------------------------------

    def all(self, table: Table[V]) -> list[tuple[bytes, V]]:
        """(id, record), by id."""
        return sorted(self.tables[table.prefix].items())

    def get(self, table: Table[V], identifier: bytes = b"") -> V | None:
        found: V | None = self.tables[table.prefix].get(identifier)
        return found

    @property
    def chain(self) -> Chain:
        found = self.get(CHAIN)
        assert found is not None
        return found

    @property
    def epoch(self) -> int:
        return self.chain.epoch

    def balance(self, account: bytes) -> int:
        return (self.get(ACCOUNTS, account) or Account()).balance

    def touched(self, segment_id: bytes) -> Any:
        """The segment as the next transaction that names it will find it; nothing is changed."""
        segment = touch(self.state, segment_id)
        self.state.drop()
        return segment

    def epoch_record(self, epoch: int) -> EpochRecord | None:
        return self.get(EPOCHS, number_key(epoch)) if epoch >= 0 else None

    def name(self) -> int:
        self.made += 1
        return self.made

    # -- blocks -------------------------------------------------------------------------------------------------------------

    def sign(self, key: SigningKey, body: AnyBody, nonce_off: int = 0) -> bytes:
        account = self.get(ACCOUNTS, key.public) or Account()
        return sign_tx(key, NETWORK, max(0, account.nonce + nonce_off), body)

    def send(self, key: SigningKey, body: AnyBody, nonce_off: int = 0) -> TxResult:
        """One more transaction in the open block."""
        raw = self.sign(key, body, nonce_off)
        self.blocks[-1][1].append(raw)
        result = apply_raw(self.state, NETWORK, raw)
        changed = self._absorb()
        self.watch.transaction(key.public, body, result, changed)
        if result.ok:
            self.done[type(body).__name__] += 1
            if isinstance(body, WitnessReport):
                self._note_votes(key.public, body)
        else:
            self.refused[result.code] += 1
        return result

    def _note_votes(self, witness: bytes, body: WitnessReport) -> None:
        record = self.epoch_record(body.epoch)
        assert record is not None
        if body.is_vote:
            self.watch.vote(body.epoch, body.passed, quorum(self.params, len(record.committee)), record.audited)

    def end_block(self, epochs: int = 0) -> None:
        """Make the open block durable; everything must be sound then. The next one begins so many epochs later."""
        self._durable()
        self.watch.block(self.params)
        self.time_ms += epochs * EPOCH_MS + 1
        self.blocks.append((self.time_ms, []))
        events = begin_block(self.state, Context(len(self.blocks), self.time_ms))
        self.watch.boundary(events, self._absorb())

    def _durable(self) -> None:
        _keep(self.state, self.base, self.tree)
        self.written = {}

    @property
    def root(self) -> bytes:
        """The app hash after the last block that was ended."""
        return self.tree.root

    def _absorb(self) -> dict[bytes, tuple[Any, Any]]:
        """What the last step changed: by key, the record before and after."""
        changed: dict[bytes, tuple[Any, Any]] = {}
        absent = object()
        for key, value in self.state.changes().items():
            if self.written.get(key, absent) == value:
                continue
            self.written[key] = value
            table = self.tables[key[:1]]
            before = table.get(key[1:])
            after = None if value is None else msgspec.msgpack.decode(value, type=BY_PREFIX[key[:1]].kind)
            if after is None:
                table.pop(key[1:], None)
            else:
                table[key[1:]] = after
            if before != after:
                changed[key] = (before, after)
        return changed


def root_of(genesis: Genesis, blocks: Sequence[tuple[int, Sequence[bytes]]]) -> bytes:
    """The app hash after these (time, transactions), through the machine's own door."""
    base: dict[bytes, bytes] = {}
    state, tree = State(base), BucketTree()
    apply_genesis(state, genesis)
    _keep(state, base, tree)
    for height, (time_ms, raws) in enumerate(blocks, start=1):
        apply_block(state, NETWORK, raws, Context(height, time_ms, sha256(height.to_bytes(8, "big"))))
        _keep(state, base, tree)
    return tree.root


def _keep(state: State, base: dict[bytes, bytes], tree: BucketTree) -> None:
    changes = state.changes()
    tree.update(changes)
    for key, value in changes.items():
        if value is None:
            base.pop(key, None)
        else:
            base[key] = value
    state.committed()

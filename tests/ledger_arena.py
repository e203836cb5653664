"""A ledger to attack: some of its operators, nodes and publishers are one person's, and all that person's money can be counted.

Rules and epochs are the real ones. Transactions are handed over opened: signatures are others' tests, receipts are signed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from msgspec.structs import replace

from dds.ledger import rent
from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount, GenesisNode, GenesisOperator, apply_genesis
from dds.ledger.machine import Context, TxResult, apply_tx, begin_block
from dds.ledger.params import Params, devnet_params
from dds.ledger.records import (
    ACCOUNTS,
    CONTRACTS,
    DEPOSITS,
    EPOCHS,
    NODES,
    OPERATORS,
    RESERVATIONS,
    SEGMENTS,
    Account,
    Contract,
    Holding,
    Segment,
    Table,
    contract_id,
    number_key,
    receipt_contract,
    reservation_id,
)
from dds.ledger.rules.inventory import total_leaves
from dds.ledger.state import State
from dds.primitives.hashing import sha256
from dds.primitives.keys import SigningKey
from dds.primitives.money import TOKEN
from dds.primitives.units import MIB
from dds.wire.ledger import (
    AddReceipts,
    AnyBody,
    CancelContract,
    OpenContract,
    RegisterSegments,
    Reserve,
    SegmentEntry,
    Settle,
    StripeRun,
    Tx,
    WitnessReport,
    stripes_hash,
)
from dds.wire.receipts import RECEIPT_VERSION, Receipt, sign_receipt

NETWORK = "arena"
EPOCH_MS = 1_000
WITNESSES = 4
FUNDS, BOND, POOL = 10_000 * TOKEN, 1_000 * TOKEN, 100 * TOKEN
PRICE, PRICE_MAX = 1_000_000, 4_000_000  # per MiB-epoch: high, so that a part per million of a rent is seen
STRIPES = (StripeRun(2, 2, 1, MIB // 2),)  # 1 MiB an index
WIDTH, TOLERANCE = 3, 1
ROOT = sha256(b"root")


def key_of(name: str) -> SigningKey:
    return SigningKey(sha256(name.encode()))


def arena_params(**changes: Any) -> Params:
    return replace(devnet_params(0, EPOCH_MS), price_start=PRICE, collateral_epochs=100, **changes)


class Arena:
    """Nodes 0 to 3 are honest witnesses; node number n's operator is operator n, unless `owners` says who else it is."""

    def __init__(
        self,
        storers: int = 6,
        *,
        owners: dict[int, str] | None = None,
        params: Params | None = None,
        capacity: dict[int, int] | None = None,
    ) -> None:
        self.params, self.owners, self.capacity = params or arena_params(), owners or {}, capacity or {}
        self.storing = range(WITNESSES, WITNESSES + storers)
        self.state, self.epoch, self.made = State({}), 0, 0
        self.base: dict[bytes, bytes] = {}
        self.state = State(self.base)
        apply_genesis(self.state, self._genesis())
        self.down: set[int] = set()

    def operator(self, number: int) -> SigningKey:
        return key_of(self.owners.get(number, f"operator {number}"))

    def node_key(self, number: int) -> SigningKey:
        return key_of(f"node {number}")

    def _genesis(self) -> Genesis:
        numbers = range(self.storing.stop)
        operators = {self.operator(number).public: None for number in numbers}
        people = {key_of(f"publisher {at}").public: None for at in range(6)}
        return Genesis(
            GENESIS_VERSION,
            NETWORK,
            self.params,
            tuple(GenesisAccount(account, FUNDS) for account in operators | people),
            tuple(GenesisOperator(account, BOND, ("r",)) for account in operators),
            tuple(self._node(number) for number in numbers),
        )

    def _node(self, number: int) -> GenesisNode:
        return GenesisNode(
            node_id=self.node_key(number).public,
            operator=self.operator(number).public,
            payout=self.operator(number).public,
            roles=("witness",) if number < WITNESSES else ("ssn",),
            region=f"r{number % 3}",
            subnet=f"net-{number}",
            capacity_bytes=self.capacity.get(number, 1 << 34),
            ask_price=PRICE * 9 // 10,
            term_epochs_max=10_000,
            pool=POOL,
        )

    # -- what happens -------------------------------------------------------------------------------------------------------

    def do(self, key: SigningKey, body: AnyBody) -> TxResult:
        self.made += 1
        nonce = (self.state.find(ACCOUNTS, key.public) or Account()).nonce
        return apply_tx(self.state, Tx(sha256(self.made.to_bytes(8, "big")), key.public, nonce, body))

    def ok(self, key: SigningKey, body: AnyBody) -> TxResult:
        result = self.do(key, body)
        assert result.ok, (type(body).__name__, result.code, result.message)
        return result

    def turn(self, epochs: int = 1) -> None:
        """Honest witnesses report who is up; the next epoch begins."""
        for _ in range(epochs):
            for number in self.seats():
                self.ok(self.node_key(number), WitnessReport(self.epoch, self.passed(), [], b"", b""))
            self.tick()

    def tick(self) -> None:
        self.epoch += 1
        begin_block(self.state, Context(1, self.epoch * EPOCH_MS))

    def seats(self) -> Sequence[int]:
        record = self.state.find(EPOCHS, number_key(self.epoch))
        return record.committee if record else ()

    def passed(self) -> bytes:
        up = [number for number in self.storing if number not in self.down and total_leaves(self.state, number)]
        return sum(1 << number for number in up).to_bytes(8, "little") if up else b"\x00"

    # -- storing ------------------------------------------------------------------------------------------------------------

    def contract_id(self, key: SigningKey) -> bytes:
        return contract_id(key.public, "standard")

    def contract(self, key: SigningKey) -> Contract | None:
        return self.state.find(CONTRACTS, self.contract_id(key))

    def open(self, key: SigningKey, *, term: int = 10, deposit: int = 1_000 * TOKEN, price_max: int = PRICE_MAX) -> None:
        self.ok(key, OpenContract("standard", 2, 1, term, price_max, deposit))

    def store(self, key: SigningKey, count: int = 1) -> list[bytes]:
        """Segments with everybody's receipt; fewer ids where nodes, money or the price do not allow it."""
        contract = self.contract(key)
        if contract is None or not self.do(key, Reserve(self.contract_id(key), count, WIDTH, TOLERANCE, MIB)).ok:
            return []
        first, done = contract.reservations, []
        for counter in range(first, first + count):
            name = reservation_id(self.contract_id(key), counter)
            found = self.state.find(RESERVATIONS, name)
            assert found is not None
            segment_id = sha256(name)
            receipts = [self.receipt(segment_id, name, index, number) for index, number in enumerate(found.chosen)]
            entry = SegmentEntry(name, segment_id, ROOT, ROOT, list(STRIPES), receipts)
            if self.do(key, RegisterSegments([entry])).ok:
                done.append(segment_id)
        return done

    def receipt(self, segment_id: bytes, contract: bytes, index: int, number: int) -> bytes:
        node = self.node_key(number)
        due = contract + stripes_hash(STRIPES)
        size, leaves = rent.stripes_bytes(STRIPES, index), rent.leaf_count(STRIPES, index)
        said = Receipt(RECEIPT_VERSION, NETWORK, due, segment_id, ROOT, index, node.public, size, leaves, 0)
        return sign_receipt(node, said)

    def add_receipts(self, key: SigningKey, segment_id: bytes) -> None:
        segment = self.segment(segment_id)
        pending = [
            (at, each) for at, each in enumerate(segment.assignments if segment else ()) if each.state == Holding.PENDING
        ]
        if segment and pending:
            names = [(at, each.node, receipt_contract(segment.reservation, each.draw)) for at, each in pending]
            self.do(key, AddReceipts(segment_id, [self.receipt(segment_id, name, at, node) for at, node, name in names]))

    def segment(self, segment_id: bytes) -> Segment | None:
        return self.state.find(SEGMENTS, segment_id)

    # -- whose money is it --------------------------------------------------------------------------------------------------

    def close_out(self, *keys: SigningKey) -> None:
        """End these publishers' contracts and wait until all that comes back has come."""
        for key in keys:
            self.do(key, CancelContract(self.contract_id(key)))
        self.turn(3)
        names = [identifier for identifier, _ in self.entries(SEGMENTS)]
        for at in range(0, len(names), 64):
            self.do(keys[0], Settle(names[at : at + 64]))

    def entries(self, table: Table[Any]) -> list[tuple[bytes, Any]]:
        for key, value in self.state.changes().items():
            if value is None:
                self.base.pop(key, None)
            else:
                self.base[key] = value
        self.state.committed()
        keys = sorted(key[1:] for key in self.base if key[:1] == table.prefix)
        return [(key, self.state.find(table, key)) for key in keys]

    def wealth(self, *keys: SigningKey) -> int:
        """All money in the purses of these people: what nobody else can take from them without a fault of theirs."""
        who: Collection[bytes] = {key.public for key in keys}
        contracts = {key: each for key, each in self.entries(CONTRACTS) if each.publisher in who}
        sums = [each.balance for key, each in self.entries(ACCOUNTS) if key in who]
        sums += [each.bond + sum(part.amount for part in each.unbonding) for key, each in self.entries(OPERATORS) if key in who]
        sums += [each.pool_free + each.pool_locked for _, each in self.entries(NODES) if each.operator in who]
        sums += [each.escrow for each in contracts.values()]
        sums += [each.amount + each.leaving for key, each in self.entries(DEPOSITS) if key in who]
        for _, segment in self.entries(SEGMENTS):
            sums += [entry.prepaid + entry.reserve for entry in segment.sponsors if entry.contract in contracts]
        return sum(sums)

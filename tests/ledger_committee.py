"""A ledger with witnesses and storage nodes for tests: every block is committed, and after each one all money is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from dds.ledger.events import Event
from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount, GenesisNode, GenesisOperator, apply_genesis
from dds.ledger.machine import Context, TxResult, apply_block
from dds.ledger.money import held, owed_to_all
from dds.ledger.params import Params, devnet_params
from dds.ledger.records import (
    ACCOUNTS,
    BY_PREFIX,
    OPERATORS,
    SEGMENTS,
    STANDINGS,
    Assignment,
    Holding,
    Operator,
    Segment,
    Standing,
    number_key,
)
from dds.ledger.rules import inventory
from dds.ledger.rules.witnesses import committee_of
from dds.ledger.state import State
from dds.primitives.hashing import sha256
from dds.primitives.keys import SigningKey
from dds.primitives.money import TOKEN
from dds.primitives.units import MIB
from dds.wire.ledger import AnyBody, StripeRun, WitnessReport, sign_tx

NETWORK = "test"
EPOCH_MS = 1_000
FUNDS = 10_000 * TOKEN
BOND = 1_000 * TOKEN
POOL = 50 * TOKEN


def key_of(name: str) -> SigningKey:
    return SigningKey(sha256(name.encode()))


def small_params(**changes: Any) -> Params:
    return msgspec.structs.replace(
        devnet_params(0, EPOCH_MS), evidence_epochs=20, unbonding_epochs=20, **{"capacity_bytes_min": 1, **changes}
    )


def bitmap(numbers: Sequence[int]) -> bytes:
    whole = sum(1 << number for number in set(numbers))
    return whole.to_bytes((whole.bit_length() + 7) // 8, "little")


class Ledger:
    """Nodes 0 .. witnesses-1 are witnesses, those behind them store. Each has an operator of its own."""

    def __init__(
        self,
        witnesses: int = 4,
        storers: int = 2,
        *,
        params: Params | None = None,
        storing_roles: tuple[str, ...] = ("ssn",),
    ) -> None:
        self.witnesses, self.storers, self.storing_roles = witnesses, storers, storing_roles
        count = witnesses + storers
        self.operators = [key_of(f"operator {i}") for i in range(count)]
        self.nodes = [key_of(f"node {i}") for i in range(count)]
        self.anna = key_of("anna")
        self.params = params or small_params()
        self.base: dict[bytes, bytes] = {}
        self.state = State(self.base)
        self.epoch = 0
        self.segment_id = b""  # of the last assignment that was given
        apply_genesis(self.state, self._genesis())
        self.commit()

    def _genesis(self) -> Genesis:
        keys = [*self.operators, self.anna]
        return Genesis(
            GENESIS_VERSION,
            NETWORK,
            self.params,
            tuple(GenesisAccount(key.public, FUNDS) for key in keys),
            tuple(GenesisOperator(key.public, BOND, ("r",)) for key in self.operators),
            tuple(
                GenesisNode(
                    node_id=node.public,
                    operator=operator.public,
                    payout=key_of(f"payout {number}").public,
                    roles=("witness",) if number < self.witnesses else self.storing_roles,
                    region="r",
                    subnet=f"s{number}",
                    capacity_bytes=1 << 40,
                    ask_price=1000,
                    term_epochs_max=10_000,
                    pool=POOL,
                )
                for number, (node, operator) in enumerate(zip(self.nodes, self.operators, strict=True))
            ),
        )

    # -- blocks -------------------------------------------------------------------------------------------------------------

    def send(self, key: SigningKey, body: AnyBody) -> TxResult:
        account = self.state.find(ACCOUNTS, key.public)
        raw = sign_tx(key, NETWORK, account.nonce if account else 0, body)
        (result,) = apply_block(self.state, NETWORK, [raw], Context(1, self.epoch * EPOCH_MS)).results
        self.commit()
        return result

    def to_epoch(self, epoch: int, *, stepping: bool = True) -> list[Event]:
        """The events of the change; in one leap where not `stepping`."""
        events: list[Event] = []
        while self.epoch < epoch:
            self.epoch = self.epoch + 1 if stepping else epoch
            events += apply_block(self.state, NETWORK, [], Context(1, self.epoch * EPOCH_MS)).events
            self.commit()
        return events

    def commit(self) -> None:
        for key, value in self.state.changes().items():
            if value is None:
                self.base.pop(key, None)
            else:
                self.base[key] = value
        self.state.committed()
        self.assert_money()

    def assert_money(self) -> None:
        entries = [(key, msgspec.msgpack.decode(raw, type=BY_PREFIX[key[:1]].kind)) for key, raw in self.base.items()]
        assert sum(held(entries).values()) == owed_to_all(self.state.chain)

    # -- what tests ask for and put there -------------------------------------------------------------------------------------

    def standing(self, number: int) -> Standing:
        return self.state.find(STANDINGS, number_key(number)) or Standing()

    def operator(self, number: int) -> Operator:
        found = self.state.find(OPERATORS, self.operators[number].public)
        assert found is not None
        return found

    def seated(self, epoch: int) -> list[int]:
        return list(committee_of(self.state, epoch))

    def give_leaves(self, *numbers: int) -> None:
        """Something to prove, from the next epoch on."""
        for number in numbers:
            inventory.set_leaves(self.state, number, sha256(b"leaves"), number, 100)
        self.state.keep()
        self.commit()

    def give_assignment(self, number: int, collateral: int, name: bytes = b"segment") -> bytes:
        """An active assignment at index 0 of a segment that nobody pays for; the segment's id."""
        segment_id = self.segment_id = sha256(name)
        holding = Assignment(number, int(Holding.ACTIVE), MIB, 100, self.epoch, self.epoch, collateral)
        stripes = (StripeRun(1, 1, 0, MIB),)
        segment = Segment(bytes(32), bytes(32), bytes(32), 1000, 0, stripes, 0, (holding,), (), self.epoch)
        self.state.put(SEGMENTS, segment_id, segment)
        node = self.state.node(number)
        self.state.put_node(
            msgspec.structs.replace(
                node,
                pool_free=node.pool_free - collateral,
                pool_locked=node.pool_locked + collateral,
                assignments=node.assignments + 1,
                promised_bytes=node.promised_bytes + MIB,
            )
        )
        inventory.set_leaves(self.state, number, segment_id, 0, 100)
        self.state.keep()
        self.commit()
        return segment_id

    def report(self, witness: int, epoch: int, passed: Sequence[int] = (), **fields: Any) -> TxResult:
        body = WitnessReport(
            epoch, bitmap(passed), fields.get("losses", []), fields.get("commit", b""), fields.get("reveal", b"")
        )
        return self.send(self.nodes[witness], body)

    def report_all(self, epoch: int, passed: Sequence[int], *, without: Sequence[int] = ()) -> None:
        for witness in self.seated(epoch):
            if witness not in without:
                assert self.report(witness, epoch, passed).ok

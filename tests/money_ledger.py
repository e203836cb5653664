"""A small ledger to move money in: real genesis, real machine, and the whole state checked after every block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from dds.ledger.audit_money import check_state
from dds.ledger.events import Event
from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount, GenesisNode, GenesisOperator, apply_genesis
from dds.ledger.machine import Context, TxResult, apply_block
from dds.ledger.params import Params
from dds.ledger.records import ACCOUNTS, BY_PREFIX, CONTRACTS, SEGMENTS, Contract, Segment, SponsorEntry, contract_id
from dds.ledger.state import State
from dds.placement.roles import SSN
from dds.primitives.keys import SigningKey
from dds.primitives.money import TOKEN
from dds.primitives.units import MIB
from dds.wire.ledger import AnyBody, StripeRun, sign_tx

NETWORK = "money-test"
TIB = 1 << 40


def key_of(name: str) -> SigningKey:
    return SigningKey(name.encode().ljust(32, b"."))


ANNA, BERT, CARL = key_of("anna"), key_of("bert"), key_of("carl")


def genesis_node(name: str, operator: SigningKey, ask_price: int = 1_000, **changes: Any) -> GenesisNode:
    node = GenesisNode(
        node_id=key_of(name).public,
        operator=operator.public,
        payout=operator.public,
        roles=("ssn",),
        region="r",
        subnet=name,
        capacity_bytes=TIB,
        ask_price=ask_price,
        term_epochs_max=10_000,
        pool=50_000 * TOKEN,
    )
    return replace(node, **changes)


class MoneyLedger:
    """Anna, Bert and Carl each have 1,000 token; every change goes through the machine."""

    def __init__(
        self, *nodes: GenesisNode, params: Params | None = None, operators: Sequence[GenesisOperator] = (), balance: int = 1_000
    ) -> None:
        self.base: dict[bytes, bytes] = {}
        self.state = State(self.base)
        self.events: list[Event] = []
        self.epoch = 0
        bonded = {operator.account for operator in operators}
        missing = sorted({node.operator for node in nodes} - bonded)
        genesis = Genesis(
            GENESIS_VERSION,
            NETWORK,
            params or Params(),
            tuple(GenesisAccount(key.public, balance * TOKEN) for key in (ANNA, BERT, CARL)),
            (*operators, *(GenesisOperator(account, 100 * TOKEN, ("r",)) for account in missing)),
            nodes,
        )
        apply_genesis(self.state, genesis)
        self.commit()

    def commit(self) -> None:
        for key, value in self.state.changes().items():
            if value is None:
                self.base.pop(key, None)
            else:
                self.base[key] = value
        self.state.committed()
        assert check_state(self.entries()) == []

    def entries(self) -> list[tuple[bytes, Any]]:
        return [(key, msgspec.msgpack.decode(raw, type=BY_PREFIX[key[:1]].kind)) for key, raw in sorted(self.base.items())]

    def do(self, key: SigningKey, body: AnyBody) -> TxResult:
        """One transaction in a block of its own."""
        account = self.state.find(ACCOUNTS, key.public)
        assert account is not None
        time_ms = self.epoch * self.state.params.epoch_ms
        done = apply_block(self.state, NETWORK, [sign_tx(key, NETWORK, account.nonce, body)], Context(1, time_ms))
        self.commit()
        self.events += [*done.events, *(event for result in done.results for event in result.events)]
        return done.results[0]

    def go_to(self, epoch: int) -> None:
        """An empty block in this epoch."""
        self.epoch = epoch
        done = apply_block(self.state, NETWORK, [], Context(1, epoch * self.state.params.epoch_ms))
        self.commit()
        self.events += done.events

    def demand(self, demand_bytes: int, price_max: int, role: str = SSN) -> None:
        """What reservations of the present epoch would leave behind."""
        self.state.set_lane(role, demand_bytes=demand_bytes, demand_price_max=price_max)
        self.state.keep()
        self.commit()

    def contract(self, publisher: SigningKey, mib: int = 0, price_max: int = 10**6) -> bytes:
        """A contract that sponsors a segment of so many fragments of 1 MiB, as its own rules would have left it."""
        name = contract_id(publisher.public, "standard")
        opened = Contract(publisher.public, "standard", 10, 6, 720, price_max, segments=int(mib > 0), rent_bytes=mib * MIB)
        self.state.put(CONTRACTS, name, opened)
        if mib:
            sponsor = SponsorEntry(name, 1, price=1, start_epoch=0, end_epoch=1, prepaid=0, reserve=0)
            stripes = (StripeRun(1, 1, mib - 1, MIB),)
            segment = Segment(bytes(32), bytes(32), bytes(32), 1, 0, stripes, 0, (), (sponsor,), 0)
            self.state.put(SEGMENTS, bytes(32), segment)
        self.state.keep()
        self.commit()
        return name

    def balance(self, key: SigningKey) -> int:
        account = self.state.find(ACCOUNTS, key.public)
        return account.balance if account else 0

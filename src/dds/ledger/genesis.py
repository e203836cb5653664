"""The first state: parameters, funded accounts, bonded operators and the nodes that a network begins with."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from dds.ledger.params import Params
from dds.ledger.records import (
    ACCOUNTS,
    CHAIN,
    LANES,
    NODES,
    NUMBERS,
    OPERATORS,
    PARAMS,
    Account,
    Chain,
    Lane,
    Node,
    NumberOf,
    Operator,
    number_key,
)
from dds.ledger.state import State
from dds.primitives.errors import ConfigError
from dds.wire.codec import Message
from dds.wire.ledger import ID, Amount, Bytes, Epoch, Label

GENESIS_VERSION: Final = 2  # of its bytes, parameters and all
GENESIS_BYTES_MAX: Final = 64 << 20


class GenesisAccount(Message, frozen=True):
    account: ID
    balance: Amount


class GenesisOperator(Message, frozen=True):
    account: ID
    bond: Amount
    regions: tuple[Label, ...]


class GenesisNode(Message, frozen=True):
    node_id: ID
    operator: ID
    payout: ID
    roles: tuple[Label, ...]
    region: Label
    subnet: Label
    capacity_bytes: Bytes
    ask_price: Amount
    term_epochs_max: Epoch
    pool: Amount


class Genesis(Message, frozen=True):
    """Its canonical bytes' hash names the chain; `network` is in every signature."""

    version: int
    network: Annotated[str, Meta(min_length=1, max_length=64)]
    params: Params
    accounts: tuple[GenesisAccount, ...] = ()
    operators: tuple[GenesisOperator, ...] = ()
    nodes: tuple[GenesisNode, ...] = ()


def apply_genesis(state: State, genesis: Genesis) -> None:
    """Fill an empty state; the caller commits its changes as height 0.

    Raises:
        ConfigError: another version's; an account twice, a node without its operator, more money than the cap allows, bond that
            leaves before evidence is too old.
    """
    version = genesis.version
    _check(version == GENESIS_VERSION, f"it is of version {version}, this release knows version {GENESIS_VERSION}")
    supply = 0
    state.put(PARAMS, b"", genesis.params)
    for entry in genesis.accounts:
        _check(state.find(ACCOUNTS, entry.account) is None, f"account {entry.account.hex()[:16]} is there twice")
        state.put(ACCOUNTS, entry.account, Account(entry.balance))
        supply += entry.balance
    for operator in genesis.operators:
        _check(state.find(OPERATORS, operator.account) is None, f"operator {operator.account.hex()[:16]} is there twice")
        state.put(OPERATORS, operator.account, Operator(operator.bond, regions=operator.regions))
        if state.find(ACCOUNTS, operator.account) is None:
            state.put(ACCOUNTS, operator.account, Account())
        supply += operator.bond
    for number, node in enumerate(genesis.nodes):
        _add_node(state, number, node)
        supply += node.pool
    _check(supply <= genesis.params.supply_cap, "more money than the supply's cap")
    leaves, window = genesis.params.unbonding_epochs, genesis.params.evidence_epochs
    _check(leaves >= window, f"bond leaves after {leaves} epochs, evidence holds for {window}: it would come too late")
    lanes = (Lane(price=genesis.params.price_start, reference=genesis.params.price_start),) * len(LANES)
    chain = Chain(nodes=len(genesis.nodes), genesis_supply=supply, lanes=lanes, network=genesis.network)
    state.put(CHAIN, b"", chain)
    state.keep()


def _add_node(state: State, number: int, node: GenesisNode) -> None:
    operator = state.find(OPERATORS, node.operator)
    _check(operator is not None, f"node {node.node_id.hex()[:16]} has no operator")
    _check(state.find(NUMBERS, node.node_id) is None, f"node {node.node_id.hex()[:16]} is there twice")
    assert operator is not None
    state.put(OPERATORS, node.operator, Operator(operator.bond, regions=operator.regions, nodes=(*operator.nodes, number)))
    state.put(NUMBERS, node.node_id, NumberOf(number))
    if state.find(ACCOUNTS, node.node_id) is None:  # nodes send transactions of their own
        state.put(ACCOUNTS, node.node_id, Account())
    state.put(
        NODES,
        number_key(number),
        Node(
            number=number,
            node_id=node.node_id,
            operator=node.operator,
            payout=node.payout,
            roles=node.roles,
            region=node.region,
            subnet=node.subnet,
            registered_epoch=0,
            capacity_bytes=node.capacity_bytes,
            ask_price=node.ask_price,
            term_epochs_max=node.term_epochs_max,
            pool_free=node.pool,
            genesis=True,
        ),
    )


def _check(condition: bool, problem: str) -> None:
    if not condition:
        raise ConfigError(f"genesis: {problem}")

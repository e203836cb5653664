"""Nodes: who may bring one, what it offers, how it leaves.

Decides a node's entry in the registry. What it is assigned and what it earns are other rules' business.
Source: docs/spec/ledger.md, "Operators, bonds, nodes".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from dds.ledger.faults import require
from dds.ledger.money import debit
from dds.ledger.records import ACCOUNTS, NODES, NUMBERS, OPERATORS, Account, Node, NodeStatus, NumberOf, number_key
from dds.ledger.requirements import capacity_least
from dds.ledger.rules.operators import require_ascending, require_free, working_operator
from dds.ledger.rules.standing import forgive_misses
from dds.ledger.state import State
from dds.primitives.keys import verify_tagged
from dds.wire.discovery import ROLES
from dds.wire.ledger import CONSENT_TAG, NODES_MAX, RegisterNode, RetireNode, SetAsk, Tx

NODES_PER_OPERATOR_MAX: Final = 1024


def register_node(state: State, tx: Tx, body: RegisterNode) -> None:
    operator = working_operator(state, tx.sender)
    require_ascending(body.roles, "roles")
    require(ROLES.issuperset(body.roles), "unknown-role", f"roles are among {', '.join(sorted(ROLES))}")
    require(state.node_number(body.node_id) is None, "node-known", f"node {body.node_id.hex()[:16]} is registered already")
    number = state.chain.nodes
    require(number < NODES_MAX, "too-many-nodes", f"the ledger has room for {NODES_MAX} nodes")
    require(
        len(operator.nodes) < NODES_PER_OPERATOR_MAX,
        "too-many-nodes",
        f"an operator has at most {NODES_PER_OPERATOR_MAX} nodes",
    )
    require(
        verify_tagged(body.node_id, body.consent, CONSENT_TAG, state.chain.network, tx.sender),
        "no-consent",
        "the node's signature over the operator's account does not hold",
    )
    _require_capacity(state, body.roles, body.capacity_bytes)
    debit(state, tx.sender, body.pool, "pool-funded", node=number, detail="collateral pool")
    if state.find(ACCOUNTS, body.node_id) is None:  # nodes send transactions of their own
        state.put(ACCOUNTS, body.node_id, Account())
    state.put(OPERATORS, tx.sender, replace(operator, nodes=(*operator.nodes, number)))
    state.put(NUMBERS, body.node_id, NumberOf(number))
    state.set_chain(nodes=number + 1)
    state.put(NODES, number_key(number), _entry(state, tx, number, body))
    state.emit("node-registered", node=number, detail=f"{'+'.join(body.roles)} in {body.region}")


def set_ask(state: State, tx: Tx, body: SetAsk) -> None:
    """Also how a node that was caught comes back, once it has lost all that it held."""
    node = _by_operator_or_itself(state, tx.sender, body.node)
    require(node.status != NodeStatus.RETIRING, "node-retiring", f"node {node.number} is leaving")
    require(
        body.capacity_bytes >= node.promised_bytes,
        "capacity-promised",
        f"{node.promised_bytes} bytes are promised already, capacity cannot be {body.capacity_bytes}",
    )
    _require_capacity(state, node.roles, body.capacity_bytes)
    if node.status == NodeStatus.FAULTED and node.assignments == 0:
        require_free(state, state.get(OPERATORS, node.operator, "no-such-operator", "operator"))
        node = replace(node, status=int(NodeStatus.ACTIVE), fault_epoch=-1, fault_ppm=0, fault_reason="")
        forgive_misses(state, node.number)
        state.emit("node-back", node=node.number)
    state.put_node(
        replace(
            node,
            ask_price=body.ask_price,
            capacity_bytes=body.capacity_bytes,
            term_epochs_max=body.term_epochs_max,
        )
    )


def retire_node(state: State, tx: Tx, body: RetireNode) -> None:
    node = _by_operator_or_itself(state, tx.sender, body.node)
    require(
        node.status == NodeStatus.ACTIVE,
        "node-not-active",
        f"node {node.number} is {NodeStatus(node.status).name.lower()}",
    )
    state.put_node(replace(node, status=int(NodeStatus.RETIRING)))
    state.emit("node-retiring", node=node.number)


def _entry(state: State, tx: Tx, number: int, body: RegisterNode) -> Node:
    return Node(
        number=number,
        node_id=body.node_id,
        operator=tx.sender,
        payout=body.payout,
        roles=tuple(body.roles),
        region=body.region,
        subnet=body.subnet,
        registered_epoch=state.epoch,
        capacity_bytes=body.capacity_bytes,
        ask_price=body.ask_price,
        term_epochs_max=body.term_epochs_max,
        pool_free=body.pool,
    )


def _require_capacity(state: State, roles: Sequence[str], offered: int) -> None:
    least = capacity_least(state.params, roles)
    text = f"a node that stores offers at least {least:,} bytes on this network, not {offered:,}"
    require(offered >= least, "too-small", text)


def _by_operator_or_itself(state: State, sender: bytes, number: int) -> Node:
    node = state.node(number)
    require(
        sender in (node.operator, node.node_id),
        "not-the-operator",
        f"node {number} belongs to operator {node.operator.hex()[:16]}",
    )
    return node

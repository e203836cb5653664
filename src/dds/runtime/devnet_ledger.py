"""The ledger of a devnet: what it begins with.

Decides who has how much at the beginning (play money), which nodes are witnesses, and where the keys lie: the operators' are
wallets of the devnet's home (`dds wallet show --wallet operator-3`), the creator's account is the home's identity. Does not
decide what the ledger does (dds.ledger) nor which processes keep it (runtime/devnet_engines.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount, GenesisNode, GenesisOperator
from dds.ledger.params import Params, devnet_params
from dds.primitives.ids import parse_id
from dds.primitives.money import TOKEN
from dds.storage.home import Home, private_directory
from dds.storage.keyfile import load_or_create_key

if TYPE_CHECKING:
    from dds.runtime.devnet import Member


CREATOR_BALANCE: Final = 10_000 * TOKEN
OPERATOR_BALANCE: Final = 1_000 * TOKEN
OPERATOR_BOND: Final = 1_000 * TOKEN
NODE_POOL: Final = 100 * TOKEN
TERM_EPOCHS_MAX: Final = 100_000_000


def make_genesis(home: Home, network: str, members: Sequence[Member], *, capacity_bytes: int, epoch_ms: int) -> Genesis:
    """The first state: a funded creator, bonded operators, and every node with a collateral pool. Makes the keys it names."""
    private_directory(home.wallets_dir)
    names = list(dict.fromkeys(member.operator for member in members))
    accounts = {name: load_or_create_key(home.wallets_dir / f"{name}.key").public for name in names}
    regions = {name: sorted({each.region for each in members if each.operator == name}) for name in names}
    params = devnet_params(time.time_ns() // 1_000_000, epoch_ms)
    return Genesis(
        version=GENESIS_VERSION,
        network=network,
        params=params,
        accounts=(
            GenesisAccount(home.identity().public, CREATOR_BALANCE),
            *(GenesisAccount(account, OPERATOR_BALANCE) for account in accounts.values()),
        ),
        operators=tuple(GenesisOperator(accounts[name], OPERATOR_BOND, tuple(regions[name])) for name in names),
        nodes=tuple(_node(member, accounts[member.operator], capacity_bytes, params) for member in members),
    )


def _node(member: Member, operator: bytes, capacity_bytes: int, params: Params) -> GenesisNode:
    """It is paid on an account of its own, so that what it earns is seen apart from its operator's other nodes."""
    node_id = parse_id(member.id)
    return GenesisNode(
        node_id=node_id,
        operator=operator,
        payout=node_id,
        roles=tuple(sorted(member.roles)),
        region=member.region,
        subnet=member.subnet,
        capacity_bytes=capacity_bytes,
        ask_price=params.price_start,
        term_epochs_max=TERM_EPOCHS_MAX,
        pool=NODE_POOL,
    )

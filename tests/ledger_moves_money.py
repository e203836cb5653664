"""Moves of a living ledger about money and who takes part: accounts, bonds, nodes, contracts, readers, endowments.

What a move is: `ledger_moves.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any, Final

from dds.ledger.records import (
    CONTRACTS,
    DEPOSITS,
    ENDOWMENTS,
    NODES,
    OPERATORS,
    PAID,
    Contract,
    Node,
    NodeStatus,
    Operator,
    contract_id,
    number_key,
)
from dds.ledger.rules.retrieval import direct_key, grant_key
from dds.primitives.hashing import sha256
from dds.primitives.keys import SigningKey
from dds.wire import ledger as wire
from dds.wire.ledger import CONSENT_TAG
from dds.wire.vouchers import ANY_NODE, Grant, Voucher, grant_name, sign_grant, sign_voucher
from tests.ledger_world import BOND_MIN, NETWORK, REGIONS, World, key_of

Attempt = tuple[SigningKey, Any]
STORERS_LEAST: Final = 9  # below it nobody retires
CLASSES: Final = ("standard", "archive")


def some_amount(rng: Random, most: int) -> int:
    """1 .. most, small ones and all of it more often than chance."""
    return min(most, rng.choice((1, most, rng.randint(1, most), rng.randint(1, min(most, 10**6)))))


# -- accounts, operators ----------------------------------------------------------------------------------------------------


def transfer(w: World, rng: Random) -> Attempt | None:
    key = rng.choice([*w.operators, *w.publishers, *w.readers])
    has = w.balance(key.public)
    to = rng.choice([*w.keys, key_of(f"stranger {w.name()}").public])
    return (key, wire.Transfer(to, some_amount(rng, min(has, 10**9)))) if has else None


def bond(w: World, rng: Random) -> Attempt | None:
    key = rng.choice([*w.operators, *w.newcomers])
    found = w.get(OPERATORS, key.public)
    amount = rng.randrange(10**8) if found and found.bond else BOND_MIN + rng.randrange(10**6)
    regions = sorted(rng.sample(REGIONS, rng.randrange(3)))
    return (key, wire.Bond(amount, regions)) if w.balance(key.public) >= amount else None


def _operators(w: World) -> Iterator[tuple[SigningKey, Operator]]:
    return ((w.keys[account], found) for account, found in w.all(OPERATORS))


def _is_idle(w: World, operator: Operator) -> bool:
    nodes = [node_of(w, number) for number in operator.nodes]
    return not any(node.assignments or node.promised_bytes or node.pool_free or node.pool_locked for node in nodes)


def unbond(w: World, rng: Random) -> Attempt | None:
    fit = [
        (key, found.bond if _is_idle(w, found) else found.bond - BOND_MIN)
        for key, found in _operators(w)
        if len(found.unbonding) < 16
    ]
    fit = [(key, most) for key, most in fit if most > 0]
    if not fit:
        return None
    key, most = rng.choice(fit)
    whole = w.get(OPERATORS, key.public)
    all_of_it = whole is not None and most == whole.bond
    return key, wire.Unbond(most if all_of_it else some_amount(rng, min(most, 10**8)))


def release_bond(w: World, rng: Random) -> Attempt | None:
    ripe = [key for key, found in _operators(w) if any(part.release_epoch <= w.epoch for part in found.unbonding)]
    return (rng.choice(ripe), wire.ReleaseBond()) if ripe else None


# -- nodes ------------------------------------------------------------------------------------------------------------------


def node_of(w: World, number: int) -> Node:
    found = w.get(NODES, number_key(number))
    assert found is not None
    return found


def nodes_of(w: World, *statuses: NodeStatus) -> list[Node]:
    return [node for _, node in w.all(NODES) if not statuses or node.status in statuses]


def fund_pool(w: World, rng: Random) -> Attempt | None:
    poorest = sorted(nodes_of(w), key=lambda node: node.pool_free)[:4]
    node = rng.choice([*poorest, rng.choice(nodes_of(w))])
    amount = rng.randint(1, 10**8)
    key = w.keys[node.operator]
    return (key, wire.FundPool(node.number, amount)) if w.balance(key.public) >= amount else None


def drain_pool(w: World, rng: Random) -> Attempt | None:
    fit = [node for node in nodes_of(w) if node.pool_free > 1]
    node = rng.choice(fit)
    most = node.pool_free if node.status == NodeStatus.RETIRING else node.pool_free // 2
    return w.keys[node.operator], wire.DrainPool(node.number, some_amount(rng, most))


def register_node(w: World, rng: Random) -> Attempt | None:
    new = [key for key in w.spare_nodes if w.state.node_number(key.public) is None]
    able = [key for key, found in _operators(w) if found.bond >= BOND_MIN and found.jailed_until <= w.epoch]
    if not new or not able:
        return None
    node, key = rng.choice(new), rng.choice(able)
    pool = min(w.balance(key.public), rng.choice((0, 10**8)))
    body = wire.RegisterNode(
        node_id=node.public,
        consent=node.sign_tagged(CONSENT_TAG, NETWORK, key.public),
        roles=rng.choice((["ssn"], ["asn"], ["ssn", "witness"])),
        region=rng.choice(REGIONS),
        subnet=f"net-{w.name()}",
        capacity_bytes=rng.randint(1 << 18, 8 << 20),
        payout=rng.choice((key, node)).public,
        ask_price=rng.randint(0, 60_000),
        term_epochs_max=100,
        pool=pool,
    )
    return key, body


def set_ask(w: World, rng: Random) -> Attempt | None:
    back = [node for node in nodes_of(w, NodeStatus.FAULTED) if node.assignments == 0]
    node = rng.choice(back if back and rng.random() < 0.7 else nodes_of(w, NodeStatus.ACTIVE, NodeStatus.FAULTED))
    operator = w.get(OPERATORS, node.operator)
    if node.status == NodeStatus.FAULTED and node.assignments == 0 and operator and operator.jailed_until > w.epoch:
        return None
    price = max(0, node.ask_price + rng.randint(-4_000, 4_000))
    offered = max(w.params.capacity_bytes_min, node.promised_bytes + rng.randint(0, 16 << 20))
    body = wire.SetAsk(node.number, price, offered, rng.choice((50, 100, 200)))
    return w.keys[rng.choice((node.operator, node.node_id))], body


def retire_node(w: World, rng: Random) -> Attempt | None:
    fit = [node for node in nodes_of(w, NodeStatus.ACTIVE) if node.number >= 5]
    if len(fit) <= STORERS_LEAST:
        return None
    node = rng.choice(fit)
    return w.keys[rng.choice((node.operator, node.node_id))], wire.RetireNode(node.number)


# -- contracts --------------------------------------------------------------------------------------------------------------


def open_contract(w: World, rng: Random) -> Attempt | None:
    key, name = rng.choice(w.publishers), rng.choice(CLASSES)
    old = w.get(CONTRACTS, contract_id(key.public, name))
    if old is not None and (old.cancelled_epoch < 0 or old.segments or old.reserved):
        return None
    body = wire.OpenContract(name, 2, 1, rng.randint(2, 9), rng.choice((80_000, 120_000)), rng.randint(10**6, 10**8))
    return (key, body) if w.balance(key.public) >= body.deposit else None


def living_contracts(w: World) -> list[tuple[bytes, Contract]]:
    """The living ones."""
    return [(identifier, found) for identifier, found in w.all(CONTRACTS) if found.cancelled_epoch < 0]


def _some_contract(w: World, rng: Random) -> tuple[bytes, Contract] | None:
    living = living_contracts(w)
    return rng.choice(living) if living else None


def set_contract(w: World, rng: Random) -> Attempt | None:
    chosen = _some_contract(w, rng)
    if chosen is None:
        return None
    body = wire.SetContract(chosen[0], rng.randint(1, 12), rng.choice((30_000, 80_000, 120_000, 200_000)))
    return w.keys[chosen[1].publisher], body


def top_up(w: World, rng: Random) -> Attempt | None:
    chosen, key = _some_contract(w, rng), rng.choice([*w.publishers, *w.readers])
    amount = rng.randint(1, 10**7)
    return (key, wire.TopUp(chosen[0], amount)) if chosen and w.balance(key.public) >= amount else None


def withdraw_escrow(w: World, rng: Random) -> Attempt | None:
    fit = [(name, each) for name, each in living_contracts(w) if each.escrow > each.reserved]
    if not fit:
        return None
    name, chosen = rng.choice(fit)
    return w.keys[chosen.publisher], wire.WithdrawEscrow(name, some_amount(rng, max(1, (chosen.escrow - chosen.reserved) // 4)))


def cancel_contract(w: World, rng: Random) -> Attempt | None:
    living = living_contracts(w)
    if len(living) < 3:
        return None
    name, chosen = rng.choice(living)
    return w.keys[chosen.publisher], wire.CancelContract(name)


def free_escrow(contract: Contract) -> int:
    return contract.escrow - contract.reserved


# -- retrieval, endowments --------------------------------------------------------------------------------------------------


def deposit(w: World, rng: Random) -> Attempt | None:
    key = rng.choice([*w.readers, *w.publishers])
    has = w.balance(key.public)
    return (key, wire.Deposit(some_amount(rng, min(has, 10**7)))) if has else None


def request_withdrawal(w: World, rng: Random) -> Attempt | None:
    fit = [(account, each.amount) for account, each in w.all(DEPOSITS) if each.amount]
    if not fit:
        return None
    account, most = rng.choice(fit)
    return w.keys[account], wire.RequestWithdrawal(some_amount(rng, max(1, most // 2)))


def withdraw(w: World, rng: Random) -> Attempt | None:
    ripe = [account for account, each in w.all(DEPOSITS) if each.leaving and each.release_epoch <= w.epoch]
    return (w.keys[rng.choice(ripe)], wire.Withdraw()) if ripe else None


def redeem_vouchers(w: World, rng: Random) -> Attempt | None:
    """One or two vouchers of one payer, its own or under a grant; more than the deposit covers now and then."""
    payers = [account for account, each in w.all(DEPOSITS) if each.amount + each.leaving]
    if not payers:
        return None
    payer = w.keys[rng.choice(payers)]
    nodes = rng.sample(nodes_of(w), rng.randint(1, 2))
    amounts = [rng.randint(1, rng.choice((10, 10**5, 10**8))) for _ in nodes]
    if rng.random() < 0.6:
        vouchers = [_voucher(w, payer, node, amount) for node, amount in zip(nodes, amounts, strict=True)]
        return rng.choice(w.operators), wire.RedeemVouchers(sorted(vouchers), [])
    grantee = rng.choice(w.readers)
    only = rng.choice((ANY_NODE, nodes[0].node_id))
    grant_id = sha256(b"grant" + w.name().to_bytes(8, "big"))
    grant = Grant(1, NETWORK, payer.public, grantee.public, rng.randint(1, 10**6), only, w.epoch + rng.randint(0, 3), grant_id)
    served = nodes if only == ANY_NODE else nodes[:1]
    vouchers = [_granted(w, grantee, grant, node, amount) for node, amount in zip(served, amounts, strict=False)]
    return rng.choice(w.operators), wire.RedeemVouchers(sorted(vouchers), [sign_grant(payer, grant)])


def _voucher(w: World, payer: SigningKey, node: Node, amount: int) -> bytes:
    paid = w.get(PAID, direct_key(payer.public, node.node_id))
    cumulative = (paid.amount if paid else 0) + amount
    return sign_voucher(payer, Voucher(1, NETWORK, payer.public, node.node_id, cumulative, w.epoch))


def _granted(w: World, grantee: SigningKey, grant: Grant, node: Node, amount: int) -> bytes:
    name = grant_name(grant)
    paid = w.get(PAID, grant_key(name, node.node_id))
    cumulative = (paid.amount if paid else 0) + amount
    return sign_voucher(grantee, Voucher(1, NETWORK, grant.sponsor, node.node_id, cumulative, w.epoch, name))


def endow(w: World, rng: Random) -> Attempt | None:
    chosen, key = _some_contract(w, rng), rng.choice([*w.publishers, *w.readers])
    amount = rng.randint(1, 10**8)
    return (key, wire.Endow(chosen[0], amount)) if chosen and w.balance(key.public) >= amount else None


def spend_endowment(w: World, rng: Random) -> Attempt | None:
    living = dict(living_contracts(w))
    due = [name for name, each in w.all(ENDOWMENTS) if name in living and each.spent_through < w.epoch]
    return (rng.choice(w.readers), wire.SpendEndowment(rng.choice(due))) if due else None

"""What can be done in a living ledger: one generator a kind of transaction, each looking at the state first.

A move gives a key and a body that the ledger must take as it is now, or None where there is nothing to do. `spoiled` breaks a
good one. Decisions come from a `Random`, so a seed is a whole history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Final

import msgspec

from dds.ledger import rent
from dds.ledger.machine import TxResult
from dds.ledger.records import (
    CONTRACTS,
    DEPOSITS,
    ENDOWMENTS,
    NODES,
    OPERATORS,
    PAID,
    RESERVATIONS,
    SEGMENTS,
    SPENT_EVIDENCE,
    Contract,
    Holding,
    Node,
    NodeStatus,
    Operator,
    Reservation,
    Segment,
    contract_id,
    number_key,
    receipt_contract,
)
from dds.ledger.rules.inventory import total_leaves
from dds.ledger.rules.retrieval import direct_key, grant_key
from dds.ledger.rules.settlement import closed_before
from dds.ledger.rules.witnesses import beacon_commitment
from dds.primitives.hashing import sha256, tagged_hash
from dds.primitives.keys import SigningKey
from dds.wire import ledger as wire
from dds.wire.audit import LeafStatement, open_message, sign_answer
from dds.wire.codec import encode
from dds.wire.evidence import ConflictingStatements, InvalidAnswer, WitnessEquivocation, encode_evidence
from dds.wire.ledger import CONSENT_TAG, StripeRun, WitnessReport
from dds.wire.receipts import RECEIPT_VERSION, Receipt, sign_receipt
from dds.wire.vouchers import ANY_NODE, Grant, Voucher, grant_name, sign_grant, sign_voucher
from tests.ledger_world import BOND_MIN, NETWORK, REGIONS, World, key_of

Attempt = tuple[SigningKey, Any]
Move = Callable[[World, Random], Attempt | None]
STORERS_LEAST: Final = 9  # below it nobody retires
CLASSES: Final = ("standard", "archive")
GEOMETRIES: Final = (  # (width, loss tolerance, stripes)
    (3, 1, (StripeRun(1, 2, 1, 70_000),)),
    (3, 1, (StripeRun(2, 2, 1, 9_000), StripeRun(1, 1, 2, 130))),
    (4, 1, (StripeRun(3, 3, 1, 4_000),)),
    (5, 2, (StripeRun(1, 3, 2, 150_000), StripeRun(2, 1, 2, 1))),
    (2, 1, (StripeRun(1, 1, 1, 1),)),
)


def some_amount(rng: Random, most: int) -> int:
    """1 .. most, small ones and all of it more often than chance."""
    return min(most, rng.choice((1, most, rng.randint(1, most), rng.randint(1, min(most, 10**6)))))


# -- accounts, operators ----------------------------------------------------------------------------------------------------


def transfer(w: World, rng: Random) -> Attempt | None:
    key = rng.choice([*w.operators, *w.publishers, *w.readers])
    has = w.balance(key.public)
    to = rng.choice(list(w.keys) + [key_of(f"stranger {w.name()}").public])
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
    nodes = [_node(w, number) for number in operator.nodes]
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


def _node(w: World, number: int) -> Node:
    found = w.get(NODES, number_key(number))
    assert found is not None
    return found


def _nodes(w: World, *statuses: NodeStatus) -> list[Node]:
    return [node for _, node in w.all(NODES) if not statuses or node.status in statuses]


def fund_pool(w: World, rng: Random) -> Attempt | None:
    poorest = sorted(_nodes(w), key=lambda node: node.pool_free)[:4]
    node = rng.choice(poorest + [rng.choice(_nodes(w))])
    amount = rng.randint(1, 10**8)
    key = w.keys[node.operator]
    return (key, wire.FundPool(node.number, amount)) if w.balance(key.public) >= amount else None


def drain_pool(w: World, rng: Random) -> Attempt | None:
    fit = [node for node in _nodes(w) if node.pool_free > 1]
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
    back = [node for node in _nodes(w, NodeStatus.FAULTED) if node.assignments == 0]
    node = rng.choice(back if back and rng.random() < 0.7 else _nodes(w, NodeStatus.ACTIVE, NodeStatus.FAULTED))
    operator = w.get(OPERATORS, node.operator)
    if node.status == NodeStatus.FAULTED and node.assignments == 0 and operator and operator.jailed_until > w.epoch:
        return None
    price = max(0, node.ask_price + rng.randint(-4_000, 4_000))
    body = wire.SetAsk(node.number, price, node.promised_bytes + rng.randint(0, 16 << 20), rng.choice((50, 100, 200)))
    return w.keys[rng.choice((node.operator, node.node_id))], body


def retire_node(w: World, rng: Random) -> Attempt | None:
    fit = [node for node in _nodes(w, NodeStatus.ACTIVE) if node.number >= 5]
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


def _contracts(w: World) -> list[tuple[bytes, Contract]]:
    """The living ones."""
    return [(identifier, found) for identifier, found in w.all(CONTRACTS) if found.cancelled_epoch < 0]


def _some_contract(w: World, rng: Random) -> tuple[bytes, Contract] | None:
    living = _contracts(w)
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
    fit = [(name, each) for name, each in _contracts(w) if each.escrow > each.reserved]
    if not fit:
        return None
    name, chosen = rng.choice(fit)
    return w.keys[chosen.publisher], wire.WithdrawEscrow(name, some_amount(rng, max(1, (chosen.escrow - chosen.reserved) // 4)))


def cancel_contract(w: World, rng: Random) -> Attempt | None:
    living = _contracts(w)
    if len(living) < 3:
        return None
    name, chosen = rng.choice(living)
    return w.keys[chosen.publisher], wire.CancelContract(name)


# -- reservations and segments ----------------------------------------------------------------------------------------------


def _free_escrow(contract: Contract) -> int:
    return contract.escrow - contract.reserved


def reserve(w: World, rng: Random) -> Attempt | None:
    count, (width, tolerance, stripes) = rng.choice((1, 1, 2)), rng.choice(GEOMETRIES)
    size, price = rent.stripes_bytes(stripes, 0) + rng.choice((0, 0, 1_000)), w.chain.price
    fit = []
    for name, each in _contracts(w):
        cost = rent.quote(w.params, [size] * width, price, each.term_epochs).total * count
        if price <= each.price_max and cost <= _free_escrow(each):
            fit.append((name, each))
    if not fit:
        return None
    name, chosen = rng.choice(fit)
    return w.keys[chosen.publisher], wire.Reserve(name, count, width, tolerance, size)


def cancel_reservations(w: World, rng: Random) -> Attempt | None:
    found = w.all(RESERVATIONS)
    if not found:
        return None
    identifier, one = rng.choice(found)
    contract = w.get(CONTRACTS, one.contract)
    assert contract is not None
    mine = [name for name, each in found if each.contract == one.contract]
    chosen = sorted(rng.sample(mine, rng.randint(1, min(2, len(mine)))))
    if one.expires_epoch <= w.epoch and rng.random() < 0.5:
        return rng.choice(w.readers), wire.CancelReservations([identifier])
    return w.keys[contract.publisher], wire.CancelReservations(chosen)


def _receipt(w: World, node: Node, reservation: bytes, segment: tuple[bytes, bytes], index: int, stripes: Any) -> bytes:
    receipt = Receipt(
        version=RECEIPT_VERSION,
        network=NETWORK,
        contract=reservation,
        segment_id=segment[0],
        segment_root=segment[1],
        index=index,
        node_id=node.node_id,
        fragment_bytes=rent.stripes_bytes(stripes, index),
        leaf_count=rent.leaf_count(stripes, index),
        expires_ms=0,
    )
    return sign_receipt(w.keys[node.node_id], receipt)


def register_segments(w: World, rng: Random) -> Attempt | None:
    """With all receipts, or some; now and then a spare stands in, or two nodes have changed places."""
    open_ones = [(name, each) for name, each in w.all(RESERVATIONS) if each.expires_epoch > w.epoch]
    rng.shuffle(open_ones)
    for name, reservation in open_ones:
        contract = w.get(CONTRACTS, reservation.contract)
        assert contract is not None
        fit = [g for g in GEOMETRIES if g[0] == len(reservation.chosen) and g[1] >= reservation.loss_tolerance]
        fit = [g for g in fit if rent.stripes_bytes(g[2], 0) <= reservation.fragment_bytes_max]
        if contract.cancelled_epoch >= 0 or not fit:
            continue
        stripes = rng.choice(fit)[2]
        total = rent.sponsored_bytes(stripes, (1 << 64) - 1)
        cost = rent.quote(w.params, [total], reservation.price, contract.term_epochs).total
        if cost <= _free_escrow(contract) + reservation.earmarked:
            entry = _entry(w, rng, name, reservation, stripes)
            return w.keys[contract.publisher], wire.RegisterSegments([entry])
    return None


def _entry(w: World, rng: Random, name: bytes, reservation: Reservation, stripes: Any) -> wire.SegmentEntry:
    segment = sha256(f"segment {w.name()}".encode()), sha256(name)
    signers = _signers(w, rng, reservation, stripes)
    receipts = [_receipt(w, node, name, segment, index, stripes) for index, node in sorted(signers.items())]
    return wire.SegmentEntry(name, *segment, sha256(segment[0]), list(stripes), receipts)


def _signers(w: World, rng: Random, reservation: Reservation, stripes: Any) -> dict[int, Node]:
    numbers = list(reservation.chosen)
    if rng.random() < 0.2 and len(numbers) > 1:
        numbers[0], numbers[1] = numbers[1], numbers[0]
    if rng.random() < 0.2 and reservation.spares:
        numbers[-1] = rng.choice(reservation.spares)
    share = rng.choice((1.0, 1.0, 0.7))
    signers = {}
    for index, number in enumerate(numbers):
        node, size = _node(w, number), rent.stripes_bytes(stripes, index)
        room = node.capacity_bytes - node.promised_bytes >= size or number == reservation.chosen[index]
        able = node.status == NodeStatus.ACTIVE and node.pool_free >= rent.collateral(w.params, size, reservation.price)
        if room and able and rng.random() < share:
            signers[index] = node
    return signers


def _living_segments(w: World, rng: Random) -> Iterator[tuple[bytes, Segment]]:
    """In random order, as they will be found."""
    names = [name for name, _ in w.all(SEGMENTS)]
    rng.shuffle(names)
    for name in names:
        segment = w.touched(name)
        if segment.sponsors:
            yield name, segment


def add_receipts(w: World, rng: Random) -> Attempt | None:
    for name, segment in _living_segments(w, rng):
        receipts = []
        for index, each in enumerate(segment.assignments):
            if each.state != Holding.PENDING:
                continue
            node = _node(w, each.node)
            enough = node.pool_free >= rent.collateral(w.params, each.bytes, segment.price)
            if node.status == NodeStatus.ACTIVE and enough:
                contract = receipt_contract(segment.reservation, each.draw)
                receipts.append(_receipt(w, node, contract, (name, segment.segment_root), index, segment.stripes))
        if receipts:
            return rng.choice(w.readers), wire.AddReceipts(name, receipts)
    return None


def _affordable(w: World, contract: Contract, segment: Segment, entry: Any, end: int) -> int | None:
    """What `entry`, paid until `end`, takes from the escrow; None: more than is free."""
    since = max(entry.start_epoch, closed_before(w.state))
    cost = rent.rent(rent.sponsored_bytes(segment.stripes, entry.stripes), entry.price, end - since)
    total = rent.quote_rent(w.params, max(0, cost - entry.prepaid)).total
    return total if total <= _free_escrow(contract) else None


def sponsor(w: World, rng: Random) -> Attempt | None:
    for name, segment in _living_segments(w, rng):
        there = ((1 << rent.stripe_count(segment.stripes)) - 1) & ~segment.released
        stripes = there & rng.choice((there, rng.randint(1, there))) or there
        for contract_name, contract in rng.sample(_contracts(w), len(_contracts(w))):
            old = next((entry for entry in segment.sponsors if entry.contract == contract_name), None)
            begins = w.epoch + 1
            entry = old or msgspec.structs.replace(
                segment.sponsors[0], contract=contract_name, stripes=0, start_epoch=begins, end_epoch=begins, prepaid=0
            )
            wanted = msgspec.structs.replace(entry, stripes=entry.stripes | stripes, price=max(entry.price, segment.price))
            end = max(entry.end_epoch, begins + contract.term_epochs)
            cheap = segment.price <= contract.price_max and _affordable(w, contract, segment, wanted, end) is not None
            if cheap and (old or len(segment.sponsors) < w.params.sponsors_max):
                return w.keys[contract.publisher], wire.Sponsor(contract_name, name, stripes.to_bytes(8, "little"))
    return None


def _sponsored(w: World, rng: Random) -> tuple[bytes, Contract, list[tuple[bytes, Segment, Any]]] | None:
    """A living contract, and what it sponsors as it will be found."""
    living = _contracts(w)
    rng.shuffle(living)
    segments = list(_living_segments(w, rng))
    for name, contract in living:
        own = [(key, each, entry) for key, each in segments for entry in each.sponsors if entry.contract == name]
        if own:
            return name, contract, own
    return None


def unsponsor(w: World, rng: Random) -> Attempt | None:
    found = _sponsored(w, rng)
    if found is None:
        return None
    name, contract, own = found
    chosen = rng.sample(own, rng.randint(1, min(2, len(own))))
    return w.keys[contract.publisher], wire.Unsponsor(name, sorted(key for key, _, _ in chosen))


def extend_segments(w: World, rng: Random) -> Attempt | None:
    found = _sponsored(w, rng)
    if found is None:
        return None
    name, contract, own = found
    epochs = rng.randint(1, 6)
    for key, segment, entry in own:
        price = max(entry.price, w.chain.price)
        longer = msgspec.structs.replace(entry, price=price)
        if price <= contract.price_max and _affordable(w, contract, segment, longer, entry.end_epoch + epochs) is not None:
            anyone = w.get(ENDOWMENTS, name) is not None and rng.random() < 0.5
            sender = rng.choice(w.readers) if anyone else w.keys[contract.publisher]
            return sender, wire.ExtendSegments(name, [key], epochs)
    return None


def settle(w: World, rng: Random) -> Attempt | None:
    names = [name for name, _ in w.all(SEGMENTS)] + [sha256(b"no such segment")]
    chosen = rng.sample(names, rng.randint(1, min(6, len(names))))
    return rng.choice([*w.readers, *w.operators]), wire.Settle(sorted(chosen))


def redraw(w: World, rng: Random) -> Attempt | None:
    for name, segment in _living_segments(w, rng):
        gone = [
            index
            for index, each in enumerate(segment.assignments)
            if each.state == Holding.FREED and rent.stripes_bytes(segment.stripes, index, segment.released)
        ]
        if gone:
            return rng.choice(w.readers), wire.Redraw(name, gone)
    return None


def report_loss(w: World, rng: Random) -> Attempt | None:
    held = [
        (name, index, each.node)
        for name, segment in w.all(SEGMENTS)
        for index, each in enumerate(segment.assignments)
        if each.state == Holding.ACTIVE
    ]
    if not held:
        return None
    name, index, number = rng.choice(held)
    more = [place for place in held if place[2] == number and rng.random() < 0.3]
    losses = sorted({(name, index)} | {(one, at) for one, at, _ in more})
    return w.keys[_node(w, number).node_id], wire.ReportLoss([wire.Loss(*loss) for loss in losses])


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
    nodes = rng.sample(_nodes(w), rng.randint(1, 2))
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
    living = dict(_contracts(w))
    due = [name for name, each in w.all(ENDOWMENTS) if name in living and each.spent_through < w.epoch]
    return (rng.choice(w.readers), wire.SpendEndowment(rng.choice(due))) if due else None


# -- witnesses --------------------------------------------------------------------------------------------------------------


def secret_of(node_id: bytes, epoch: int) -> bytes:
    return tagged_hash(b"world/secret", node_id, epoch.to_bytes(8, "big"))


def witness_report(w: World, rng: Random) -> Attempt | None:
    """One more vote on the present epoch or the one before, or a late reveal."""
    for epoch in rng.sample((w.epoch, w.epoch - 1), 2):
        record = w.epoch_record(epoch)
        silent = [number for at, number in enumerate(record.committee) if not record.reported >> at & 1] if record else []
        if silent:
            return report_of(w, rng, rng.choice(silent), epoch)
    record = w.epoch_record(w.epoch - 2)
    owing = [number for number in record.committee if _may_reveal(w, number)] if record else []
    if not owing:
        return None
    node = _node(w, rng.choice(owing))
    return w.keys[node.node_id], WitnessReport(w.epoch, b"", [], b"", secret_of(node.node_id, w.epoch - 2))


def report_of(w: World, rng: Random, number: int, epoch: int, absent: frozenset[int] = frozenset()) -> Attempt:
    node_id = _node(w, number).node_id
    record = w.epoch_record(epoch)
    assert record is not None
    seen = [each for each in range(record.node_count) if total_leaves(w.state, each) and each not in absent]
    mistaken = rng.sample(seen, min(len(seen), rng.choice((0, 0, 0, 1))))
    bits = sum(1 << each for each in seen if each not in mistaken)
    passed = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
    commit = beacon_commitment(node_id, secret_of(node_id, epoch)) if rng.random() < 0.7 else b""
    reveal = secret_of(node_id, w.epoch - 2) if _may_reveal(w, number) and rng.random() < 0.9 else b""
    if not (passed or commit or not reveal):
        passed = b"\x00"
    return w.keys[node_id], WitnessReport(epoch, passed, [], commit, reveal)


def _may_reveal(w: World, number: int) -> bool:
    record = w.epoch_record(w.epoch - 2)
    if record is None or number not in record.committee or not record.commits:
        return False
    at, node_id = record.committee.index(number), _node(w, number).node_id
    return record.commits[at] == beacon_commitment(node_id, secret_of(node_id, w.epoch - 2))  # else told, or spoiled


def submit_evidence(w: World, rng: Random) -> Attempt | None:
    kind = rng.choice((_invalid_answer, _conflict, _equivocation))
    raw = kind(w, rng)
    return (rng.choice([*w.readers, *w.operators]), wire.SubmitEvidence(raw)) if raw else None


def _offence(w: World, rng: Random) -> tuple[Node, bytes, Segment, int, int] | None:
    """(node, segment id, segment, index, epoch) that nobody was punished for yet."""
    for name, segment in rng.sample(w.all(SEGMENTS), len(w.all(SEGMENTS))):
        index = rng.randrange(len(segment.assignments))
        holder = segment.assignments[index].node
        node = _node(w, holder) if holder >= 0 else rng.choice(_nodes(w))
        epoch = rng.randint(max(0, w.epoch - w.params.evidence_epochs), w.epoch)
        about = epoch.to_bytes(8, "big") + index.to_bytes(2, "big")
        digest = tagged_hash(b"dds/offence/false-answer/v1", node.node_id, name, about)
        if segment.registered_epoch < epoch and w.get(SPENT_EVIDENCE, digest) is None:
            return node, name, segment, index, epoch
    return None


def _statement(name: bytes, segment: Segment, index: int, data: bytes) -> LeafStatement:
    return LeafStatement(name, segment.segment_root, index, 0, 0, data, sha256(data), [], [])


def _answer(w: World, node: Node, epoch: int, statement: LeafStatement) -> bytes:
    beacon = bytes(32)  # whatever it was: a false word is false under any
    return open_message(sign_answer(w.keys[node.node_id], NETWORK, epoch, beacon, [encode(statement)])).signed


def _invalid_answer(w: World, rng: Random) -> bytes | None:
    found = _offence(w, rng)
    if found is None:
        return None
    node, name, segment, index, epoch = found
    statement = _statement(name, segment, index, b"not what was stored")
    return encode_evidence(InvalidAnswer(_answer(w, node, epoch, statement), encode(statement)))


def _conflict(w: World, rng: Random) -> bytes | None:
    found = _offence(w, rng)
    if found is None:
        return None
    node, name, segment, index, epoch = found
    one, other = (_statement(name, segment, index, data) for data in (b"one", b"other"))
    answers = _answer(w, node, epoch, one), _answer(w, node, epoch, other)
    return encode_evidence(ConflictingStatements(answers[0], encode(one), answers[1], encode(other)))


def _equivocation(w: World, rng: Random) -> bytes | None:
    epoch = rng.randint(max(0, w.epoch - w.params.evidence_epochs), w.epoch)
    node = rng.choice(_nodes(w))
    digest = tagged_hash(b"dds/offence/equivocation/v1", node.node_id, epoch.to_bytes(8, "big"))
    if w.get(SPENT_EVIDENCE, digest) is not None:
        return None
    reports = [WitnessReport(epoch, passed, [], b"", b"") for passed in (b"\x01", b"\x02")]
    return encode_evidence(WitnessEquivocation(*(w.sign(w.keys[node.node_id], report) for report in reports)))


# -- all of them ------------------------------------------------------------------------------------------------------------

MOVES: Final[dict[str, tuple[Move, int]]] = {  # with how often
    "Transfer": (transfer, 2),
    "Bond": (bond, 2),
    "Unbond": (unbond, 2),
    "ReleaseBond": (release_bond, 2),
    "FundPool": (fund_pool, 3),
    "DrainPool": (drain_pool, 1),
    "RegisterNode": (register_node, 1),
    "SetAsk": (set_ask, 4),
    "RetireNode": (retire_node, 1),
    "OpenContract": (open_contract, 4),
    "SetContract": (set_contract, 2),
    "TopUp": (top_up, 3),
    "WithdrawEscrow": (withdraw_escrow, 1),
    "CancelContract": (cancel_contract, 1),
    "Reserve": (reserve, 6),
    "CancelReservations": (cancel_reservations, 1),
    "RegisterSegments": (register_segments, 8),
    "AddReceipts": (add_receipts, 5),
    "Sponsor": (sponsor, 4),
    "Unsponsor": (unsponsor, 2),
    "ExtendSegments": (extend_segments, 4),
    "Settle": (settle, 5),
    "Redraw": (redraw, 4),
    "ReportLoss": (report_loss, 1),
    "Deposit": (deposit, 2),
    "RequestWithdrawal": (request_withdrawal, 1),
    "Withdraw": (withdraw, 2),
    "RedeemVouchers": (redeem_vouchers, 3),
    "Endow": (endow, 2),
    "SpendEndowment": (spend_endowment, 2),
    "WitnessReport": (witness_report, 3),
    "SubmitEvidence": (submit_evidence, 1),
}
MAY_BE_REFUSED: Final = {"Reserve": {"not-enough-nodes"}, "Redraw": {"not-enough-nodes"}}  # the draw is not foreseen


def act(w: World, rng: Random, name: str) -> TxResult | None:
    """A transaction of this kind that must be taken; None where there is nothing to do."""
    attempt = MOVES[name][0](w, rng)
    if attempt is None:
        return None
    result = w.send(*attempt)
    assert result.ok or result.code in MAY_BE_REFUSED.get(name, ()), f"{name}: {result.code}: {result.message}: {attempt[1]}"
    return result


def spoil(w: World, rng: Random, name: str) -> TxResult | None:
    """One with something wrong in it, or by somebody else. It may be good all the same."""
    attempt = MOVES[name][0](w, rng)
    if attempt is None:
        return None
    key, body = attempt
    how = rng.randrange(8)
    if how == 0:
        return w.send(key, body, nonce_off=rng.choice((1, 7)))
    if how == 1:
        return w.send(rng.choice([*w.operators, *w.publishers, *w.nodes]), body)
    if how == 2 and w.send(key, body).ok:
        return w.send(key, body)  # the same again
    return w.send(key, _broken(rng, body))


def _broken(rng: Random, body: Any) -> Any:
    fields = [field for field in body.__struct_fields__ if field != "node_id"]
    if not fields:
        return body
    field = rng.choice(fields)
    return msgspec.structs.replace(body, **{field: _other(rng, field, getattr(body, field))})


def _other(rng: Random, field: str, value: Any) -> Any:
    match value:
        case int():
            return _other_number(rng, field, value)
        case bytes():
            return rng.randbytes(len(value)) if value else bytes(32)
        case [bytes() | int() | str(), *_]:
            return rng.choice(([*value, value[-1]], [value[0]] * 2, [_other(rng, field, value[0]), *value[1:]]))
        case [first, *rest]:
            return rng.choice(([first, first, *rest], [_broken(rng, first), *rest]))
        case _:
            return value


def _other_number(rng: Random, field: str, value: int) -> int:
    match field:
        case "count" | "k":
            return rng.choice((1, 64))
        case "width" | "m" | "loss_tolerance" | "index":
            return rng.choice((1, value + 1, 120))
        case "term_epochs" | "epochs" | "epoch":
            return max(1, rng.choice((value + 1, value - 1, value + 3, 1 << 39)))
        case "node":
            return rng.choice((value + 1, 999_999))
        case "slot_bytes":
            return rng.choice((1, value + 1, 1 << 20))
        case _:
            return rng.choice((0, value + 1, 1 << 59))


# -- longer steps -----------------------------------------------------------------------------------------------------------


def audit_round(w: World, rng: Random) -> None:
    """The committee reports: some nodes were absent, some witnesses are silent, some see a loss."""
    record = w.epoch_record(w.epoch)
    if record is None:
        return
    absent = frozenset(number for number in range(record.node_count) if (w.epoch // 6 + number * 7) % 9 == 0)
    silent = set(rng.sample(record.committee, rng.choice((0, 0, 0, 1, 2)) if len(record.committee) > 2 else 0))
    lost = _some_loss(w, rng)
    for number in record.committee:
        place = record.committee.index(number)
        now = w.epoch_record(w.epoch)
        assert now is not None
        if number in silent or now.reported >> place & 1:
            continue
        key, body = report_of(w, rng, number, w.epoch, absent)
        result = w.send(key, msgspec.structs.replace(body, losses=lost) if lost and body.is_vote else body)
        assert result.ok, (result.code, result.message)


def _some_loss(w: World, rng: Random) -> list[wire.LossFound]:
    held = [
        wire.LossFound(each.node, name, index)
        for name, segment in w.all(SEGMENTS)
        for index, each in enumerate(segment.assignments)
        if each.state == Holding.ACTIVE
    ]
    return [rng.choice(held)] if held and rng.random() < 0.15 else []


def next_epoch(w: World, rng: Random) -> None:
    if rng.random() < 0.9:
        audit_round(w, rng)
    w.end_block(1)


def pause(w: World, rng: Random) -> None:
    if rng.random() < 0.5:
        audit_round(w, rng)
    w.end_block(rng.choice((2, 3, 5, 9, 30)))


def settle_in(w: World, rng: Random) -> None:
    """A world in which something is stored already."""
    for name in ("OpenContract", "OpenContract", "OpenContract", "Deposit", "Endow"):
        act(w, rng, name)
    for _ in range(4):
        act(w, rng, "Reserve")
        act(w, rng, "RegisterSegments")
    w.end_block(1)


def play(seed: int, steps: int) -> World:
    """A whole history. What was done least is tried more often, so that nothing is left out."""
    rng, w = Random(seed), World()
    settle_in(w, rng)
    names, weights = list(MOVES), [weight for _, weight in MOVES.values()]
    for _ in range(steps):
        least = min(names, key=lambda name: w.done[name])
        step(w, rng, least if rng.random() < 0.1 else rng.choices(names, weights)[0])
    w.end_block()
    return w


def step(w: World, rng: Random, name: str) -> None:
    """A transaction, and now and then the end of a block or an epoch before it."""
    chance = rng.random()
    if chance < 0.07:
        next_epoch(w, rng)
    elif chance < 0.075:
        pause(w, rng)
    elif chance < 0.27:
        w.end_block()
    (spoil if rng.random() < 0.3 else act)(w, rng, name)

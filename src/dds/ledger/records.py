"""What the ledger remembers: one struct a kind of entry, and the table that each lies in.

A key is one byte for the table and the entry's identifier; a value is the struct's msgpack array. Records are immutable: a rule
puts a new one in its place. Nodes are numbered in the order of their registration, because segments name them often.
Source: docs/spec/ledger.md, "State".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, Generic, TypeVar

from dds.ledger.params import Params
from dds.placement.roles import ASN, SSN
from dds.primitives.hashing import tagged_hash
from dds.wire.codec import Message
from dds.wire.ledger import StripeRun

V = TypeVar("V", bound=Message)
NOBODY: Final = -1  # a node number that is none


class Account(Message, frozen=True):
    balance: int = 0
    nonce: int = 0


class Unbonding(Message, frozen=True):
    amount: int
    release_epoch: int


class Operator(Message, frozen=True):
    """A bonded account. Its regions are declarations: nothing proves them."""

    bond: int = 0
    unbonding: tuple[Unbonding, ...] = ()  # slashable until it is released
    regions: tuple[str, ...] = ()
    jailed_until: int = 0  # epoch; it is in no draw and no committee before
    joined_epoch: int = 0
    nodes: tuple[int, ...] = ()


class NodeStatus(IntEnum):
    ACTIVE = 0
    RETIRING = 1  # takes nothing new
    FAULTED = 2  # caught; its assignments are being freed


class Node(Message, frozen=True):
    number: int
    node_id: bytes
    operator: bytes
    payout: bytes
    roles: tuple[str, ...]
    region: str
    subnet: str
    registered_epoch: int
    capacity_bytes: int
    promised_bytes: int = 0  # of its pending, active and draining assignments
    ask_price: int = 0
    term_epochs_max: int = 0
    pool_free: int = 0
    pool_locked: int = 0  # the sum of its assignments' collateral
    assignments: int = 0  # how many are not freed
    status: int = NodeStatus.ACTIVE
    genesis: bool = False  # vetted from the start
    fault_epoch: int = -1  # FAULTED: since when
    fault_ppm: int = 0  # what its assignments' collateral loses when each is freed, at the next touch of its segment
    fault_reason: str = ""


class Standing(Message, frozen=True):
    """A node's record of audits: small, and changed every epoch."""

    runs: tuple[Run, ...] = ()  # epochs passed, ascending; the oldest are dropped beyond RUNS_MAX
    passed: int = 0  # epochs in all (G)
    judged: int = 0  # epochs with a verdict
    missed_in_row: int = 0
    good: int = 0  # reputation counters; 0, 0: not judged yet
    bad: int = 0
    windows: int = 0  # downtime: bit i says that in the i-th last window something was passed
    window_epoch: int = 0  # the first of the window that bit 0 stands for
    windows_judged: int = 0  # bit i: there was a verdict in that window


class Run(Message, frozen=True):
    """Epochs first .. first + count - 1 were passed, each subsidised at `scale_ppm` of what is due."""

    first: int
    count: int
    scale_ppm: int


RUNS_MAX: Final = 256


class Contract(Message, frozen=True):
    publisher: bytes
    class_name: str
    k: int
    m: int
    term_epochs: int
    price_max: int
    escrow: int = 0
    opened_epoch: int = 0
    cancelled_epoch: int = -1
    reservations: int = 0  # ever made: the counter of their ids
    segments: int = 0  # sponsored now
    rent_bytes: int = 0  # that it sponsors now, over all nodes: what an endowment's spending goes by
    reserved: int = 0  # of the escrow: earmarked for its open reservations
    swept: int = 0  # of its reservations the first so many are gone
    endowed: int = 0  # of the escrow: came from its endowment, so it pays rent and nothing else

    @property
    def withdrawable(self) -> int:
        """What its publisher can take out of the escrow."""
        return self.escrow - max(self.reserved, self.endowed)


class Reservation(Message, frozen=True):
    contract: bytes
    price: int  # per MiB-epoch, fixed for the segment that comes of it
    expires_epoch: int
    fragment_bytes_max: int
    chosen: tuple[int, ...]  # node numbers by index
    spares: tuple[int, ...]  # in the order they are to be asked
    bends: tuple[str, ...] = ()  # rules that the draw had to bend
    loss_tolerance: int = 0
    earmarked: int = 0  # of the contract's escrow, until it is used or gone


class Holding(IntEnum):
    """An assignment's life."""

    PENDING = 0  # drawn; no receipt yet
    ACTIVE = 1  # receipted: counts for inventory, audits and pay
    DRAINING = 2  # leaving, still provable; no rule enters it yet, its number is kept for the one that will
    FREED = 3  # ended; nobody holds this index now


class Assignment(Message, frozen=True):
    """Who holds one index of a segment."""

    node: int = NOBODY
    state: int = Holding.FREED
    bytes: int = 0
    leaf_count: int = 0
    first_epoch: int = 0  # the first that it can be paid for
    settled_epoch: int = 0  # the first that it has not been settled for
    collateral: int = 0
    draw: int = 0  # 0: the reservation's; r: the segment's r-th redraw. Its receipt names receipt_contract(reservation, draw)
    expires_epoch: int = 0  # while it is pending


class SponsorEntry(Message, frozen=True):
    """One contract's part in paying for a segment."""

    contract: bytes
    stripes: int  # bit s: stripe s
    price: int  # per MiB-epoch, that it pays by
    start_epoch: int  # the first that it pays for
    end_epoch: int  # the first that it does not pay for
    prepaid: int  # rent not yet paid out
    reserve: int  # for repairs; comes back at the end
    subsidy: int = 0  # of the fee burned for it: what its assignments may still earn from emission
    subsidy_rate: int = 0  # of it, an epoch, when every assignment passes
    carries: tuple[int, ...] = ()  # by index, owed and not paid: less than one base unit, in 1/(840 x 2^20) of it; or none


class Former(Message, frozen=True):
    """What a segment was before it was re-encoded: challenges that were frozen before are about that."""

    segment_root: bytes
    stripes: tuple[StripeRun, ...]
    registered_epoch: int


class Segment(Message, frozen=True):
    segment_root: bytes
    encoding_hash: bytes
    reservation: bytes
    price: int  # per MiB-epoch: collateral goes by it, and who joins pays by it
    loss_tolerance: int
    stripes: tuple[StripeRun, ...]
    released: int  # bit s: nobody sponsors stripe s any more
    assignments: tuple[Assignment, ...]  # by index
    sponsors: tuple[SponsorEntry, ...]
    registered_epoch: int  # since when root and stripes are what they are
    redraws: int = 0  # ever made
    role: str = SSN  # of the nodes that it is drawn among
    former: Former | None = None  # its last encoding before this one


class Endowment(Message, frozen=True):
    pool: int = 0
    spent_through: int = 0  # the first epoch that was not spent for
    given: int = 0
    spent: int = 0


class DepositEntry(Message, frozen=True):
    """What a payer's vouchers are paid from."""

    amount: int = 0
    leaving: int = 0  # asked back; redeemable like the rest until it is withdrawn
    release_epoch: int = 0  # the first that it can be withdrawn in


class Paid(Message, frozen=True):
    """What was paid on a payer's cumulative vouchers to one node; on a grant's to one node, or to all of them."""

    amount: int = 0


class EpochRecord(Message, frozen=True):
    """One epoch's committee and its votes; dropped when it is closed and its evidence window is over."""

    committee: tuple[int, ...]  # node numbers of witnesses, as drawn
    node_count: int  # nodes registered when the epoch began
    reported: int = 0  # bit i: committee[i] has reported
    passes: bytes = b""  # votes a node: one byte each, by number
    losses: tuple[LossVotes, ...] = ()
    commits: tuple[bytes, ...] = ()  # by place in the committee; empty: none; the secret itself once it is revealed
    revealed: int = 0  # bit i
    beacon: bytes = b""  # what its audits are challenged with
    audited: bytes = b""  # bitmap of the node numbers that had something to prove


class LossVotes(Message, frozen=True):
    node: int
    segment_id: bytes
    index: int
    votes: int  # bit i: committee[i]


class Lane(Message, frozen=True):
    """What is bought and sold among the nodes of one storing role, apart from the others."""

    price: int = 0  # the last clearing price, per MiB-epoch
    reference: int = 0
    demand_bytes: int = 0  # reserved in the present epoch, all fragments
    demand_price_max: int = 0  # the highest limit among those who reserved


LANES: Final = (SSN, ASN)  # by the role that sells in it, in the order of `Chain.lanes`


class Chain(Message, frozen=True):
    """What there is one of. Money that no account, contract or node holds is here."""

    epoch: int = 0
    nodes: int = 0  # registered ever: the next number
    genesis_supply: int = 0
    minted: int = 0
    burned: int = 0
    burned_for_subsidy: int = 0  # the part of burned that subsidies are bounded by
    treasury: int = 0
    repair_reserve: int = 0
    emission_budget: int = 0  # may be minted, not minted yet
    subsidy_due: int = 0  # by all active assignments, an epoch
    subsidy_scale_ppm: int = 1_000_000  # of it, in the present epoch
    lanes: tuple[Lane, ...] = (Lane(),) * len(LANES)  # prices, in the order of LANES
    beacon_mix: bytes = bytes(32)
    network: str = ""  # its name: in everything that is signed

    def lane(self, role: str) -> Lane:
        """What the nodes of this storing role sell in."""
        return self.lanes[LANES.index(role)]


class Page(Message, frozen=True):
    """Opaque bytes of a node's inventory (ledger/rules/inventory.py)."""

    data: bytes


class NumberOf(Message, frozen=True):
    number: int


@dataclass(frozen=True, slots=True)
class Table(Generic[V]):
    """`key_of(id)` gives the entry's key; `hot` entries are few and read often: they stay decoded."""

    prefix: bytes
    kind: type[V]
    hot: bool = False

    def key(self, identifier: bytes = b"") -> bytes:
        return self.prefix + identifier


def number_key(number: int) -> bytes:
    """A node number, or an epoch, in keys: 8 bytes, big endian."""
    return number.to_bytes(8, "big")


CHAIN: Final = Table(b"!", Chain, hot=True)  # identifier: empty
PARAMS: Final = Table(b"?", Params, hot=True)  # identifier: empty
ACCOUNTS: Final = Table(b"a", Account)  # account
OPERATORS: Final = Table(b"o", Operator, hot=True)  # account
NODES: Final = Table(b"n", Node, hot=True)  # number_key
STANDINGS: Final = Table(b"g", Standing, hot=True)  # number_key
NUMBERS: Final = Table(b"i", NumberOf)  # node id
CONTRACTS: Final = Table(b"c", Contract)  # contract id
RESERVATIONS: Final = Table(b"r", Reservation)  # reservation id
SEGMENTS: Final = Table(b"s", Segment)  # segment id
ENDOWMENTS: Final = Table(b"e", Endowment)  # contract id
DEPOSITS: Final = Table(b"d", DepositEntry)  # account
PAID: Final = Table(b"v", Paid)  # payer || node id (64 bytes); of a grant a tagged hash (rules/retrieval.py)
EPOCHS: Final = Table(b"t", EpochRecord)  # number_key
PAGES: Final = Table(b"l", Page)  # number_key of the node, then what inventory.py says
SPENT_EVIDENCE: Final = Table(b"x", NumberOf)  # hash of what was punished already -> epoch

TABLES: Final[tuple[Table[Any], ...]] = (
    CHAIN, PARAMS, ACCOUNTS, OPERATORS, NODES, STANDINGS, NUMBERS, CONTRACTS, RESERVATIONS, SEGMENTS, ENDOWMENTS, DEPOSITS,
    PAID, EPOCHS, PAGES, SPENT_EVIDENCE,
)  # fmt: skip
BY_PREFIX: Final[dict[bytes, Table[Any]]] = {table.prefix: table for table in TABLES}
Identify = Callable[[bytes], bytes]


def contract_id(publisher: bytes, class_name: str) -> bytes:
    return tagged_hash(b"dds/contract/v1", publisher, class_name.encode())


def reservation_id(contract: bytes, counter: int) -> bytes:
    """Also what receipts name as their contract, so that a receipt holds for one reservation only."""
    return tagged_hash(b"dds/reservation/v1", contract, counter.to_bytes(8, "big"))


def receipt_contract(reservation: bytes, draw: int) -> bytes:
    """What a receipt for an assignment of that draw names as its contract: an old receipt does not serve a node drawn again."""
    return reservation if draw == 0 else tagged_hash(b"dds/redraw/v1", reservation, draw.to_bytes(8, "big"))

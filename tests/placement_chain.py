"""A ledger's blocks made in memory: a genesis, transactions, and what an honest host would say of each block.

chain = Chain()
reservation = chain.reserve()
segment = chain.register(reservation, chosen)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dds.apps.cli.ledger import block_line
from dds.apps.cli.ledger_replay import Copy
from dds.ledger import rent
from dds.ledger.genesis import GENESIS_VERSION, Genesis, GenesisAccount, GenesisNode, GenesisOperator
from dds.ledger.params import Params
from dds.ledger.records import RESERVATIONS, SEGMENTS, Reservation, Segment, contract_id, receipt_contract, reservation_id
from dds.primitives.hashing import sha256
from dds.primitives.keys import SigningKey
from dds.primitives.money import TOKEN
from dds.wire.codec import encode
from dds.wire.ledger import (
    AddReceipts,
    AnyBody,
    Loss,
    OpenContract,
    Redraw,
    RegisterSegments,
    ReportLoss,
    Reserve,
    SegmentEntry,
    StripeRun,
    sign_tx,
    stripes_hash,
)
from dds.wire.ledger_api import BlockReply
from dds.wire.receipts import RECEIPT_VERSION, Receipt, sign_receipt

NETWORK = "placement"
EPOCH_MS = 3_600_000
CREATOR = SigningKey(b"\x31" * 32)
OPERATORS = [SigningKey(bytes([0x50 + number]) * 32) for number in range(9)]
NODES = [SigningKey(bytes([0x70 + number]) * 32) for number in range(18)]
STRIPES = [StripeRun(1, 3, 3, 1 << 16)]  # one stripe of six fragments
SIZE = 1 << 16
CONTRACT = contract_id(CREATOR.public, "custom")


def genesis() -> Genesis:
    """Eighteen storage nodes of nine operators in three regions; the last two ask too much and have no room."""
    nodes = tuple(
        GenesisNode(
            node_id=key.public,
            operator=OPERATORS[number // 2].public,
            payout=OPERATORS[number // 2].public,
            roles=("ssn",),
            region=f"region-{number % 3}",
            subnet=f"net-{number}",
            capacity_bytes=0 if number == 17 else 1 << 40,
            ask_price=10**6 if number == 16 else 1_000,
            term_epochs_max=8766,
            pool=50 * TOKEN,
        )
        for number, key in enumerate(NODES)
    )
    return Genesis(
        GENESIS_VERSION,
        NETWORK,
        Params(epoch_ms=EPOCH_MS),
        (GenesisAccount(CREATOR.public, 100 * TOKEN),),
        tuple(GenesisOperator(key.public, 200 * TOKEN, ()) for key in OPERATORS),
        nodes,
    )


class Chain:
    """Blocks of one transaction each."""

    def __init__(self) -> None:
        self.copy = Copy(genesis())
        self.blocks: list[BlockReply] = []
        self._nonces: dict[bytes, int] = {}
        self.now_ms = 0
        self.send(CREATOR, OpenContract("custom", 3, 3, 100, 10**4, TOKEN))

    def send(self, key: SigningKey, body: AnyBody, code: str = "") -> None:
        """One more block. `code`: the refusal that is expected."""
        nonce = self._nonces.get(key.public, 0)
        self._nonces[key.public] = nonce + 1
        raw = sign_tx(key, NETWORK, nonce, body)
        height = len(self.blocks) + 1
        self.copy.apply(BlockReply(height, self.now_ms, bytes(32), (raw,), (code,)))
        said, self.copy.problems[:] = list(self.copy.problems), []
        assert len(said) == 1 and "the root is" in said[0], said  # nothing but the root, which is only known now
        self.blocks.append(BlockReply(height, self.now_ms, self.copy.tree.root, (raw,), (code,)))

    def reserve(self, count: int = 1) -> list[bytes]:
        first = len(self.reservations())
        self.send(CREATOR, Reserve(CONTRACT, count, 6, 3, SIZE))
        return [reservation_id(CONTRACT, first + at) for at in range(count)]

    def reservations(self) -> list[bytes]:
        made: list[bytes] = []
        while self.copy.state.find(RESERVATIONS, reservation_id(CONTRACT, len(made))) is not None:
            made.append(reservation_id(CONTRACT, len(made)))
        return made

    def reservation(self, identifier: bytes) -> Reservation:
        found = self.copy.state.find(RESERVATIONS, identifier)
        assert found is not None
        return found

    def segment(self, name: bytes = b"one") -> Segment:
        found = self.copy.state.find(SEGMENTS, sha256(name))
        assert found is not None
        return found

    def receipt(self, index: int, number: int, reservation: bytes, draw: int = 0, name: bytes = b"one") -> bytes:
        due = receipt_contract(reservation, draw) + stripes_hash(STRIPES)
        size, leaves = rent.stripes_bytes(STRIPES, index), rent.leaf_count(STRIPES, index)
        receipt = Receipt(
            RECEIPT_VERSION, NETWORK, due, sha256(name), sha256(b"root"), index, NODES[number].public, size, leaves, 0
        )
        return sign_receipt(NODES[number], receipt)

    def register(self, reservation: bytes, holders: Sequence[int], name: bytes = b"one") -> bytes:
        """The segment's id; index i is held by node holders[i]."""
        receipts = [self.receipt(index, number, reservation, name=name) for index, number in enumerate(holders)]
        entry = SegmentEntry(reservation, sha256(name), sha256(b"root"), sha256(b"record"), STRIPES, receipts)
        self.send(CREATOR, RegisterSegments([entry]))
        return sha256(name)

    def lose(self, index: int, name: bytes = b"one") -> None:
        """The holder reports it lost, and another is drawn and takes it."""
        held = self.segment(name).assignments[index].node
        self.now_ms += EPOCH_MS
        self.send(NODES[held], ReportLoss([Loss(sha256(name), index)]))
        self.send(CREATOR, Redraw(sha256(name), [index]))
        segment = self.segment(name)
        new = segment.assignments[index].node
        self.send(CREATOR, AddReceipts(sha256(name), [self.receipt(index, new, segment.reservation, segment.redraws, name)]))

    def write(self, path: Path) -> Path:
        """As `dds ledger export` writes it."""
        lines = [block_line(block, encode(genesis()) if block.height == 1 else b"") for block in self.blocks]
        path.write_text("".join(line + "\n" for line in lines))
        return path

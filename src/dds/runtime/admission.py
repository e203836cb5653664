"""What a paid node stores: shares that the ledger's draw gave it, and nothing else.

A commit carries a ticket: the ledger's entries of its reservation and of the contract that pays, with the proofs that lead to a
head that the ledger's host has signed. So the node asks nobody while it is written to. Decides whether a ticket holds for this
node, this writer, this size and this moment. Does not decide who is drawn (the ledger does) nor whether a receipt is accepted
there.

Anybody can have the ledger prove anybody's reservation, so a ticket serves the contract's publisher alone. One of a reservation
that was used or cancelled since still holds until its head is too old: TICKET_MS_MAX bounds what that can cost, and a
reservation serves one share of one segment here. Source: docs/spec/wire.md, "Tickets".
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from dds.ledger.records import CONTRACTS, NUMBERS, RESERVATIONS, Reservation, Table, V
from dds.ledger.tree import verify_proof
from dds.primitives.errors import DDSError, FormatError, PaymentRequired, UnavailableError
from dds.primitives.hashing import sha256
from dds.primitives.ids import ID_BYTES, NodeID
from dds.runtime.ledger_client import LedgerClient
from dds.runtime.node_routes import TICKET_BYTES_MAX
from dds.wire.api import CommitRequest
from dds.wire.codec import decode
from dds.wire.ledger_api import EntriesReply, Head, ProvenEntry, open_head

TICKET_MS_MAX: Final = 10 * 60_000  # age of its head
RESERVATIONS_REMEMBERED_MAX: Final = 4096


class Admission:
    """One node's door. `commit` is asked in the event loop before the store is."""

    def __init__(self, ledger: LedgerClient, node_id: NodeID, now_ms: Callable[[], int]) -> None:
        self._ledger, self._node_id, self._now_ms = ledger, node_id, now_ms
        self._number: int | None = None
        self._asking = asyncio.Lock()
        self._used: OrderedDict[bytes, bytes] = OrderedDict()  # reservation -> hash of the share that it was used for

    async def check(self, writer: NodeID, commit: CommitRequest, ticket: bytes) -> int:
        """Let `writer` commit under the reservation that `commit.contract` begins with. The same commit again passes again.

        Returns:
            the most bytes that it may make permanent.

        Raises:
            PaymentRequired: no ticket, or one that does not hold; the message says why.
            UnavailableError: this node cannot reach its ledger, which it asks once for its number.
        """
        identifier = commit.contract[:ID_BYTES]
        head, reservation = self._open(identifier, ticket, writer)
        number = await self._own_number()
        if number not in reservation.chosen and number not in reservation.spares:
            raise PaymentRequired("this node was not drawn for the reservation")
        if head.epoch >= reservation.expires_epoch:
            raise PaymentRequired("the reservation has expired", hint="make a new one")
        share = sha256(commit.index.to_bytes(8, "big", signed=True) + commit.encoding)
        if self._used.setdefault(identifier, share) != share:
            raise PaymentRequired("the reservation has served another share here")
        while len(self._used) > RESERVATIONS_REMEMBERED_MAX:
            self._used.popitem(last=False)
        return reservation.fragment_bytes_max

    def _open(self, identifier: bytes, ticket: bytes, writer: NodeID) -> tuple[Head, Reservation]:
        if not ticket:
            raise PaymentRequired("this node is paid by the ledger: a commit needs a reservation's ticket")
        try:
            reply = decode(ticket, EntriesReply, max_bytes=TICKET_BYTES_MAX)
            head, signer = open_head(reply.head, self._ledger.network)
            if signer != self._ledger.host:
                raise PaymentRequired("the ticket is not signed by this node's ledger")
            reserved, paying = reply.entries
            reservation = _proven(reserved, RESERVATIONS, identifier, head)
            contract = _proven(paying, CONTRACTS, reservation.contract, head)
        except (FormatError, ValueError, msgspec.MsgspecError) as error:
            raise PaymentRequired(f"the ticket does not hold: {error}") from None
        if contract.publisher != writer:
            raise PaymentRequired("the reservation is another publisher's", hint="write with the key that pays")
        if abs(self._now_ms() - head.time_ms) > TICKET_MS_MAX:
            raise PaymentRequired("the ticket is too old", hint="ask the ledger for it again; are both clocks right?")
        return head, reservation

    async def _own_number(self) -> int:
        async with self._asking:
            if self._number is None:
                try:
                    found = await self._ledger.find(NUMBERS, self._node_id)
                except DDSError as error:
                    raise UnavailableError(f"this node cannot reach its ledger: {error.message}") from None
                if found is None:
                    raise PaymentRequired("this node is not registered on the ledger", hint="dds stake register")
                self._number = found.number
            return self._number


def _proven(entry: ProvenEntry, table: Table[V], identifier: bytes, head: Head) -> V:
    if entry.value is None or not verify_proof(entry.proof, table.key(identifier), entry.value, head.root):
        raise PaymentRequired(f"the ticket does not prove the {table.kind.__name__.lower()}")
    return msgspec.msgpack.decode(entry.value, type=table.kind)

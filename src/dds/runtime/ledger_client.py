"""A ledger seen from outside: transactions go in, proven entries and events come out.

Decides what is asked again and what is believed; nonces are ledger_sender.py's. An entry is believed when its proof leads to a
head that the pinned host has signed, of the pinned genesis, and no older than what this client has seen. Events and outcomes
are the host's word: whoever doubts it replays the blocks. Sending the same transaction again is safe: a nonce counts once, and
the host remembers. A program has one of these for each ledger, so that what its parts submit with one key shares requests and
nonces; another program that uses the key at the same time costs both of them a few attempts.

    async with open_ledger("NODEID@127.0.0.1:4100", network="devnet") as ledger:
        done = await ledger.submit(key, Transfer(to, amount))
        account = await ledger.find(ACCOUNTS, to)

Source: docs/spec/ledger.md, "Transactions" and "App hash and proofs".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, TypeVar, cast

from dds.ledger.events import Event
from dds.ledger.genesis import GENESIS_BYTES_MAX, Genesis
from dds.ledger.records import ACCOUNTS, Table, V
from dds.ledger.tree import verify_proof
from dds.primitives.errors import (
    FormatError,
    LedgerRefused,
    PeerProtocolError,
    PeerRefused,
    PeerTimeout,
    PeerUnreachable,
    RemoteError,
)
from dds.primitives.hashing import sha256
from dds.primitives.ids import NodeID, id_text
from dds.primitives.keys import SigningKey
from dds.primitives.units import KIB
from dds.runtime.ledger_sender import AccountSender
from dds.storage.home import parse_node_address
from dds.transport.client import PeerClient
from dds.wire.codec import Message, decode, encode
from dds.wire.ledger import AnyBody
from dds.wire.ledger_api import (
    BLOCK_REPLY_BYTES_MAX,
    ENTRIES_PER_QUERY_MAX,
    ENTRIES_REPLY_BYTES_MAX,
    EVENTS_PER_QUERY_MAX,
    EVENTS_REPLY_BYTES_MAX,
    HEAD_BYTES_MAX,
    SUBMIT_REPLY_BYTES_MAX,
    SUBMIT_TXS_MAX,
    BlockReply,
    EntriesReply,
    EntriesRequest,
    EventsReply,
    EventsRequest,
    Head,
    SubmitReply,
    SubmitRequest,
    TxOutcome,
    genesis_hash,
    open_head,
)

READ_TIMEOUT_S: Final = 15.0
SUBMIT_TIMEOUT_S: Final = 45.0
BULK_TIMEOUT_S: Final = 120.0  # a block, the genesis
SEND_ATTEMPTS_MAX: Final = 4
SEND_PAUSE_S: Final = 0.25  # before the second attempt; doubled each time
SENDERS_MAX: Final = 4096  # keys whose next nonce is remembered
AWAY_HINT: Final = "does its host run? Reading content needs no ledger"
BUSY_STATUSES: Final = (429, 503, 504)

Reply = TypeVar("Reply", bound=Message)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TxDone:
    """A transaction that did what it says. `events`: what it did; `whole` is False where the host left some out."""

    tx_id: bytes
    height: int
    events: tuple[Event, ...]
    whole: bool = True


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """`seq` is the cursor to go on from; `tx_id` is empty for an epoch's change."""

    seq: int
    height: int
    tx_id: bytes
    tx_name: str
    event: Event


@asynccontextmanager
async def open_ledger(address: str, *, network: str, key: SigningKey | None = None) -> AsyncIterator[LedgerClient]:
    """A client of the ledger whose host is `address`, "NODEID@host:port". `key` is only for TLS; anonymous where it is None.

    Raises:
        InputError: not an address.
    """
    async with PeerClient(key, network=network) as peers:
        yield ledger_at(address, peers, network)


def ledger_at(address: str, peers: PeerClient, network: str) -> LedgerClient:
    """The ledger whose host is "NODEID@host:port", over the connections of `peers`.

    Raises:
        InputError: not an address.
    """
    node_id, host, port = parse_node_address(address)
    peers.learn(node_id, [(host, port)])
    return LedgerClient(peers, node_id, network=network)


class LedgerClient:
    """One ledger at one pinned host. Methods raise RemoteError where the host cannot be had or does not keep to the rules."""

    def __init__(self, peers: PeerClient, host: NodeID, *, network: str, genesis: bytes | None = None) -> None:
        """`genesis`: the genesis hash to insist on; else that of the first head that is seen."""
        self.host, self.network = host, network
        self._peers, self._genesis = peers, genesis
        self._seen: Head | None = None  # the newest
        self._believed: tuple[bytes, Head] | None = None  # the last head that was verified, as it came
        self._height = 0  # no head that is asked for from now on may be older
        self._senders: dict[bytes, AccountSender] = {}

    # ---- transactions

    async def submit(self, key: SigningKey, body: AnyBody) -> TxDone:
        """Send one transaction; returns when it is final and durable.

        Raises:
            LedgerRefused: the rules say no; `refusal` is their code.
        """
        (outcome,) = await self.submit_many(key, [body])
        if isinstance(outcome, LedgerRefused):
            raise outcome
        return outcome

    async def submit_many(self, key: SigningKey, bodies: Sequence[AnyBody]) -> list[TxDone | LedgerRefused]:
        """Send transactions in this order; a refused one does not hold up those behind it. Each is done once at most."""
        done: list[TxDone | LedgerRefused] = []
        sender = self._sender_of(key)
        for start in range(0, len(bodies), SUBMIT_TXS_MAX):
            done += [self._outcome(raw, outcome) for raw, outcome in await sender.send(bodies[start : start + SUBMIT_TXS_MAX])]
        return done

    def _sender_of(self, key: SigningKey) -> AccountSender:
        account = key.public
        if account not in self._senders:
            if len(self._senders) >= SENDERS_MAX:
                idle = next((known for known, sender in self._senders.items() if sender.is_idle), None)
                if idle is not None:
                    del self._senders[idle]
            self._senders[account] = AccountSender(key, self.network, self._next_nonce, self._send)
        return self._senders[account]

    async def _next_nonce(self, account: bytes) -> int:
        found = await self.find(ACCOUNTS, account)
        return found.nonce if found is not None else 0

    async def _send(self, raws: Sequence[bytes]) -> list[TxOutcome]:
        tries = count()

        async def ask() -> SubmitReply:
            request = SubmitRequest(list(raws), again=next(tries) > 0)
            return await self._call("/v1/ledger/txs", request, SubmitReply, SUBMIT_REPLY_BYTES_MAX, SUBMIT_TIMEOUT_S)

        reply = await _patiently(ask)
        if len(reply.outcomes) != len(raws):
            raise self._broken(f"{len(raws)} transactions have {len(reply.outcomes)} outcomes")
        self._height = max(self._height, *(outcome.height for outcome in reply.outcomes))
        return reply.outcomes

    def _outcome(self, raw: bytes, outcome: TxOutcome) -> TxDone | LedgerRefused:
        if outcome.code:
            return LedgerRefused(outcome.code, outcome.message)
        events = tuple(self._parse(event, Event) for event in outcome.events)
        return TxDone(sha256(raw), outcome.height, events, outcome.whole)

    # ---- entries

    async def find(self, table: Table[V], identifier: bytes = b"") -> V | None:
        """An entry, proven to be there, or None, proven to be absent."""
        (found,) = await self.find_many([(table, identifier)])
        return cast("V | None", found)

    async def find_many(self, wanted: Sequence[tuple[Table[Any], bytes]]) -> list[Any]:
        """Entries in the order asked. Those of one answer are as of one head; long lists take several answers."""
        found: list[Any] = []
        while len(found) < len(wanted):
            part = wanted[len(found) : len(found) + ENTRIES_PER_QUERY_MAX]
            found += await self._find(part)
        return found

    async def _find(self, wanted: Sequence[tuple[Table[Any], bytes]]) -> list[Any]:
        keys = [table.key(identifier) for table, identifier in wanted]
        oldest = self._height
        request = EntriesRequest(keys)
        reply = await _patiently(
            lambda: self._call("/v1/ledger/entries", request, EntriesReply, ENTRIES_REPLY_BYTES_MAX, READ_TIMEOUT_S)
        )
        return self._checked(reply, wanted, oldest)

    def _checked(self, reply: EntriesReply, wanted: Sequence[tuple[Table[Any], bytes]], oldest: int) -> list[Any]:
        keys = [table.key(identifier) for table, identifier in wanted]
        head = self._believe(reply.head, oldest)
        if not 0 < len(reply.entries) <= len(keys):
            raise self._broken(f"{len(keys)} keys have {len(reply.entries)} entries")
        values: list[Any] = []
        for (table, _), key, entry in zip(wanted, keys, reply.entries, strict=False):
            if not verify_proof(entry.proof, key, entry.value, head.root):
                raise self._broken(f"the proof of entry {key.hex()[:16]} does not hold at height {head.height}")
            values.append(None if entry.value is None else self._parse(entry.value, table.kind))
        return values

    async def proven(self, wanted: Sequence[tuple[Table[Any], bytes]]) -> tuple[list[Any], bytes]:
        """A few entries under one head, and an EntriesReply's bytes that prove them to whoever trusts the same host."""
        keys = [table.key(identifier) for table, identifier in wanted]
        oldest = self._height
        request = EntriesRequest(keys)
        reply = await _patiently(
            lambda: self._call("/v1/ledger/entries", request, EntriesReply, ENTRIES_REPLY_BYTES_MAX, READ_TIMEOUT_S)
        )
        values = self._checked(reply, wanted, oldest)
        if len(values) < len(keys):
            raise self._broken(f"{len(values)} of {len(keys)} entries")
        return values, encode(reply)

    # ---- the rest

    async def head(self) -> Head:
        """The last durable block, as its host signed it."""
        oldest = self._height
        raw = await _patiently(lambda: self._get("/v1/ledger/head", HEAD_BYTES_MAX + KIB, READ_TIMEOUT_S))
        return self._believe(raw, oldest)

    async def events(
        self,
        *,
        account: bytes | None = None,
        node: int | None = None,
        contract: bytes | None = None,
        segment: bytes | None = None,
        tx_id: bytes | None = None,
        after: int = 0,
        limit: int = EVENTS_PER_QUERY_MAX,
    ) -> list[LedgerEvent]:
        """Events that fit every filter given, behind the cursor `after`, oldest first, at most `limit` and at most a page.

        Fewer than `limit` need not mean the end; an empty list does.
        """
        request = EventsRequest(account, node, contract, segment, tx_id, after, min(limit, EVENTS_PER_QUERY_MAX))
        reply = await _patiently(
            lambda: self._call("/v1/ledger/events", request, EventsReply, EVENTS_REPLY_BYTES_MAX + KIB, READ_TIMEOUT_S)
        )
        rows = reply.events
        if any(row.seq <= before for before, row in zip((after, *(row.seq for row in rows)), rows, strict=False)):
            raise self._broken("events that are out of order")
        return [LedgerEvent(row.seq, row.height, row.tx_id, row.tx_name, self._parse(row.event, Event)) for row in rows]

    async def all_events(self, **filters: Any) -> AsyncIterator[LedgerEvent]:
        """As `events`, page after page to the end."""
        after = filters.pop("after", 0)
        while page := await self.events(after=after, **filters):
            for event in page:
                yield event
            after = page[-1].seq

    async def block(self, height: int) -> BlockReply:
        """One block as it is kept, for whoever replays the ledger.

        Raises:
            PeerRefused: there is no such block (404).
        """
        raw = await _patiently(lambda: self._get(f"/v1/ledger/blocks/{height}", BLOCK_REPLY_BYTES_MAX, BULK_TIMEOUT_S))
        return self._parse(raw, BlockReply, BLOCK_REPLY_BYTES_MAX)

    async def genesis(self) -> Genesis:
        """What the ledger began with; its hash is that of the heads."""
        await self.head()
        raw = await _patiently(lambda: self._get("/v1/ledger/genesis", GENESIS_BYTES_MAX, BULK_TIMEOUT_S))
        if genesis_hash(raw) != self._genesis:
            raise self._broken("a genesis that is not the one of its heads")
        return self._parse(raw, Genesis, GENESIS_BYTES_MAX)

    # ---- believing

    def _believe(self, raw: bytes, oldest: int) -> Head:
        """A head that the pinned host has signed, of this ledger, not older than `oldest`."""
        head = self._believed[1] if self._believed is not None and self._believed[0] == raw else self._opened(raw)
        if self._genesis is None:
            self._genesis = head.genesis_hash
        if head.genesis_hash != self._genesis:
            raise self._broken("another ledger's head: its genesis differs")
        seen = self._seen
        if head.height < oldest or (seen is not None and seen.height == head.height and seen.root != head.root):
            raise self._broken(f"a ledger that went back: height {head.height} after {oldest}")
        if seen is None or head.height > seen.height:
            self._seen, self._height = head, max(self._height, head.height)
        return head

    def _opened(self, raw: bytes) -> Head:
        try:
            head, signer = open_head(raw, self.network)
        except FormatError as error:
            raise self._broken(f"a head that does not hold: {error.message}") from None
        if signer != self.host:
            raise self._broken("a head that another key signed")
        self._believed = raw, head
        return head

    def _broken(self, problem: str) -> PeerProtocolError:
        return PeerProtocolError(f"the ledger's host sent {problem}", peer=id_text(self.host))

    def _parse(self, raw: bytes, kind: type[T], max_bytes: int = ENTRIES_REPLY_BYTES_MAX) -> T:
        try:
            return decode(raw, kind, max_bytes=max_bytes)
        except FormatError as error:
            raise self._broken(error.message) from None

    # ---- asking

    async def _call(self, path: str, message: Message, kind: type[Reply], max_bytes: int, timeout_s: float) -> Reply:
        return await self._peers.call(self.host, path, message, kind, max_bytes=max_bytes, timeout_s=timeout_s)

    async def _get(self, path: str, max_bytes: int, timeout_s: float) -> bytes:
        return await self._peers.get(self.host, path, max_bytes=max_bytes, timeout_s=timeout_s)


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again where the host was busy or away for a moment. Whatever is asked here may be asked twice."""
    pause_s = SEND_PAUSE_S
    for _ in range(SEND_ATTEMPTS_MAX - 1):
        try:
            return await ask()
        except (PeerUnreachable, PeerTimeout, PeerRefused) as error:
            if not _passes(error):
                raise
        await asyncio.sleep(pause_s)
        pause_s *= 2
    try:
        return await ask()
    except (PeerUnreachable, PeerTimeout) as error:
        raise type(error)(f"the ledger {error.message}", peer=error.peer, hint=AWAY_HINT) from None


def _passes(error: RemoteError) -> bool:
    return not isinstance(error, PeerRefused) or error.status in BUSY_STATUSES

"""What a ledger's host and its clients say to each other (docs/spec/ledger.md, "App hash and proofs" and "Blocks").

    POST /v1/ledger/txs               SubmitRequest -> SubmitReply, when every transaction in it is final and durable
    GET  /v1/ledger/head              a signed Head
    POST /v1/ledger/entries           EntriesRequest -> EntriesReply: values, proofs, the signed head that they belong to
    POST /v1/ledger/events            EventsRequest -> EventsReply
    GET  /v1/ledger/blocks/{height}   BlockReply
    GET  /v1/ledger/genesis           the genesis' canonical bytes

A head is signed by its host's key under HEAD_TAG. Who trusts that key may take an entry from anybody who has the proof. Events
travel as their canonical bytes: this room knows no event.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from dds.primitives.errors import UnsupportedVersion
from dds.primitives.hashing import tagged_hash
from dds.primitives.keys import SigningKey
from dds.primitives.money import AMOUNT_MAX
from dds.primitives.units import KIB, MIB
from dds.wire.codec import Message, decode, encode
from dds.wire.ledger import ID, NodeNumber
from dds.wire.signed import open_signed, sign

HEAD_VERSION: Final = 1
HEAD_TAG: Final = b"dds/ledger-head/v1"
HEAD_BYTES_MAX: Final = 1 * KIB

SUBMIT_TXS_MAX: Final = 512  # in one request
SUBMIT_BYTES_MAX: Final = 4 * MIB  # of one request
SUBMIT_REPLY_BYTES_MAX: Final = 8 * MIB
MESSAGE_CHARS_MAX: Final = 512  # of a refusal

BUCKET_COUNT: Final = 1 << 16
PROOF_DEPTH: Final = 16
KEY_BYTES_MAX: Final = 128  # of an entry
BUCKET_ENTRIES_MAX: Final = 16_384  # in one proof
ENTRIES_PER_QUERY_MAX: Final = 64
ENTRIES_REQUEST_BYTES_MAX: Final = ENTRIES_PER_QUERY_MAX * (KEY_BYTES_MAX + 3) + KIB
ENTRIES_REPLY_BYTES_MAX: Final = 8 * MIB

EVENTS_PER_QUERY_MAX: Final = 1000
EVENTS_REQUEST_BYTES_MAX: Final = 1 * KIB
EVENTS_REPLY_BYTES_MAX: Final = 2 * MIB
BLOCK_TXS_MAX: Final = 500  # that a sequencer of ours puts into one block
BLOCK_BYTES_MAX: Final = 4 * MIB  # their bytes together
BLOCK_REPLY_BYTES_MAX: Final = 16 * MIB

EntryKey = Annotated[bytes, Meta(min_length=1, max_length=KEY_BYTES_MAX)]
Number = Annotated[int, Meta(ge=0, le=AMOUNT_MAX)]
Text = Annotated[str, Meta(max_length=MESSAGE_CHARS_MAX)]
Name = Annotated[str, Meta(max_length=64)]


class Head(Message, frozen=True):
    """The ledger as of one height. `epoch` is the one that `time_ms` lies in."""

    version: int
    network: Annotated[str, Meta(min_length=1, max_length=64)]
    genesis_hash: ID
    engine: Name
    height: Number
    time_ms: Number  # of the last block: never runs back
    epoch: Number
    epoch_ms: Number
    genesis_ms: Number  # epoch e begins at genesis_ms + e * epoch_ms
    root: ID


class Listed(Message, frozen=True):
    """One entry of a bucket, as its hash sees it."""

    key: EntryKey
    value_hash: ID


class Proof(Message, frozen=True):
    """All entries of the key's bucket, ascending by key, and the siblings from the bucket's leaf up to the root."""

    entries: Annotated[tuple[Listed, ...], Meta(max_length=BUCKET_ENTRIES_MAX)]
    siblings: Annotated[tuple[ID, ...], Meta(min_length=PROOF_DEPTH, max_length=PROOF_DEPTH)]


class SubmitRequest(Message, frozen=True):
    """`again`: the sender lost an answer and may have sent these before; those that were done are answered as they were."""

    txs: Annotated[list[bytes], Meta(min_length=1, max_length=SUBMIT_TXS_MAX)]
    again: bool = False


class TxOutcome(Message, frozen=True):
    """`code` is empty where the transaction did what it says. `height` 0: it is in no block. `whole`: no event was left out
    for want of room; all of them are to be had by the transaction's id."""

    height: Number
    code: Name
    message: Text
    events: tuple[bytes, ...]
    whole: bool = True


class SubmitReply(Message, frozen=True):
    outcomes: list[TxOutcome]  # in the order asked


class EntriesRequest(Message, frozen=True):
    keys: Annotated[list[EntryKey], Meta(min_length=1, max_length=ENTRIES_PER_QUERY_MAX)]


class ProvenEntry(Message, frozen=True):
    value: bytes | None
    proof: Proof


class EntriesReply(Message, frozen=True):
    """May answer fewer keys than were asked, the first ones, where all would be too large; at least one."""

    head: bytes  # signed
    entries: list[ProvenEntry]


class EventsRequest(Message, frozen=True):
    """What is None does not filter; the rest must all hold. Events behind `after`, oldest first."""

    account: ID | None = None
    node: NodeNumber | None = None
    contract: ID | None = None
    segment: ID | None = None
    tx_id: ID | None = None
    after: Number = 0
    limit: Annotated[int, Meta(ge=1, le=EVENTS_PER_QUERY_MAX)] = EVENTS_PER_QUERY_MAX


class EventRow(Message, frozen=True):
    seq: Number  # counts all events of this ledger from 1: the cursor
    height: Number
    tx_id: Annotated[bytes, Meta(max_length=32)]  # empty: an epoch's change
    tx_name: Name
    event: bytes


class EventsReply(Message, frozen=True):
    """`more`: there are, or may be, events behind the last of these."""

    events: list[EventRow]
    more: bool


class BlockReply(Message, frozen=True):
    height: Number
    time_ms: Number
    root: ID  # after it
    txs: tuple[bytes, ...]
    codes: tuple[str, ...]  # of each transaction; empty: done


def genesis_hash(raw: bytes) -> bytes:
    """Names a chain; `raw` is its genesis' canonical bytes."""
    return tagged_hash(b"dds/genesis/v1", raw)


def sign_head(key: SigningKey, head: Head) -> bytes:
    return sign(key, HEAD_TAG, head.network, encode(head))


def open_head(raw: bytes, network: str) -> tuple[Head, bytes]:
    """A signed head and the key that vouches for it.

    Raises:
        FormatError, IntegrityError, UnsupportedVersion
    """
    envelope = open_signed(raw, HEAD_TAG, network, max_bytes=HEAD_BYTES_MAX)
    head = decode(envelope.payload, Head, max_bytes=HEAD_BYTES_MAX)
    if head.version != HEAD_VERSION:
        raise UnsupportedVersion(f"ledger head version {head.version} is not known", hint="upgrade dds")
    return head, envelope.key

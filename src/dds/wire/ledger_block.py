"""A block as one ledger host proposes it to a shared log (docs/operate/ledger-nats.md).

    block      Signed[payload, key, signature] under b"dds/block/v1" and the network's name; the key is the sequencer's
    payload    [version, height, time_ms, parent, [raw transaction, ...]]

`parent` is the application hash that the proposer had before the block: whoever has another one has another state, and must
stop instead of going on beside it. Only the one canonical spelling is accepted.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from dds.primitives.errors import FormatError, UnsupportedVersion
from dds.primitives.keys import SigningKey
from dds.primitives.units import KIB
from dds.wire.codec import Message, decode, encode
from dds.wire.ledger import ID, TX_BYTES_MAX
from dds.wire.ledger_api import BLOCK_TXS_MAX
from dds.wire.signed import ENVELOPE_BYTES_MAX, open_signed, sign

BLOCK_VERSION: Final = 1
BLOCK_TAG: Final = b"dds/block/v1"
ENTRY_TX_BYTES_MAX: Final = 960 * KIB  # of all raw transactions together
ENTRY_BYTES_MAX: Final = 1_000 * KIB  # as it is sent: below the 1 MiB that a NATS server takes by default, headers and all
_TX_HEADER_BYTES: Final = 5  # msgpack's longest for a byte string
_HEAD_BYTES_MAX: Final = 128  # array headers, version, height, time, parent

assert ENTRY_TX_BYTES_MAX + BLOCK_TXS_MAX * _TX_HEADER_BYTES + _HEAD_BYTES_MAX + ENVELOPE_BYTES_MAX <= ENTRY_BYTES_MAX

RawTx = Annotated[bytes, Meta(max_length=TX_BYTES_MAX)]


class Block(Message, frozen=True):
    version: int
    height: Annotated[int, Meta(ge=1, le=1 << 60)]
    time_ms: Annotated[int, Meta(ge=0, le=1 << 60)]  # since 1970
    parent: ID  # the application hash before this block
    txs: Annotated[list[RawTx], Meta(max_length=BLOCK_TXS_MAX)]


def sign_block(key: SigningKey, network: str, height: int, time_ms: int, parent: bytes, txs: list[bytes]) -> bytes:
    """The signed block's bytes; the caller keeps the limits."""
    return sign(key, BLOCK_TAG, network, encode(Block(BLOCK_VERSION, height, time_ms, parent, txs)))


def open_block(raw: bytes, network: str) -> tuple[bytes, Block]:
    """The key that signed it, and the block.

    Raises:
        FormatError: malformed, too large, not canonical.
        IntegrityError: the signature does not hold on this network.
        UnsupportedVersion
    """
    envelope = open_signed(raw, BLOCK_TAG, network, max_bytes=ENTRY_BYTES_MAX)
    block = decode(envelope.payload, Block, max_bytes=ENTRY_BYTES_MAX)
    if block.version != BLOCK_VERSION:
        raise UnsupportedVersion(f"block version {block.version} is not known", hint="upgrade dds")
    if encode(block) != envelope.payload or encode(envelope) != raw:
        raise FormatError("a block that is not in its canonical form")
    return envelope.key, block


def block_room(txs: list[bytes]) -> int:
    """How many of these, from the first on, fit into one block; at least one of any that is no larger than allowed."""
    size = 0
    for count, raw in enumerate(txs[:BLOCK_TXS_MAX]):
        size += len(raw)
        if size > ENTRY_TX_BYTES_MAX:
            return count
    return min(len(txs), BLOCK_TXS_MAX)

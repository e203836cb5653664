"""Receipts: a node's signed word that it holds its share of a segment durably (docs/spec/wire.md)."""

from __future__ import annotations

from dds.primitives.errors import FormatError, IntegrityError, UnsupportedVersion
from dds.primitives.ids import ID_BYTES
from dds.primitives.keys import SigningKey
from dds.wire.codec import Message, decode, encode
from dds.wire.signed import open_signed, sign

RECEIPT_VERSION = 1
RECEIPT_TAG = b"dds/receipt/v1"
RECEIPT_BYTES_MAX = 512
CONTRACT_BYTES_MAX = 64


class Receipt(Message, frozen=True):
    """Given only after every byte named here is durable (fsync of data and directory)."""

    version: int
    network: str
    contract: bytes  # empty where nothing is paid
    segment_id: bytes
    segment_root: bytes
    index: int  # fragment index held in every stripe that has it
    node_id: bytes
    fragment_bytes: int  # sum over stripes
    leaf_count: int  # sum over stripes
    expires_ms: int  # 0: kept until released


def sign_receipt(key: SigningKey, receipt: Receipt) -> bytes:
    assert key.public == receipt.node_id
    return sign(key, RECEIPT_TAG, receipt.network, encode(receipt))


def open_receipt(raw: bytes, network: str) -> Receipt:
    """Parse and check a receipt, its NodeID against its signer.

    Raises:
        FormatError, IntegrityError, UnsupportedVersion.
    """
    envelope = open_signed(raw, RECEIPT_TAG, network, max_bytes=RECEIPT_BYTES_MAX)
    receipt = decode(envelope.payload, Receipt, max_bytes=RECEIPT_BYTES_MAX)
    if receipt.version != RECEIPT_VERSION:
        raise UnsupportedVersion(f"receipt version {receipt.version} is not known", hint="upgrade dds")
    if receipt.network != network or receipt.node_id != envelope.key:
        raise IntegrityError("a receipt for another network or node than its signer's")
    lengths = (len(receipt.segment_id), len(receipt.segment_root))
    if lengths != (ID_BYTES, ID_BYTES) or len(receipt.contract) > CONTRACT_BYTES_MAX:
        raise FormatError("a receipt with malformed fields")
    if min(receipt.index, receipt.fragment_bytes, receipt.leaf_count, receipt.expires_ms) < 0:
        raise FormatError("a receipt with a negative number")
    return receipt

"""Audits on the wire: a node's signed answer to what an epoch's challenge asks of it (docs/spec/proofs.md, "Answers").

    POST /v1/audits    AuditMessage -> AuditReply    to a witness, by the node itself

    leaf statement   "leaf L of my fragment of stripe S of this segment, under this root, is these bytes", with both paths
    answer           Signed AuditAnswer under b"dds/audit/v1": who, which epoch and beacon, and the digests of the statements
    message          the signed answer and the statements themselves

Only digests are signed, so that one false statement can be shown with the signed answer alone, without its neighbours. Bounds
are those of a segment: 1 MiB fragments have 265 leaves (9 siblings), 64 stripes of 128 have 8,192 records (13 siblings).
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from dds.primitives.errors import IntegrityError, UnsupportedVersion
from dds.primitives.hashing import tagged_hash
from dds.primitives.keys import SigningKey
from dds.primitives.units import KIB, LEAF_BYTES, N_MAX, SLOT_BYTES_MAX, STRIPES_PER_SEGMENT_MAX
from dds.wire.codec import Message, decode, encode
from dds.wire.ledger import ID, Epoch
from dds.wire.signed import ENVELOPE_BYTES_MAX, Signed, open_signed, sign

AUDIT_VERSION: Final = 1
AUDIT_TAG: Final = b"dds/audit/v1"
FRAGMENT_LEAVES_MAX: Final = -(-SLOT_BYTES_MAX // LEAF_BYTES)
FRAGMENT_PATH_MAX: Final = (FRAGMENT_LEAVES_MAX - 1).bit_length()
RECORD_PATH_MAX: Final = (STRIPES_PER_SEGMENT_MAX * N_MAX - 1).bit_length()
STATEMENT_BYTES_MAX: Final = 5 * KIB
STATEMENTS_MAX: Final = 32  # in one message; a longer answer comes in several
ANSWER_BYTES_MAX: Final = 2 * KIB  # of the signed part
SIGNED_ANSWER_BYTES_MAX: Final = ANSWER_BYTES_MAX + ENVELOPE_BYTES_MAX
AUDIT_MESSAGE_BYTES_MAX: Final = STATEMENTS_MAX * (STATEMENT_BYTES_MAX + 3) + SIGNED_ANSWER_BYTES_MAX + 16

Network = Annotated[str, Meta(min_length=1, max_length=64)]


class LeafStatement(Message, frozen=True):
    """What a node says one leaf is. Sizes, counts and positions are not said: they follow from the ledger's entry."""

    segment_id: ID
    segment_root: ID
    index: Annotated[int, Meta(ge=0, lt=N_MAX)]
    stripe: Annotated[int, Meta(ge=0, lt=STRIPES_PER_SEGMENT_MAX)]
    leaf: Annotated[int, Meta(ge=0, lt=FRAGMENT_LEAVES_MAX)]
    data: Annotated[bytes, Meta(min_length=1, max_length=LEAF_BYTES)]  # as stored: the fragment's last leaf is not padded
    fragment_root: ID
    path: Annotated[list[ID], Meta(max_length=FRAGMENT_PATH_MAX)]  # from the leaf up to the fragment root
    record_path: Annotated[list[ID], Meta(max_length=RECORD_PATH_MAX)]  # from the fragment record up to the segment root


class AuditAnswer(Message, frozen=True):
    """What is signed. The beacon ties it to one epoch's challenge; an answer may come in several, in any order."""

    version: int
    network: Network
    epoch: Epoch
    node_id: ID
    beacon: ID
    statements: Annotated[list[ID], Meta(max_length=STATEMENTS_MAX)]  # their digests


class AuditMessage(Message, frozen=True):
    signed: Annotated[bytes, Meta(max_length=SIGNED_ANSWER_BYTES_MAX)]
    statements: Annotated[list[Annotated[bytes, Meta(max_length=STATEMENT_BYTES_MAX)]], Meta(max_length=STATEMENTS_MAX)]


class AuditReply(Message, frozen=True):
    """What the witness has of the node for this epoch now. It promises nothing about the vote."""

    asked: Annotated[int, Meta(ge=0, le=1 << 16)]
    passed: Annotated[int, Meta(ge=0, le=1 << 16)]
    wrong: Annotated[int, Meta(ge=0, le=1 << 16)]  # statements of this message that do not hold, or were not asked for


def statement_digest(raw: bytes) -> bytes:
    """What an answer signs of a statement: of its exact bytes."""
    return tagged_hash(b"dds/audit-leaf/v1", raw)


def sign_answer(key: SigningKey, network: str, epoch: int, beacon: bytes, statements: list[bytes]) -> bytes:
    """The encoded message that carries `statements`, at most STATEMENTS_MAX of them."""
    assert len(statements) <= STATEMENTS_MAX
    digests = [statement_digest(raw) for raw in statements]
    answer = AuditAnswer(AUDIT_VERSION, network, epoch, key.public, beacon, digests)
    return encode(AuditMessage(sign(key, AUDIT_TAG, network, encode(answer)), statements))


def open_answer(raw: bytes, network: str) -> AuditAnswer:
    """Parse and check a signed answer, its NodeID against its signer; says nothing about the statements.

    Raises:
        FormatError, IntegrityError, UnsupportedVersion
    """
    envelope = open_signed(raw, AUDIT_TAG, network, max_bytes=ANSWER_BYTES_MAX)
    answer = decode(envelope.payload, AuditAnswer, max_bytes=ANSWER_BYTES_MAX)
    if answer.version != AUDIT_VERSION:
        raise UnsupportedVersion(f"audit answer version {answer.version} is not known", hint="upgrade dds")
    if answer.network != network or answer.node_id != envelope.key:
        raise IntegrityError("an audit answer for another network or node than its signer's")
    return answer


def open_message(raw: bytes) -> AuditMessage:
    """
    Raises:
        FormatError
    """
    return decode(raw, AuditMessage, max_bytes=AUDIT_MESSAGE_BYTES_MAX)


def claimed_epoch(message: AuditMessage) -> int:
    """The epoch that a message says it answers; nothing of it is checked.

    Raises:
        FormatError
    """
    envelope = decode(message.signed, Signed, max_bytes=SIGNED_ANSWER_BYTES_MAX)
    return decode(envelope.payload, AuditAnswer, max_bytes=ANSWER_BYTES_MAX).epoch


def open_statement(raw: bytes) -> LeafStatement:
    """
    Raises:
        FormatError
    """
    return decode(raw, LeafStatement, max_bytes=STATEMENT_BYTES_MAX)


def statement_in(answer: AuditAnswer, raw: bytes) -> LeafStatement:
    """A statement that the answer signs.

    Raises:
        FormatError: malformed.
        IntegrityError: the answer does not sign these bytes.
    """
    if statement_digest(raw) not in answer.statements:
        raise IntegrityError("a leaf statement that its answer does not sign")
    return open_statement(raw)

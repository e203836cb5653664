"""Evidence on the wire: signed words of one key that cannot all be honest (docs/spec/proofs.md, "Evidence").

    Evidence    [version, proof]      proof = [tag, fields...]

What a proof must satisfy is in proofs/evidence.py; here is only what it looks like. It fits into one transaction.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from dds.primitives.errors import UnsupportedVersion
from dds.primitives.units import KIB
from dds.wire.audit import SIGNED_ANSWER_BYTES_MAX, STATEMENT_BYTES_MAX
from dds.wire.codec import Message, decode, encode

EVIDENCE_VERSION: Final = 1
EVIDENCE_BYTES_MAX: Final = 64 * KIB  # the bound of `SubmitEvidence`

RawAnswer = Annotated[bytes, Meta(max_length=SIGNED_ANSWER_BYTES_MAX)]
RawStatement = Annotated[bytes, Meta(max_length=STATEMENT_BYTES_MAX)]
RawTx = Annotated[bytes, Meta(max_length=EVIDENCE_BYTES_MAX)]


class Proof(Message, frozen=True):
    """Base of the kinds, which are told apart by `tag`."""


class InvalidAnswer(Proof, frozen=True, tag=1):
    """A signed answer, and one statement in it that is false."""

    answer: RawAnswer
    statement: RawStatement


class ConflictingStatements(Proof, frozen=True, tag=2):
    """Two statements of one node and epoch about the same leaf that differ in what it is."""

    first_answer: RawAnswer
    first: RawStatement
    second_answer: RawAnswer
    second: RawStatement


class WitnessEquivocation(Proof, frozen=True, tag=3):
    """Two signed transactions of one witness that report differently on the same epoch."""

    first: RawTx
    second: RawTx


AnyProof = InvalidAnswer | ConflictingStatements | WitnessEquivocation


class Evidence(Message, frozen=True):
    version: int
    proof: AnyProof


def encode_evidence(proof: AnyProof) -> bytes:
    return encode(Evidence(EVIDENCE_VERSION, proof))


def decode_evidence(raw: bytes) -> AnyProof:
    """
    Raises:
        FormatError, UnsupportedVersion
    """
    evidence = decode(raw, Evidence, max_bytes=EVIDENCE_BYTES_MAX)
    if evidence.version != EVIDENCE_VERSION:
        raise UnsupportedVersion(f"evidence version {evidence.version} is not known", hint="upgrade dds")
    return evidence.proof

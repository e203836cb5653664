"""One well-formed example of every audit message and kind of evidence, from fixed inputs."""

from __future__ import annotations

from functools import lru_cache

from msgspec.structs import replace

from dds.primitives.keys import SigningKey
from dds.proofs.challenge import audit_seed, drawn_leaves, extra_leaf
from dds.runtime.witness import beacon_secret
from dds.wire.audit import AuditMessage, AuditReply, statement_digest
from dds.wire.codec import decode, encode
from dds.wire.evidence import ConflictingStatements, InvalidAnswer, WitnessEquivocation, encode_evidence
from dds.wire.ledger import WitnessReport, sign_tx
from tests.audit_kit import BEACON, EPOCH, HOLDER, NETWORK, answer, sample

WITNESS = SigningKey(b"w" * 32)
SEED = audit_seed(BEACON, HOLDER.public, b"\x1b" * 32)


@lru_cache(1)
def samples() -> dict[str, bytes]:
    one = sample()
    true = one.statement(one.target(2, 2, 0))  # the smallest fragment: one leaf of 122 bytes
    false = replace(true, data=b"\x00" * 122)
    message = answer([true])
    signed_true, signed_false = (decode(answer([each]), AuditMessage).signed for each in (true, false))
    reports = [sign_tx(WITNESS, NETWORK, nonce, WitnessReport(EPOCH, bytes((nonce,)), [], b"", b"")) for nonce in (1, 2)]
    return {
        "statement": encode(true),
        "long statement": encode(one.statement(one.target(4, 1, 5))),
        "answer": signed_true,
        "message": message,
        "reply": encode(AuditReply(21, 20, 1)),
        "invalid answer": encode_evidence(InvalidAnswer(signed_false, encode(false))),
        "conflicting statements": encode_evidence(
            ConflictingStatements(signed_true, encode(true), signed_false, encode(false))
        ),
        "witness equivocation": encode_evidence(WitnessEquivocation(reports[0], reports[1])),
    }


def derived() -> dict[str, object]:
    """What is computed, not sent."""
    return {
        "statement digest": statement_digest(samples()["statement"]).hex(),
        "challenge seed": SEED.hex(),
        "drawn leaves": list(drawn_leaves(SEED, 1_000_003, 20)),
        "extra leaf": extra_leaf(SEED, b"\x5e" * 32, 7, 1_000_003),
        "beacon secret": beacon_secret(WITNESS, NETWORK, EPOCH).hex(),
    }

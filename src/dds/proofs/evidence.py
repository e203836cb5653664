"""Does this evidence prove an offence? One pure, bounded function, the same for the ledger, witnesses and anybody else.

Decides what counts as proof and what the offence is called. Does not decide what it costs, nor whether it was punished already
(ledger/rules). No honest node can be convicted: every kind needs words under its own signature that its software never signs,
whatever it was asked, however often it restarted, and whatever the ledger forgot since.

    invalid answer          a statement that the segment's root refutes. What was asked does not matter, so neither beacon nor
                            inventory of that epoch is needed; the segment must have been what it is since before that epoch
    conflicting statements  two statements of one node and epoch about one leaf, under one root, with different bytes. The
                            ledger need not know the segment any more
    witness equivocation    two signed reports of one witness on one epoch that differ in passes or losses. The same report sent
                            again under another nonce, or with another epoch's part of the beacon, is none

Source: docs/spec/proofs.md, "Evidence".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, assert_never

from dds.primitives.errors import FormatError
from dds.primitives.hashing import tagged_hash
from dds.proofs.audit import statement_holds, target_named
from dds.proofs.challenge import SegmentFacts
from dds.wire.audit import AuditAnswer, LeafStatement, open_answer, statement_in
from dds.wire.evidence import ConflictingStatements, InvalidAnswer, WitnessEquivocation, decode_evidence
from dds.wire.ledger import WitnessReport, open_tx

INVALID_ANSWER = "invalid-answer"
CONFLICTING_STATEMENTS = "conflicting-statements"
WITNESS_EQUIVOCATION = "witness-equivocation"


class Facts(Protocol):
    """Public inputs, by lookup; ledger/facts.py reads them from a state or from proven entries."""

    @property
    def network(self) -> str: ...

    @property
    def epochs(self) -> tuple[int, int]:
        """The first and the last epoch that evidence is taken about."""
        ...

    def segment(self, segment_id: bytes) -> SegmentFacts | None:
        """None: the ledger does not know it now."""
        ...


@dataclass(frozen=True, slots=True)
class Finding:
    """A proven offence. `segment_id` and `index` are what the offender spoke of; whether it holds them the caller must check.

    `digest` names the offence, not the evidence: other bytes that prove the same have the same digest.
    """

    kind: str
    node_id: bytes
    segment_id: bytes  # empty: about no segment
    index: int  # -1: about no segment
    epoch: int
    digest: bytes


def verify_evidence(raw: bytes, facts: Facts) -> Finding | None:
    """The offence that `raw` (an encoded Evidence) proves; None where it proves nothing. Never raises on foreign bytes."""
    try:
        proof = decode_evidence(raw)
        match proof:
            case InvalidAnswer():
                found = _invalid_answer(proof, facts)
            case ConflictingStatements():
                found = _conflicting_statements(proof, facts)
            case WitnessEquivocation():
                found = _witness_equivocation(proof, facts)
            case _:
                assert_never(proof)
    except FormatError:
        return None
    first, last = facts.epochs
    return found if found is not None and first <= found.epoch <= last else None


def _invalid_answer(proof: InvalidAnswer, facts: Facts) -> Finding | None:
    answer = open_answer(proof.answer, facts.network)
    statement = statement_in(answer, proof.statement)
    segment = facts.segment(statement.segment_id)
    # One that was registered anew in the answer's own epoch may have had another root when the node read it.
    if segment is None or segment.since_epoch >= answer.epoch or statement_holds(statement, segment):
        return None
    return _false_answer(INVALID_ANSWER, answer, statement)


def _conflicting_statements(proof: ConflictingStatements, facts: Facts) -> Finding | None:
    answers = [open_answer(raw, facts.network) for raw in (proof.first_answer, proof.second_answer)]
    one, other = (statement_in(answer, raw) for answer, raw in zip(answers, (proof.first, proof.second), strict=True))
    same_leaf = target_named(one) == target_named(other) and one.segment_root == other.segment_root
    same_signer = answers[0].node_id == answers[1].node_id and answers[0].epoch == answers[1].epoch
    if not same_leaf or not same_signer or one.data == other.data:
        return None
    return _false_answer(CONFLICTING_STATEMENTS, answers[0], one)


def _false_answer(kind: str, answer: AuditAnswer, statement: LeafStatement) -> Finding:
    """However it is shown: speaking falsely of one assignment in one epoch is one offence."""
    about = answer.epoch.to_bytes(8, "big") + statement.index.to_bytes(2, "big")
    digest = tagged_hash(b"dds/offence/false-answer/v1", answer.node_id, statement.segment_id, about)
    return Finding(kind, answer.node_id, statement.segment_id, statement.index, answer.epoch, digest)


def _witness_equivocation(proof: WitnessEquivocation, facts: Facts) -> Finding | None:
    one, other = open_tx(proof.first, facts.network), open_tx(proof.second, facts.network)
    if not isinstance(one.body, WitnessReport) or not isinstance(other.body, WitnessReport):
        return None
    if not (one.body.is_vote and other.body.is_vote):
        return None
    if one.sender != other.sender or one.body.epoch != other.body.epoch or _vote(one.body) == _vote(other.body):
        return None
    digest = tagged_hash(b"dds/offence/equivocation/v1", one.sender, one.body.epoch.to_bytes(8, "big"))
    return Finding(WITNESS_EQUIVOCATION, one.sender, b"", -1, one.body.epoch, digest)


def _vote(report: WitnessReport) -> tuple[bytes, list[tuple[int, bytes, int]]]:
    """What a report says of the nodes; zero bytes at a bitmap's end say nothing."""
    return report.passed.rstrip(b"\x00"), [(loss.node, loss.segment_id, loss.index) for loss in report.losses]

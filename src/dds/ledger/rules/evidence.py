"""Evidence that proves itself: what follows for the guilty and for who brought it.

Decides the punishment, and that the same thing is punished once. Whether the evidence holds, and is young enough, is
`proofs/evidence.py`'s, the same pure function that every role uses.
Source: docs/spec/ledger.md, "Slashing and evidence".
"""

from __future__ import annotations

from typing import Final

from dds.ledger.facts import LedgerFacts
from dds.ledger.faults import Refused, require
from dds.ledger.records import SEGMENTS, SPENT_EVIDENCE, Holding, Node, NumberOf
from dds.ledger.rules.holding import release
from dds.ledger.rules.slashing import jail, take_bond
from dds.ledger.state import State
from dds.primitives.hashing import tagged_hash
from dds.primitives.money import MILLION
from dds.proofs.evidence import CONFLICTING_STATEMENTS, INVALID_ANSWER, WITNESS_EQUIVOCATION, Finding, verify_evidence
from dds.wire.ledger import SubmitEvidence, Tx

BOND_TAG: Final = b"dds/offence/false-answer-bond/v1"
FRAUDS: Final = frozenset({INVALID_ANSWER, CONFLICTING_STATEMENTS})


def submit_evidence(state: State, tx: Tx, body: SubmitEvidence) -> None:
    finding = verify_evidence(body.evidence, LedgerFacts(state))
    if finding is None:
        raise Refused("evidence-does-not-hold", f"{len(body.evidence)} bytes that prove nothing by this ledger's facts")
    require(state.find(SPENT_EVIDENCE, finding.digest) is None, "evidence-spent", "this was punished already")
    number = state.node_number(finding.node_id)
    if number is None:
        raise Refused("no-such-node", f"no node {finding.node_id.hex()[:16]} is registered")
    node = state.node(number)
    state.put(SPENT_EVIDENCE, finding.digest, NumberOf(state.epoch))
    if finding.kind in FRAUDS:
        _punish_fraud(state, node, finding, tx.sender)
    else:
        assert finding.kind == WITNESS_EQUIVOCATION
        _take_bond(state, node, state.params.equivocation_bond_ppm, finding, tx.sender)
    jail(state, node.operator)


def _punish_fraud(state: State, node: Node, finding: Finding, reporter: bytes) -> None:
    """All collateral of the assignment that it spoke of, where that is still the node's; bond once a node and epoch.

    A broken disk may answer wrongly for many assignments at once: each loses its collateral, the bond is not halved for each.
    """
    if _still_holds(state, node.number, finding.segment_id, finding.index):
        release(
            state,
            finding.segment_id,
            finding.index,
            reason=finding.kind,
            slash_ppm=MILLION,
            reporters=(reporter,),
            evidence=finding.digest,
        )
    about = tagged_hash(BOND_TAG, node.node_id, finding.epoch.to_bytes(8, "big"))
    if state.find(SPENT_EVIDENCE, about) is None:
        state.put(SPENT_EVIDENCE, about, NumberOf(state.epoch))
        _take_bond(state, node, state.params.fraud_bond_ppm, finding, reporter)


def _take_bond(state: State, node: Node, ppm: int, finding: Finding, reporter: bytes) -> None:
    take_bond(state, node.operator, ppm, (reporter,), reason=finding.kind, evidence=finding.digest, node=node.number)


def _still_holds(state: State, number: int, segment_id: bytes, index: int) -> bool:
    segment = state.find(SEGMENTS, segment_id)
    if segment is None or not 0 <= index < len(segment.assignments):
        return False
    assignment = segment.assignments[index]
    return assignment.node == number and assignment.state in (Holding.ACTIVE, Holding.DRAINING)

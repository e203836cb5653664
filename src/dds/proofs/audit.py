"""Judging audit answers: which of the leaves that were asked for did a message prove.

Decides whether a statement holds against what the ledger says of its segment, and the verdict on each leaf. Pure, bounded and
total: hostile bytes give a verdict, never an exception. Does not decide what follows from a verdict (protocol/audit_round.py).
Source: docs/spec/proofs.md, "Verification".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from dds.erasure.fragment_tree import leaf_range, verify_leaf
from dds.primitives.errors import FormatError
from dds.primitives.merkle import leaf_hash, path_of, root_of, verify_path
from dds.proofs.challenge import SegmentFacts, Target, spot_of
from dds.wire.audit import LeafStatement, open_answer, open_message, open_statement, statement_digest
from dds.wire.segment import EncodingRecord


class Leaf(Enum):
    """The verdict on one leaf."""

    PASS = "pass"  # noqa: S105 - no password
    WRONG = "wrong"  # the node signed something else
    MISSING = "missing"  # the node said nothing about it


class Outcome(Enum):
    """The verdict on a node and epoch."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"  # it was there, and did not have what was asked
    OFFLINE = "offline"  # nothing was heard of it
    UNKNOWN = "unknown"  # nothing can be said: our fault, or it had the leaf after all but did not answer


@dataclass(frozen=True, slots=True)
class Asked:
    """What one node is asked in one epoch: a challenge, with the facts to check its answer by."""

    network: str
    epoch: int
    beacon: bytes
    number: int
    node_id: bytes
    targets: tuple[Target, ...]  # distinct, ascending
    segments: Mapping[bytes, SegmentFacts]  # of every target


@dataclass(frozen=True, slots=True)
class Judged:
    """What one message proved. `problem` says why all of it was refused, or is empty."""

    passed: frozenset[Target] = frozenset()
    wrong: tuple[tuple[Target, bytes], ...] = ()  # statements about asked leaves that do not hold, as sent
    unasked: int = 0  # statements about other leaves, or unreadable
    signed: bytes = b""  # the signed answer, as sent
    problem: str = ""

    def verdict(self, target: Target) -> Leaf:
        if target in self.passed:
            return Leaf.PASS
        return Leaf.WRONG if any(target == each for each, _ in self.wrong) else Leaf.MISSING


def target_named(statement: LeafStatement) -> Target:
    return Target(statement.segment_id, statement.index, statement.stripe, statement.leaf)


def statement_of(encoding: EncodingRecord, target: Target, stored: bytes, path: Sequence[bytes]) -> LeafStatement:
    """What the holder of a fragment says of a leaf that it read; zero bytes that its store keeps behind the end are cut off."""
    record = encoding.records[target.stripe][target.index]
    first, behind = leaf_range(record.size, target.leaf)
    hashes = [leaf_hash(each.pack()) for row in encoding.records for each in row]
    position = sum(len(row) for row in encoding.records[: target.stripe]) + target.index
    return LeafStatement(
        encoding.segment_id,
        root_of(hashes),
        target.index,
        target.stripe,
        target.leaf,
        stored[: behind - first],
        record.root,
        list(path),
        path_of(hashes, position),
    )


def statement_holds(statement: LeafStatement, facts: SegmentFacts) -> bool:
    """Whether the leaf is what the segment's root commits to at that place."""
    spot = spot_of(facts.stripes, statement.stripe, statement.index)
    if spot is None or statement.segment_root != facts.segment_root:
        return False
    record = spot.record(statement.fragment_root)
    return verify_leaf(record, statement.leaf, statement.data, statement.path) and verify_path(
        leaf_hash(record.pack()), spot.position, spot.records, statement.record_path, facts.segment_root
    )


def verify(raw: bytes, asked: Asked) -> Judged:
    """Judge an encoded AuditMessage. One leaf stated twice, once right and once wrong, counts as wrong too."""
    try:
        message = open_message(raw)
        answer = open_answer(message.signed, asked.network)
    except FormatError as error:
        return Judged(problem=error.message)
    if answer.node_id != asked.node_id:
        return Judged(problem="the answer is another node's")
    if answer.epoch != asked.epoch or answer.beacon != asked.beacon:
        return Judged(problem=f"the answer is to epoch {answer.epoch}, not to {asked.epoch} with its beacon")
    if [statement_digest(each) for each in message.statements] != answer.statements:
        return Judged(problem="the statements are not those that were signed")
    return _judge(message.statements, message.signed, asked)


def _judge(statements: Iterable[bytes], signed: bytes, asked: Asked) -> Judged:
    passed: set[Target] = set()
    wrong: list[tuple[Target, bytes]] = []
    unasked = 0
    wanted = frozenset(asked.targets)
    for raw in statements:
        statement = _readable(raw)
        target = None if statement is None else target_named(statement)
        if statement is None or target not in wanted:
            unasked += 1
        elif statement_holds(statement, asked.segments[target.segment_id]):
            passed.add(target)
        else:
            wrong.append((target, raw))
    return Judged(frozenset(passed.difference(target for target, _ in wrong)), tuple(wrong), unasked, signed)


def _readable(raw: bytes) -> LeafStatement | None:
    try:
        return open_statement(raw)
    except FormatError:
        return None

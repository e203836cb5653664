"""Moves of a living ledger about witnesses: reports, commitments and reveals, evidence.

What a move is: `ledger_moves.py`.
"""

from __future__ import annotations

from random import Random

from dds.ledger.records import (
    SEGMENTS,
    SPENT_EVIDENCE,
    Node,
    Segment,
)
from dds.ledger.rules.inventory import total_leaves
from dds.ledger.rules.witnesses import beacon_commitment
from dds.primitives.hashing import sha256, tagged_hash
from dds.wire import ledger as wire
from dds.wire.audit import LeafStatement, open_message, sign_answer
from dds.wire.codec import encode
from dds.wire.evidence import ConflictingStatements, InvalidAnswer, WitnessEquivocation, encode_evidence
from dds.wire.ledger import WitnessReport
from tests.ledger_moves_money import Attempt, node_of, nodes_of
from tests.ledger_world import NETWORK, World

# -- witnesses --------------------------------------------------------------------------------------------------------------


def secret_of(node_id: bytes, epoch: int) -> bytes:
    return tagged_hash(b"world/secret", node_id, epoch.to_bytes(8, "big"))


def witness_report(w: World, rng: Random) -> Attempt | None:
    """One more vote on the present epoch or the one before, or a late reveal."""
    for epoch in rng.sample((w.epoch, w.epoch - 1), 2):
        record = w.epoch_record(epoch)
        silent = [number for at, number in enumerate(record.committee) if not record.reported >> at & 1] if record else []
        if silent:
            return report_of(w, rng, rng.choice(silent), epoch)
    record = w.epoch_record(w.epoch - 2)
    owing = [number for number in record.committee if _may_reveal(w, number)] if record else []
    if not owing:
        return None
    node = node_of(w, rng.choice(owing))
    return w.keys[node.node_id], WitnessReport(w.epoch, b"", [], b"", secret_of(node.node_id, w.epoch - 2))


def report_of(w: World, rng: Random, number: int, epoch: int, absent: frozenset[int] = frozenset()) -> Attempt:
    node_id = node_of(w, number).node_id
    record = w.epoch_record(epoch)
    assert record is not None
    seen = [each for each in range(record.node_count) if total_leaves(w.state, each) and each not in absent]
    mistaken = rng.sample(seen, min(len(seen), rng.choice((0, 0, 0, 1))))
    bits = sum(1 << each for each in seen if each not in mistaken)
    passed = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
    commit = beacon_commitment(node_id, secret_of(node_id, epoch)) if rng.random() < 0.7 else b""
    reveal = secret_of(node_id, w.epoch - 2) if _may_reveal(w, number) and rng.random() < 0.9 else b""
    if not (passed or commit or not reveal):
        passed = b"\x00"
    return w.keys[node_id], WitnessReport(epoch, passed, [], commit, reveal)


def _may_reveal(w: World, number: int) -> bool:
    record = w.epoch_record(w.epoch - 2)
    if record is None or number not in record.committee or not record.commits:
        return False
    at, node_id = record.committee.index(number), node_of(w, number).node_id
    return record.commits[at] == beacon_commitment(node_id, secret_of(node_id, w.epoch - 2))  # else told, or spoiled


def submit_evidence(w: World, rng: Random) -> Attempt | None:
    kind = rng.choice((_invalid_answer, _conflict, _equivocation))
    raw = kind(w, rng)
    return (rng.choice([*w.readers, *w.operators]), wire.SubmitEvidence(raw)) if raw else None


def _offence(w: World, rng: Random) -> tuple[Node, bytes, Segment, int, int] | None:
    """(node, segment id, segment, index, epoch) that nobody was punished for yet."""
    for name, segment in rng.sample(w.all(SEGMENTS), len(w.all(SEGMENTS))):
        index = rng.randrange(len(segment.assignments))
        holder = segment.assignments[index].node
        node = node_of(w, holder) if holder >= 0 else rng.choice(nodes_of(w))
        epoch = rng.randint(max(0, w.epoch - w.params.evidence_epochs), w.epoch)
        about = epoch.to_bytes(8, "big") + index.to_bytes(2, "big")
        digest = tagged_hash(b"dds/offence/false-answer/v1", node.node_id, name, about)
        if segment.registered_epoch < epoch and w.get(SPENT_EVIDENCE, digest) is None:
            return node, name, segment, index, epoch
    return None


def _statement(name: bytes, segment: Segment, index: int, data: bytes) -> LeafStatement:
    return LeafStatement(name, segment.segment_root, index, 0, 0, data, sha256(data), [], [])


def _answer(w: World, node: Node, epoch: int, statement: LeafStatement) -> bytes:
    beacon = bytes(32)  # whatever it was: a false word is false under any
    return open_message(sign_answer(w.keys[node.node_id], NETWORK, epoch, beacon, [encode(statement)])).signed


def _invalid_answer(w: World, rng: Random) -> bytes | None:
    found = _offence(w, rng)
    if found is None:
        return None
    node, name, segment, index, epoch = found
    statement = _statement(name, segment, index, b"not what was stored")
    return encode_evidence(InvalidAnswer(_answer(w, node, epoch, statement), encode(statement)))


def _conflict(w: World, rng: Random) -> bytes | None:
    found = _offence(w, rng)
    if found is None:
        return None
    node, name, segment, index, epoch = found
    one, other = (_statement(name, segment, index, data) for data in (b"one", b"other"))
    answers = _answer(w, node, epoch, one), _answer(w, node, epoch, other)
    return encode_evidence(ConflictingStatements(answers[0], encode(one), answers[1], encode(other)))


def _equivocation(w: World, rng: Random) -> bytes | None:
    epoch = rng.randint(max(0, w.epoch - w.params.evidence_epochs), w.epoch)
    node = rng.choice(nodes_of(w))
    digest = tagged_hash(b"dds/offence/equivocation/v1", node.node_id, epoch.to_bytes(8, "big"))
    if w.get(SPENT_EVIDENCE, digest) is not None:
        return None
    reports = [WitnessReport(epoch, passed, [], b"", b"") for passed in (b"\x01", b"\x02")]
    return encode_evidence(WitnessEquivocation(*(w.sign(w.keys[node.node_id], report) for report in reports)))

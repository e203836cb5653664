"""Evidence convicts who lied under signature, and nobody else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from dds.ledger.facts import LedgerFacts
from dds.ledger.genesis import GENESIS_VERSION, Genesis, apply_genesis
from dds.ledger.params import Params
from dds.ledger.records import SEGMENTS, Segment
from dds.ledger.state import State
from dds.primitives.keys import SigningKey
from dds.proofs.challenge import SegmentFacts
from dds.proofs.evidence import Finding, verify_evidence
from dds.wire.audit import AuditMessage, LeafStatement
from dds.wire.codec import decode, encode
from dds.wire.evidence import ConflictingStatements, InvalidAnswer, WitnessEquivocation, encode_evidence
from dds.wire.ledger import LossFound, Transfer, WitnessReport, sign_tx
from tests.audit_kit import EPOCH, HOLDER, NETWORK, answer, runs_of, sample

ONE = sample()
TRUE = ONE.statement(ONE.target(1, 0, 2))
FALSE = replace(TRUE, data=b"\x00" * len(TRUE.data))
WITNESS = SigningKey(b"w" * 32)


@dataclass(frozen=True)
class Known:
    network: str = NETWORK
    epochs: tuple[int, int] = (EPOCH - 5, EPOCH + 1)
    segments: Mapping[bytes, SegmentFacts] = field(default_factory=lambda: {ONE.segment_id: ONE.facts()})

    def segment(self, segment_id: bytes) -> SegmentFacts | None:
        return self.segments.get(segment_id)


def signed(statement: LeafStatement, *also: LeafStatement, key: SigningKey = HOLDER, epoch: int = EPOCH) -> bytes:
    return decode(answer([statement, *also], key=key, epoch=epoch), AuditMessage).signed


def invalid(statement: LeafStatement, epoch: int = EPOCH) -> bytes:
    return encode_evidence(InvalidAnswer(signed(statement, epoch=epoch), encode(statement)))


def conflict(one: LeafStatement, other: LeafStatement, *, epochs: tuple[int, int] = (EPOCH, EPOCH)) -> bytes:
    answers = [signed(each, epoch=epoch) for each, epoch in zip((one, other), epochs, strict=True)]
    return encode_evidence(ConflictingStatements(answers[0], encode(one), answers[1], encode(other)))


def report(nonce: int, *, key: SigningKey = WITNESS, epoch: int = EPOCH, passed: bytes = b"\x07", commit: bytes = b"") -> bytes:
    return sign_tx(key, NETWORK, nonce, WitnessReport(epoch, passed, [], commit, b""))


def found(raw: bytes, facts: Known | None = None) -> Finding:
    finding = verify_evidence(raw, facts or Known())
    assert finding is not None
    return finding


# -- invalid answers


def test_a_false_statement_convicts_its_signer() -> None:
    finding = found(invalid(FALSE))
    assert (finding.kind, finding.node_id, finding.epoch) == ("invalid-answer", HOLDER.public, EPOCH)
    assert (finding.segment_id, finding.index) == (ONE.segment_id, 1)


def test_a_true_statement_convicts_nobody_whatever_was_asked() -> None:
    for target in (ONE.target(1, 0, 2), ONE.target(0, 2, 0), ONE.target(4, 1, 5)):
        assert verify_evidence(invalid(ONE.statement(target)), Known()) is None


def test_naming_another_root_than_the_ledgers_is_false() -> None:
    assert found(invalid(replace(TRUE, segment_root=bytes(32)))).kind == "invalid-answer"


@pytest.mark.parametrize("since", [EPOCH, EPOCH + 1])
def test_a_segment_registered_anew_since_convicts_nobody(since: int) -> None:
    """The node spoke of what the segment was before: re-registering it otherwise must not make an old truth a lie."""
    changed = SegmentFacts(b"\x11" * 32, runs_of(ONE.encoding), since)
    assert verify_evidence(invalid(TRUE), Known(segments={ONE.segment_id: changed})) is None


def test_a_segment_that_the_ledger_has_forgotten_convicts_nobody() -> None:
    assert verify_evidence(invalid(FALSE), Known(segments={})) is None


@pytest.mark.parametrize("epochs", [(EPOCH + 1, EPOCH + 2), (0, EPOCH - 1)], ids=["too old", "not yet"])
def test_evidence_outside_its_window_is_none(epochs: tuple[int, int]) -> None:
    assert verify_evidence(invalid(FALSE), Known(epochs=epochs)) is None
    assert verify_evidence(conflict(TRUE, FALSE), Known(epochs=epochs)) is None
    both = encode_evidence(WitnessEquivocation(report(1), report(2, passed=b"\x03")))
    assert verify_evidence(both, Known(epochs=epochs)) is None


def test_a_statement_that_nobody_signed_convicts_nobody() -> None:
    assert verify_evidence(encode_evidence(InvalidAnswer(signed(TRUE), encode(FALSE))), Known()) is None


def test_an_answer_of_another_network_convicts_nobody() -> None:
    other = decode(answer([FALSE], network="elsewhere"), AuditMessage).signed
    assert verify_evidence(encode_evidence(InvalidAnswer(other, encode(FALSE))), Known()) is None


# -- conflicting statements


def test_two_words_on_one_leaf_convict_without_the_ledger_knowing_it() -> None:
    finding = found(conflict(TRUE, FALSE), Known(segments={}))
    assert (finding.kind, finding.node_id, finding.index) == ("conflicting-statements", HOLDER.public, 1)


def test_the_same_word_twice_is_no_conflict() -> None:
    assert verify_evidence(conflict(TRUE, TRUE), Known()) is None


def test_leaving_a_leaf_out_after_a_restart_is_no_conflict() -> None:
    """The two answers differ, but neither says anything that the other denies."""
    other = ONE.statement(ONE.target(1, 0, 3))
    first, second = signed(TRUE, other), signed(TRUE)
    for one, two in ((TRUE, TRUE), (other, TRUE)):
        raw = encode_evidence(ConflictingStatements(first, encode(one), second, encode(two)))
        assert verify_evidence(raw, Known()) is None


@pytest.mark.parametrize("change", [{"leaf": 3}, {"stripe": 1}, {"index": 2}, {"segment_root": bytes(32)}])
def test_words_on_different_leaves_are_no_conflict(change: dict[str, object]) -> None:
    assert verify_evidence(conflict(TRUE, replace(FALSE, **change)), Known()) is None


def test_words_of_different_epochs_or_signers_are_no_conflict() -> None:
    assert verify_evidence(conflict(TRUE, FALSE, epochs=(EPOCH, EPOCH - 1)), Known()) is None
    other = signed(FALSE, key=SigningKey(b"o" * 32))
    raw = encode_evidence(ConflictingStatements(signed(TRUE), encode(TRUE), other, encode(FALSE)))
    assert verify_evidence(raw, Known()) is None


# -- offences are counted once


def test_one_lie_has_one_digest_however_it_is_shown() -> None:
    ways = [
        invalid(FALSE),
        encode_evidence(InvalidAnswer(signed(FALSE, TRUE), encode(FALSE))),  # signed again, in other company
        invalid(replace(FALSE, data=b"\x01" * len(TRUE.data))),
        conflict(TRUE, FALSE),
        conflict(FALSE, TRUE),
    ]
    assert len(set(ways)) == len(ways) and len({found(raw).digest for raw in ways}) == 1


def test_lies_about_other_assignments_and_epochs_are_other_offences() -> None:
    other_index = replace(FALSE, index=2)
    digests = {found(raw).digest for raw in (invalid(FALSE), invalid(other_index), invalid(FALSE, EPOCH - 1))}
    assert len(digests) == 3


# -- witnesses


def test_two_reports_that_differ_convict_the_witness() -> None:
    finding = found(encode_evidence(WitnessEquivocation(report(1), report(2, passed=b"\x03"))))
    assert (finding.kind, finding.node_id, finding.index) == ("witness-equivocation", WITNESS.public, -1)
    losses = sign_tx(WITNESS, NETWORK, 3, WitnessReport(EPOCH, b"\x07", [LossFound(1, bytes(32), 0)], b"", b""))
    again = found(encode_evidence(WitnessEquivocation(losses, report(1))))
    assert again.digest == finding.digest


@pytest.mark.parametrize(
    "other",
    [
        report(2),
        report(2, passed=b"\x07\x00\x00"),
        report(2, commit=b"c" * 32),
        report(2, epoch=EPOCH - 1, passed=b"\x03"),
        report(2, key=HOLDER, passed=b"\x03"),
        sign_tx(WITNESS, NETWORK, 2, WitnessReport(EPOCH, b"", [], b"", b"s" * 32)),
        sign_tx(WITNESS, NETWORK, 2, Transfer(bytes(32), 1)),
        sign_tx(WITNESS, "elsewhere", 2, WitnessReport(EPOCH, b"\x03", [], b"", b"")),
    ],
    ids=[
        "sent again",
        "trailing zeros",
        "another commit",
        "another epoch",
        "another witness",
        "a reveal",
        "no report",
        "network",
    ],
)
def test_what_an_honest_witness_may_sign_convicts_nobody(other: bytes) -> None:
    assert verify_evidence(encode_evidence(WitnessEquivocation(report(1), other)), Known()) is None


def test_saying_that_nobody_passed_is_a_vote_too() -> None:
    nobody = sign_tx(WITNESS, NETWORK, 2, WitnessReport(EPOCH, b"", [], b"c" * 32, b"s" * 32))
    assert found(encode_evidence(WitnessEquivocation(report(1), nobody))).kind == "witness-equivocation"


# -- as the ledger reads it


def test_the_ledgers_facts_are_its_entries() -> None:
    base: dict[bytes, bytes] = {}
    state = State(base)
    apply_genesis(state, Genesis(GENESIS_VERSION, NETWORK, replace(Params(), evidence_epochs=4)))
    state.set_chain(epoch=EPOCH)
    segment = Segment(ONE.encoding.root(), bytes(32), bytes(32), 1, 2, runs_of(ONE.encoding), 0, (), (), 2)
    state.put(SEGMENTS, ONE.segment_id, segment)
    facts = LedgerFacts(state)
    assert facts.network == NETWORK and facts.epochs == (EPOCH - 4, EPOCH)
    assert facts.segment(ONE.segment_id) == ONE.facts() and facts.segment(bytes(32)) is None
    assert verify_evidence(invalid(FALSE), facts) == found(invalid(FALSE))
    assert verify_evidence(invalid(TRUE), facts) is None

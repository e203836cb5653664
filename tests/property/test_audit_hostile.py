"""Foreign bytes in audits and evidence: always a verdict, never an exception, no pass and no conviction unearned."""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dds.proofs.audit import Asked, verify
from dds.proofs.challenge import SegmentFacts, Target
from dds.proofs.evidence import verify_evidence
from dds.protocol.audit_round import AuditRound, Close, Derived, LookAgain, MessageCame, Vote
from dds.wire.audit import STATEMENT_BYTES_MAX, LeafStatement, sign_answer
from tests.audit_kit import BEACON, EPOCH, HOLDER, NETWORK, answer, sample
from tests.vectors.audit_samples import samples

ONE = sample()
TARGETS = tuple(sorted(ONE.target(1, stripe, leaf) for stripe in (0, 1) for leaf in range(6)))
ASKED = ONE.asked(TARGETS)


class Facts:
    network, epochs = NETWORK, (0, EPOCH)

    def segment(self, segment_id: bytes) -> SegmentFacts | None:
        return ONE.facts() if segment_id == ONE.segment_id else None


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=400))
@example(raw=b"")
@example(raw=b"\x92" * 10_000)
@example(raw=bytes(5 << 20))
def test_arbitrary_bytes_prove_nothing(raw: bytes) -> None:
    judged = verify(raw, ASKED)
    assert judged.problem and not judged.passed and not judged.wrong
    assert verify_evidence(raw, Facts()) is None
    assert not verify(sign_answer(HOLDER, NETWORK, EPOCH, BEACON, [raw[:STATEMENT_BYTES_MAX]]), ASKED).passed


@pytest.mark.parametrize("name", ["message", "invalid answer", "conflicting statements", "witness equivocation"])
def test_damaged_bytes_prove_nothing_more(name: str) -> None:
    good, source = samples()[name], random.Random(name)
    asked = ONE.asked([ONE.target(2, 2, 0)])
    proven = verify_evidence(good, Facts())
    for _ in range(400):
        at, length = source.randrange(len(good)), source.randrange(1, 9)
        damaged = source.choice([good[:at] + source.randbytes(length) + good[at + length :], good[:at], good + b"\x00"])
        assert verify(damaged, asked).passed <= set(asked.targets)
        found = verify_evidence(damaged, Facts())
        assert found is None or (proven is not None and found.digest == proven.digest)


hashes = st.binary(min_size=32, max_size=32)
statements = st.builds(
    LeafStatement,
    st.sampled_from([ONE.segment_id, bytes(32)]),
    st.sampled_from([ONE.encoding.root(), bytes(32)]),
    st.integers(0, 127),
    st.integers(0, 63),
    st.integers(0, 264),
    st.binary(min_size=1, max_size=3968),
    hashes,
    st.lists(hashes, max_size=9),
    st.lists(hashes, max_size=13),
)


@settings(max_examples=100, deadline=None)
@given(made_up=st.lists(statements, max_size=5), epoch=st.integers(0, 1 << 40))
def test_statements_made_up_never_pass(made_up: list[LeafStatement], epoch: int) -> None:
    judged = verify(answer(made_up), ASKED)
    assert not judged.passed and len(judged.wrong) + judged.unasked == len(made_up)
    if epoch != EPOCH:
        assert verify(answer(made_up, epoch=epoch), ASKED).problem


fields = st.sampled_from(
    ["segment_id", "segment_root", "index", "stripe", "leaf", "data", "fragment_root", "path", "record_path"]
)


@settings(max_examples=150, deadline=None)
@given(one=st.sampled_from(TARGETS), other=st.sampled_from(TARGETS), field=fields)
def test_parts_of_true_statements_exchanged_prove_nothing_false(one: Target, other: Target, field: str) -> None:
    """Whatever is put together of true parts, it passes only as the very statement that is true."""
    mixed = replace(ONE.statement(one), **{field: getattr(ONE.statement(other), field)})
    judged = verify(answer([mixed]), ASKED)
    for target in judged.passed:
        true = ONE.statement(target)
        assert mixed == true


@settings(max_examples=60, deadline=None)
@given(
    chosen=st.lists(st.lists(st.sampled_from(TARGETS), max_size=6), max_size=6),
    epochs=st.lists(st.sampled_from([EPOCH, EPOCH - 1]), min_size=6, max_size=6),
    derived_at=st.integers(0, 6),
)
def test_the_vote_is_earned_by_the_union_of_true_answers_to_this_epoch(
    chosen: list[list[Target]], epochs: list[int], derived_at: int
) -> None:
    machine = AuditRound(EPOCH, BEACON, {HOLDER.public: 3})
    asked: Asked = ONE.asked(TARGETS[:3])
    earned: set[Target] = set()
    for at, (targets, epoch) in enumerate(zip(chosen, epochs, strict=False)):
        if at == derived_at:
            machine.step(Derived(HOLDER.public, asked))
        machine.step(MessageCame(at, HOLDER.public, answer(map(ONE.statement, targets), epoch=epoch)))
        if epoch == EPOCH:
            earned.update(targets)
    machine.step(LookAgain())
    machine.step(Derived(HOLDER.public, asked))
    (vote,) = [effect for effect in machine.step(Close()) if isinstance(effect, Vote)]
    assert vote.passed == (b"\x08" if earned >= set(asked.targets) else b"")

"""What an audit answer proves: the leaf that was asked for, from the node that was asked, in the epoch that asked."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import pytest
from msgspec.structs import replace

from dds.primitives.hashing import xof_integers
from dds.primitives.keys import SigningKey
from dds.proofs.audit import Leaf, statement_holds, verify
from dds.proofs.challenge import audit_seed, drawn_leaves, extra_leaf, spot_of, target_of
from dds.wire.audit import (
    AUDIT_MESSAGE_BYTES_MAX,
    SIGNED_ANSWER_BYTES_MAX,
    STATEMENT_BYTES_MAX,
    STATEMENTS_MAX,
    AuditMessage,
    LeafStatement,
    sign_answer,
)
from dds.wire.codec import decode, encode
from dds.wire.ledger import StripeRun
from tests.audit_kit import BEACON, EPOCH, HOLDER, NETWORK, answer, runs_of, sample

ONE = sample()
TARGETS = tuple(sorted([ONE.target(1, 0, 0), ONE.target(4, 1, 5), ONE.target(2, 2, 0)]))
OTHER_KEY = SigningKey(b"o" * 32)


def test_true_answers_pass_first_middle_last_and_short_leaves() -> None:
    judged = verify(answer(map(ONE.statement, TARGETS)), ONE.asked(TARGETS))
    assert judged.problem == "" and judged.passed == set(TARGETS) and not judged.wrong and not judged.unasked


def test_an_answer_may_come_in_parts() -> None:
    asked = ONE.asked(TARGETS)
    parts = [verify(answer([ONE.statement(target)]), asked).passed for target in TARGETS]
    assert frozenset().union(*parts) == set(TARGETS) and all(len(part) == 1 for part in parts)


def test_a_leaf_left_out_is_missing_and_hides_no_other() -> None:
    judged = verify(answer(map(ONE.statement, TARGETS[:2])), ONE.asked(TARGETS))
    assert [judged.verdict(target) for target in TARGETS] == [Leaf.PASS, Leaf.PASS, Leaf.MISSING]


def test_every_leaf_of_every_fragment_can_be_proven() -> None:
    for stripe, row in enumerate(ONE.encoding.records):
        for record in row:
            for leaf in range(record.leaf_count):
                assert statement_holds(ONE.statement(ONE.target(record.index, stripe, leaf)), ONE.facts())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"epoch": EPOCH - 1}, "epoch"),
        ({"beacon": b"\xbf" * 32}, "epoch"),
        ({"key": OTHER_KEY}, "another node"),
        ({"network": "elsewhere"}, "signature"),
    ],
)
def test_a_replayed_answer_proves_nothing(change: dict[str, object], why: str) -> None:
    judged = verify(answer(map(ONE.statement, TARGETS), **change), ONE.asked(TARGETS))  # type: ignore[arg-type]
    assert not judged.passed and not judged.wrong and why in judged.problem


def test_a_true_leaf_of_another_position_is_not_what_was_asked() -> None:
    near = [ONE.target(1, 0, 1), ONE.target(0, 0, 0), ONE.target(1, 1, 0)]
    judged = verify(answer(map(ONE.statement, near)), ONE.asked(TARGETS))
    assert not judged.passed and judged.unasked == 3


@pytest.mark.parametrize(
    "claim", [{"leaf": 1}, {"stripe": 1}, {"index": 0}], ids=["another leaf", "another stripe", "another index"]
)
def test_a_leaf_passed_off_as_one_that_was_asked_is_wrong(claim: dict[str, int]) -> None:
    true = ONE.statement(ONE.target(1, 0, 0))
    forged = replace(true, **claim)
    asked = ONE.target(forged.index, forged.stripe, forged.leaf)
    judged = verify(answer([forged]), ONE.asked([asked]))
    assert judged.verdict(asked) is Leaf.WRONG and judged.wrong[0][1] == encode(forged)


def flipped(raw: bytes) -> bytes:
    return bytes((raw[0] ^ 1,)) + raw[1:]


TAMPERINGS: dict[str, Callable[[LeafStatement], LeafStatement]] = {
    "a bit of the leaf": lambda s: replace(s, data=flipped(s.data)),
    "a leaf cut short": lambda s: replace(s, data=s.data[:-1]),
    "a leaf padded": lambda s: replace(s, data=s.data + b"\x00"),
    "another fragment root": lambda s: replace(s, fragment_root=flipped(s.fragment_root)),
    "another segment root": lambda s: replace(s, segment_root=flipped(s.segment_root)),
    "a sibling of the leaf": lambda s: replace(s, path=[flipped(s.path[0]), *s.path[1:]]),
    "a sibling of the record": lambda s: replace(s, record_path=[*s.record_path[:-1], flipped(s.record_path[-1])]),
    "a path too short": lambda s: replace(s, path=s.path[:-1]),
    "a path too long": lambda s: replace(s, record_path=[*s.record_path, bytes(32)]),
    "siblings swapped": lambda s: replace(s, path=[s.path[1], s.path[0], *s.path[2:]]),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampering_is_seen(name: str) -> None:
    target = ONE.target(1, 0, 5)  # the fragment's short last leaf: 160 bytes
    forged = TAMPERINGS[name](ONE.statement(ONE.target(1, 0, 5)))
    if name == "a leaf padded":
        assert len(forged.data) == 161
    judged = verify(answer([forged]), ONE.asked([target]))
    assert judged.verdict(target) is Leaf.WRONG


def test_a_leaf_stated_right_and_wrong_counts_as_wrong() -> None:
    true = ONE.statement(TARGETS[0])
    judged = verify(answer([true, replace(true, data=flipped(true.data))]), ONE.asked(TARGETS))
    assert judged.verdict(TARGETS[0]) is Leaf.WRONG and TARGETS[0] not in judged.passed


def test_statements_exchanged_behind_the_signature_are_refused() -> None:
    message = decode(answer(map(ONE.statement, TARGETS)), AuditMessage)
    for statements in (
        message.statements[:2],
        [*message.statements, message.statements[0]],
        message.statements[::-1],
        [encode(ONE.statement(ONE.target(0, 0, 0))), *message.statements[1:]],
    ):
        judged = verify(encode(AuditMessage(message.signed, statements)), ONE.asked(TARGETS))
        assert not judged.passed and "not those that were signed" in judged.problem


def test_signed_garbage_is_unasked_and_costs_the_rest_nothing() -> None:
    raw = sign_answer(HOLDER, NETWORK, EPOCH, BEACON, [b"\xc1garbage", encode(ONE.statement(TARGETS[0]))])
    judged = verify(raw, ONE.asked(TARGETS))
    assert judged.unasked == 1 and judged.passed == {TARGETS[0]}


def test_the_largest_message_fits_its_bound_and_one_byte_more_is_refused() -> None:
    whole = LeafStatement(bytes(32), bytes(32), 127, 63, 264, bytes(3968), bytes(32), [bytes(32)] * 9, [bytes(32)] * 13)
    assert len(encode(whole)) <= STATEMENT_BYTES_MAX
    raw = sign_answer(HOLDER, "n" * 64, 1 << 40, BEACON, [encode(whole)] * STATEMENTS_MAX)
    message = decode(raw, AuditMessage)
    assert len(raw) <= AUDIT_MESSAGE_BYTES_MAX and len(message.signed) <= SIGNED_ANSWER_BYTES_MAX
    too_large = raw + bytes(AUDIT_MESSAGE_BYTES_MAX - len(raw) + 1)
    assert "exceeds" in verify(too_large, ONE.asked(TARGETS)).problem


def test_the_challenge_changes_with_beacon_node_and_inventory() -> None:
    seeds = {audit_seed(b, n, r) for b in (b"b" * 32, BEACON) for n in (b"n" * 32, b"m" * 32) for r in (b"r" * 32, b"s" * 32)}
    assert len(seeds) == 8


def test_leaves_are_the_streams_first_draws_once_each() -> None:
    seed = audit_seed(BEACON, b"n" * 32, b"r" * 32)
    assert drawn_leaves(seed, 10**6, 20) == tuple(sorted(set(islice(xof_integers(seed, 10**6), 20))))
    assert drawn_leaves(seed, 1, 20) == (0,) and drawn_leaves(seed, 0, 20) == ()


def test_the_extra_leaf_is_the_assignments_own_draw() -> None:
    seed = audit_seed(BEACON, b"n" * 32, b"r" * 32)
    drawn = {extra_leaf(seed, bytes([number]) * 32, index, 1000) for number in range(8) for index in range(8)}
    assert len(drawn) > 50 and all(0 <= leaf < 1000 for leaf in drawn) and extra_leaf(seed, bytes(32), 3, 1) == 0


def test_leaf_numbers_walk_the_stripes_and_leave_released_ones_out() -> None:
    runs = (StripeRun(2, 3, 2, 20_000), StripeRun(1, 1, 2, 122))

    def places(index: int, released: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        while (target := target_of(runs, bytes(32), index, len(found), released)) is not None:
            found.append((target.stripe, target.leaf))
        return found

    six = range(6)
    assert places(2, 0) == [(0, leaf) for leaf in six] + [(1, leaf) for leaf in six] + [(2, 0)]
    assert places(4, 0) == [(0, leaf) for leaf in six] + [(1, leaf) for leaf in six]  # copies have three indices only
    assert places(2, 0b001) == [(1, leaf) for leaf in six] + [(2, 0)]
    assert places(2, 0b111) == [] and places(5, 0) == []


def test_record_positions_are_those_of_the_encoding_record() -> None:
    position = 0
    for stripe, row in enumerate(ONE.encoding.records):
        for record in row:
            spot = spot_of(runs_of(ONE.encoding), stripe, record.index)
            assert spot is not None and spot.position == position and spot.record(record.root) == record
            position += 1
        assert spot_of(runs_of(ONE.encoding), stripe, len(row)) is None
    assert position == 13 and spot_of(runs_of(ONE.encoding), 3, 0) is None

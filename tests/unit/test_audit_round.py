"""One epoch's audits as one witness sees them."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from dds.primitives.keys import SigningKey
from dds.proofs.audit import Outcome
from dds.proofs.challenge import Target
from dds.proofs.evidence import INVALID_ANSWER
from dds.protocol.audit_round import (
    MESSAGES_PER_NODE_MAX,
    RECHECKED_LEAVES_MAX,
    RECHECKED_NODES_MAX,
    WAITING_MAX,
    Accuse,
    AuditRound,
    Close,
    Derive,
    Derived,
    Effect,
    Held,
    Keep,
    LookAgain,
    LookedAgain,
    MessageCame,
    Recheck,
    Refuse,
    Reply,
    Vote,
)
from dds.wire.audit import AuditReply
from dds.wire.evidence import InvalidAnswer, decode_evidence
from dds.wire.ledger import LossFound
from tests.audit_kit import BEACON, EPOCH, HOLDER, answer, sample

ONE = sample()
TARGETS = tuple(sorted([ONE.target(1, 0, 0), ONE.target(1, 1, 5), ONE.target(1, 2, 0)]))
ASKED = ONE.asked(TARGETS)  # of node number 3
OTHER = SigningKey(b"o" * 32)
WHOLE = answer(map(ONE.statement, TARGETS))
LIE = answer([replace(ONE.statement(TARGETS[0]), data=b"\x00" * 3968)])
NUMBERS = {HOLDER.public: 3, OTHER.public: 9}


def a_round(*, derived: bool = True, heard_all: bool = True) -> AuditRound:
    machine = AuditRound(EPOCH, BEACON, NUMBERS, heard_all=heard_all)
    if derived:
        machine.step(Derived(HOLDER.public, ASKED))
    return machine


def came(raw: bytes, request: int = 1, node_id: bytes = HOLDER.public) -> MessageCame:
    return MessageCame(request, node_id, raw)


def vote(machine: AuditRound) -> Vote:
    (effect,) = [effect for effect in machine.step(Close()) if isinstance(effect, Vote)]
    return effect


def kinds(effects: tuple[Effect, ...]) -> list[type]:
    return [type(effect) for effect in effects]


def looked(held: Held, *targets: Target) -> LookedAgain:
    return LookedAgain(HOLDER.public, tuple((target, held) for target in targets or TARGETS))


def test_a_node_that_proves_everything_gets_the_vote() -> None:
    machine = a_round()
    assert machine.step(came(WHOLE)) == (Keep(3, 3, 0b111), Reply(1, AuditReply(3, 3, 0)))
    assert machine.outcome(HOLDER.public) is Outcome.PASS
    assert vote(machine) == Vote(b"\x08", ())


def test_nothing_is_replied_before_it_is_noted() -> None:
    effects = a_round().step(came(WHOLE))
    assert kinds(effects).index(Keep) < kinds(effects).index(Reply)


def test_an_answer_in_parts_passes_when_the_last_has_come() -> None:
    machine = a_round()
    for count, target in enumerate(TARGETS, 1):
        assert machine.outcome(HOLDER.public) is Outcome.UNKNOWN
        assert Reply(count, AuditReply(3, count, 0)) in machine.step(came(answer([ONE.statement(target)]), count))
    assert vote(machine).passed == b"\x08"


def test_who_has_passed_is_not_judged_again_and_stays_passed() -> None:
    machine = a_round()
    machine.step(came(WHOLE, 1))
    for request, raw in enumerate((WHOLE, LIE, b"garbage"), 2):
        assert machine.step(came(raw, request)) == (Reply(request, AuditReply(3, 3, 0)),)
    assert vote(machine) == Vote(b"\x08", ())


def test_one_leaf_missing_is_no_pass() -> None:
    machine = a_round()
    machine.step(came(answer(map(ONE.statement, TARGETS[:2]))))
    assert vote(machine) == Vote(b"", ())


def test_messages_wait_until_the_challenge_is_known_and_it_is_looked_up_once() -> None:
    machine = a_round(derived=False)
    assert machine.step(came(WHOLE, 1)) == (Derive(HOLDER.public),)
    assert machine.step(came(WHOLE, 2)) == ()
    effects = machine.step(Derived(HOLDER.public, ASKED))
    assert [effect.request for effect in effects if isinstance(effect, Reply)] == [1, 2]


def test_a_challenge_that_cannot_be_had_is_looked_up_again_with_the_next_message() -> None:
    machine = a_round(derived=False)
    machine.step(came(WHOLE, 1))
    assert kinds(machine.step(Derived(HOLDER.public, None))) == [Refuse]
    assert machine.step(came(WHOLE, 2)) == (Derive(HOLDER.public),)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1" * 100,
        answer([ONE.statement(TARGETS[0])], epoch=EPOCH - 1),
        answer([ONE.statement(TARGETS[0])], key=OTHER),
        answer([ONE.statement(TARGETS[0])], network="elsewhere"),
    ],
    ids=["nothing", "garbage", "another epoch", "another node", "another network"],
)
def test_what_is_no_answer_changes_nothing(raw: bytes) -> None:
    machine = a_round()
    assert kinds(machine.step(came(raw))) == [Refuse]
    assert machine.outcome(HOLDER.public) is Outcome.UNKNOWN and vote(machine) == Vote(b"", ())


def test_who_is_asked_nothing_is_refused() -> None:
    assert kinds(a_round().step(came(WHOLE, node_id=bytes(32)))) == [Refuse]


def test_a_flood_of_one_node_is_bounded_and_harms_no_other() -> None:
    machine = a_round()
    for number in range(MESSAGES_PER_NODE_MAX):
        machine.step(came(b"", number))
    assert "at most" in str(machine.step(came(WHOLE, 99)))
    assert kinds(machine.step(came(b"", 100, OTHER.public))) == [Derive]


def test_messages_that_wait_are_bounded() -> None:
    nodes = {bytes([number]) * 32: number for number in range(WAITING_MAX + 1)}
    machine = AuditRound(EPOCH, BEACON, nodes)
    effects = [machine.step(came(b"", number, node_id)) for node_id, number in nodes.items()]
    assert all(kinds(each) == [Derive] for each in effects[:-1]) and kinds(effects[-1]) == [Refuse]


# -- lies


def test_a_lie_is_no_pass_and_is_reported_once_with_evidence() -> None:
    machine = a_round()
    (accusation,) = [effect for effect in machine.step(came(LIE, 1)) if isinstance(effect, Accuse)]
    assert isinstance(decode_evidence(accusation.evidence), InvalidAnswer)
    assert INVALID_ANSWER == "invalid-answer" and machine.outcome(HOLDER.public) is Outcome.FAIL
    assert kinds(machine.step(came(LIE, 2))) == [Reply]
    assert vote(machine) == Vote(b"", ())


def test_what_was_not_asked_is_told_to_the_node_and_is_no_lie() -> None:
    effects = a_round().step(came(answer([ONE.statement(ONE.target(0, 0, 0))])))
    assert effects == (Reply(1, AuditReply(3, 0, 1)),)


# -- looking again


def test_only_what_is_missing_is_asked_for_again() -> None:
    machine = a_round()
    machine.step(came(answer([ONE.statement(TARGETS[1])])))
    effects = machine.step(LookAgain())
    assert [e.targets for e in effects if isinstance(e, Recheck)] == [(TARGETS[0], TARGETS[2])]
    assert [e.node_id for e in effects if isinstance(e, Derive)] == [OTHER.public]


def test_a_node_of_which_nothing_was_heard_is_asked_as_soon_as_its_challenge_is_known() -> None:
    machine = a_round(derived=False)
    machine.step(LookAgain())
    assert machine.step(Derived(HOLDER.public, ASKED)) == (Recheck(ASKED, TARGETS),)


def test_a_loss_is_voted_for_when_the_node_was_asked_and_had_it_not() -> None:
    machine = a_round()
    machine.step(LookAgain())
    machine.step(looked(Held.LOST, TARGETS[0], TARGETS[1]))
    assert machine.outcome(HOLDER.public) is Outcome.FAIL
    assert vote(machine) == Vote(b"", (LossFound(3, ONE.segment_id, 1),))  # two leaves, one assignment


@pytest.mark.parametrize(
    ("held", "outcome"), [(Held.HELD, Outcome.UNKNOWN), (Held.OFFLINE, Outcome.OFFLINE), (Held.UNKNOWN, Outcome.UNKNOWN)]
)
def test_anything_but_a_loss_seen_is_no_loss(held: Held, outcome: Outcome) -> None:
    machine = a_round()
    machine.step(LookAgain())
    machine.step(looked(held))
    assert machine.outcome(HOLDER.public) is outcome and vote(machine) == Vote(b"", ())


def test_an_answer_within_the_grace_voids_the_loss() -> None:
    machine = a_round()
    machine.step(LookAgain())
    machine.step(looked(Held.LOST))
    machine.step(came(WHOLE))
    assert vote(machine) == Vote(b"\x08", ())


def test_looking_again_is_bounded_and_all_witnesses_look_at_the_same_nodes() -> None:
    nodes = {number.to_bytes(32, "big"): number for number in range(RECHECKED_NODES_MAX + 50)}
    backwards = dict(reversed(nodes.items()))
    one, other = (AuditRound(EPOCH, BEACON, each).step(LookAgain()) for each in (nodes, backwards))
    assert one == other and len(one) == RECHECKED_NODES_MAX
    many = tuple(sorted(ONE.target(1, stripe, leaf) for stripe in (0, 1) for leaf in range(6)))
    machine = AuditRound(EPOCH, BEACON, NUMBERS)
    machine.step(Derived(HOLDER.public, ONE.asked(many)))
    (recheck,) = [effect for effect in machine.step(LookAgain()) if isinstance(effect, Recheck)]
    assert len(recheck.targets) == RECHECKED_LEAVES_MAX


# -- the end


def test_nothing_counts_after_the_close() -> None:
    machine = a_round()
    machine.step(LookAgain())
    assert vote(machine) == Vote(b"", ())
    assert kinds(machine.step(came(WHOLE))) == [Refuse]
    assert machine.step(looked(Held.LOST)) == () and machine.step(Close()) == ()


def test_who_still_waits_at_the_close_is_told() -> None:
    machine = a_round(derived=False)
    machine.step(came(WHOLE, 7))
    assert Refuse(7, f"epoch {EPOCH} is over") in machine.step(Close())
    assert machine.step(Derived(HOLDER.public, ASKED)) == ()


def test_a_restart_forgets_no_pass() -> None:
    before = a_round()
    (kept,) = [effect for effect in before.step(came(WHOLE)) if isinstance(effect, Keep)]
    after = a_round(derived=False)
    after.restore(kept.number, kept.asked, kept.proven)
    assert vote(after) == Vote(b"\x08", ())


def test_what_was_noted_of_another_challenge_counts_for_nothing() -> None:
    machine = a_round(derived=False)
    machine.restore(3, 2, 0b11)
    machine.step(Derived(HOLDER.public, ASKED))
    assert vote(machine) == Vote(b"", ())


def test_a_witness_that_came_late_votes_only_where_it_can_harm_nobody() -> None:
    machine = a_round(heard_all=False)
    machine.step(came(WHOLE))
    assert machine.step(Close()) == ()  # the other node may have answered before we listened
    alone = AuditRound(EPOCH, BEACON, {HOLDER.public: 3}, heard_all=False)
    alone.step(Derived(HOLDER.public, ASKED))
    alone.step(came(WHOLE))
    assert vote(alone) == Vote(b"\x08", ())

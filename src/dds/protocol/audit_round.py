"""One epoch's audits as one witness sees them, sans I/O: who has proven what, whom to look at again, what to vote.

Decides when a node has passed (every leaf that it was asked for, proven by its own signed words), which losses are voted for
(what the node still lacks when the witness asks for it itself, once, late in the epoch), and what is said to the ledger. Does
not decide what was asked (ledger/facts.py), what a message proves (proofs/audit.py), nor when it is late: the host says so.

    pass      proven in full
    fail      it was there, and a leaf was wrong, or was not there when it was asked for again
    offline   no word of it, and it did not answer when it was asked
    unknown   nothing that can be held against it, and no proof either

Only `pass` gets a vote. The host performs effects in order, at once, and reports back with events; it may end a round at any
time by `Close`. A `Keep` is noted before the `Reply` behind it is sent: what was acknowledged must outlive a restart, or the
node is a vote short.
Source: docs/spec/proofs.md, "Witnesses".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, assert_never

from dds.primitives.hashing import tagged_hash
from dds.proofs.audit import Asked, Judged, Outcome, verify
from dds.proofs.challenge import SegmentFacts, Target
from dds.proofs.evidence import verify_evidence
from dds.wire.audit import AuditReply
from dds.wire.evidence import InvalidAnswer, encode_evidence
from dds.wire.ledger import BATCH_MAX, LossFound

MESSAGES_PER_NODE_MAX: Final = 24  # an answer in four parts, sent six times
WAITING_MAX: Final = 64  # messages whose challenge is being looked up, together
RECHECKED_NODES_MAX: Final = 256  # an epoch; the same ones for every witness
RECHECKED_LEAVES_MAX: Final = 8  # of one node
ACCUSATIONS_MAX: Final = 16  # an epoch


class Held(Enum):
    """What came of asking a node for a leaf itself."""

    HELD = "held"
    LOST = "lost"  # it was there and could not give it
    OFFLINE = "offline"
    UNKNOWN = "unknown"


# -- events -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MessageCame:
    """A node, proven by its connection, sent `raw`; `request` names the waiting reply."""

    request: int
    node_id: bytes
    raw: bytes


@dataclass(frozen=True, slots=True)
class Derived:
    """What a node is asked; None: it could not be found out, or it is asked nothing."""

    node_id: bytes
    asked: Asked | None


@dataclass(frozen=True, slots=True)
class LookAgain:
    """It is late in the epoch: whoever has not passed is asked by us."""


@dataclass(frozen=True, slots=True)
class LookedAgain:
    node_id: bytes
    found: tuple[tuple[Target, Held], ...]


@dataclass(frozen=True, slots=True)
class Close:
    """No word counts any more."""


Event = MessageCame | Derived | LookAgain | LookedAgain | Close


# -- effects ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Derive:
    """Find out what the node is asked."""

    node_id: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    request: int
    reply: AuditReply


@dataclass(frozen=True, slots=True)
class Refuse:
    request: int
    why: str


@dataclass(frozen=True, slots=True)
class Keep:
    """Bit i: the i-th of the node's `asked` targets is proven."""

    number: int
    asked: int
    proven: int


@dataclass(frozen=True, slots=True)
class Recheck:
    """Ask the node for these leaves, once."""

    asked: Asked
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Accuse:
    evidence: bytes


@dataclass(frozen=True, slots=True)
class Vote:
    """`passed`: a bitmap by node number."""

    passed: bytes
    losses: tuple[LossFound, ...]


Effect = Derive | Reply | Refuse | Keep | Recheck | Accuse | Vote


# -- the machine ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    number: int
    asked: Asked | None = None
    known_count: int = 0  # of targets, where `asked` is not there: from before a restart, or passed
    proven: int = 0  # bit i: target i
    wrong: bool = False
    heard: bool = False
    messages: int = 0
    deriving: bool = False
    looked: dict[Target, Held] = field(default_factory=dict)

    @property
    def has_passed(self) -> bool:
        count = len(self.asked.targets) if self.asked else self.known_count
        return count > 0 and self.proven == (1 << count) - 1

    def missing(self) -> tuple[Target, ...]:
        targets = self.asked.targets if self.asked else ()
        return tuple(target for at, target in enumerate(targets) if not self.proven >> at & 1)


@dataclass(frozen=True, slots=True)
class _Public:
    """The facts that a false statement of this epoch is refuted by."""

    network: str
    epochs: tuple[int, int]
    segments: Mapping[bytes, SegmentFacts]

    def segment(self, segment_id: bytes) -> SegmentFacts | None:
        return self.segments.get(segment_id)


class AuditRound:
    """One witness in one epoch."""

    def __init__(self, epoch: int, beacon: bytes, nodes: Mapping[bytes, int], *, heard_all: bool = True) -> None:
        """`nodes`: numbers, by NodeID, of those that have something to prove in `epoch`.

        `heard_all`: whether we listen since so early in the epoch that whoever answers is heard. One that did not votes only
        where everybody has proven everything: its not having heard of a node must not count against the node.
        """
        self.epoch, self._heard_all = epoch, heard_all
        self._beacon = beacon
        self._nodes = {node_id: _Node(number) for node_id, number in nodes.items()}
        self._waiting: list[MessageCame] = []
        self._accused: set[bytes] = set()
        self._late = self._closed = False

    def restore(self, number: int, asked: int, proven: int) -> None:
        """Take up what a `Keep` said before a restart."""
        for node in self._nodes.values():
            if node.number == number:
                node.known_count, node.proven, node.heard = asked, proven, True

    def step(self, event: Event) -> tuple[Effect, ...]:
        match event:
            case MessageCame():
                return tuple(self._message(event))
            case Derived():
                return tuple(self._derived(event))
            case LookAgain():
                return tuple(self._look_again())
            case LookedAgain():
                return tuple(self._looked_again(event))
            case Close():
                return tuple(self._close())
            case _:
                assert_never(event)

    def outcome(self, node_id: bytes) -> Outcome:
        """As far as is known now."""
        node = self._nodes[node_id]
        if node.has_passed:
            return Outcome.PASS
        if node.wrong or Held.LOST in node.looked.values():
            return Outcome.FAIL
        return Outcome.OFFLINE if not node.heard and Held.OFFLINE in node.looked.values() else Outcome.UNKNOWN

    def outcomes(self) -> dict[Outcome, int]:
        """How many nodes there are of each."""
        counts = dict.fromkeys(Outcome, 0)
        for node_id in self._nodes:
            counts[self.outcome(node_id)] += 1
        return counts

    # -- answers

    def _message(self, came: MessageCame) -> Iterator[Effect]:
        node = self._nodes.get(came.node_id)
        if node is None or self._closed:
            yield Refuse(came.request, f"nothing is asked of this node in epoch {self.epoch}, or it is over")
        elif node.messages >= MESSAGES_PER_NODE_MAX:
            yield Refuse(came.request, f"at most {MESSAGES_PER_NODE_MAX} messages of one node in an epoch")
        elif node.has_passed:
            yield Reply(came.request, AuditReply(node.known_count, node.known_count, 0))
        elif node.asked is not None:
            node.messages += 1
            yield from self._judge(node, node.asked, came)
        elif len(self._waiting) >= WAITING_MAX:
            yield Refuse(came.request, "too many answers at once; try again")
        else:
            node.messages += 1
            self._waiting.append(came)
            yield from self._derive(came.node_id, node)

    def _derive(self, node_id: bytes, node: _Node) -> Iterator[Effect]:
        if not node.deriving:
            node.deriving = True
            yield Derive(node_id)

    def _derived(self, event: Derived) -> Iterator[Effect]:
        node = self._nodes[event.node_id]
        node.deriving = False
        if node.asked is None and event.asked is not None:
            node.asked = event.asked
            if node.known_count != len(event.asked.targets):
                node.proven = 0  # what was noted belongs to no challenge that we know
        mine = [came for came in self._waiting if came.node_id == event.node_id]
        self._waiting = [came for came in self._waiting if came.node_id != event.node_id]
        asked = node.asked
        for came in mine:
            if asked is None:
                yield Refuse(came.request, "what is asked of this node cannot be found out now; try again")
            else:
                yield from self._judge(node, asked, came)
        if self._late:
            yield from self._recheck(node)

    def _judge(self, node: _Node, asked: Asked, came: MessageCame) -> Iterator[Effect]:
        if self._closed:
            yield Refuse(came.request, f"epoch {self.epoch} is over")
            return
        judged = verify(came.raw, asked)
        if judged.problem:
            yield Refuse(came.request, judged.problem)
            return
        node.heard = True
        node.wrong = node.wrong or bool(judged.wrong)
        before = node.proven
        for at, target in enumerate(asked.targets):
            node.proven |= (target in judged.passed) << at
        if node.proven != before:
            yield Keep(node.number, len(asked.targets), node.proven)
        yield from self._accusations(asked, judged)
        wrong = len(judged.wrong) + judged.unasked
        yield Reply(came.request, AuditReply(len(asked.targets), node.proven.bit_count(), wrong))
        if node.has_passed:  # nothing is to be judged of it any more: its challenge need not stay in memory
            node.known_count, node.asked = len(asked.targets), None

    def _accusations(self, asked: Asked, judged: Judged) -> Iterator[Effect]:
        public = _Public(asked.network, (asked.epoch, asked.epoch), asked.segments)
        for _, statement in judged.wrong:
            evidence = encode_evidence(InvalidAnswer(judged.signed, statement))
            finding = verify_evidence(evidence, public)
            if finding and finding.digest not in self._accused and len(self._accused) < ACCUSATIONS_MAX:
                self._accused.add(finding.digest)
                yield Accuse(evidence)

    # -- looking again

    def _look_again(self) -> Iterator[Effect]:
        """In an order that all witnesses share: where not everybody can be asked, they ask the same ones and can agree."""
        self._late = True
        silent = [node_id for node_id, node in self._nodes.items() if not node.has_passed]
        silent.sort(key=lambda node_id: tagged_hash(b"dds/recheck-order/v1", self._beacon, node_id))
        for node_id in silent[:RECHECKED_NODES_MAX]:
            node = self._nodes[node_id]
            if node.asked is None:
                yield from self._derive(node_id, node)
            else:
                yield from self._recheck(node)

    def _recheck(self, node: _Node) -> Iterator[Effect]:
        if node.asked is not None and (missing := node.missing()):
            yield Recheck(node.asked, missing[:RECHECKED_LEAVES_MAX])

    def _looked_again(self, event: LookedAgain) -> Iterator[Effect]:
        if not self._closed:
            self._nodes[event.node_id].looked.update(event.found)
        return iter(())

    # -- the vote

    def _close(self) -> Iterator[Effect]:
        if self._closed:
            return
        self._closed = True
        passed = sum(1 << node.number for node in self._nodes.values() if node.has_passed)
        losses = sorted({loss for node in self._nodes.values() for loss in _losses(node)})
        if self._heard_all or all(node.has_passed for node in self._nodes.values()):
            bitmap = passed.to_bytes((passed.bit_length() + 7) // 8, "little")
            yield Vote(bitmap, tuple(LossFound(*loss) for loss in losses[:BATCH_MAX]))
        for came in self._waiting:
            yield Refuse(came.request, f"epoch {self.epoch} is over")
        self._waiting.clear()


def _losses(node: _Node) -> Iterator[tuple[int, bytes, int]]:
    """What it could not give when it was asked again, and did not prove after that either."""
    missing = set(node.missing())
    for target, held in node.looked.items():
        if held is Held.LOST and target in missing:
            yield node.number, target.segment_id, target.index

"""Witnesses: who watches an epoch's audits, how their votes become verdicts, and the beacon that they make together.

Decides an epoch's committee, which reports count, when a vote is a quorum, and what the next beacon is. What a verdict does to
a node is `standing.py`'s; whether a leaf held is the witnesses' own finding (`proofs/audit.py`).
Source: docs/spec/ledger.md, "Witnesses, audits, the beacon".

    epoch e        its audits are challenged with its beacon, answered, and may be reported already
    epoch e + 1    reported; a report may carry the commitment of round e
    end of e + 1   closed: passes, misses
    epoch e + 2    the secrets of round e are revealed
    end of e + 2   the reveals change the mix that beacons come from
"""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from dds.ledger.faults import Refused, require
from dds.ledger.params import Params
from dds.ledger.records import EPOCHS, OPERATORS, SEGMENTS, EpochRecord, Holding, LossVotes, NodeStatus, number_key
from dds.ledger.rules.holding import release
from dds.ledger.rules.inventory import total_leaves
from dds.ledger.rules.slashing import take_bond
from dds.ledger.rules.standing import is_suspended, record_miss, record_pass, score_ppm, standing_of
from dds.ledger.state import State
from dds.placement.draw import WEIGHT_MAX, Candidate, Rules, draw
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import NodeID
from dds.primitives.money import MILLION, mul_div_ceil
from dds.wire.ledger import LossFound, Tx, WitnessReport

WITNESS_ROLE: Final = "witness"
SECRET_BYTES: Final = 32
REVEAL_DELAY: Final = 2  # epochs from the audited one to the one in which its round is revealed
_BEACON_TAG: Final = b"dds/beacon/v1"
_MIX_TAG: Final = b"dds/beacon-mix/v1"
_COMMIT_TAG: Final = b"dds/beacon-commit/v1"
_COMMITTEE_TAG: Final = b"dds/committee/v1"
_ONE_BYTE_A_BIT: Final = tuple(bytes(byte >> bit & 1 for bit in range(8)) for byte in range(256))


# -- reading ----------------------------------------------------------------------------------------------------------------


def committee_of(state: State, epoch: int) -> tuple[int, ...]:
    """Node numbers of the witnesses of `epoch`, as drawn; none where the epoch is not recorded."""
    record = _record(state, epoch)
    return record.committee if record else ()


def beacon_of(state: State, epoch: int) -> bytes:
    """32 bytes that nobody knew before the reveals of the epoch before.

    Raises:
        Refused: the epoch is past and not recorded any more, or nothing was ever reported about it.
    """
    record = _record(state, epoch)
    if record is not None:
        return record.beacon
    require(epoch >= state.epoch, "beacon-gone", f"the beacon of epoch {epoch} is not kept")
    return tagged_hash(_BEACON_TAG, state.chain.beacon_mix, number_key(epoch))


def quorum(params: Params, members: int) -> int:
    """How many of a committee have to agree."""
    return mul_div_ceil(members, params.quorum_ppm, MILLION)


def beacon_commitment(witness: bytes, secret: bytes) -> bytes:
    """What a witness (node id) says of its secret before it tells it."""
    return tagged_hash(_COMMIT_TAG, witness, secret)


def _record(state: State, epoch: int) -> EpochRecord | None:
    return state.find(EPOCHS, number_key(epoch)) if epoch >= 0 else None


# -- reports ----------------------------------------------------------------------------------------------------------------


def witness_report(state: State, tx: Tx, body: WitnessReport) -> None:
    """Votes and a commitment of one who is in the committee of `body.epoch`, once; and a reveal of one who committed.

    A report that holds a reveal and nothing else is no vote: so a witness that is not drawn again can reveal too. Who means
    that nobody passed says so with a zero byte, or with a commitment.
    """
    number = state.node_number(tx.sender)
    if number is None:
        raise Refused("not-a-witness", "the sender is no node")
    _check_shape(state, body)
    if body.is_vote:
        _count(state, body, number)
    if body.reveal:
        _reveal(state, number, tx.sender, body.reveal)


def _check_shape(state: State, body: WitnessReport) -> None:
    now = state.epoch
    require(body.epoch <= now, "report-too-early", f"it is epoch {now}, the report is about {body.epoch}")
    require(body.epoch + 1 >= now, "report-too-late", f"it is epoch {now}, reports about {body.epoch} are over")
    require(len(body.commit) in (0, SECRET_BYTES), "bad-commit", f"a commitment has {SECRET_BYTES} bytes")
    require(len(body.reveal) in (0, SECRET_BYTES), "bad-reveal", f"a secret has {SECRET_BYTES} bytes")
    keys = [(loss.node, loss.segment_id, loss.index) for loss in body.losses]
    require(keys == sorted(set(keys)), "not-ascending", "losses are to be strictly ascending")


def _count(state: State, body: WitnessReport, number: int) -> None:
    record = state.get(EPOCHS, number_key(body.epoch), "no-such-epoch", "record of epoch")
    require(number in record.committee, "not-a-witness", f"node {number} is not in the committee of epoch {body.epoch}")
    place = record.committee.index(number)
    require(not record.reported >> place & 1, "already-reported", f"node {number} has reported on epoch {body.epoch} already")
    said = int.from_bytes(body.passed, "little")
    require(
        said >> record.node_count == 0,
        "no-such-node",
        f"a pass beyond the {record.node_count} nodes that there were when epoch {body.epoch} began",
    )
    losses, found = _with_losses(state, body.epoch, record, body.losses, place)
    commits = record.commits
    if body.commit:
        commits = commits or (b"",) * len(record.committee)
        commits = (*commits[:place], body.commit, *commits[place + 1 :])
    after = replace(
        record,
        reported=record.reported | 1 << place,
        passes=_with_votes(record.passes, body.passed, record.node_count),
        losses=losses,
        commits=commits,
    )
    state.put(EPOCHS, number_key(body.epoch), after)
    detail = f"epoch {body.epoch}: {said.bit_count()} passed, {len(body.losses)} losses"
    state.emit("witness-report", node=number, detail=detail)
    for votes in found:
        _release_lost(state, body.epoch, record, votes)


def _with_votes(passes: bytes, bitmap: bytes, nodes: int) -> bytes:
    """One vote more for each bit: all of a node's votes fit in its byte, for a committee has at most 255."""
    votes = b"".join(_ONE_BYTE_A_BIT[byte] for byte in bitmap)
    total = int.from_bytes(passes, "little") + int.from_bytes(votes, "little")
    return total.to_bytes(nodes, "little")


def _with_losses(
    state: State, epoch: int, record: EpochRecord, said: list[LossFound], place: int
) -> tuple[tuple[LossVotes, ...], list[LossVotes]]:
    """The votes with those of `place` added, and the ones that are a quorum by it.

    What names no assignment that is active and its node's since that epoch is passed over: it may have been freed meanwhile.
    """
    votes = {(entry.node, entry.segment_id, entry.index): entry for entry in record.losses}
    needed = quorum(state.params, len(record.committee))
    found = []
    for loss in said:
        if _was_held(state, loss, epoch):
            key = (loss.node, loss.segment_id, loss.index)
            before = votes.get(key) or LossVotes(loss.node, loss.segment_id, loss.index, 0)
            votes[key] = after = replace(before, votes=before.votes | 1 << place)
            if before.votes.bit_count() < needed <= after.votes.bit_count():
                found.append(after)
    return tuple(votes.values()), found


def _was_held(state: State, loss: LossFound, epoch: int) -> bool:
    """A node that was let go and drawn again for the same index answers for what it holds now, from its first epoch on."""
    segment = state.find(SEGMENTS, loss.segment_id)
    if segment is None or loss.index >= len(segment.assignments):
        return False
    assignment = segment.assignments[loss.index]
    is_its = assignment.node == loss.node and assignment.state == Holding.ACTIVE
    return is_its and assignment.first_epoch <= epoch


def _release_lost(state: State, epoch: int, record: EpochRecord, votes: LossVotes) -> None:
    """Those whose votes made the quorum share the reward."""
    reporters = [state.node(witness).payout for at, witness in enumerate(record.committee) if votes.votes >> at & 1]
    release(
        state,
        votes.segment_id,
        votes.index,
        reason=f"loss found in epoch {epoch} by {len(reporters)} of {len(record.committee)} witnesses",
        slash_ppm=state.params.loss_slash_ppm,
        reporters=reporters,
    )


# -- the beacon -------------------------------------------------------------------------------------------------------------


def _reveal(state: State, number: int, witness: bytes, secret: bytes) -> None:
    """Put the secret in the place of its commitment."""
    epoch = state.epoch - REVEAL_DELAY
    record = _record(state, epoch)
    place = record.committee.index(number) if record and number in record.committee else None
    if record is None or place is None or not record.commits or not record.commits[place]:
        raise Refused("nothing-to-reveal", f"node {number} committed to nothing in round {epoch}, the one being revealed")
    require(not record.revealed >> place & 1, "already-revealed", f"node {number} has revealed its secret of round {epoch}")
    require(
        beacon_commitment(witness, secret) == record.commits[place],
        "wrong-reveal",
        f"the secret is not the one that node {number} committed to in round {epoch}",
    )
    commits = (*record.commits[:place], secret, *record.commits[place + 1 :])
    state.put(EPOCHS, number_key(epoch), replace(record, commits=commits, revealed=record.revealed | 1 << place))


def _mix(state: State, epoch: int) -> None:
    """The round of `epoch` is over: its reveals, in the committee's order, change the mix.

    Who kept its secret is fined when at least half of those who committed told theirs; where fewer did, the ledger itself may
    have stood still.
    """
    record = _record(state, epoch)
    if record is None or not record.revealed:
        return
    told = [secret for at, secret in enumerate(record.commits) if record.revealed >> at & 1]
    state.set_chain(beacon_mix=tagged_hash(_MIX_TAG, state.chain.beacon_mix, number_key(epoch), *told))
    silent = [witness for at, witness in enumerate(record.committee) if record.commits[at] and not record.revealed >> at & 1]
    if len(silent) <= len(told):
        for number in silent:
            take_bond(
                state,
                state.node(number).operator,
                state.params.no_reveal_bond_ppm,
                (),
                reason=f"beacon secret of round {epoch} not revealed",
                evidence=b"",
                node=number,
            )


# -- the epoch's change -----------------------------------------------------------------------------------------------------


def close_epoch(state: State, ending: int, beginning: int) -> None:
    """Epoch step: judge what can be reported no longer, mix what was revealed, forget what is out of the evidence window.

    After a pause nothing is revealed and nothing reported for what lies between, so that nothing is left to do for it.
    """
    for epoch in range(ending - 1, min(ending, beginning - REVEAL_DELAY) + 1):
        _close(state, epoch)
    _mix(state, ending - REVEAL_DELAY)
    kept = state.params.evidence_epochs
    for epoch in range(max(0, ending - REVEAL_DELAY - kept), min(ending, beginning - REVEAL_DELAY - kept)):
        if _record(state, epoch) is not None:
            state.delete(EPOCHS, number_key(epoch))


def _close(state: State, epoch: int) -> None:
    record = _record(state, epoch)
    if record is None:
        return
    if not record.reported:  # nothing was said of it: nothing to keep
        state.delete(EPOCHS, number_key(epoch))
        return
    needed = quorum(state.params, len(record.committee))
    reports = record.reported.bit_count()
    if reports < needed:
        detail = f"epoch {epoch} is unknown: {reports} of {len(record.committee)} witnesses reported, {needed} are needed"
        state.emit("epoch-unknown", detail=detail)
    else:
        _judge(state, epoch, record, needed)
    state.put(EPOCHS, number_key(epoch), replace(record, passes=b"", losses=()))


def _judge(state: State, epoch: int, record: EpochRecord, needed: int) -> None:
    """Pass or miss for every node that had something to prove; one that was caught meanwhile is judged already."""
    scale_ppm = state.chain.subsidy_scale_ppm
    lost = {votes.node for votes in record.losses if votes.votes.bit_count() >= needed}
    for number, had_leaves in enumerate(_bits(record.audited, record.node_count)):
        if not had_leaves or state.node(number).status == NodeStatus.FAULTED:
            continue
        if record.passes[number] >= needed and number not in lost:
            record_pass(state, number, epoch, scale_ppm)
        else:
            record_miss(state, number, epoch)


def open_epoch(state: State, ending: int, beginning: int) -> None:
    """Epoch step: draw the committee of the epoch that begins, and of the one before it after a pause: both can be reported.

    It runs after the inventories are frozen, so that it knows who has something to prove.
    """
    for epoch in range(max(ending + 1, beginning - 1), beginning + 1):
        beacon = tagged_hash(_BEACON_TAG, state.chain.beacon_mix, number_key(epoch))
        record = EpochRecord(
            committee=_draw_committee(state, epoch, beacon),
            node_count=state.chain.nodes,
            beacon=beacon,
            audited=_audited(state),
        )
        state.put(EPOCHS, number_key(epoch), record)


def _draw_committee(state: State, epoch: int, beacon: bytes) -> tuple[int, ...]:
    """One witness an operator, weighed by bond and squared score, drawn without replacement."""
    weights: dict[bytes, tuple[int, int]] = {}  # operator -> number of its first fit witness, weight
    for node in state.nodes():
        if node.operator in weights or node.status != NodeStatus.ACTIVE or WITNESS_ROLE not in node.roles:
            continue
        operator, standing = state.find(OPERATORS, node.operator), standing_of(state, node.number)
        if operator is None or operator.jailed_until > epoch or is_suspended(standing, state.params, epoch):
            continue
        weight = operator.bond * score_ppm(standing, state.params) ** 2
        if weight:
            weights[node.operator] = (node.number, weight)
    surplus = max(0, max((weight for _, weight in weights.values()), default=0).bit_length() - (WEIGHT_MAX.bit_length() - 1))
    pool = [
        Candidate(NodeID(number_key(number)), "", operator.hex(), "", max(1, weight >> surplus))
        for operator, (number, weight) in weights.items()
    ]
    seats = min(len(pool), state.params.committee_max)
    free = Rules(per_region=max(1, seats), per_operator=1, per_subnet=max(1, seats))
    drawn = draw(pool, seats, free, tagged_hash(_COMMITTEE_TAG, beacon), spares=0)
    return tuple(int.from_bytes(seat, "big") for seat in drawn.chosen)


def _audited(state: State) -> bytes:
    """Bitmap of the nodes that have leaves in their frozen inventory."""
    bits = bytearray((state.chain.nodes + 7) // 8)
    for number in range(state.chain.nodes):
        if total_leaves(state, number):
            bits[number // 8] |= 1 << number % 8
    return bytes(bits)


def _bits(bitmap: bytes, count: int) -> bytes:
    """One byte, 0 or 1, for each of the first `count` bits."""
    return b"".join(_ONE_BYTE_A_BIT[byte] for byte in bitmap)[:count]

"""Choosing discovery records out of what strangers put under a key, and remembering those that proved good.

Decides: which of many values are looked at, verified and used, and in which order. Does not fetch or store anything
(runtime/locate.py), does not define records (wire/discovery.py). Source: docs/spec/discovery.md, "Choosing".

A key can be flooded with thousands of values. What bounds the damage:

- a value that is not sealed for the key costs one failed decryption (4 us) and is not counted any further;
- at most VALUES_MAX sealed values are parsed, and at most VERIFICATIONS_MAX signatures checked, whatever arrives;
- a signer counts once, with its newest record that verifies; forged records in its name are tried one a round, after the
  other signers' turn, so that they cannot use up the work that others need;
- signers that proved good before come first, then alternately the newest and a seeded draw: a flood of fresh records can
  take half of the places at most as long as it cannot also outnumber the draw.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final, Generic

from dds.primitives.errors import FormatError
from dds.primitives.hashing import tagged_hash
from dds.wire.discovery import Claim, Kind, Place, R, is_current, is_signed, parse_record, unseal

RECORDS_MAX: Final = 48  # records of one kind that are used per key
VALUES_MAX: Final = 4096
VERIFICATIONS_MAX: Final = 512  # 23 ms of work at 45 us each
SUBJECTS_REMEMBERED_MAX: Final = 1024


@dataclass(frozen=True)
class Selection(Generic[R]):
    """Verified records, best first, one per signer; and what finding them took."""

    claims: list[Claim[R]]
    examined: int = 0
    refused: int = 0  # malformed, expired, or about something else
    verified: int = 0  # signatures checked
    forged: int = 0

    @property
    def records(self) -> list[R]:
        return [claim.record for claim in self.claims]


def unseal_all(values: Iterable[bytes], place: Place, kind: Kind[R]) -> list[bytes]:
    """The signed records of one kind in DHT values, at most VALUES_MAX of them looked at."""
    opened = (unseal(place, value) for value in islice(values, VALUES_MAX))
    return [found[1] for found in opened if found is not None and found[0] == kind.code]


def select_records(
    signed: Iterable[bytes],
    kind: Kind[R],
    network: str,
    now_ms: int,
    *,
    subject: bytes | None = None,
    last_good: Collection[bytes] = (),
    seed: bytes = b"",
    limit: int = RECORDS_MAX,
) -> Selection[R]:
    """Turn signed records of unknown worth into at most `limit` verified ones.

    Args:
        signed: envelopes, as unsealed; those beyond VALUES_MAX are not looked at.
        subject: what they must be about (a ContentID, a segment id); None accepts any, for node records.
        last_good: signers whose records proved right before.
        seed: decides the draw among unknown signers; a node uses a secret of its own.
    """
    rounds = _claims_by_signer(signed, kind, network, now_ms, subject)
    order = _in_order(rounds.by_signer, last_good, seed)
    chosen: dict[bytes, Claim[R]] = {}
    verified = 0
    waiting = order
    while waiting and len(chosen) < limit and verified < VERIFICATIONS_MAX:
        again = []
        for signer in waiting:
            if len(chosen) >= limit or verified >= VERIFICATIONS_MAX:
                break
            claim = rounds.by_signer[signer].pop()
            verified += 1
            if is_signed(claim, kind, network):
                chosen[signer] = claim
            elif rounds.by_signer[signer]:
                again.append(signer)
        waiting = again
    claims = [chosen[signer] for signer in order if signer in chosen]
    return Selection(claims, rounds.examined, rounds.refused, verified, verified - len(claims))


@dataclass
class _Rounds(Generic[R]):
    by_signer: dict[bytes, list[Claim[R]]]  # newest last
    examined: int
    refused: int


def _claims_by_signer(signed: Iterable[bytes], kind: Kind[R], network: str, now_ms: int, subject: bytes | None) -> _Rounds[R]:
    by_signer: dict[bytes, list[Claim[R]]] = {}
    distinct = dict.fromkeys(islice(signed, VALUES_MAX))
    refused = 0
    for raw in distinct:
        try:
            claim = parse_record(raw, kind, network)
        except FormatError:
            refused += 1
            continue
        if not is_current(claim.record, kind, now_ms) or subject not in (None, kind.subject(claim.record)):
            refused += 1
            continue
        by_signer.setdefault(claim.signer, []).append(claim)
    for claims in by_signer.values():
        claims.sort(key=_age)
    return _Rounds(by_signer, len(distinct), refused)


def _age(claim: Claim[R]) -> tuple[int, bytes]:
    """Ties of the sequence number fall to the greater signature, so that everybody picks the same record."""
    return claim.record.seq, claim.signature


def _in_order(by_signer: dict[bytes, list[Claim[R]]], last_good: Collection[bytes], seed: bytes) -> list[bytes]:
    known = [signer for signer in last_good if signer in by_signer]
    unknown = by_signer.keys() - set(known)
    newest = sorted(unknown, key=lambda signer: (-by_signer[signer][-1].record.seq, signer))
    drawn = sorted(unknown, key=lambda signer: tagged_hash(b"dds/select/v1", seed, signer))
    mixed = (signer for pair in zip(newest, drawn, strict=True) for signer in pair)
    return list(dict.fromkeys((*known, *mixed)))


class Memory:
    """Who proved to have a subject: tried while the DHT is asked, and when it fails. Bounded, newest use kept.

    A signer is remembered once it delivered, never because its record verified: a Sybil's record verifies too.
    """

    def __init__(self) -> None:
        self._subjects: OrderedDict[bytes, OrderedDict[bytes, None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._subjects)

    def proved(self, subject: bytes, signer: bytes) -> None:
        """The signer's record led to right bytes."""
        good = self._subjects.setdefault(subject, OrderedDict())
        good[signer] = None
        good.move_to_end(signer, last=False)
        if len(good) > RECORDS_MAX:
            good.popitem()
        self._subjects.move_to_end(subject)
        if len(self._subjects) > SUBJECTS_REMEMBERED_MAX:
            self._subjects.popitem(last=False)

    def failed(self, subject: bytes, signer: bytes) -> None:
        """The signer did not have what its record said."""
        good = self._subjects.get(subject)
        if good is not None:
            good.pop(signer, None)
            if not good:
                del self._subjects[subject]

    def recall(self, subject: bytes) -> list[bytes]:
        """Signers, the latest success first."""
        return list(self._subjects.get(subject, ()))

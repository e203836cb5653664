"""Frozen bytes of audits and evidence: a change here is a change of the wire (samples: tests/vectors/audit_samples.py)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from dds.proofs.audit import verify
from dds.proofs.challenge import SegmentFacts
from dds.proofs.evidence import verify_evidence
from tests.audit_kit import BEACON, EPOCH, HOLDER, NETWORK, sample
from tests.vectors.audit_samples import SEED, derived, samples

FROZEN = json.loads(Path(__file__).with_name("audit.json").read_text())


class Facts:
    network, epochs = NETWORK, (0, EPOCH)

    def segment(self, segment_id: bytes) -> SegmentFacts | None:
        return sample().facts() if segment_id == sample().segment_id else None


def test_every_sample_is_frozen() -> None:
    assert samples().keys() == FROZEN["bytes"].keys() and derived().keys() == FROZEN["derived"].keys()


@pytest.mark.parametrize("name", FROZEN["bytes"])
def test_bytes_are_frozen(name: str) -> None:
    assert samples()[name].hex() == FROZEN["bytes"][name]


@pytest.mark.parametrize("name", FROZEN["derived"])
def test_derived_values_are_frozen(name: str) -> None:
    assert derived()[name] == FROZEN["derived"][name]


def test_frozen_bytes_still_prove_what_they_proved() -> None:
    target = sample().target(2, 2, 0)
    judged = verify(bytes.fromhex(FROZEN["bytes"]["message"]), sample().asked([target]))
    assert judged.passed == {target}
    kinds = {}
    for name in ("invalid answer", "conflicting statements", "witness equivocation"):
        finding = verify_evidence(bytes.fromhex(FROZEN["bytes"][name]), Facts())
        assert finding is not None
        kinds[name] = finding.kind
        assert finding.digest.hex() == FROZEN["offences"][name]
    assert kinds == {name: name.replace(" ", "-") for name in kinds}
    assert FROZEN["offences"]["invalid answer"] == FROZEN["offences"]["conflicting statements"]


def test_the_challenge_can_be_made_again_from_its_description() -> None:
    """Written from docs/spec/proofs.md alone."""
    tag = b"dds/challenge/v1"
    seed = hashlib.sha256(bytes([len(tag)]) + tag + b"audit" + BEACON + HOLDER.public + b"\x1b" * 32).digest()
    total, words = 1_000_003, []
    for counter in range(20):
        block = hashlib.sha256(seed + counter.to_bytes(8, "big")).digest()
        words += [int.from_bytes(block[at : at + 8], "big") for at in range(0, 32, 8)]
    usable = [word % total for word in words if word < (1 << 64) // total * total]
    assert seed == SEED and sorted(set(usable[:20])) == FROZEN["derived"]["drawn leaves"]

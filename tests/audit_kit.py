"""A small encoded segment with all its fragments, and true or false words of its holders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dds.erasure.fragment_tree import leaf_hashes_of, leaf_range, path_for, record_of
from dds.erasure.stripes import encode_stripe
from dds.primitives.cid import cid_of
from dds.primitives.keys import SigningKey
from dds.proofs.audit import Asked, statement_of
from dds.proofs.challenge import SegmentFacts, Target
from dds.wire.audit import LeafStatement, sign_answer
from dds.wire.codec import encode
from dds.wire.ledger import StripeRun
from dds.wire.segment import CODEC_PLAIN, EncodingRecord, Entry, StripeShape, encode_index, segment_id_of
from tests.vectors.keystream import keystream

NETWORK = "testnet"
EPOCH = 7
BEACON = b"\xbe" * 32
HOLDER = SigningKey(b"h" * 32)


@dataclass(frozen=True)
class Sample:
    """Two stripes of 3+2 (20,000-byte slots: 6 leaves, the last of 160 bytes), then one of 1+2 copies (122 bytes)."""

    encoding: EncodingRecord
    fragments: tuple[tuple[bytes, ...], ...]  # [stripe][index]

    @property
    def segment_id(self) -> bytes:
        return self.encoding.segment_id

    def facts(self, since_epoch: int = 2) -> SegmentFacts:
        return SegmentFacts(self.encoding.root(), runs_of(self.encoding), since_epoch)

    def target(self, index: int, stripe: int, leaf: int) -> Target:
        return Target(self.segment_id, index, stripe, leaf)

    def statement(self, target: Target) -> LeafStatement:
        fragment = self.fragments[target.stripe][target.index]
        first, behind = leaf_range(len(fragment), target.leaf)
        return statement_of(self.encoding, target, fragment[first:behind], path_for(leaf_hashes_of(fragment), target.leaf))

    def asked(self, targets: Iterable[Target], *, key: SigningKey = HOLDER, epoch: int = EPOCH) -> Asked:
        return Asked(NETWORK, epoch, BEACON, 3, key.public, tuple(sorted(targets)), {self.segment_id: self.facts()})


def runs_of(encoding: EncodingRecord) -> tuple[StripeRun, ...]:
    return tuple(StripeRun(1, shape.k, shape.m, shape.slot_bytes) for shape in encoding.stripes)


def sample(name: str = "audited") -> Sample:
    blocks = 120_000 - 63 + 122
    index = encode_index([Entry(cid_of(name.encode()), 0, blocks, blocks, CODEC_PLAIN)])
    space = keystream(name, blocks) + index
    shapes = (StripeShape(3, 2, 20_000, 60_000), StripeShape(3, 2, 20_000, 60_000), StripeShape(1, 2, 122, 122))
    stripes, at = [], 0
    for number, shape in enumerate(shapes):
        stripes.append(encode_stripe(shape, space[at : at + shape.data_bytes], number))
        at += shape.data_bytes
    assert at == len(space)
    records = tuple(tuple(record_of(i, f) for i, f in enumerate(stripe.fragments)) for stripe in stripes)
    encoding = EncodingRecord(segment_id_of(index), "custom", blocks, len(index), shapes, records)
    return Sample(encoding, tuple(tuple(bytes(f) for f in stripe.fragments) for stripe in stripes))


def answer(
    statements: Iterable[LeafStatement],
    *,
    key: SigningKey = HOLDER,
    network: str = NETWORK,
    epoch: int = EPOCH,
    beacon: bytes = BEACON,
) -> bytes:
    """An encoded message with these statements, signed by `key`."""
    return sign_answer(key, network, epoch, beacon, [encode(statement) for statement in statements])

"""Frozen bytes of what a re-encoding sends and leaves in the state: another implementation must write the same."""

from __future__ import annotations

import hashlib

from dds.ledger.records import Assignment, Former, Holding, Segment, SponsorEntry
from dds.primitives.keys import SigningKey
from dds.wire.codec import decode, encode
from dds.wire.ledger import Reencode, SegmentEntry, StripeRun, open_tx, sign_tx, tx_name

WIDE, NARROW = StripeRun(1, 3, 1, 4096), StripeRun(2, 2, 1, 4096)
ENTRY = SegmentEntry(b"r" * 32, b"s" * 32, b"o" * 32, b"h" * 32, [WIDE], [b"receipt"] * 4)
SEGMENT = Segment(
    segment_root=b"o" * 32,
    encoding_hash=b"h" * 32,
    reservation=b"r" * 32,
    price=1325,
    loss_tolerance=1,
    stripes=(WIDE,),
    released=0,
    assignments=(Assignment(3, int(Holding.ACTIVE), 4096, 1, 8, 8, 7453),),
    sponsors=(SponsorEntry(b"c" * 32, 1, 1325, 8, 58, 1036, 104),),
    registered_epoch=7,
    role="asn",
    former=Former(b"O" * 32, (NARROW,), 2),
)
FROZEN = {  # SHA-256
    "Reencode": "fae0855a13fee7c9daa777cdd3d79e959d50403751f4d808aa949ce2c4c8b849",
    "Segment": "503ea35674f36755218df27ddc8c16e43680cff405746af1c73250d6d59b26cc",
}


def test_a_reencoding_is_sent_as_it_was() -> None:
    raw = sign_tx(SigningKey(b"k" * 32), "test", 5, Reencode(ENTRY))
    tx = open_tx(raw, "test")
    assert (tx.body, tx.nonce, tx_name(tx.body)) == (Reencode(ENTRY), 5, "reencode")
    assert hashlib.sha256(raw).hexdigest() == FROZEN["Reencode"]


def test_a_reencoded_segment_is_kept_as_it_was() -> None:
    raw = encode(SEGMENT)
    assert decode(raw, Segment) == SEGMENT
    assert hashlib.sha256(raw).hexdigest() == FROZEN["Segment"]

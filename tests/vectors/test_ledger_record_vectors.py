"""Frozen bytes of what a re-encoding sends and leaves in the state, of the lanes' prices and of the parameters."""

from __future__ import annotations

import hashlib

import pytest

from dds.ledger.params import Params, devnet_params
from dds.ledger.records import Assignment, Chain, Former, Holding, Lane, Segment, SponsorEntry
from dds.primitives.errors import FormatError
from dds.primitives.keys import SigningKey
from dds.wire.codec import decode, encode
from dds.wire.ledger import TX_TAG, Reencode, SaltedTxPayload, SegmentEntry, StripeRun, Transfer, open_tx, sign_tx, tx_name
from dds.wire.signed import sign

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
CHAIN = Chain(epoch=7, nodes=3, lanes=(Lane(1325, 1300, 4096, 2650), Lane(900, 880)), network="test")
FROZEN = {  # SHA-256
    "Reencode": "fae0855a13fee7c9daa777cdd3d79e959d50403751f4d808aa949ce2c4c8b849",
    "salted Transfer": "c9a85069ff36fd83ea2636f47ab25874f93f5ee9f4b0a90760fa5fca39c0df70",
    "Segment": "503ea35674f36755218df27ddc8c16e43680cff405746af1c73250d6d59b26cc",
    "Chain": "2d1b4a2eb93e59a8c193bb94cfe6988721eed0c38c97a2e7d57c87f9395c8452",
    "Params": "fd63f800f3413e1ab77f3bcfa6736580ccdf518e6a29d41b82a68474e7b31359",
    "devnet Params": "da51ed451e79f1d6fbc1a713a85602e87f9114bd0bba59b90d18500e9cb11ef1",
}


def test_a_reencoding_is_sent_as_it_was() -> None:
    raw = sign_tx(SigningKey(b"k" * 32), "test", 5, Reencode(ENTRY))
    tx = open_tx(raw, "test")
    assert (tx.body, tx.nonce, tx_name(tx.body)) == (Reencode(ENTRY), 5, "reencode")
    assert hashlib.sha256(raw).hexdigest() == FROZEN["Reencode"]


def test_a_salted_transaction_is_sent_as_it_was_and_an_empty_salt_has_no_place() -> None:
    key, body = SigningKey(b"k" * 32), Transfer(b"t" * 32, 7)
    raw = sign_tx(key, "test", 5, body, b"saltsalt")
    assert (open_tx(raw, "test").body, open_tx(raw, "test").nonce) == (body, 5)
    assert hashlib.sha256(raw).hexdigest() == FROZEN["salted Transfer"]
    for payload in (SaltedTxPayload(1, 5, body, b""), SaltedTxPayload(1, 5, body, b"ninebytes")):
        with pytest.raises(FormatError):
            open_tx(sign(key, TX_TAG, "test", encode(payload)), "test")


def test_a_reencoded_segment_is_kept_as_it_was() -> None:
    raw = encode(SEGMENT)
    assert decode(raw, Segment) == SEGMENT
    assert hashlib.sha256(raw).hexdigest() == FROZEN["Segment"]


def test_prices_and_parameters_are_kept_as_they_were() -> None:
    """A parameter more is another network: whoever changes these bytes changes what every ledger's genesis is."""
    for record, name in ((CHAIN, "Chain"), (Params(), "Params"), (devnet_params(1_700_000_000_000), "devnet Params")):
        raw = encode(record)
        assert decode(raw, type(record)) == record
        assert hashlib.sha256(raw).hexdigest() == FROZEN[name], name

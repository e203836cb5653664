"""Frozen bytes of the ledger's state: another implementation must come to the same roots, proofs and heads."""

from __future__ import annotations

import hashlib

from dds.ledger.tree import BucketTree, verify_proof
from dds.primitives.keys import SigningKey
from dds.wire.codec import decode, encode
from dds.wire.ledger_api import Head, Proof, open_head, sign_head

ENTRIES = {b"a": b"1", b"ab": b"", b"\x00" * 128: b"\xff" * 300}
EMPTY_ROOT = "d83389ac9a207fb7dbdc492fbb56b9482f19170699e224be64694cc885a3a2a2"
ROOT = "bbcf20a7766608d37ea0fac5ea6ff4008d37016dba30e18935c5241a9a448db4"
PROOF_SHA256 = "8dc9d11ebc6286e588773e60fa57ecc3e602c85103f2b730f63e3b018d71045b"
HEAD_SHA256 = "2dcca9a532a4f2fb867363544c0f2c28b93b8812740faab8503fcebe50464cbe"


def test_roots_and_proofs_are_as_they_were() -> None:
    tree = BucketTree()
    assert tree.root.hex() == EMPTY_ROOT
    tree.update(ENTRIES)
    assert tree.root.hex() == ROOT
    raw = encode(tree.prove(b"ab"))
    assert hashlib.sha256(raw).hexdigest() == PROOF_SHA256
    assert verify_proof(decode(raw, Proof), b"ab", b"", bytes.fromhex(ROOT))


def test_a_head_is_signed_as_it_was() -> None:
    head = Head(1, "test", bytes(32), "embedded", 7, 1_700_000_003_600, 3, 1000, 1_700_000_000_000, bytes(32))
    signed = sign_head(SigningKey(b"h" * 32), head)
    assert hashlib.sha256(signed).hexdigest() == HEAD_SHA256
    assert open_head(signed, "test") == (head, SigningKey(b"h" * 32).public)

"""Any history of changes gives the root of its entries, and any key has a proof that holds for its value alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dds.ledger.tree import BucketTree, verify_proof
from dds.primitives.errors import FormatError
from dds.wire.codec import decode, encode
from dds.wire.ledger_api import Proof

KEYS = st.binary(min_size=1, max_size=2)
CHANGES = st.dictionaries(KEYS, st.one_of(st.none(), st.binary(max_size=8)), max_size=12)


@settings(max_examples=25, deadline=None)
@given(st.lists(CHANGES, max_size=5), KEYS, st.binary(max_size=8))
def test_the_root_is_that_of_the_entries_that_are_left(
    history: list[dict[bytes, bytes | None]], key: bytes, other: bytes
) -> None:
    tree, entries = BucketTree(), dict[bytes, bytes]()
    for changes in history:
        tree.update(changes)
        for name, value in changes.items():
            entries.pop(name, None)
            if value is not None:
                entries[name] = value
    anew = BucketTree()
    anew.update(entries)
    assert tree.root == anew.root
    proof, value = tree.prove(key), entries.get(key)
    assert tree.get(key) == value and verify_proof(proof, key, value, tree.root)
    assert verify_proof(proof, key, other, tree.root) == (other == value)
    assert verify_proof(proof, key, None, tree.root) == (value is None)


TREE = BucketTree()
TREE.update({b"%d" % number: b"value" for number in range(50)})
PROOF = encode(TREE.prove(b"7"))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(PROOF) - 1), st.integers(1, 255))
def test_a_proof_with_any_byte_changed_does_not_hold(at: int, change: int) -> None:
    raw = bytearray(PROOF)
    raw[at] ^= change
    try:
        proof = decode(raw, Proof)
    except FormatError:
        return
    assert not verify_proof(proof, b"7", b"value", TREE.root)
    assert not verify_proof(proof, b"7", None, TREE.root)

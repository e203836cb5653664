"""The bucketed Merkle tree: what its root binds, what its proofs show, what they refuse to show."""

from __future__ import annotations

import hashlib

from msgspec.structs import replace

from dds.ledger.tree import EMPTY_LEAF, BucketTree, _climb, bucket_of, leaf_of, verify_proof
from dds.wire.ledger_api import BUCKET_COUNT, PROOF_DEPTH, Listed, Proof

ENTRIES = {b"k%d" % number: b"v%d" % number for number in range(300)}


def together() -> tuple[bytes, bytes]:
    """Two keys of one bucket."""
    first: dict[int, bytes] = {}
    for number in range(10_000):
        key = b"same%d" % number
        other = first.setdefault(bucket_of(key), key)
        if other != key:
            return other, key
    raise AssertionError("2^16 buckets were expected")


def tree_of(entries: dict[bytes, bytes]) -> BucketTree:
    tree = BucketTree()
    tree.update(entries)
    return tree


def naive_root(entries: dict[bytes, bytes]) -> bytes:
    """The specification, word by word."""
    listings: list[bytes] = [b""] * BUCKET_COUNT
    for key in sorted(entries):
        at = int.from_bytes(hashlib.sha256(key).digest()[:2], "big")
        listings[at] += len(key).to_bytes(2, "big") + key + hashlib.sha256(entries[key]).digest()
    level = [hashlib.sha256(b"\x00" + listing).digest() for listing in listings]
    while len(level) > 1:
        level = [hashlib.sha256(b"\x01" + level[at] + level[at + 1]).digest() for at in range(0, len(level), 2)]
    return level[0]


def test_the_root_is_what_the_specification_says() -> None:
    first, second = together()
    entries = {**ENTRIES, second: b"2", first: b"1"}
    assert tree_of(entries).root == naive_root(entries)
    assert BucketTree().root == naive_root({})


def test_the_root_depends_on_the_entries_and_not_on_their_history() -> None:
    tree = tree_of({**ENTRIES, b"gone": b"x"})
    tree.update({b"gone": None, b"k1": b"other"})
    tree.update({b"k1": b"v1", b"never": None})
    assert tree.root == tree_of(ENTRIES).root
    tree.update(dict.fromkeys(ENTRIES))
    assert tree.root == BucketTree().root


def test_what_is_only_staged_changes_nothing() -> None:
    tree = tree_of(ENTRIES)
    before = tree.root
    staged = tree.stage({b"k1": b"new", b"k2": None})
    assert (tree.root, tree.get(b"k1"), tree.get(b"k2")) == (before, b"v1", b"v2")
    tree.keep(staged)
    assert (tree.root, tree.get(b"k1"), tree.get(b"k2")) == (staged.root, b"new", None)


def test_a_proof_shows_what_is_there_and_what_is_not() -> None:
    tree = tree_of(ENTRIES)
    for key, value in ENTRIES.items():
        assert verify_proof(tree.prove(key), key, value, tree.root)
    assert verify_proof(tree.prove(b"absent"), b"absent", None, tree.root)


def test_a_proof_shows_nothing_else() -> None:
    tree = tree_of(ENTRIES)
    proof = tree.prove(b"k7")
    assert not verify_proof(proof, b"k7", b"v8", tree.root)
    assert not verify_proof(proof, b"k7", None, tree.root)
    assert not verify_proof(proof, b"k8", b"v8", tree.root)
    assert not verify_proof(proof, b"k7", b"v7", tree_of({**ENTRIES, b"k9": b"x"}).root)
    assert not verify_proof(tree.prove(b"absent"), b"absent", b"", tree.root)


def test_a_proof_with_anything_left_out_changed_or_out_of_order_does_not_hold() -> None:
    first, second = together()
    tree = tree_of({**ENTRIES, first: b"1", second: b"2"})
    proof = tree.prove(first)
    assert len(proof.entries) >= 2 and verify_proof(proof, first, b"1", tree.root)
    without = tuple(entry for entry in proof.entries if entry.key != first)
    assert not verify_proof(replace(proof, entries=without), first, None, tree.root)
    assert not verify_proof(replace(proof, entries=proof.entries[::-1]), first, b"1", tree.root)
    assert not verify_proof(replace(proof, entries=(*proof.entries, proof.entries[-1])), first, b"1", tree.root)
    assert not verify_proof(replace(proof, siblings=proof.siblings[:-1]), first, b"1", tree.root)
    for level, sibling in enumerate(proof.siblings):
        wrong = (*proof.siblings[:level], bytes([sibling[0] ^ 1]) + sibling[1:], *proof.siblings[level + 1 :])
        assert not verify_proof(replace(proof, siblings=wrong), first, b"1", tree.root)


def test_a_root_that_was_made_over_a_wrong_listing_proves_nothing() -> None:
    """Whoever makes roots might make one under which two things hold of a key."""
    siblings = (EMPTY_LEAF,) * PROOF_DEPTH
    one, two = hashlib.sha256(b"1").digest(), hashlib.sha256(b"2").digest()
    foreign = next(key for key in ENTRIES if bucket_of(key) != bucket_of(b"k"))

    def holds(listing: list[tuple[bytes, bytes]], siblings: tuple[bytes, ...] = siblings) -> bool:
        root = _climb(bucket_of(b"k"), leaf_of(listing), siblings)
        return verify_proof(Proof(tuple(Listed(*each) for each in listing), siblings), b"k", b"1", root)

    assert holds([(b"k", one)])
    assert not holds([(b"k", one), (b"k", two)])
    assert not holds([(b"k", one), (foreign, two)]) and not holds([(foreign, two), (b"k", one)])
    assert not holds([(b"k", one)], siblings[1:]) and not holds([(b"k", one)], (*siblings, EMPTY_LEAF))


def test_an_inner_node_is_never_taken_for_a_leaf() -> None:
    tree = tree_of(ENTRIES)
    proof = tree.prove(b"absent")
    assert not verify_proof(
        Proof((Listed(b"absent", proof.siblings[0]),), proof.siblings), b"absent", proof.siblings[0], tree.root
    )
    assert hashlib.sha256(b"\x00").digest() == EMPTY_LEAF


def test_buckets_are_loaded_when_they_are_touched_and_not_before() -> None:
    full = tree_of(ENTRIES)
    asked: list[int] = []

    def load(bucket: int) -> list[tuple[bytes, bytes]]:
        asked.append(bucket)
        return sorted((key, value) for key, value in ENTRIES.items() if bucket_of(key) == bucket)

    leaves = [(bucket_of(key), full._nodes[BUCKET_COUNT + bucket_of(key)]) for key in ENTRIES]
    tree = BucketTree(load, leaves)
    assert (tree.root, asked) == (full.root, [])
    assert tree.get(b"k7") == b"v7" and tree.get(b"k7") == b"v7" and asked == [bucket_of(b"k7")]
    tree.update({b"k8": b"new"})
    full.update({b"k8": b"new"})
    assert tree.root == full.root

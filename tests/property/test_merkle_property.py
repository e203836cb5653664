"""Merkle trees against the recursive definition of RFC 9162, and paths against forgery."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dds.primitives.merkle import EMPTY_ROOT, leaf_hash, leaf_hashes, node_hash, path_length, path_of, root_of, verify_path
from tests.vectors.merkle_oracle import merkle_tree_hash, padded_leaves

leaf_lists = st.lists(st.binary(max_size=8), max_size=70)


def audit_path(leaves: list[bytes], index: int) -> list[bytes]:
    """PATH(m, D[n]) of RFC 9162 section 2.1.3.1, by recursion."""
    if len(leaves) <= 1:
        return []
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    if index < split:
        return [*audit_path(leaves[:split], index), merkle_tree_hash(leaves[split:])]
    return [*audit_path(leaves[split:], index - split), merkle_tree_hash(leaves[:split])]


@given(leaf_lists)
def test_the_root_is_the_merkle_tree_hash(leaves: list[bytes]) -> None:
    assert root_of([leaf_hash(leaf) for leaf in leaves]) == merkle_tree_hash(leaves)


@pytest.mark.parametrize("count", range(1, 68))
def test_every_path_of_every_small_tree_is_the_audit_path_and_verifies(count: int) -> None:
    leaves = [b"%d" % i for i in range(count)]
    hashes = [leaf_hash(leaf) for leaf in leaves]
    root = root_of(hashes)
    for index in range(count):
        path = path_of(hashes, index)
        assert path == audit_path(leaves, index)
        assert len(path) == path_length(index, count)
        assert verify_path(hashes[index], index, count, path, root)


@given(leaf_lists.filter(bool), st.data())
def test_a_path_proves_no_other_place_count_leaf_or_root(leaves: list[bytes], data: st.DataObject) -> None:
    leaves = [b"%d:" % i + leaf for i, leaf in enumerate(leaves)]  # all different
    hashes = [leaf_hash(leaf) for leaf in leaves]
    index = data.draw(st.integers(0, len(leaves) - 1))
    path, root, count = path_of(hashes, index), root_of(hashes), len(leaves)
    other = data.draw(st.integers(-2, count + 2).filter(lambda i: i != index))
    assert not verify_path(hashes[index], other, count, path, root)
    assert not verify_path(leaf_hash(b"else"), index, count, path, root)
    assert not verify_path(hashes[index], index, count, path, bytes(32))
    assert not verify_path(hashes[index], index, count, [*path, bytes(32)], root)
    assert not verify_path(hashes[index], index, 0, path, root)
    if path:
        at = data.draw(st.integers(0, len(path) - 1))
        assert not verify_path(hashes[index], index, count, [*path[:at], bytes(32), *path[at + 1 :]], root)
        assert not verify_path(hashes[index], index, count, path[:-1], root)


@given(st.integers(-10, 10**9), st.integers(-10, 10**9), st.lists(st.binary(max_size=40), max_size=40))
def test_any_path_gets_a_verdict_and_no_exception(index: int, count: int, path: list[bytes]) -> None:
    assert not verify_path(bytes(32), index, count, path, b"not a root")


@given(st.binary(max_size=1000), st.integers(1, 70))
def test_leaves_are_cut_at_their_size_and_the_last_is_padded(data: bytes, leaf_bytes: int) -> None:
    expected = [hashlib.sha256(b"\x00" + leaf).digest() for leaf in padded_leaves(data, leaf_bytes)]
    assert leaf_hashes(data, leaf_bytes) == expected
    assert leaf_hashes(memoryview(data), leaf_bytes) == expected
    assert leaf_hashes(bytearray(data), leaf_bytes) == expected


def test_a_node_is_never_taken_for_a_leaf() -> None:
    left, right = leaf_hash(b"l"), leaf_hash(b"r")
    assert node_hash(left, right) != leaf_hash(left + right)
    assert root_of([]) == EMPTY_ROOT == hashlib.sha256(b"").digest()

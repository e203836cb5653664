"""Fragment trees: every leaf verifiable alone, nothing else accepted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dds.erasure.fragment_tree import (
    fragment_root,
    leaf_hashes_of,
    leaf_range,
    matches_record,
    path_for,
    record_of,
    verify_leaf,
)
from dds.primitives.merkle import root_of
from dds.primitives.units import LEAF_BYTES, MIB
from tests.vectors.keystream import keystream
from tests.vectors.merkle_oracle import merkle_tree_hash, padded_leaves

SIZES = [1, LEAF_BYTES - 1, LEAF_BYTES, LEAF_BYTES + 1, 2 * LEAF_BYTES, 7 * LEAF_BYTES + 100, 12 * LEAF_BYTES]


@pytest.mark.parametrize("size", [*SIZES, MIB])
def test_roots_are_rfc_9162_over_padded_leaves(size: int) -> None:
    data = keystream("tree", size)
    assert fragment_root(data) == merkle_tree_hash(padded_leaves(data, LEAF_BYTES))
    assert record_of(3, data).root == fragment_root(bytearray(data)) == fragment_root(memoryview(data))


def test_a_mebibyte_has_265_leaves() -> None:
    record = record_of(5, keystream("tree", MIB))
    assert (record.index, record.size, record.leaf_count) == (5, MIB, 265)


@pytest.mark.parametrize("size", SIZES)
def test_every_leaf_verifies_with_its_path_and_only_there(size: int) -> None:
    data = keystream("tree", size)
    record, hashes = record_of(0, data), leaf_hashes_of(data)
    assert root_of(hashes) == record.root
    for leaf in range(record.leaf_count):
        lo, hi = leaf_range(size, leaf)
        path = path_for(hashes, leaf)
        assert verify_leaf(record, leaf, data[lo:hi], path)
        assert not verify_leaf(record, leaf, bytes([data[lo] ^ 1]) + data[lo + 1 : hi], path)
        assert not verify_leaf(record, leaf + 1, data[lo:hi], path)
        assert not verify_leaf(record, leaf - 1, data[lo:hi], path)
        assert not verify_leaf(record, leaf, data[lo:hi], [*path, bytes(32)])
        assert not path or not verify_leaf(record, leaf, data[lo:hi], path[:-1])


def test_the_filler_of_the_last_leaf_is_not_content() -> None:
    data = keystream("tree", LEAF_BYTES + 10)
    record, hashes = record_of(0, data), leaf_hashes_of(data)
    last, path = data[LEAF_BYTES:], path_for(hashes, 1)
    assert verify_leaf(record, 1, last, path)
    assert not verify_leaf(record, 1, last + b"\x00", path)
    assert not verify_leaf(record, 1, last.ljust(LEAF_BYTES, b"\x00"), path)
    assert not verify_leaf(record, 1, last[:-1], path)


def test_a_record_that_contradicts_itself_verifies_nothing() -> None:
    data = keystream("tree", 2 * LEAF_BYTES)
    record, hashes = record_of(0, data), leaf_hashes_of(data)
    leaf, path = data[:LEAF_BYTES], path_for(hashes, 0)
    assert not verify_leaf(replace(record, leaf_count=3), 0, leaf, path)
    assert not verify_leaf(replace(record, size=record.size + 1), 0, leaf, path)


def test_a_fragment_matches_only_its_own_record() -> None:
    data = keystream("tree", 5000)
    record = record_of(0, data)
    assert matches_record(record, memoryview(data))
    assert not matches_record(record, data[:-1])
    assert not matches_record(record, data[:-1] + bytes([data[-1] ^ 1]))
    assert not matches_record(record, data + b"\x00")

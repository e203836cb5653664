"""The state's entries as a Merkle tree of 2^16 buckets: the app hash, and proofs that an entry is, or is not, in it.

    bucket   the first two bytes of SHA-256(key), big endian
    leaf     SHA-256(0x00 || for each entry, ascending by key: u16 length of key || key || SHA-256(value))
    node     SHA-256(0x01 || left || right), 16 levels

Decides hashes and proofs, and keeps the committed entries of those buckets that were asked for. Does not know what an entry
means, nor how it lies on disk: buckets come from a `Loader`. Changes are first `staged`, which touches nothing, then `kept`.

Safe for one thread that stages and keeps while others `get`; `prove` and `root` must not run beside `keep`.
Source: docs/spec/ledger.md, "App hash and proofs".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from dds.wire.ledger_api import BUCKET_COUNT, KEY_BYTES_MAX, PROOF_DEPTH, Listed, Proof

HASH_BYTES: Final = 32
Loader = Callable[[int], Iterable[tuple[bytes, bytes]]]  # a bucket's (key, value), ascending by key
Bucket = dict[bytes, bytes]  # key -> SHA-256(value) || value, ascending by key

_sha256 = hashlib.sha256
EMPTY_LEAF: Final = _sha256(b"\x00").digest()


def bucket_of(key: bytes) -> int:
    return int.from_bytes(_sha256(key).digest()[:2], "big")


def leaf_of(listing: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A bucket's leaf; `listing` is (key, SHA-256 of its value), ascending by key."""
    parts = [b"\x00"]
    for key, value_hash in listing:
        parts += (len(key).to_bytes(2, "big"), key, value_hash)
    return _sha256(b"".join(parts)).digest()


def verify_proof(proof: Proof, key: bytes, value: bytes | None, root: bytes) -> bool:
    """Whether the state under `root` has `value` at `key`; None: whether it has nothing there."""
    keys = [entry.key for entry in proof.entries]
    bucket = bucket_of(key)
    if any(first >= second for first, second in pairwise(keys)):
        return False
    if any(bucket_of(listed) != bucket for listed in keys) or len(proof.siblings) != PROOF_DEPTH:
        return False
    found = next((entry.value_hash for entry in proof.entries if entry.key == key), None)
    if found != (None if value is None else _sha256(value).digest()):
        return False
    return _climb(bucket, leaf_of((entry.key, entry.value_hash) for entry in proof.entries), proof.siblings) == root


def _climb(bucket: int, leaf: bytes, siblings: Sequence[bytes]) -> bytes:
    at, current = BUCKET_COUNT + bucket, leaf
    for sibling in siblings:
        pair = sibling + current if at & 1 else current + sibling
        at, current = at >> 1, _sha256(b"\x01" + pair).digest()
    return current


def nothing(_bucket: int) -> tuple[()]:
    """The loader of an empty state."""
    return ()


@dataclass(frozen=True, slots=True)
class Staged:
    """Changes and what they would make of the tree."""

    changes: Mapping[bytes, bytes | None]
    buckets: Mapping[int, Bucket]  # those changed, whole
    nodes: Mapping[int, bytes]  # their leaves and all nodes above, by place
    root: bytes

    def leaves(self) -> Iterator[tuple[int, bytes]]:
        """(bucket, its new leaf)."""
        return ((bucket, self.nodes[BUCKET_COUNT + bucket]) for bucket in self.buckets)


class BucketTree:
    """Nodes are numbered as in a heap: 1 is the root, i has the children 2i and 2i+1, bucket b's leaf is 2^16 + b."""

    def __init__(self, load: Loader = nothing, leaves: Iterable[tuple[int, bytes]] = ()) -> None:
        """`leaves`: of all buckets that are not empty."""
        self._load = load
        self._buckets: dict[int, Bucket] = {}
        self._nodes = [EMPTY_LEAF] * (2 * BUCKET_COUNT)
        for bucket, leaf in leaves:
            self._nodes[BUCKET_COUNT + bucket] = leaf
        for at in range(BUCKET_COUNT - 1, 0, -1):
            self._nodes[at] = _sha256(b"\x01" + self._nodes[2 * at] + self._nodes[2 * at + 1]).digest()

    @property
    def root(self) -> bytes:
        return self._nodes[1]

    def get(self, key: bytes) -> bytes | None:
        entry = self._bucket(bucket_of(key)).get(key)
        return None if entry is None else entry[HASH_BYTES:]

    def stage(self, changes: Mapping[bytes, bytes | None]) -> Staged:
        """What `changes` (None: deleted) would make of the tree."""
        buckets: dict[int, Bucket] = {}
        for key, value in changes.items():
            assert 0 < len(key) <= KEY_BYTES_MAX
            number = bucket_of(key)
            bucket = buckets.get(number)
            if bucket is None:
                bucket = buckets[number] = self._bucket(number).copy()
            _change(bucket, key, value)
        for number, bucket in buckets.items():
            if not _ascending(bucket):
                buckets[number] = dict(sorted(bucket.items()))
        nodes = {
            BUCKET_COUNT + number: leaf_of((key, entry[:HASH_BYTES]) for key, entry in bucket.items())
            for number, bucket in buckets.items()
        }
        self._rehash(nodes)
        return Staged(changes, buckets, nodes, nodes.get(1, self.root))

    def keep(self, staged: Staged) -> None:
        """The changes hold from now on."""
        self._buckets.update(staged.buckets)
        nodes = self._nodes
        for at, node in staged.nodes.items():
            nodes[at] = node

    def update(self, changes: Mapping[bytes, bytes | None]) -> None:
        self.keep(self.stage(changes))

    def prove(self, key: bytes) -> Proof:
        """A proof of what `get` says of the key."""
        number = bucket_of(key)
        at = BUCKET_COUNT + number
        siblings = tuple(self._nodes[at >> level ^ 1] for level in range(PROOF_DEPTH))
        bucket = self._bucket(number)
        return Proof(tuple(Listed(listed, entry[:HASH_BYTES]) for listed, entry in bucket.items()), siblings)

    def _bucket(self, number: int) -> Bucket:
        bucket = self._buckets.get(number)
        if bucket is None:
            loaded = {key: _sha256(value).digest() + value for key, value in self._load(number)}
            bucket = self._buckets.setdefault(number, loaded)  # what was kept meanwhile is newer than what was read
        return bucket

    def _rehash(self, nodes: dict[int, bytes]) -> None:
        """Add to the changed leaves all nodes above them, level by level."""
        old, find = self._nodes, nodes.get
        level = list(nodes)
        while level and level[0] > 1:
            above = list(dict.fromkeys(at >> 1 for at in level))
            for at in above:
                left, right = 2 * at, 2 * at + 1
                nodes[at] = _sha256(b"\x01" + (find(left) or old[left]) + (find(right) or old[right])).digest()
            level = above


def _change(bucket: Bucket, key: bytes, value: bytes | None) -> None:
    if value is None:
        bucket.pop(key, None)
    else:
        bucket[key] = _sha256(value).digest() + value


def _ascending(bucket: Bucket) -> bool:
    keys = list(bucket)
    return keys == sorted(keys)

"""Frozen bytes of the erasure room: what another implementation must reproduce (inputs: tests/vectors/keystream.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dds.erasure.compression import StoredBlock, decompress
from dds.erasure.fragment_tree import fragment_root
from dds.erasure.reed_solomon import decode, encode
from dds.erasure.segment_builder import SegmentBuilder
from dds.primitives.cid import cid_of
from dds.primitives.units import LEAF_BYTES
from dds.wire.segment import CODEC_PLAIN, CODEC_ZSTD, segment_id_of
from tests.vectors.cauchy_oracle import parity_fragments
from tests.vectors.keystream import keystream
from tests.vectors.merkle_oracle import merkle_tree_hash, padded_leaves

FROZEN: dict[str, Any] = json.loads(Path(__file__).with_name("erasure.json").read_text())


@pytest.mark.parametrize("vector", FROZEN["parity"], ids=lambda vector: f"{vector['k']}+{vector['m']}")
def test_parity_bytes_are_frozen_and_agree_with_slow_arithmetic(vector: dict[str, Any]) -> None:
    k, m = vector["k"], vector["m"]
    slots = [bytes.fromhex(slot) for slot in vector["slots"]]
    parity = [bytes.fromhex(fragment) for fragment in vector["parity"]]
    assert encode(k, m, slots) == parity == parity_fragments(k, m, slots)
    fragments = dict(enumerate([*slots, *parity]))
    have = {index: fragments[index] for index in range(m, k + m)}
    assert decode(k, m, have, range(k + m)) == fragments


@pytest.mark.parametrize("vector", FROZEN["fragment_roots"], ids=lambda vector: str(vector["size"]))
def test_fragment_roots_are_frozen_and_agree_with_rfc_9162(vector: dict[str, Any]) -> None:
    data = keystream(vector["seed"], vector["size"])
    assert fragment_root(data).hex() == vector["root"] == merkle_tree_hash(padded_leaves(data, LEAF_BYTES)).hex()


@pytest.mark.parametrize("vector", FROZEN["segments"], ids=lambda vector: vector["name"])
def test_segments_are_frozen_down_to_their_root(vector: dict[str, Any]) -> None:
    builder = SegmentBuilder(vector["k"], vector["m"], vector["class"])
    stripes = []
    for size in vector["block_bytes"]:
        block = keystream(f"block of {size}", size)
        stripes += builder.add_stored(StoredBlock(cid_of(block), size, CODEC_PLAIN, block))
    closed = builder.close()
    stripes += closed.stripes
    assert [list(map(getattr, [s.shape] * 4, ("k", "m", "slot_bytes", "data_bytes"))) for s in stripes] == vector["stripes"]
    assert segment_id_of(closed.index).hex() == vector["segment_id"]
    assert closed.record.root().hex() == vector["segment_root"]
    assert [record.root.hex() for record in stripes[-1].records] == vector["last_stripe_fragment_roots"]


def test_a_frozen_zstd_frame_is_read_for_ever() -> None:
    vector = FROZEN["zstd_frame"]
    text = vector["text"].encode() * vector["repeats"]
    assert decompress(CODEC_ZSTD, bytes.fromhex(vector["frame"]), len(text)) == text

"""Frozen bytes of every record and message: a change here is a change of the wire (samples: tests/vectors/wire_samples.py)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from dds.primitives.cid import cid_text
from dds.wire.manifest import decode_manifest, decode_section, open_manifest, section_cid
from dds.wire.receipts import open_receipt
from dds.wire.segment import decode_encoding, decode_index, segment_id_of
from tests.vectors.merkle_oracle import merkle_tree_hash
from tests.vectors.wire_samples import (
    NETWORK,
    SAMPLE_KEY,
    sample_body,
    sample_encoding,
    sample_entries,
    sample_manifest,
    samples,
)

FROZEN: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("wire.json").read_text())


def test_every_sample_is_frozen() -> None:
    assert samples().keys() == FROZEN["bytes"].keys()


@pytest.mark.parametrize("name", FROZEN["bytes"])
def test_bytes_are_frozen(name: str) -> None:
    assert samples()[name].hex() == FROZEN["bytes"][name]


def test_frozen_bytes_still_parse_to_the_same_values() -> None:
    raw = {name: bytes.fromhex(text) for name, text in FROZEN["bytes"].items()}
    assert decode_index(raw["index"]) == sample_entries()
    assert decode_encoding(raw["encoding"]) == sample_encoding()
    assert decode_manifest(raw["manifest"]) == open_manifest(raw["signed manifest"], NETWORK) == sample_manifest()
    assert decode_section(raw["section"]) == sample_body()
    assert open_receipt(raw["receipt"], NETWORK).node_id == SAMPLE_KEY.public


def test_identifiers_are_frozen() -> None:
    index = bytes.fromhex(FROZEN["bytes"]["index"])
    assert segment_id_of(index).hex() == FROZEN["ids"]["segment id"] == hashlib.sha256(index).hexdigest()
    packed = [record.pack() for row in sample_encoding().records for record in row]
    assert sample_encoding().root().hex() == FROZEN["ids"]["segment root"] == merkle_tree_hash(packed).hex()
    assert cid_text(section_cid(bytes.fromhex(FROZEN["bytes"]["section"]))) == FROZEN["ids"]["section cid"]

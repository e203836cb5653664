"""Frozen bytes of dialling back: a change here is a change of the wire (samples: tests/vectors/dialback_samples.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dds.wire.codec import decode, encode
from tests.vectors.dialback_samples import samples

FROZEN: dict[str, str] = json.loads(Path(__file__).with_name("dialback.json").read_text())


def test_every_sample_is_frozen() -> None:
    assert samples().keys() == FROZEN.keys()


@pytest.mark.parametrize("name", samples())
def test_bytes_are_frozen_and_open_to_the_same_values(name: str) -> None:
    message = samples()[name]
    assert encode(message).hex() == FROZEN[name]
    assert decode(bytes.fromhex(FROZEN[name]), type(message)) == message

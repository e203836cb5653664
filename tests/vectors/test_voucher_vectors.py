"""Frozen bytes of vouchers and grants: a change here is a change of the wire (samples: tests/vectors/voucher_samples.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dds.wire.vouchers import grant_name, open_grant, open_voucher
from tests.vectors.voucher_samples import GRANT, GRANTED, NETWORK, VOUCHER, samples

FROZEN: dict[str, str] = json.loads(Path(__file__).with_name("vouchers.json").read_text())


def test_every_sample_is_frozen() -> None:
    assert {*samples(), "grant name"} == FROZEN.keys()


@pytest.mark.parametrize("name", samples())
def test_bytes_are_frozen(name: str) -> None:
    assert samples()[name].hex() == FROZEN[name]


def test_frozen_bytes_still_open_to_the_same_values() -> None:
    raw = {name: bytes.fromhex(text) for name, text in FROZEN.items()}
    assert open_grant(raw["grant"], NETWORK) == GRANT
    assert grant_name(GRANT) == raw["grant name"]
    assert open_voucher(raw["voucher"], NETWORK, {}) == (VOUCHER, None)
    assert open_voucher(raw["granted voucher"], NETWORK, {raw["grant name"]: GRANT}) == (GRANTED, GRANT)

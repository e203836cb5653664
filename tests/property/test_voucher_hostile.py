"""Foreign vouchers and grants: opened or refused with a FormatError, never anything else."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dds.primitives.errors import FormatError, IntegrityError, UnsupportedVersion
from dds.primitives.money import AMOUNT_MAX
from dds.wire.codec import Message, encode
from dds.wire.ledger import EPOCH_MAX
from dds.wire.signed import sign
from dds.wire.vouchers import GRANT_TAG, VOUCHER_TAG, Grant, Voucher, grant_name, open_grant, open_voucher
from tests.vectors.voucher_samples import GRANT, GRANTED, GRANTEE, NETWORK, NODE_ID, PAYER, VOUCHER, samples

GRANTS = {grant_name(GRANT): GRANT}
PARSERS: dict[str, Callable[[bytes], object]] = {
    "voucher": lambda raw: open_voucher(raw, NETWORK, GRANTS),
    "grant": lambda raw: open_grant(raw, NETWORK),
    "granted voucher": lambda raw: open_voucher(raw, NETWORK, GRANTS),
}


@settings(deadline=None)
@given(raw=st.binary(max_size=400), name=st.sampled_from(sorted(PARSERS)))
@example(raw=b"", name="voucher")
@example(raw=b"\x91" * 900, name="grant")
def test_arbitrary_bytes_are_refused_cleanly(raw: bytes, name: str) -> None:
    with pytest.raises(FormatError):
        PARSERS[name](raw)


@settings(deadline=None)
@given(payload=st.binary(max_size=600), name=st.sampled_from(sorted(PARSERS)))
def test_arbitrary_bytes_under_a_good_signature_are_refused_cleanly(payload: bytes, name: str) -> None:
    tag = GRANT_TAG if name == "grant" else VOUCHER_TAG
    with suppress(FormatError):
        PARSERS[name](sign(PAYER, tag, NETWORK, payload))


@pytest.mark.parametrize("name", PARSERS)
def test_damage_anywhere_is_noticed(name: str) -> None:
    good, source = samples()[name], random.Random(name)
    PARSERS[name](good)
    for at in range(len(good)):
        damaged = bytearray(good)
        damaged[at] ^= 1 << source.randrange(8)
        with pytest.raises(FormatError):
            PARSERS[name](bytes(damaged))
    for wrong in (good + b"\x00", good[:-1], good + good):
        with pytest.raises(FormatError):
            PARSERS[name](wrong)


@settings(deadline=None, max_examples=60)
@given(
    cumulative=st.integers(0, AMOUNT_MAX),
    epoch=st.integers(0, EPOCH_MAX),
    node_id=st.binary(min_size=32, max_size=32),
    payer=st.sampled_from([PAYER, GRANTEE]),
)
def test_vouchers_round_trip(cumulative: int, epoch: int, node_id: bytes, payer: Any) -> None:
    voucher = Voucher(1, NETWORK, payer.public, node_id, cumulative, epoch)
    assert open_voucher(sign(payer, VOUCHER_TAG, NETWORK, encode(voucher)), NETWORK, {}) == (voucher, None)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"version": 2}, UnsupportedVersion),
        ({"version": True}, FormatError),
        ({"network": "another"}, IntegrityError),
        ({"network": ""}, FormatError),
        ({"payer": GRANTEE.public}, IntegrityError),
        ({"payer": bytes(31)}, FormatError),
        ({"node_id": b""}, FormatError),
        ({"cumulative": -1}, FormatError),
        ({"cumulative": AMOUNT_MAX + 1}, FormatError),
        ({"cumulative": 1.0}, FormatError),
        ({"epoch": -1}, FormatError),
        ({"epoch": EPOCH_MAX + 1}, FormatError),
        ({"grant": bytes(32)}, FormatError),  # no such grant stands beside it
        ({"grant": bytes(33)}, FormatError),
        ({"grant": grant_name(GRANT)}, IntegrityError),  # the sponsor is not its own grantee
    ],
)
def test_a_voucher_with_a_bad_field_is_refused(change: dict[str, Any], error: type[FormatError]) -> None:
    forged: Message = replace(VOUCHER, **change)
    with pytest.raises(FormatError) as caught:
        open_voucher(sign(PAYER, VOUCHER_TAG, NETWORK, encode(forged)), NETWORK, GRANTS)
    assert caught.type is error


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"version": 0}, UnsupportedVersion),
        ({"network": "another"}, IntegrityError),
        ({"sponsor": GRANTEE.public}, IntegrityError),
        ({"grantee": b""}, FormatError),
        ({"amount": -1}, FormatError),
        ({"expires_epoch": -1}, FormatError),
        ({"grant_id": bytes(31)}, FormatError),
    ],
)
def test_a_grant_with_a_bad_field_is_refused(change: dict[str, Any], error: type[FormatError]) -> None:
    forged: Message = replace(GRANT, **change)
    with pytest.raises(FormatError) as caught:
        open_grant(sign(PAYER, GRANT_TAG, NETWORK, encode(forged)), NETWORK)
    assert caught.type is error


@pytest.mark.parametrize("change", [{"payer": GRANTEE.public}, {"epoch": GRANT.expires_epoch + 1}])
def test_a_grantee_cannot_sign_what_its_grant_does_not_cover(change: dict[str, Any]) -> None:
    forged = encode(replace(GRANTED, **change))
    with pytest.raises(IntegrityError):
        open_voucher(sign(GRANTEE, VOUCHER_TAG, NETWORK, forged), NETWORK, GRANTS)


def test_a_grant_for_one_node_covers_no_other() -> None:
    narrow: Grant = replace(GRANT, node_id=NODE_ID[::-1])
    forged = encode(replace(GRANTED, grant=grant_name(narrow)))
    with pytest.raises(IntegrityError):
        open_voucher(sign(GRANTEE, VOUCHER_TAG, NETWORK, forged), NETWORK, {grant_name(narrow): narrow})


def test_every_field_of_a_grant_is_in_its_name() -> None:
    changes = {"grantee": bytes(32), "amount": 1, "node_id": NODE_ID, "expires_epoch": 1, "grant_id": bytes(32)}
    names = {grant_name(replace(GRANT, **{field: value})) for field, value in changes.items()}
    assert len(names | {grant_name(GRANT)}) == len(changes) + 1

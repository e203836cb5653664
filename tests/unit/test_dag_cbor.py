"""dag-cbor: one spelling of every value, the same as a second implementation's, and no guessing."""

from __future__ import annotations

import dag_cbor
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dds.primitives.cid import cid_of
from dds.primitives.errors import FormatError
from dds.wire.dagcbor import decode_dag_cbor, encode_dag_cbor

LINK = b"\xd8\x2a\x58\x25\x00" + cid_of(b"linked")

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), (1 << 64) - 1) | st.text(max_size=30) | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=30), inner, max_size=6),
    max_leaves=20,
)


@given(value=values)
def test_a_second_implementation_writes_the_same_bytes(value: dag_cbor.IPLDKind) -> None:
    assert encode_dag_cbor(value) == dag_cbor.encode(value)


@pytest.mark.parametrize(
    "looks_like_a_cid", [cid_of(b"x"), b"\x12\x20" + bytes(32), b"\x01\xad\xd8\x75\x2c\x19".ljust(32, b"\x01")]
)
def test_bytes_that_look_like_a_cid_stay_bytes(looks_like_a_cid: bytes) -> None:
    raw = encode_dag_cbor([looks_like_a_cid])
    assert raw[1] >> 5 == 2, "the major type of bytes"
    assert decode_dag_cbor(raw, max_bytes=100) == [looks_like_a_cid]


@pytest.mark.parametrize("raw", [LINK, b"\x81" + LINK, bytes.fromhex("fb3ff8000000000000")])
def test_links_and_floats_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        decode_dag_cbor(raw, max_bytes=100)


@pytest.mark.parametrize("value", [1.5, {1: 2}, {b"k": 1}, (1,), object(), bytearray(b"x"), 1 << 64, -(1 << 64) - 1])
def test_what_manifests_do_not_use_is_not_written(value: object) -> None:
    with pytest.raises((TypeError, OverflowError, AttributeError)):
        encode_dag_cbor(value)

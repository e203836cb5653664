"""CIDs, ids and varints: what is written is read back, one spelling each, and hostile input is refused by name."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dds.primitives.cid import (
    CODEC_NAMES,
    DAG_CBOR,
    DAG_PB,
    RAW,
    cid_from_bytes,
    cid_from_digest,
    cid_of,
    cid_text,
    codec_of,
    digest_of,
    matches,
    parse_cid,
)
from dds.primitives.errors import FormatError, InputError
from dds.primitives.ids import ID_TEXT_CHARS, id_text, parse_id
from dds.primitives.varint import decode_varint, encode_varint

LATIN = st.characters(max_codepoint=0x24F)  # has letters whose upper case is ASCII
digests = st.binary(min_size=32, max_size=32)
codecs = st.sampled_from(sorted(CODEC_NAMES))
HELLO = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"


def test_the_text_of_a_cid_is_what_other_software_prints() -> None:
    assert cid_text(cid_of(b"hello world")) == HELLO
    assert cid_text(cid_of(b"")) == "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"


@given(st.binary(max_size=100), codecs)
def test_a_cid_names_its_block_and_no_other(data: bytes, codec: int) -> None:
    cid = cid_of(data, codec)
    assert (codec_of(cid), digest_of(cid)) == (codec, hashlib.sha256(data).digest())
    assert matches(cid, data)
    assert not matches(cid, data + b"\x00")
    assert cid_from_digest(digest_of(cid), codec) == cid


@given(digests, codecs, st.sampled_from(("", "ipfs://", "/ipfs/", "  ")))
def test_a_cid_is_read_back_from_its_text_and_bytes(digest: bytes, codec: int, prefix: str) -> None:
    cid = cid_from_digest(digest, codec)
    assert parse_cid(prefix + cid_text(cid)) == cid
    assert cid_from_bytes(bytes(cid)) == cid
    assert len(cid_text(cid)) == 59


@given(
    st.text(LATIN, max_size=100) | st.text("abcdefghijklmnopqrstuvwxyz234567=BQmz/ſ", max_size=70).map(lambda text: "b" + text)
)
def test_text_either_is_the_one_spelling_of_a_cid_or_is_refused(text: str) -> None:
    try:
        cid = parse_cid(text)
    except InputError:
        return
    assert cid_text(cid) == text.strip().removeprefix("ipfs://").removeprefix("/ipfs/")


@given(st.binary(max_size=80) | digests.map(lambda d: b"\x01\x55\x12\x20" + d))
def test_bytes_either_are_a_cid_or_are_refused(raw: bytes) -> None:
    try:
        cid = cid_from_bytes(raw)
    except FormatError:
        return
    assert cid == raw
    assert codec_of(cid) in (RAW, DAG_PB, DAG_CBOR)


@given(digests, st.integers(0, 35), st.integers(1, 255))
def test_only_the_digest_of_a_cid_and_its_codec_may_change(digest: bytes, at: int, flip: int) -> None:
    raw = bytearray(cid_from_digest(digest, RAW))
    raw[at] ^= flip
    if at >= 4 or (at == 1 and raw[1] in CODEC_NAMES):
        assert cid_from_bytes(bytes(raw)) == bytes(raw)
    else:
        with pytest.raises(FormatError):
            cid_from_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a ContentID"),
        ("b", "not a ContentID"),
        ("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWKS6dN"[:46], "CIDv0"),
        ("zb2rhe5P4gXftAwvA4eXQ5HJwsER2owDyS9sKaQRRVQPn93bA", "not a ContentID"),
        (HELLO.upper(), "not a ContentID"),
        ("b" + HELLO[1:].upper(), "lower case"),
        (HELLO[:-1], "not a ContentID"),
        (HELLO + "a", "not a ContentID"),
        (HELLO + "=", "not a ContentID"),
        (HELLO[:-1] + "f", "canonical"),
        (HELLO[:-1] + "1", "base32"),
        ("b" + "a" * 1_000_000, "not a ContentID"),
        ("b" + base64.b32encode(b"\x01\x55\x1b\x20" + bytes(32)).decode().rstrip("=").lower(), "codec raw, dag-pb"),
    ],
)
def test_what_is_wrong_with_a_content_id_is_said_in_words(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_cid(text)
    assert words in f"{caught.value} {caught.value.hint}"
    assert len(str(caught.value)) < 300


@given(digests)
def test_an_id_is_read_back_from_its_text(value: bytes) -> None:
    assert len(id_text(value)) == ID_TEXT_CHARS
    assert parse_id(id_text(value)) == value


@given(st.text(LATIN, max_size=60) | st.text("abcdefghijklmnopqrstuvwxyz234567AZ=18ſ", min_size=52, max_size=52))
def test_text_either_is_the_one_spelling_of_an_id_or_is_refused(text: str) -> None:
    try:
        value = parse_id(text, "node id")
    except InputError:
        return
    assert id_text(value) == text


def test_an_id_with_stray_last_bits_is_refused() -> None:
    assert parse_id("a" * 52) == bytes(32)
    with pytest.raises(InputError, match="not a valid node id"):
        parse_id("a" * 51 + "b", "node id")


@given(st.integers(0, (1 << 63) - 1), st.binary(max_size=5), st.binary(max_size=5))
def test_a_varint_is_read_back_where_it_stands(value: int, before: bytes, after: bytes) -> None:
    raw = encode_varint(value)
    assert decode_varint(before + raw + after, len(before)) == (value, len(before) + len(raw))


@given(st.binary(max_size=12))
def test_bytes_either_begin_with_a_minimal_varint_or_are_refused(raw: bytes) -> None:
    try:
        value, end = decode_varint(raw, 0)
    except FormatError:
        return
    assert encode_varint(value) == raw[:end]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "truncated"),
        (b"\x80", "truncated"),
        (b"\x80\x00", "minimal"),
        (b"\xff" * 9, "longer"),
        (b"\x80" * 9 + b"\x01", "longer"),
    ],
)
def test_bad_varints_are_refused_by_name(raw: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        decode_varint(raw, 0)


def test_varints_look_as_in_the_multiformats_specification() -> None:
    assert [encode_varint(v).hex() for v in (1, 127, 128, 255, 300, 16384)] == ["01", "7f", "8001", "ff01", "ac02", "808001"]

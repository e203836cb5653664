"""Keys, hashes, errors and units: known answers and the edges of what is accepted."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import Counter
from enum import Enum
from itertools import islice

import pytest

from dds.primitives import errors
from dds.primitives.errors import DDSError, InputError, PeerRefused, PeerTimeout, RemoteError
from dds.primitives.hashing import sha256, tagged_hash, xof_integers
from dds.primitives.keys import SigningKey, signed_message, verify, verify_tagged
from dds.primitives.units import human_bytes

# RFC 8032 section 7.1, tests 1 to 3: seed, public key, message, signature
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]
FROZEN = (  # signature of test_a_tagged_signature_is_frozen
    "74ea0e04a29bb78ebd59265212cc64557a0c5952ce132c156bc459dbe24aa1ce"
    "fb272fa82f9f20ab56fbdb0702189483d75a9b20c23f453c02ae9dfcadb86b0c"
)
GROUP_ORDER = (1 << 252) + 27742317777372353535851937790883648493


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_signatures_are_those_of_rfc_8032(seed: str, public: str, message: str, signature: str) -> None:
    key = SigningKey(bytes.fromhex(seed))
    assert key.public.hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert verify(key.public, bytes.fromhex(signature), bytes.fromhex(message))


def test_a_tagged_signature_is_frozen() -> None:
    key = SigningKey(bytes(range(32)))
    assert signed_message(b"dds/test/v1", "devnet", b"payload") == b"dds/test/v1\x00devnet\x00payload"
    assert key.sign_tagged(b"dds/test/v1", "devnet", b"payload").hex() == FROZEN


def test_a_tagged_signature_is_worthless_elsewhere() -> None:
    key = SigningKey(bytes(range(32)))
    signature = key.sign_tagged(b"dds/test/v1", "devnet", b"payload")
    assert verify_tagged(key.public, signature, b"dds/test/v1", "devnet", b"payload")
    assert not verify_tagged(key.public, signature, b"dds/test/v2", "devnet", b"payload")
    assert not verify_tagged(key.public, signature, b"dds/test/v1", "main", b"payload")
    assert not verify_tagged(key.public, signature, b"dds/test/v1", "devnet", b"payloaf")
    assert not verify_tagged(SigningKey(bytes(32)).public, signature, b"dds/test/v1", "devnet", b"payload")


def test_tag_and_network_cannot_run_into_each_other() -> None:
    """A zero byte in the network's name would let one signature serve two purposes."""
    with pytest.raises(AssertionError):
        signed_message(b"tag", "net\x00work", b"")
    with pytest.raises(AssertionError):
        signed_message(b"ta\x00g", "network", b"")


def test_a_signature_cannot_be_bent_into_another() -> None:
    """RFC 8032 section 5.1.7: S below the group order; and a key of small order verifies nothing."""
    key = SigningKey(bytes(range(32)))
    signature = key.sign(b"message")
    s = int.from_bytes(signature[32:], "little") + GROUP_ORDER
    assert not verify(key.public, signature[:32] + s.to_bytes(32, "little"), b"message")
    for small_order in (bytes(32), b"\x01" + bytes(31)):
        assert not verify(small_order, bytes(64), b"message")
        assert not verify(small_order, small_order + bytes(32), b"message")


@pytest.mark.parametrize(("public_bytes", "signature_bytes"), [(31, 64), (33, 64), (32, 63), (32, 65), (0, 0)])
def test_keys_and_signatures_of_a_wrong_length_do_not_verify(public_bytes: int, signature_bytes: int) -> None:
    assert not verify(bytes(public_bytes), bytes(signature_bytes), b"message")


def test_a_key_shows_its_public_half_only() -> None:
    key = SigningKey(bytes(range(32)))
    assert key.seed == bytes(range(32))
    assert key.seed.hex() not in repr(key)
    assert key.public.hex() in repr(key)
    with pytest.raises(ValueError, match="32 bytes"):
        SigningKey(b"short")


def test_tagged_hashes_are_frozen_and_tags_do_not_run_into_data() -> None:
    assert tagged_hash(b"dds/x", b"ab", b"c") == hashlib.sha256(b"\x05dds/xabc").digest()
    assert tagged_hash(b"a", b"bc") != tagged_hash(b"ab", b"c")
    assert sha256(memoryview(b"abc")) == hashlib.sha256(b"abc").digest()


def test_the_integer_stream_is_sha256_in_counter_mode() -> None:
    words = b"".join(hashlib.sha256(b"seed" + i.to_bytes(8, "big")).digest() for i in range(3))
    expected = [int.from_bytes(words[at : at + 8], "big") for at in range(0, 96, 8)]
    assert list(islice(xof_integers(b"seed", 1 << 64), 12)) == expected
    assert list(islice(xof_integers(b"seed", 10), 12)) == [word % 10 for word in expected]


def test_integers_below_a_bound_that_does_not_divide_the_word_are_unbiased() -> None:
    """Three quarters of 2^64: plain reduction would hit the lower third twice as often (0.5 instead of 0.333)."""
    bound = 3 << 62
    drawn = list(islice(xof_integers(b"bias", bound), 6000))
    assert max(drawn) < bound
    thirds = Counter(value // (1 << 62) for value in drawn)
    assert sum((thirds[third] - 2000) ** 2 / 2000 for third in range(3)) < 13.8  # 2 degrees of freedom, 1 in 1,000


@pytest.mark.parametrize("bound", [1, 2, 7, 10, 255])
def test_small_bounds_are_hit_evenly(bound: int) -> None:
    counts = Counter(islice(xof_integers(b"even", bound), 200 * bound))
    chi_square = sum((counts[value] - 200) ** 2 / 200 for value in range(bound))
    assert chi_square < bound - 1 + 4 * (2 * bound) ** 0.5


ERRORS = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, DDSError)]


def test_every_error_has_a_code_of_its_own() -> None:
    assert len({each.code for each in ERRORS}) == len(ERRORS)
    tree = inspect.getdoc(errors) or ""
    assert all(each.__name__ in tree for each in ERRORS)


class Colour(Enum):
    RED = "red"


def test_an_errors_form_is_json_with_bytes_as_hex_however_deep() -> None:
    error = InputError("bad", hint="do", digest=b"\x01\xff", nested={b"\x02": [b"\x03", (1, None)]}, colour=Colour.RED)
    form = error.to_dict()
    assert json.loads(json.dumps(form)) == {
        "code": "input",
        "message": "bad",
        "hint": "do",
        "digest": "01ff",
        "nested": {"02": ["03", [1, None]]},
        "colour": "Colour.RED",
    }
    assert list(form)[:3] == ["code", "message", "hint"]


def test_a_field_cannot_pass_for_the_code() -> None:
    assert InputError("bad", code="peer-timeout").to_dict()["code"] == "input"


def test_a_remote_error_names_its_peer() -> None:
    assert PeerTimeout("slow", peer="n1").to_dict()["peer"] == "n1"
    refused = PeerRefused("no", peer="n1", status=507, remote_code="disk-full")
    assert isinstance(refused, RemoteError)
    assert refused.to_dict() == {
        "code": "peer-refused",
        "message": "no",
        "hint": None,
        "peer": "n1",
        "status": 507,
        "remote_code": "disk-full",
    }


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (5 << 50, "5120.0 TiB")],
)
def test_byte_counts_are_shown_for_people(count: int, text: str) -> None:
    assert human_bytes(count) == text

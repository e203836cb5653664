"""The certificate of a NodeID, with `cryptography` as the independent reader."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from dds.primitives.errors import InputError
from dds.primitives.hashing import sha256
from dds.primitives.ids import NodeID, id_text
from dds.primitives.keys import SigningKey
from dds.transport.certificate import (
    LEAF_BYTES,
    PUBLIC_ISSUER_SEED,
    certified_node,
    host_name,
    issuer_certificate,
    leaf_certificate,
    parse_host_name,
    private_key_der,
)

KEY = SigningKey(bytes(range(32)))
NODE = NodeID(KEY.public)


def test_the_certificate_of_a_node_id_never_changes() -> None:
    assert sha256(issuer_certificate()).hex() == "ee205edcafdd56fb45ef65d56d771f7ea7796ae4404a82f9b1c7f6e31791971a"
    assert sha256(leaf_certificate(NODE)).hex() == "7ff32fde4ea3a63b26a06f3dfb0198d43a80faa3c84a9b8f8e987c717e9662b2"


def test_an_independent_reader_finds_every_field() -> None:
    leaf = x509.load_der_x509_certificate(leaf_certificate(NODE))
    name = f"{id_text(NODE)}.dds.invalid"
    public = leaf.public_key()
    assert isinstance(public, Ed25519PublicKey)
    assert public.public_bytes(Encoding.Raw, PublicFormat.Raw) == NODE
    assert leaf.version is x509.Version.v3
    assert [a.value for a in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [name]
    assert leaf.not_valid_before_utc == datetime(2000, 1, 1, tzinfo=UTC)
    assert leaf.not_valid_after_utc == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert 0 < leaf.serial_number < 1 << 127
    assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName) == [
        name
    ]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }


def test_leaf_and_issuer_are_signed_by_the_published_seed() -> None:
    issuer = x509.load_der_x509_certificate(issuer_certificate())
    issuer.verify_directly_issued_by(issuer)
    x509.load_der_x509_certificate(leaf_certificate(NODE)).verify_directly_issued_by(issuer)
    assert issuer.public_key() == Ed25519PrivateKey.from_private_bytes(PUBLIC_ISSUER_SEED).public_key()
    key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    leaf = x509.load_der_x509_certificate(leaf_certificate(NODE))
    assert leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == key_id


def test_our_private_key_form_is_the_one_others_read() -> None:
    loaded = load_der_private_key(private_key_der(KEY.seed), None)
    assert isinstance(loaded, Ed25519PrivateKey)
    assert loaded.private_bytes_raw() == KEY.seed


@given(st.binary(min_size=32, max_size=32))
def test_every_identifier_has_one_certificate_of_fixed_size(raw: bytes) -> None:
    der = leaf_certificate(NodeID(raw))
    assert len(der) == LEAF_BYTES
    assert certified_node(der) == raw
    assert parse_host_name(host_name(NodeID(raw))) == raw
    assert x509.load_der_x509_certificate(der).serial_number > 0


@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_a_certificate_with_any_byte_changed_is_nobodys(flip: int) -> None:
    der = leaf_certificate(NODE)
    for at in range(LEAF_BYTES):
        changed = bytearray(der)
        changed[at] ^= flip
        assert certified_node(bytes(changed)) is None


@given(st.binary(max_size=LEAF_BYTES + 8))
def test_arbitrary_bytes_are_nobodys_certificate(raw: bytes) -> None:
    assert certified_node(raw) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "127.0.0.1",
        ".dds.invalid",
        "a" * 51 + ".dds.invalid",
        id_text(NODE),
        id_text(NODE).upper() + ".dds.invalid",
        id_text(NODE) + ".dds.invalid.",
        id_text(NODE)[:-1] + "z.dds.invalid",
        "x." + host_name(NODE),
    ],
)
def test_only_the_canonical_host_name_names_a_node(host: str) -> None:
    with pytest.raises(InputError):
        parse_host_name(host)

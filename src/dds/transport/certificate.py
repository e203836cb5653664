"""The one X.509 certificate of a NodeID: a pure function of the identifier.

Decides: the exact DER bytes of the leaf certificate that a node presents in TLS, of the public issuer that signs every leaf,
and the host name by which a node is dialled. Does not decide who may do what, nor prove possession of a key: the TLS 1.3
handshake does that (CertificateVerify, RFC 8446 section 4.4.3).

TLS libraries want a chain to an issuer before they ask a client for a certificate at all. The issuer here is deliberately
public: its seed is the constant below, so anybody can sign a leaf for anybody, and the signature proves nothing. What is
checked is that the peer's certificate *equals* `leaf_certificate(node_id)`, byte for byte. Ed25519 is deterministic (RFC 8032
section 5.1.6) and every other field is fixed or derived, so there is exactly one such certificate, and to use it takes the
NodeID's own private key.

Source: docs/spec/identity.md, docs/adr/0002-tls-identity.md; RFC 5280 (certificates), RFC 8410 (Ed25519 in X.509), X.690 (DER).
"""

from __future__ import annotations

import base64
from typing import Final

from dds.primitives.errors import InputError
from dds.primitives.hashing import tagged_hash
from dds.primitives.ids import ID_BYTES, ID_TEXT_CHARS, NodeID, id_text, parse_id
from dds.primitives.keys import SEED_BYTES, SigningKey

HOST_SUFFIX: Final = ".dds.invalid"  # RFC 6761: .invalid never resolves, so a node's name can't be hijacked through DNS
PUBLIC_ISSUER_SEED: Final = b"dds public issuer: not a secret."
_ISSUER: Final = SigningKey(PUBLIC_ISSUER_SEED)
_ISSUER_NAME: Final = b"DDS public issuer"
_SERIAL_TAG: Final = b"dds/tls-serial/v1"
_SERIAL_BYTES: Final = 16

# X.690 tags
_INTEGER, _BIT_STRING, _OCTET_STRING, _OID, _UTF8, _SEQUENCE, _SET = 0x02, 0x03, 0x04, 0x06, 0x0C, 0x30, 0x31
_BOOLEAN, _UTC_TIME, _GENERALIZED_TIME, _EXPLICIT_0, _EXPLICIT_3 = 0x01, 0x17, 0x18, 0xA0, 0xA3
_NAME_DNS, _KEY_IDENTIFIER = 0x82, 0x80


def _tlv(tag: int, *parts: bytes) -> bytes:
    """One DER element: tag, definite length of at most two octets, contents."""
    body = b"".join(parts)
    size = len(body)
    if size < 0x80:
        return bytes((tag, size)) + body
    if size < 0x100:
        return bytes((tag, 0x81, size)) + body
    assert size < 0x10000
    return bytes((tag, 0x82)) + size.to_bytes(2, "big") + body


_TRUE: Final = _tlv(_BOOLEAN, b"\xff")
_VERSION_3: Final = _tlv(_EXPLICIT_0, _tlv(_INTEGER, b"\x02"))
_ED25519: Final = _tlv(_SEQUENCE, _tlv(_OID, bytes.fromhex("2b6570")))  # 1.3.101.112
# No well-defined expiry (RFC 5280 section 4.1.2.5): a key is valid until the ledger or its owner says otherwise.
_VALIDITY: Final = _tlv(_SEQUENCE, _tlv(_UTC_TIME, b"000101000000Z"), _tlv(_GENERALIZED_TIME, b"99991231235959Z"))
_PKCS8_PREFIX: Final = bytes.fromhex("302e020100300506032b657004220420")  # RFC 8410 section 7, then the 32-byte seed


def _name(common_name: bytes) -> bytes:
    attribute = _tlv(_SEQUENCE, _tlv(_OID, bytes.fromhex("550403")), _tlv(_UTF8, common_name))
    return _tlv(_SEQUENCE, _tlv(_SET, attribute))


def _extension(oid_hex: str, value: bytes, *, critical: bool = False) -> bytes:
    return _tlv(_SEQUENCE, _tlv(_OID, bytes.fromhex(oid_hex)), _TRUE if critical else b"", _tlv(_OCTET_STRING, value))


_KEY_ID: Final = tagged_hash(b"dds/tls-issuer/v1", _ISSUER.public)[:20]
_ISSUER_EXTENSIONS: Final = (
    _extension("551d13", _tlv(_SEQUENCE, _TRUE, _tlv(_INTEGER, b"\x00")), critical=True)  # basicConstraints: CA, pathlen 0
    + _extension("551d0f", _tlv(_BIT_STRING, b"\x02\x04"), critical=True)  # keyUsage: keyCertSign
    + _extension("551d0e", _tlv(_OCTET_STRING, _KEY_ID))  # subjectKeyIdentifier
)
_LEAF_EXTENSIONS: Final = (
    _extension("551d13", _tlv(_SEQUENCE), critical=True)  # basicConstraints: not a CA
    + _extension("551d0f", _tlv(_BIT_STRING, b"\x07\x80"), critical=True)  # keyUsage: digitalSignature
    + _extension(  # extendedKeyUsage: serverAuth, clientAuth
        "551d25", _tlv(_SEQUENCE, _tlv(_OID, bytes.fromhex("2b06010505070301")), _tlv(_OID, bytes.fromhex("2b06010505070302")))
    )
    + _extension("551d23", _tlv(_SEQUENCE, _tlv(_KEY_IDENTIFIER, _KEY_ID)))  # authorityKeyIdentifier
)


def _certificate(serial: bytes, subject: bytes, public: bytes, extensions: bytes) -> bytes:
    """A whole v3 certificate of the public issuer (RFC 5280 section 4.1)."""
    to_be_signed = _tlv(
        _SEQUENCE,
        _VERSION_3,
        _tlv(_INTEGER, serial),
        _ED25519,
        _name(_ISSUER_NAME),
        _VALIDITY,
        _name(subject),
        _tlv(_SEQUENCE, _ED25519, _tlv(_BIT_STRING, b"\x00", public)),
        _tlv(_EXPLICIT_3, _tlv(_SEQUENCE, extensions)),
    )
    return _tlv(_SEQUENCE, to_be_signed, _ED25519, _tlv(_BIT_STRING, b"\x00", _ISSUER.sign(to_be_signed)))


def host_name(node_id: NodeID) -> str:
    """The DNS-shaped name of a node: its text form and `HOST_SUFFIX`, 64 characters (the most a common name may have)."""
    return id_text(node_id) + HOST_SUFFIX


def parse_host_name(host: str) -> NodeID:
    """The NodeID in a host name.

    Raises:
        InputError: not `<52 characters>.dds.invalid` in the one canonical spelling.
    """
    if len(host) != ID_TEXT_CHARS + len(HOST_SUFFIX) or not host.endswith(HOST_SUFFIX):
        raise InputError(f"not the host name of a node: {host[:80]!r}")
    return NodeID(parse_id(host[:ID_TEXT_CHARS], "node identifier"))


def leaf_certificate(node_id: NodeID) -> bytes:
    """DER of the one certificate of `node_id`; every leaf has `LEAF_BYTES` bytes. About 0.1 ms."""
    assert len(node_id) == ID_BYTES
    # The two top bits make a positive integer of exactly 16 octets, so that no field moves.
    digest = tagged_hash(_SERIAL_TAG, node_id)
    serial = bytes((0x40 | digest[0] & 0x3F,)) + digest[1:_SERIAL_BYTES]
    name = host_name(node_id).encode()
    alternative = _extension("551d11", _tlv(_SEQUENCE, _tlv(_NAME_DNS, name)))  # subjectAltName
    return _certificate(serial, name, node_id, _LEAF_EXTENSIONS + alternative)


def issuer_certificate() -> bytes:
    """DER of the public issuer, self-signed: what a TLS library is given as its only trust anchor."""
    return _certificate(b"\x01", _ISSUER_NAME, _ISSUER.public, _ISSUER_EXTENSIONS)


_PROBE: Final = NodeID(bytes(range(0xC0, 0xC0 + ID_BYTES)))
LEAF_BYTES: Final = len(leaf_certificate(_PROBE))
_KEY_OFFSET: Final = leaf_certificate(_PROBE).index(_PROBE)


def certified_node(der: bytes) -> NodeID | None:
    """The NodeID whose one certificate `der` is, or None. Nothing is parsed: the key is taken at its fixed place, the
    certificate is made again from it and compared."""
    if len(der) != LEAF_BYTES:
        return None
    node_id = NodeID(der[_KEY_OFFSET : _KEY_OFFSET + ID_BYTES])
    return node_id if leaf_certificate(node_id) == der else None


def private_key_der(seed: bytes) -> bytes:
    """PKCS #8 form of an Ed25519 seed (RFC 8410 section 7)."""
    assert len(seed) == SEED_BYTES
    return _PKCS8_PREFIX + seed


def pem(label: str, der: bytes) -> str:
    """PEM text (RFC 7468) of DER bytes."""
    return f"-----BEGIN {label}-----\n{base64.encodebytes(der).decode()}-----END {label}-----\n"

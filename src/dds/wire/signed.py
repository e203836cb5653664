"""Signed records: the exact payload bytes, the signer's public key and its signature.

Because the bytes that were signed travel as they are, no canonical form is needed to check them. The tag (one per kind of
record and version) and the network id are part of what is signed but do not travel: a record of one kind or network is
never valid as another.
"""

from __future__ import annotations

from dds.primitives.errors import FormatError, IntegrityError
from dds.primitives.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, SigningKey, verify_tagged
from dds.wire.codec import Message, decode, encode

ENVELOPE_BYTES_MAX = 112  # array header, three byte-string headers, key and signature, rounded up


class Signed(Message, frozen=True):
    payload: bytes
    key: bytes  # Ed25519 public key, 32 bytes
    signature: bytes  # 64 bytes


def sign(key: SigningKey, tag: bytes, network: str, payload: bytes) -> bytes:
    """The envelope's bytes."""
    return encode(Signed(payload, key.public, key.sign_tagged(tag, network, payload)))


def open_signed(raw: bytes, tag: bytes, network: str, *, max_bytes: int) -> Signed:
    """Parse an envelope whose payload has at most `max_bytes` and check its signature.

    Raises:
        FormatError: malformed or too large.
        IntegrityError: the signature is not the key's for this tag and network.
    """
    envelope = decode(raw, Signed, max_bytes=max_bytes + ENVELOPE_BYTES_MAX)
    if len(envelope.key) != PUBLIC_KEY_BYTES or len(envelope.signature) != SIGNATURE_BYTES:
        raise FormatError("a signed record has a key or signature of the wrong length")
    if not verify_tagged(envelope.key, envelope.signature, tag, network, envelope.payload):
        raise IntegrityError(f"signature does not hold for {tag.decode()} on network {network!r}")
    return envelope

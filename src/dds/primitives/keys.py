"""Ed25519 keys (RFC 8032), by PyNaCl.

PyNaCl's version is pinned exactly: implementations disagree on edge cases of verification. A seed is 32 bytes and is never
shown by `repr`. What is signed is always `tag || 0x00 || network id || 0x00 || payload`, so a signature for one purpose or
network is worthless for another.
"""

from __future__ import annotations

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import CryptoError

SEED_BYTES = 32
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64


class SigningKey:
    """An Ed25519 key pair. `public` is the identity: a NodeID or a PublisherID."""

    __slots__ = ("_secret", "public")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
        self.public, self._secret = crypto_sign_seed_keypair(seed)

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()})"

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes; only for writing a key file and for TLS."""
        return self._secret[:SEED_BYTES]

    def sign(self, message: bytes) -> bytes:
        """A 64-byte signature over the exact bytes; prefer `sign_tagged`."""
        return crypto_sign(message, self._secret)[:SIGNATURE_BYTES]

    def sign_tagged(self, tag: bytes, network: str, payload: bytes) -> bytes:
        return self.sign(signed_message(tag, network, payload))


def signed_message(tag: bytes, network: str, payload: bytes) -> bytes:
    """The exact bytes under a signature. Tag and network hold no zero byte: it ends them, so no two triples share bytes."""
    assert b"\x00" not in tag and "\x00" not in network
    return tag + b"\x00" + network.encode() + b"\x00" + payload


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is the key's over `message`. Wrong lengths are a plain False."""
    if len(public) != PUBLIC_KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, public)
    except (CryptoError, ValueError):
        return False
    return True


def verify_tagged(public: bytes, signature: bytes, tag: bytes, network: str, payload: bytes) -> bool:
    return verify(public, signature, signed_message(tag, network, payload))

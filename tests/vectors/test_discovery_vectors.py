"""Frozen bytes of every discovery record, place and sealed value (tests/vectors/discovery.json).

The signatures are also checked with another implementation of Ed25519, the places with plain SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dds.wire.codec import decode
from dds.wire.discovery import (
    CONTENT_ANNOUNCE,
    CONTENT_PROVIDER,
    NODE,
    SEGMENT_HOOK,
    SEGMENT_PROVIDER,
    Kind,
    Place,
    content_place,
    hook_place,
    node_bucket,
    node_place,
    open_record,
    seal,
    segment_place,
    unseal,
)
from dds.wire.signed import Signed
from tests.discovery_samples import (
    CONTENT,
    NETWORK,
    SEGMENT,
    node_id,
    signed_announce,
    signed_hook,
    signed_node,
    signed_provider,
    signed_segment,
    signing_key,
)

FROZEN: dict[str, dict[str, str]] = json.loads((Path(__file__).parent / "discovery.json").read_text())

NODE_PLACE = node_place(NETWORK, node_bucket(node_id(1)))
CASES: dict[str, tuple[Kind[Any], Place, bytes]] = {
    "node": (NODE, NODE_PLACE, signed_node(signing_key(1), dht="203.0.113.10:4434")),
    "content-provider": (CONTENT_PROVIDER, content_place(NETWORK, CONTENT), signed_provider(signing_key(2))),
    "content-announce": (
        CONTENT_ANNOUNCE,
        content_place(NETWORK, CONTENT),
        signed_announce(signing_key(3), [node_id(1), node_id(2)]),
    ),
    "segment-provider": (SEGMENT_PROVIDER, segment_place(NETWORK, SEGMENT), signed_segment(signing_key(4), 15)),
    "segment-hook": (SEGMENT_HOOK, hook_place(NETWORK, CONTENT), signed_hook(signing_key(5), [node_id(1), node_id(2)])),
}


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_frozen(name: str) -> None:
    kind, place, signed = CASES[name]
    assert {
        "signed": signed.hex(),
        "dht_key": place.key.hex(),
        "secret": place.secret.hex(),
        "sealed": seal(place, kind, signed).hex(),
    } == FROZEN[name]


@pytest.mark.parametrize("name", CASES)
def test_frozen_bytes_still_open(name: str) -> None:
    kind, place, signed = CASES[name]
    assert unseal(place, bytes.fromhex(FROZEN[name]["sealed"])) == (kind.code, signed)
    open_record(signed, kind, NETWORK)


@pytest.mark.parametrize("name", CASES)
def test_signature_holds_for_another_implementation(name: str) -> None:
    kind, _, signed = CASES[name]
    envelope = decode(signed, Signed)
    message = kind.tag + b"\x00" + NETWORK.encode() + b"\x00" + envelope.payload
    Ed25519PublicKey.from_public_bytes(envelope.key).verify(envelope.signature, message)


def test_places_follow_from_plain_sha256() -> None:
    scope = hashlib.sha256(NETWORK.encode()).digest()
    key_tag, seal_tag = b"dds/dht-key/content/v1", b"dds/dht-seal/content/v1"
    place = content_place(NETWORK, CONTENT)
    assert place.key == hashlib.sha256(bytes((len(key_tag),)) + key_tag + scope + CONTENT).digest()[:20]
    assert place.secret == hashlib.sha256(bytes((len(seal_tag),)) + seal_tag + scope + CONTENT).digest()

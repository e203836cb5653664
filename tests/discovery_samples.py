"""Keys and records that the discovery tests share. Keys are made from small numbers, times from one fixed instant."""

from __future__ import annotations

from dds.primitives.cid import CID, cid_of
from dds.primitives.ids import NodeID, SegmentID
from dds.primitives.keys import SigningKey
from dds.wire.discovery import (
    CONTENT_ANNOUNCE,
    CONTENT_PROVIDER,
    HOOK_LIFETIME_MS,
    NODE,
    NODE_LIFETIME_MS,
    PROVIDER_LIFETIME_MS,
    RECORD_VERSION,
    SEGMENT_HOOK,
    SEGMENT_PROVIDER,
    ContentAnnounce,
    ContentProvider,
    NodeRecord,
    SegmentHook,
    SegmentProvider,
    sign_record,
)

NETWORK = "devnet-1"
NOW_MS = 1_800_000_000_000
CONTENT: CID = cid_of(b"a page about discovery")
SEGMENT = SegmentID(bytes(range(32)))


def signing_key(number: int) -> SigningKey:
    return SigningKey(number.to_bytes(32, "big"))


def node_id(number: int) -> NodeID:
    return NodeID(signing_key(number).public)


def node_record(key: SigningKey, *, seq: int = NOW_MS, network: str = NETWORK, dht: str = "") -> NodeRecord:
    return NodeRecord(
        version=RECORD_VERSION,
        network=network,
        node_id=key.public,
        addresses=["203.0.113.10:4433"],
        roles=["ssn", "witness"],
        region="eu-west",
        operator="operator-7",
        subnet="203.0.113",
        free_bytes=10**12,
        capacity_bytes=4 * 10**12,
        price=120,
        software="0.1.0",
        iroh=["https://relay.example.org/", "198.51.100.7:4433"],
        dht=dht,
        seq=seq,
        expires_ms=seq + NODE_LIFETIME_MS,
    )


def signed_node(key: SigningKey, *, seq: int = NOW_MS, network: str = NETWORK, dht: str = "") -> bytes:
    return sign_record(key, NODE, node_record(key, seq=seq, network=network, dht=dht))


def content_provider(
    key: SigningKey, *, seq: int = NOW_MS, network: str = NETWORK, content: CID = CONTENT, port: int = 4433
) -> ContentProvider:
    until_ms = seq + PROVIDER_LIFETIME_MS
    return ContentProvider(RECORD_VERSION, network, content, key.public, "manifest", [f"203.0.113.10:{port}"], seq, until_ms)


def signed_provider(
    key: SigningKey, *, seq: int = NOW_MS, network: str = NETWORK, content: CID = CONTENT, port: int = 4433
) -> bytes:
    return sign_record(key, CONTENT_PROVIDER, content_provider(key, seq=seq, network=network, content=content, port=port))


def signed_announce(key: SigningKey, holders: list[bytes], *, seq: int = NOW_MS) -> bytes:
    until_ms = seq + PROVIDER_LIFETIME_MS
    record = ContentAnnounce(RECORD_VERSION, NETWORK, CONTENT, key.public, holders, seq, until_ms)
    return sign_record(key, CONTENT_ANNOUNCE, record)


def signed_segment(key: SigningKey, index: int, *, seq: int = NOW_MS) -> bytes:
    until_ms = seq + PROVIDER_LIFETIME_MS
    record = SegmentProvider(RECORD_VERSION, NETWORK, SEGMENT, index, key.public, ["203.0.113.10:4433"], seq, until_ms)
    return sign_record(key, SEGMENT_PROVIDER, record)


def signed_hook(
    key: SigningKey, holders: list[bytes], *, seq: int = NOW_MS, block: CID = CONTENT, segment: SegmentID = SEGMENT
) -> bytes:
    until_ms = seq + HOOK_LIFETIME_MS
    record = SegmentHook(RECORD_VERSION, NETWORK, block, segment, key.public, holders, seq, until_ms)
    return sign_record(key, SEGMENT_HOOK, record)

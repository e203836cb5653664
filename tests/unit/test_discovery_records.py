"""Discovery records: what is signed, what is refused, what a stranger can read."""

from __future__ import annotations

import msgspec
import pytest

from dds.primitives.cid import cid_of
from dds.primitives.errors import FormatError, IntegrityError, UnsupportedVersion
from dds.primitives.ids import NodeID
from dds.wire.codec import decode, encode
from dds.wire.discovery import (
    CLOCK_SKEW_MS_MAX,
    CONTENT_ANNOUNCE,
    CONTENT_PROVIDER,
    HOLDERS_MAX,
    NODE,
    NODE_BUCKETS,
    NODE_LIFETIME_MS,
    RECORD_VERSION,
    SEGMENT_PROVIDER,
    content_place,
    format_address,
    is_current,
    node_bucket,
    node_place,
    open_record,
    parse_address,
    seal,
    segment_place,
    sign_record,
    unseal,
)
from dds.wire.signed import Signed, sign
from tests.discovery_samples import (
    CONTENT,
    NETWORK,
    NOW_MS,
    SEGMENT,
    content_provider,
    node_record,
    signed_announce,
    signed_node,
    signed_provider,
    signed_segment,
    signing_key,
)

KEY = signing_key(1)


def test_every_record_stays_near_its_aim_of_three_hundred_bytes() -> None:
    place = content_place(NETWORK, CONTENT)
    plain = msgspec.structs.replace(node_record(KEY, dht="203.0.113.10:4434"), iroh=[])
    assert len(seal(place, NODE, sign_record(KEY, NODE, plain))) <= 320
    assert len(seal(place, NODE, signed_node(KEY, dht="203.0.113.10:4434"))) <= 370  # with a relay and a socket of iroh
    assert len(seal(place, CONTENT_PROVIDER, signed_provider(KEY))) <= 300
    assert len(seal(place, SEGMENT_PROVIDER, signed_segment(KEY, 15))) <= 300
    assert len(seal(place, CONTENT_ANNOUNCE, signed_announce(KEY, [KEY.public] * 7))) <= 500


def test_record_opens_only_as_its_own_kind_and_on_its_own_network() -> None:
    raw = signed_provider(KEY)
    assert open_record(raw, CONTENT_PROVIDER, NETWORK) == content_provider(KEY)
    with pytest.raises(FormatError):
        open_record(raw, NODE, NETWORK)
    with pytest.raises(IntegrityError):
        open_record(raw, CONTENT_PROVIDER, "devnet-2")


def test_record_cannot_be_carried_to_a_network_that_it_was_not_signed_for() -> None:
    theirs = content_provider(KEY, network="devnet-2")
    replayed = sign(KEY, CONTENT_PROVIDER.tag, NETWORK, encode(theirs))
    with pytest.raises(IntegrityError):
        open_record(replayed, CONTENT_PROVIDER, NETWORK)


def test_nobody_can_sign_for_another_node() -> None:
    stranger = signing_key(2)
    forged = sign(stranger, NODE.tag, NETWORK, encode(node_record(KEY)))
    with pytest.raises(IntegrityError):
        open_record(forged, NODE, NETWORK)
    envelope = decode(forged, Signed)
    with pytest.raises(IntegrityError):
        open_record(encode(Signed(envelope.payload, KEY.public, envelope.signature)), NODE, NETWORK)


def test_unknown_version_is_named_as_such() -> None:
    future = msgspec.structs.replace(node_record(KEY), version=RECORD_VERSION + 1)
    with pytest.raises(UnsupportedVersion):
        open_record(sign(KEY, NODE.tag, NETWORK, encode(future)), NODE, NETWORK)


@pytest.mark.parametrize(
    "change",
    [
        {"addresses": ["203.0.113.10:4433"] * 5},
        {"addresses": ["203.0.113.10:0"]},
        {"addresses": ["203.0.113.10:65536"]},
        {"addresses": ["203.0.113.10:04433"]},
        {"addresses": ["Node.example:1"]},
        {"addresses": ["999.1.1.1:1"]},
        {"addresses": ["user@host:1"]},
        {"addresses": ["host/path:1"]},
        {"addresses": ["host"]},
        {"addresses": ["a" * 81 + ":1"]},
        {"dht": "nowhere"},
        {"roles": ["king"]},
        {"roles": ["ssn", "ssn"]},
        {"region": "x" * 65},
        {"software": "line\nbreak"},
        {"free_bytes": -1},
        {"free_bytes": 5 * 10**12},
        {"price": 1 << 63},
        {"seq": -1},
    ],
)
def test_malformed_node_record_is_refused_though_signed(change: dict[str, object]) -> None:
    record = msgspec.structs.replace(node_record(KEY), **change)
    with pytest.raises(FormatError):
        open_record(sign(KEY, NODE.tag, NETWORK, encode(record)), NODE, NETWORK)


def test_announce_with_no_or_too_many_holders_is_refused() -> None:
    for holders in ([], [KEY.public] * (HOLDERS_MAX + 1), [b"short"]):
        with pytest.raises(FormatError):
            signed_announce(KEY, holders)


def test_provider_of_something_that_is_no_content_id_is_refused() -> None:
    record = msgspec.structs.replace(content_provider(KEY), content=b"\x00" * 36)
    with pytest.raises(FormatError):
        sign_record(KEY, CONTENT_PROVIDER, record)


def test_record_is_current_until_its_expiry_and_never_for_longer_than_its_kind_allows() -> None:
    record = node_record(KEY)
    assert is_current(record, NODE, NOW_MS)
    assert is_current(record, NODE, NOW_MS + NODE_LIFETIME_MS - 1)
    assert not is_current(record, NODE, NOW_MS + NODE_LIFETIME_MS)
    assert not is_current(record, NODE, NOW_MS - CLOCK_SKEW_MS_MAX - 1)
    greedy = msgspec.structs.replace(record, expires_ms=NOW_MS + NODE_LIFETIME_MS + 1)
    assert not is_current(greedy, NODE, NOW_MS)


def test_sealed_record_is_unreadable_without_the_content_id() -> None:
    raw = signed_provider(KEY)
    place = content_place(NETWORK, CONTENT)
    value = seal(place, CONTENT_PROVIDER, raw)
    for secret in (CONTENT, KEY.public, NETWORK.encode(), b"203.0.113"):
        assert secret not in value
        assert secret not in place.key
    assert unseal(place, value) == (CONTENT_PROVIDER.code, raw)
    assert unseal(content_place(NETWORK, cid_of(b"another page")), value) is None
    assert unseal(content_place("devnet-2", CONTENT), value) is None
    assert unseal(segment_place(NETWORK, SEGMENT), value) is None


def test_every_flipped_byte_of_a_sealed_record_is_noticed() -> None:
    place = content_place(NETWORK, CONTENT)
    value = seal(place, CONTENT_PROVIDER, signed_provider(KEY))
    for at in range(len(value)):
        assert unseal(place, value[:at] + bytes((value[at] ^ 1,)) + value[at + 1 :]) is None


def test_same_record_seals_to_the_same_bytes_and_two_records_never_share_a_nonce() -> None:
    place = content_place(NETWORK, CONTENT)
    one, two = signed_provider(KEY), signed_provider(KEY, seq=NOW_MS + 1)
    assert seal(place, CONTENT_PROVIDER, one) == seal(place, CONTENT_PROVIDER, one)
    assert seal(place, CONTENT_PROVIDER, one)[1:25] != seal(place, CONTENT_PROVIDER, two)[1:25]


def test_node_ids_spread_over_all_buckets() -> None:
    buckets = [node_bucket(NodeID(bytes((first,)) + bytes(31))) for first in range(256)]
    assert sorted(set(buckets)) == list(range(NODE_BUCKETS))
    assert all(buckets.count(bucket) == 256 // NODE_BUCKETS for bucket in range(NODE_BUCKETS))
    assert len({node_place(NETWORK, bucket) for bucket in range(NODE_BUCKETS)}) == NODE_BUCKETS


@pytest.mark.parametrize("text", ["203.0.113.10:1", "[2001:db8::1]:65535", "node-1.example.org:4433", "localhost:80"])
def test_address_survives_parsing_and_formatting(text: str) -> None:
    assert format_address(*parse_address(text)) == text

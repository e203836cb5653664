"""Frozen bytes and numbers of popularity: what nodes say to each other, and how every one of them lets a count fade."""

from __future__ import annotations

from dds.primitives.cid import cid_of
from dds.primitives.ids import SegmentID
from dds.protocol.popularity import HALF_LIFE_MS, READ, Popularity, faded
from dds.wire.codec import decode, encode
from dds.wire.retrieval import PopularityReply, PopularityRequest

SEGMENT = SegmentID(bytes(range(32)))
CONTENT = cid_of(b"content")
REQUEST = "9291c420" + bytes(range(32)).hex() + "91c424" + CONTENT.hex()
REPLY = "929200cd03e891ce00100000"


def test_popularity_messages_have_these_bytes() -> None:
    assert encode(PopularityRequest([SEGMENT], [CONTENT])).hex() == REQUEST
    assert encode(PopularityReply([0, READ], [1 << 20])).hex() == REPLY
    assert decode(bytes.fromhex(REQUEST), PopularityRequest) == PopularityRequest([SEGMENT], [CONTENT])
    assert decode(bytes.fromhex(REPLY), PopularityReply) == PopularityReply([0, READ], [1 << 20])


def test_a_million_fades_by_these_numbers() -> None:
    assert [faded(10**6, ticks) for ticks in (0, 1, 7, 511, 512, 1023, 1024, 1025, 10_240)] == FADED


def test_a_state_of_one_segment_has_these_bytes() -> None:
    counter = Popularity()
    counter.add(SEGMENT, READ, 100 * HALF_LIFE_MS)
    assert counter.to_state().hex() == "92019193c420" + bytes(range(32)).hex() + "ce03e80000ce00019000"
    assert Popularity.from_state(counter.to_state()).reads(SEGMENT, 101 * HALF_LIFE_MS) == READ // 2


FADED = [1_000_000, 999_323, 995_272, 707_585, 707_106, 500_338, 500_000, 499_661, 976]

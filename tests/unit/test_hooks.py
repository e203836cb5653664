"""Which blocks are hooks, and what Hooks finds and announces over a DHT of real nodes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from dds.primitives.cid import CID, RAW, cid_from_digest, cid_of
from dds.primitives.ids import SegmentID
from dds.primitives.keys import SigningKey
from dds.primitives.units import MIB
from dds.protocol.hooks import (
    BYTES_PER_HOOK,
    HOOK_ZERO_BITS,
    HOOKED_BYTES_MIN,
    HOOKS_FREE,
    HOOKS_PER_SEGMENT_MAX,
    OPENING_BYTES,
    Lookups,
    Opening,
    hooks_of,
    is_sampled,
)
from dds.runtime import hooks
from dds.runtime.hooks import SEGMENTS_PER_BLOCK_MAX, Hooks, NewHook
from dds.runtime.network import Network
from dds.storage.home import ClientConfig
from dds.transport.client import PeerClient
from dds.transport.dht import DHTNode, ValueType
from dds.wire.discovery import CONTENT_ANNOUNCE, SEGMENT_HOOK, hook_place, seal
from tests.dht_network import dht_network
from tests.discovery_samples import CONTENT, NETWORK, SEGMENT, node_id, signed_announce, signed_hook, signing_key


def block(first_byte: int, number: int = 0) -> CID:
    return cid_from_digest(bytes((first_byte, number >> 8, number & 255)).ljust(32, b"\x07"), RAW)


def test_one_digest_in_32_is_sampled() -> None:
    share = sum(is_sampled(cid_of(number.to_bytes(4, "big"))) for number in range(32_000)) / 32_000
    assert share == pytest.approx(1 / (1 << HOOK_ZERO_BITS), rel=0.1)
    assert is_sampled(block(0x07)) and not is_sampled(block(0x08))


def test_hooks_are_the_first_the_openings_two_smallest_and_the_sampled_ones() -> None:
    late = block(0x01)
    opening = [(block(0x90), MIB), (block(0x60), MIB), (block(0x40), MIB), (block(0x50), OPENING_BYTES)]
    rest = [(block(0x20), MIB), (late, MIB), (block(0x30), MIB)]
    assert hooks_of([*opening, *rest]) == [block(0x90), block(0x40), block(0x50), late]


def test_small_segment_has_no_hooks_and_any_other_has_one() -> None:
    assert hooks_of([(block(0x00), HOOKED_BYTES_MIN - 1)]) == []
    assert hooks_of([(block(0xFF), HOOKED_BYTES_MIN)]) == [block(0xFF)]


def test_hooks_of_a_segment_are_bounded_and_the_smallest_digests_stay() -> None:
    blocks = [(block(0x00, number), BYTES_PER_HOOK) for number in reversed(range(500))]
    chosen = hooks_of(blocks)
    assert len(chosen) == HOOKS_PER_SEGMENT_MAX
    assert chosen[3:] == [block(0x00, number) for number in range(HOOKS_PER_SEGMENT_MAX - 3)]


def test_opening_ends_with_the_block_that_fills_it() -> None:
    opening = Opening()
    opening.add(block(0x50), OPENING_BYTES - 1)
    opening.add(block(0x40), MIB)
    opening.add(block(0x01), MIB)
    assert (opening.first, opening.smallest, opening.is_full) == (block(0x50), (block(0x40), block(0x50)), True)


def test_number_of_hooks_follows_the_bytes_where_blocks_are_small() -> None:
    blocks = [(block(0x00, number), MIB // 64) for number in range(64 * 40)]
    assert len(hooks_of(blocks)) == HOOKS_FREE + 40 * MIB // BYTES_PER_HOOK


def test_lookups_are_the_first_block_the_sampled_ones_and_the_openings_smallest() -> None:
    lookups = Lookups()
    assert lookups.of({block(0x90): MIB, block(0x01): MIB}, is_last=False) == [block(0x90), block(0x01)]
    assert lookups.of({block(0x60): OPENING_BYTES}, is_last=False) == [block(0x01), block(0x60)]
    assert lookups.of({block(0x08): MIB}, is_last=False) == []
    assert lookups.of({block(0x07): MIB}, is_last=True) == [block(0x07)]


def test_small_content_is_not_looked_up_and_one_that_just_is_not_small_is() -> None:
    assert Lookups().of({block(0x00): HOOKED_BYTES_MIN - 1}, is_last=True) == []
    assert Lookups().of({block(0xFF): HOOKED_BYTES_MIN}, is_last=True) == [block(0xFF)]


def test_lookups_of_small_blocks_are_rationed_by_bytes() -> None:
    lookups = Lookups()
    asked = [lookups.of({block(0x00, 256 * batch + at): MIB // 64 for at in range(256)}, is_last=False) for batch in range(20)]
    assert len(asked[0]) == HOOKS_FREE + 1
    assert sum(map(len, asked)) == HOOKS_FREE + 20 * 4 * MIB // BYTES_PER_HOOK


def test_what_one_announces_the_other_looks_up() -> None:
    blocks = {cid_of(number.to_bytes(4, "big")): MIB for number in range(200)}
    announced, lookups = set(hooks_of(list(blocks.items()))), Lookups()
    batches = [dict(list(blocks.items())[at : at + 8]) for at in range(0, 200, 8)]
    asked = {each for at, batch in enumerate(batches) for each in lookups.of(batch, is_last=at == len(batches) - 1)}
    assert announced == asked


@asynccontextmanager
async def client_network(key: SigningKey, dht: DHTNode) -> AsyncIterator[Network]:
    async with PeerClient(key, network=NETWORK) as client:
        network = Network(key, ClientConfig(NETWORK, (), (f"127.0.0.1:{dht.port}",)), client)
        try:
            yield network
        finally:
            await network.stop()


async def test_announced_hooks_are_found_by_another_client_before_the_first_has_left() -> None:
    holders = tuple(node_id(at) for at in range(1, 21))
    blocks = [cid_of(bytes((at,))) for at in range(20)]
    async with dht_network(5, NETWORK) as dhts:
        async with client_network(signing_key(1), dhts[1]) as publisher:
            Hooks(publisher).announce([NewHook(each, SEGMENT, holders) for each in blocks])
        async with client_network(signing_key(2), dhts[2]) as other:
            found = await asyncio.gather(*(Hooks(other).find(each) for each in blocks))
            assert [[(hook.segment_id, hook.publisher) for hook in each] for each in found] == [
                [(SEGMENT, signing_key(1).public)]
            ] * 20
            assert found[0][0].holders == list(holders[:16])
            assert await Hooks(other).find(cid_of(b"unknown")) == []


async def test_flood_of_junk_at_a_place_is_bounded_and_our_own_hook_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ms = time.time_ns() // 1_000_000
    place = hook_place(NETWORK, CONTENT)
    monkeypatch.setattr(hooks, "GRACE_S", 10.0)  # all of the flood is to be seen
    async with dht_network(4, NETWORK) as dhts:

        async def put(value: bytes) -> None:
            assert await dhts[1].put(place.key, value, ValueType.HOOK)

        await asyncio.gather(*(put(os.urandom(400)) for _ in range(100)))
        wrong = [signed_hook(signing_key(50), [node_id(1)], seq=now_ms, block=cid_of(b"another")), b"\x93nothing"]
        strangers = [
            signed_hook(signing_key(number), [node_id(1)], seq=now_ms + number, segment=SegmentID(bytes((number,)) * 32))
            for number in range(10, 30)
        ]
        own = signed_hook(signing_key(2), [node_id(1)], seq=now_ms)
        stale = signed_hook(signing_key(3), [node_id(1)], seq=now_ms - 8 * 24 * 3_600_000)
        for signed in (*wrong, *strangers, own, stale):
            await put(seal(place, SEGMENT_HOOK, signed))
        await put(seal(place, CONTENT_ANNOUNCE, signed_announce(signing_key(4), [node_id(1)], seq=now_ms)))
        async with client_network(signing_key(2), dhts[2]) as network:
            found = await Hooks(network).find(CONTENT)
    assert len(found) == SEGMENTS_PER_BLOCK_MAX
    assert found[0].publisher == signing_key(2).public
    assert all(hook.block == CONTENT for hook in found)


async def test_rate_and_number_of_announcements_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "HOOKS_PER_PUT_MAX", 30)
    monkeypatch.setattr(hooks, "HOOKS_PER_S_MAX", 40)
    blocks = [cid_of(bytes((at,))) for at in range(40)]
    async with dht_network(3, NETWORK) as dhts:
        began = time.monotonic()
        async with client_network(signing_key(1), dhts[1]) as publisher:
            Hooks(publisher).announce([NewHook(each, SEGMENT, (node_id(1),)) for each in blocks])
        assert time.monotonic() - began >= 0.6
        async with client_network(signing_key(2), dhts[2]) as other:
            found = await asyncio.gather(*(Hooks(other).find(each) for each in blocks))
    assert [bool(each) for each in found] == [True] * 30 + [False] * 10


async def test_without_a_way_into_the_dht_nothing_is_found_and_nothing_fails() -> None:
    key = signing_key(1)
    async with PeerClient(key, network=NETWORK) as client:
        network = Network(key, ClientConfig(NETWORK, (), ()), client)
        Hooks(network).announce([NewHook(CONTENT, SEGMENT, (node_id(1),))])
        assert await Hooks(network).find(CONTENT) == []
        await network.stop()

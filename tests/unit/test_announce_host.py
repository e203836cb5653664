"""The announcer and the locator over real DHT nodes: what is announced is found, and survives a restart."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from dds.primitives.cid import CID, cid_of
from dds.primitives.errors import FormatError, IntegrityError
from dds.primitives.ids import SegmentID
from dds.primitives.units import K_MAX
from dds.protocol.announce import Announcement
from dds.runtime.announce import Announcer, AnnouncerConfig, sign_announce
from dds.runtime.locate import Locator
from dds.runtime.peers import wall_clock_ms
from dds.storage.announce_queue import AnnounceQueue
from dds.transport.dht import DHTNode, ValueType
from dds.wire.discovery import CONTENT_PROVIDER, PROVIDER_LIFETIME_MS_MAX, SEGMENT_PROVIDER, content_place, seal
from tests.dht_network import dht_network
from tests.discovery_samples import CONTENT, NETWORK, SEGMENT, node_id, signed_announce, signed_provider, signing_key

SEED = b"s" * 32


def announcer(
    number: int,
    dht: DHTNode,
    path: Path,
    *,
    addresses: list[str] | None = None,
    rate: int = 200,
    burst: int = 600,
    released: Collection[Announcement] = (),
) -> Announcer:
    where = [f"127.0.0.1:{4000 + number}"] if addresses is None else addresses
    return Announcer(
        signing_key(number),
        NETWORK,
        dht,
        lambda: AnnounceQueue(path),
        lambda: where,
        SEED,
        held=lambda announcements: [each not in released for each in announcements],
        config=AnnouncerConfig(puts_per_s=rate, burst=burst, puts_per_s_max=rate),
    )


async def test_announced_content_and_segments_are_found_from_another_node(tmp_path: Path) -> None:
    async with dht_network(8, NETWORK) as dhts:
        hosts = [announcer(number, dhts[number], tmp_path / str(number)) for number in range(1, 6)]
        for number, host in enumerate(hosts, 1):
            await host.start()
            host.announce_segment(SEGMENT, number)
            host.announce_content(CONTENT, "manifest")
        hosts[0].repeat(sign_announce(signing_key(77), NETWORK, CONTENT, [node_id(1), node_id(9)], wall_clock_ms()))
        assert all([await host.settled(5) for host in hosts])
        locator = Locator(NETWORK, dhts[7], SEED)
        segments = await locator.find_segment(SEGMENT)
        assert sorted((record.index, record.node_id) for record in segments) == [(at, node_id(at)) for at in range(1, 6)]
        content = await locator.find_content(CONTENT)
        assert {record.node_id for record in content.providers} == {node_id(at) for at in range(1, 6)}
        assert [record.publisher for record in content.announces] == [signing_key(77).public]
        assert set(content.node_ids) == {node_id(at) for at in (1, 2, 3, 4, 5, 9)}
        assert (await locator.find_content(cid_of(b"unknown"))).node_ids == []
        for host in hosts:
            await host.stop()


async def test_restarted_announcer_says_nothing_that_was_said_already(tmp_path: Path) -> None:
    async with dht_network(3, NETWORK) as dhts:
        first = announcer(1, dhts[1], tmp_path / "queue")
        await first.start()
        for at in range(30):
            first.announce_segment(SegmentID(bytes((at,)) * 32), at)
        assert await first.settled(5)
        await first.stop()
        second = announcer(1, dhts[1], tmp_path / "queue")
        await second.start()
        second.announce_segment(SegmentID(bytes((7,)) * 32), 7)
        assert await second.settled(5)
        assert len(second) == 30
        await second.stop()
        queue = AnnounceQueue(tmp_path / "queue")
        assert queue.due(wall_clock_ms() + 3_600_000, 100) == []
        queue.close()


async def test_what_the_store_released_is_withdrawn_when_its_turn_comes(tmp_path: Path) -> None:
    gone = Announcement(SEGMENT_PROVIDER.code, SEGMENT, "3")
    async with dht_network(3, NETWORK) as dhts:
        host = announcer(1, dhts[1], tmp_path / "queue", released=[gone])
        await host.start()
        host.announce_segment(SEGMENT, 3)
        host.announce_segment(SEGMENT, 4)
        assert await host.settled(5)
        assert len(host) == 1
        assert [record.index for record in await Locator(NETWORK, dhts[2], SEED).find_segment(SEGMENT)] == [4]
        host.withdraw_segment(SEGMENT, 4)
        assert await host.settled(5)
        assert len(host) == 0
        await host.stop()


async def test_node_with_very_much_to_say_makes_records_that_live_longer_and_are_still_found(tmp_path: Path) -> None:
    async with dht_network(3, NETWORK) as dhts:
        host = announcer(1, dhts[1], tmp_path / "queue")
        await host.start()
        host.announce_segment(SEGMENT, 3, hinted=True)
        assert await host.settled(5)
        (record,) = await Locator(NETWORK, dhts[2], SEED).find_segment(SEGMENT)
        assert record.expires_ms - record.seq == PROVIDER_LIFETIME_MS_MAX
        await host.stop()


async def test_rate_of_puts_is_bounded(tmp_path: Path) -> None:
    async with dht_network(3, NETWORK) as dhts:
        host = announcer(1, dhts[1], tmp_path / "queue", rate=20, burst=20)
        await host.start()
        began = time.monotonic()
        for at in range(40):
            host.announce_segment(SegmentID(bytes((at,)) * 32), at)
        assert await host.settled(5)
        assert time.monotonic() - began >= 1.5
        await host.stop()


async def test_node_without_an_address_keeps_its_announcements_for_later(tmp_path: Path) -> None:
    addresses: list[str] = []
    async with dht_network(3, NETWORK) as dhts:
        host = announcer(1, dhts[1], tmp_path / "queue", addresses=addresses)
        await host.start()
        host.announce_segment(SEGMENT, 3)
        assert await host.settled(5)
        locator = Locator(NETWORK, dhts[2], SEED)
        assert await locator.find_segment(SEGMENT) == []
        addresses.append("127.0.0.1:4001")
        host.addresses_changed()
        assert await host.settled(5)
        assert [record.addresses for record in await locator.find_segment(SEGMENT, fresh=True)] == [addresses]
        await host.stop()


async def test_only_a_publishers_genuine_word_is_repeated(tmp_path: Path) -> None:
    async with dht_network(1, NETWORK) as dhts:
        host = announcer(1, dhts[0], tmp_path / "queue")
        forged = bytearray(signed_announce(signing_key(2), [node_id(1)]))
        forged[-1] ^= 1
        with pytest.raises(IntegrityError):
            host.repeat(bytes(forged))
        with pytest.raises(FormatError):
            host.repeat(signed_provider(signing_key(1)))


async def test_holder_that_proved_good_comes_first_next_time(tmp_path: Path) -> None:
    now_ms = wall_clock_ms()
    place = content_place(NETWORK, CONTENT)
    async with dht_network(4, NETWORK) as dhts:
        for number in range(1, 8):
            sealed = seal(place, CONTENT_PROVIDER, signed_provider(signing_key(number), seq=now_ms - number))
            await dhts[1].put(place.key, sealed, ValueType.PROVIDER)
        locator = Locator(NETWORK, dhts[3], SEED)
        assert len((await locator.find_content(CONTENT)).providers) == 7
        locator.proved(CONTENT, node_id(6))
        assert locator.remembered(CONTENT) == [node_id(6)]
        assert (await locator.find_content(CONTENT)).providers[0].node_id == node_id(6)
        assert (await locator.find_content(CONTENT, fresh=True)).providers[0].node_id == node_id(6)
        locator.failed(CONTENT, node_id(6))
        assert locator.remembered(CONTENT) == []


async def test_many_askers_of_one_content_share_one_question_and_answers_are_cached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with dht_network(3, NETWORK) as dhts:
        asked = []
        real_get = dhts[2].get

        async def counting(key: bytes, **options: object) -> list[bytes]:
            asked.append(key)
            return await real_get(key, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(dhts[2], "get", counting)
        place = content_place(NETWORK, CONTENT)
        sealed = seal(place, CONTENT_PROVIDER, signed_provider(signing_key(1), seq=wall_clock_ms()))
        await dhts[1].put(place.key, sealed, ValueType.PROVIDER)
        locator = Locator(NETWORK, dhts[2], SEED)
        found = await asyncio.gather(*(locator.find_content(CONTENT) for _ in range(20)))
        assert all(len(each.providers) == 1 for each in found)
        assert (await locator.find_content(CONTENT)).node_ids == [node_id(1)]
        assert len(asked) == 1
        await locator.find_content(CONTENT, fresh=True)
        assert len(asked) == 2


async def test_fresh_client_finds_its_first_content_at_once(tmp_path: Path) -> None:
    async with dht_network(8, NETWORK) as dhts:
        host = announcer(1, dhts[1], tmp_path / "queue")
        await host.start()
        contents = [CID(cid_of(os.urandom(K_MAX))) for _ in range(5)]
        for content in contents:
            host.announce_content(content, "origin")
        assert await host.settled(5)
        await host.stop()
        client = DHTNode(NETWORK)
        began = time.monotonic()
        await client.start("127.0.0.1", bootstrap=[("127.0.0.1", dhts[0].port)])
        assert (await Locator(NETWORK, client, SEED).find_content(contents[3])).node_ids == [node_id(1)]
        assert time.monotonic() - began < 2.0
        assert await client.stop()

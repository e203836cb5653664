"""The DHT wrapper, with real OpenDHT nodes in this process."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest

from dds.primitives.errors import ConfigError, LimitError, UnavailableError
from dds.transport.dht import (
    KEY_BYTES,
    LISTENERS_MAX,
    VALUE_BYTES_MAX,
    VALUE_LIFETIME,
    DHTNode,
    ValueType,
    network_number,
)
from dds.wire.discovery import (
    CONTENT_PROVIDER,
    DHT_KEY_BYTES,
    HOOK_LIFETIME_MS,
    NODE_LIFETIME_MS,
    PROVIDER_LIFETIME_MS,
    PROVIDER_LIFETIME_MS_MAX,
    SEALED_BYTES_MAX,
    content_place,
    seal,
    unseal,
)
from tests.dht_network import dht_network
from tests.discovery_samples import CONTENT, NETWORK, signed_provider, signing_key


def random_key() -> bytes:
    return os.urandom(KEY_BYTES)


def test_wrapper_and_records_agree_on_keys_sizes_and_lifetimes() -> None:
    assert KEY_BYTES == DHT_KEY_BYTES
    assert SEALED_BYTES_MAX <= VALUE_BYTES_MAX
    assert VALUE_LIFETIME[ValueType.NODE].total_seconds() * 1000 == NODE_LIFETIME_MS
    assert VALUE_LIFETIME[ValueType.PROVIDER].total_seconds() * 1000 == PROVIDER_LIFETIME_MS
    assert VALUE_LIFETIME[ValueType.LASTING].total_seconds() * 1000 == PROVIDER_LIFETIME_MS_MAX
    assert VALUE_LIFETIME[ValueType.HOOK].total_seconds() * 1000 == HOOK_LIFETIME_MS


def test_network_numbers_differ_and_are_never_the_public_one() -> None:
    numbers = {network_number(f"devnet-{at}") for at in range(1000)}
    assert len(numbers) == 1000
    assert all(0 < number < 1 << 32 for number in numbers)


def test_importing_the_wrapper_does_not_load_opendht() -> None:
    code = "import sys, dds.transport.dht; sys.exit('opendht' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_values_put_on_one_node_are_found_on_all_others() -> None:
    async with dht_network(10, "put-get") as nodes:
        keys = [random_key() for _ in range(20)]
        assert all([await nodes[at % 10].put(key, key * 10, ValueType.PROVIDER) for at, key in enumerate(keys)])
        for node in nodes:
            assert await asyncio.gather(*(node.get(key, limit=4) for key in keys)) == [[key * 10] for key in keys]


async def test_second_put_adds_a_value_and_limit_ends_a_get_early() -> None:
    async with dht_network(6, "limits") as nodes:
        key, values = random_key(), [bytes((at,)) * 300 for at in range(12)]
        for value in values:
            assert await nodes[1].put(key, value, ValueType.NODE)
        assert sorted(await nodes[5].get(key, limit=100)) == values
        assert len(await nodes[4].get(key, limit=5)) == 5
        assert await nodes[3].get(key, limit=100, accept=lambda value: value[0] == 7) == [bytes((7,)) * 300]
        assert await nodes[2].get(random_key(), limit=5) == []


async def test_networks_do_not_hear_each_other() -> None:
    async with dht_network(3, "one") as ones, dht_network(3, "two") as twos:
        for node in twos:
            node.bootstrap("127.0.0.1", ones[0].port)
        key = random_key()
        await twos[1].put(key, b"of two", ValueType.NODE)
        assert await ones[1].get(key, limit=1, timeout_s=1) == []
        assert await twos[2].get(key, limit=1) == [b"of two"]


async def test_node_listens_on_the_named_address_and_nowhere_else() -> None:
    before = {connection.laddr for connection in psutil.Process().net_connections("inet")}
    async with dht_network(1, "bind") as nodes:
        opened = {connection.laddr for connection in psutil.Process().net_connections("inet")} - before
        assert opened == {("127.0.0.1", nodes[0].port)}


async def test_taken_port_and_impossible_address_are_plain_errors() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        for host, port in (("127.0.0.1", taken.getsockname()[1]), ("203.0.113.1", 0), ("name", 0), ("127.0.0.1", 70_000)):
            with pytest.raises(ConfigError):
                await DHTNode("x").start(host, port)


async def test_oversized_value_is_refused_before_opendht_sees_it() -> None:
    async with dht_network(2, "size") as nodes:
        assert await nodes[1].put(random_key(), bytes(VALUE_BYTES_MAX), ValueType.NODE)
        with pytest.raises(LimitError):
            await nodes[1].put(random_key(), bytes(VALUE_BYTES_MAX + 1), ValueType.NODE)


async def test_listeners_hear_present_and_new_values_and_nothing_after_cancel() -> None:
    async with dht_network(8, "listen") as nodes:
        key, heard = random_key(), [set[bytes]() for _ in nodes]
        await nodes[0].put(key, b"present", ValueType.NODE)
        listeners = [node.listen(key, values.add) for node, values in zip(nodes, heard, strict=True)]
        await nodes[3].put(key, b"new", ValueType.NODE)
        async with asyncio.timeout(5):
            while any(values != {b"present", b"new"} for values in heard[1:]):
                await asyncio.sleep(0.01)
        listeners[5].cancel()
        listeners[5].cancel()
        await nodes[2].put(key, b"later", ValueType.NODE)
        async with asyncio.timeout(5):
            while b"later" not in heard[6]:
                await asyncio.sleep(0.01)
        assert b"later" not in heard[5]


async def test_number_of_listeners_is_bounded() -> None:
    async with dht_network(1, "listeners") as nodes:
        for _ in range(LISTENERS_MAX):
            nodes[0].listen(random_key(), print)
        with pytest.raises(LimitError):
            nodes[0].listen(random_key(), print)


async def test_node_whose_bootstrap_is_dead_answers_within_the_timeout() -> None:
    node = DHTNode("alone")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        await node.start("127.0.0.1", bootstrap=[silent.getsockname()])
        began = time.monotonic()
        assert not await node.put(random_key(), b"value", ValueType.NODE, timeout_s=0.3)
        assert await node.get(random_key(), limit=1, timeout_s=0.3) == []
        assert time.monotonic() - began < 2
        assert await node.stop()


async def test_stop_with_everything_under_way_is_quick_and_answers_all_who_wait() -> None:
    """Rounds of stopping in mid-storm: the deadlock between OpenDHT's mutex and the GIL needs a callback at the wrong time."""
    for turn in range(8):
        async with dht_network(4, "storm") as nodes:
            keys = [random_key() for _ in range(8)]
            for node in nodes:
                for key in keys:
                    node.listen(key, lambda _value: None)
            puts = [node.put(key, os.urandom(300), ValueType.NODE) for node in nodes for key in keys for _ in range(4)]
            gets = [node.get(key, limit=100) for node in nodes for key in keys for _ in range(4)]
            storm = [asyncio.ensure_future(each) for each in (*puts, *gets)]
            await asyncio.sleep(0.005 * turn)
            began = time.monotonic()
            assert all(await asyncio.gather(*(node.stop() for node in nodes)))
            answers = await asyncio.gather(*storm, return_exceptions=True)
            assert time.monotonic() - began < 3
        unexpected = [each for each in answers if isinstance(each, BaseException) and not isinstance(each, UnavailableError)]
        assert unexpected == []


async def test_stopped_node_refuses_work_and_its_threads_are_gone() -> None:
    before = psutil.Process().num_threads()
    async with dht_network(3, "stopped") as nodes:
        assert psutil.Process().num_threads() > before
    assert await nodes[0].stop()
    async with asyncio.timeout(5):  # the last thread tells of its end just before it ends
        while psutil.Process().num_threads() > before:
            await asyncio.sleep(0.01)
    with pytest.raises(UnavailableError):
        await nodes[0].put(random_key(), b"value", ValueType.NODE)
    with pytest.raises(UnavailableError):
        await nodes[0].get(random_key(), limit=1)


async def test_process_that_forgets_to_stop_its_node_still_ends() -> None:
    code = (
        "import asyncio; from dds.transport.dht import DHTNode, ValueType\n"
        "async def main():\n"
        "    a, b = DHTNode('x'), DHTNode('x'); await a.start('127.0.0.1')\n"
        "    await b.start('127.0.0.1', bootstrap=[('127.0.0.1', a.port)])\n"
        "    for at in range(16): b.listen(bytes([at + 1]) * 20, print)\n"
        "    await b.put(b'k' * 20, b'v', ValueType.NODE); raise SystemExit(7)\n"
        "asyncio.run(main())"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await asyncio.wait_for(process.wait(), 15) == 7


async def test_junk_flood_on_a_key_does_not_hide_the_sealed_record() -> None:
    place = content_place(NETWORK, CONTENT)
    record = seal(place, CONTENT_PROVIDER, signed_provider(signing_key(1)))
    async with dht_network(8, NETWORK) as nodes:
        await nodes[1].put(place.key, record, ValueType.PROVIDER)
        flood = [nodes[2].put(place.key, os.urandom(len(record)), ValueType.PROVIDER) for _ in range(1500)]
        await asyncio.gather(*flood)
        found = await nodes[6].get(place.key, limit=48, accept=lambda value: unseal(place, value) is not None)
        assert found == [record]

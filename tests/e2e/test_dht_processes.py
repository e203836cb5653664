"""OpenDHT nodes in processes of their own, some of them killed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from dds.protocol.discovery import select_records, unseal_all
from dds.transport.dht import DHTNode, ValueType
from dds.wire.discovery import CONTENT_PROVIDER, content_place, seal
from tests.discovery_samples import CONTENT, NETWORK, signed_provider, signing_key

NODE_PROCESS = """
import asyncio, sys
from dds.transport.dht import DHTNode
async def main(network, bootstrap):
    node = DHTNode(network)
    await node.start("127.0.0.1", bootstrap=[("127.0.0.1", port) for port in bootstrap])
    print(node.port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    assert await node.stop()
asyncio.run(main(sys.argv[1], [int(port) for port in sys.argv[2:]]))
"""


def spawn(stack: ExitStack, network: str, bootstrap: list[int]) -> tuple[subprocess.Popen[str], int]:
    arguments = [sys.executable, "-c", NODE_PROCESS, network, *map(str, bootstrap)]
    process = stack.enter_context(subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    stack.callback(process.kill)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.e2e
async def test_records_outlive_the_sudden_death_of_a_third_of_the_nodes() -> None:
    """12 processes; 20 values; 4 killed without a word: every value is still found from a fresh client."""
    now_ms = time.time_ns() // 1_000_000
    with ExitStack() as stack:
        first, port = spawn(stack, NETWORK, [])
        others = [spawn(stack, NETWORK, [port]) for _ in range(11)]
        writer, reader = DHTNode(NETWORK), DHTNode(NETWORK)
        await writer.start("127.0.0.1", bootstrap=[("127.0.0.1", port)])
        place = content_place(NETWORK, CONTENT)
        sealed = [seal(place, CONTENT_PROVIDER, signed_provider(signing_key(at), seq=now_ms)) for at in range(1, 6)]
        assert all(await asyncio.gather(*(writer.put(place.key, each, ValueType.PROVIDER) for each in sealed)))
        keys = [os.urandom(20) for _ in range(15)]
        assert all(await asyncio.gather(*(writer.put(key, key, ValueType.PROVIDER) for key in keys)))
        assert await writer.stop()

        for process, _ in others[:4]:
            process.kill()
        await reader.start("127.0.0.1", bootstrap=[("127.0.0.1", port)])
        found = await asyncio.gather(*(reader.get(key, limit=1) for key in keys))
        assert found == [[key] for key in keys]
        values = await reader.get(place.key, limit=48)
        selection = select_records(unseal_all(values, place, CONTENT_PROVIDER), CONTENT_PROVIDER, NETWORK, now_ms)
        assert len(selection.claims) == 5
        assert await reader.stop()

        for process in (first, *(process for process, _ in others[4:])):
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(5) == 0

"""What it costs a node to keep 10^6 things announced: the share of a core in steady state, and memory.

Steady state is measured, not waited for: a queue of 10^6 on disk of which all is due is worked off at full speed for a few
hundred announcements against a DHT of 20 nodes in another process; the cost of one, times the rate that the schedule asks
for, is the share of a core. Memory is what the process grew by, plus what OpenDHT keeps of each put for an hour.
The budget: 2 % of a core, 256 MiB.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.rows import Row
from dds.primitives.keys import SigningKey
from dds.protocol.announce import Announcement, Lane, Schedule, Turn
from dds.runtime.announce import Announcer, AnnouncerConfig
from dds.storage.announce_queue import AnnounceQueue
from dds.transport.dht import DHTNode
from dds.wire.discovery import SEGMENT_PROVIDER

NETWORK: Final = "bench-announce"
QUEUED: Final = 1_000_000
WARM_UP: Final = 200
MEASURED: Final = 600
DHT_NODES: Final = 20
SEARCH_KEPT_S: Final = 62 * 60  # how long OpenDHT keeps what it knows about a key after a put
CPU_PERCENT_MAX: Final = 2.0
MEMORY_MIB_MAX: Final = 256.0
SEED: Final = b"b" * 32


class _Measured(msgspec.Struct):
    cpu_ms_per_put: float
    bytes_per_put: float
    queue_bytes: float
    restart_s: float
    disk_bytes: int
    fill_us: float


def run() -> Iterable[Row]:
    dht = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.announce", "dht"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert dht.stdin is not None
    assert dht.stdout is not None
    try:
        port = dht.stdout.readline().strip()
        done = subprocess.run([sys.executable, "-m", "benchmarks.announce", port], check=True, stdout=subprocess.PIPE)
    finally:
        dht.stdin.close()
        dht.wait()
    yield from _rows(msgspec.json.decode(done.stdout, type=_Measured))


def _rows(found: _Measured) -> Iterator[Row]:
    config = AnnouncerConfig()
    period_s = Schedule(SEED, config.puts_per_s).period_ms(Lane.REPEATED, QUEUED) / 1000
    rate = QUEUED / period_s
    cpu = rate * found.cpu_ms_per_put / 10
    kept_mib = (rate * SEARCH_KEPT_S + config.burst) * found.bytes_per_put / 2**20
    memory_mib = found.queue_bytes / 2**20 + kept_mib
    yield Row("announcing 1e6: one take, seal, put, reschedule (CPU)", found.cpu_ms_per_put, "ms")
    yield Row("announcing 1e6: repeated every", period_s / 3600, "h")
    yield Row("announcing 1e6: share of a core (<= 2 %)", cpu, "%", CPU_PERCENT_MAX, cpu / CPU_PERCENT_MAX, 1.0)
    yield Row("announcing 1e6: growth with the queue open", found.queue_bytes / 2**20, "MiB")
    yield Row("announcing 1e6: OpenDHT keeps of an hour's puts", kept_mib, "MiB")
    yield Row("announcing 1e6: memory (<= 256 MiB)", memory_mib, "MiB", MEMORY_MIB_MAX, memory_mib / MEMORY_MIB_MAX, 1.0)
    yield Row("announcing 1e6: opening the queue after a restart", found.restart_s, "s")
    yield Row("announcing 1e6: the queue on disk", found.disk_bytes / 2**20, "MiB")
    yield Row("announcing 1e6: adding one in a batch", found.fill_us, "us")


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _fill(path: Path) -> float:
    """Queue QUEUED announcements, all due. CPU seconds."""
    began, turn = time.process_time(), Turn(Lane.REPEATED, 0)
    queue = AnnounceQueue(path)
    source = iter(range(QUEUED))
    while numbers := list(islice(source, 2000)):
        queue.add([(Announcement(SEGMENT_PROVIDER.code, os.urandom(32), str(number % 16)), turn) for number in numbers])
    queue.close()
    return time.process_time() - began


def _all_held(announcements: Sequence[Announcement]) -> list[bool]:
    return [True] * len(announcements)


async def _measure(port: int, path: Path, fill_s: float) -> _Measured:
    key, said = SigningKey(os.urandom(32)), 0
    dht = DHTNode(NETWORK)
    await dht.start("127.0.0.1", bootstrap=[("127.0.0.1", port)])
    before, began = _resident_bytes(), time.monotonic()
    queue = AnnounceQueue(path)
    restart_s = time.monotonic() - began
    rate = AnnouncerConfig(puts_per_s=100.0, burst=100, puts_per_s_max=100)

    def held(announcements: Sequence[Announcement]) -> list[bool]:
        nonlocal said
        said += len(announcements)
        return _all_held(announcements)

    announcer = Announcer(key, NETWORK, dht, lambda: queue, lambda: ["203.0.113.7:4433"], SEED, held=held, config=rate)
    await announcer.start()
    while said < WARM_UP:
        await asyncio.sleep(0.1)
    warm, cpu, at = _resident_bytes(), time.process_time(), said
    while said < WARM_UP + MEASURED:
        await asyncio.sleep(0.1)
    cpu_ms, per_put = (time.process_time() - cpu) * 1000 / (said - at), (_resident_bytes() - warm) / (said - at)
    await announcer.stop()
    await dht.stop()
    grown = warm - before - at * per_put
    return _Measured(cpu_ms, per_put, max(0.0, grown), restart_s, path.stat().st_size, fill_s / QUEUED * 1e6)


async def _dht() -> None:
    nodes = [DHTNode(NETWORK) for _ in range(DHT_NODES)]
    for node in nodes:
        await node.start("127.0.0.1", bootstrap=[("127.0.0.1", nodes[0].port)] if node is not nodes[0] else [])
    print(nodes[0].port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await asyncio.gather(*(node.stop() for node in nodes))


def _main(what: str) -> None:
    if what == "dht":
        asyncio.run(_dht())
        return
    with tempfile.TemporaryDirectory(prefix="dds-bench-") as directory:
        path = Path(directory) / "queue"
        fill = [sys.executable, "-m", "benchmarks.announce", "fill", str(path)]
        filled = subprocess.run(fill, check=True, stdout=subprocess.PIPE)  # in a process of its own: its memory is not ours
        fill_s = float(filled.stdout)
        sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_measure(int(what), path, fill_s))))


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        print(_fill(Path(sys.argv[2])))
    else:
        _main(sys.argv[1])

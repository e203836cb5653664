"""A devnet of 20 real node processes: CPU per GB of put and get, small contents a second, the client's peak memory.

CPU is user + system of the client and of every node together, held against the same number of bytes in bodies of 1 MiB through
bare aiohttp over TLS in the same run. Wall-clock figures are printed too, and mean little on a shared machine.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import psutil
import uvloop

from benchmarks import bare
from benchmarks.rows import Row
from dds.primitives.units import GIB, KIB, MIB
from dds.runtime.client import Client, open_client
from dds.runtime.devnet import Devnet
from dds.runtime.devnet_shape import Ledger, Shape
from dds.runtime.results import PutOptions
from dds.storage.home import Home

LARGE_BYTES: Final = GIB
MEMORY_BYTES: Final = 2 * GIB
SMALL_BYTES: Final = 2000
SMALL_FILES: Final = 1000
SINGLES: Final = 100
AT_ONCE: Final = 8
PAIRS: Final = 5
NODES: Final = 20


@dataclass(slots=True)
class Bench:
    home: Home
    devnet: Devnet
    scratch: Path

    def cpu_s(self) -> float:
        """Of this process and of all nodes."""
        total = sum(os.times()[:2])
        for node in self.devnet.status():
            if node.pid:
                used = psutil.Process(node.pid).cpu_times()
                total += used.user + used.system
        return total

    def node_rss_bytes(self) -> int:
        return max(psutil.Process(node.pid).memory_info().rss for node in self.devnet.status() if node.pid)


@contextmanager
def running_devnet(ledger: Ledger = "none") -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="dds-bench-") as folder:
        home = Home.open(Path(folder) / "home")
        devnet = Devnet(home)
        devnet.up(Shape(ledger=ledger))
        try:
            yield Bench(home, devnet, Path(folder))
        finally:
            devnet.down(purge=True)


def random_file(path: Path, size: int) -> Path:
    """Incompressible bytes, written in pieces."""
    with path.open("wb") as file:
        for at in range(0, size, 16 * MIB):
            file.write(os.urandom(min(16 * MIB, size - at)))
    return path


def run(large_bytes: int = LARGE_BYTES, memory_bytes: int = MEMORY_BYTES) -> list[Row]:
    put_s, get_s = bare.cpu_seconds(NODES, large_bytes, large_bytes)
    with running_devnet() as bench:
        rows = [Row("fresh node, resident", bench.node_rss_bytes() / MIB, "MiB", target=80)]
        rows += uvloop.run(_large(bench, large_bytes, put_s / large_bytes, get_s / large_bytes))
        rows += uvloop.run(_small(bench))
        rows.append(Row("loaded node, resident", bench.node_rss_bytes() / MIB, "MiB", target=140))
        rows += _memory(bench, memory_bytes)
    with running_devnet("embedded") as bench:
        rows += uvloop.run(_paid(bench))
        rows.append(Row("paid node, loaded, resident", bench.node_rss_bytes() / MIB, "MiB"))
    with running_devnet("embedded") as bench:  # anew: nodes announce and are audited for a while after many puts
        rows += uvloop.run(_paid_at_once(bench))
    return rows


async def _large(bench: Bench, size: int, bare_put: float, bare_get: float) -> list[Row]:
    """`bare_put`, `bare_get`: the baseline's CPU seconds a byte."""
    source = random_file(bench.scratch / "large", size)
    async with open_client(bench.home) as client:
        cpu, began = bench.cpu_s(), time.perf_counter()
        put = await client.put(source, PutOptions())
        put_s, put_cpu = time.perf_counter() - began, bench.cpu_s() - cpu
        cpu, began = bench.cpu_s(), time.perf_counter()
        await client.get(put.content, bench.scratch / "copy")
        get_s, get_cpu = time.perf_counter() - began, bench.cpu_s() - cpu
    same = subprocess.run(["cmp", str(source), str(bench.scratch / "copy")], check=False).returncode == 0
    assert same, "the copy differs"
    stored = bare_put * put.encoded_bytes
    read = bare_get * size
    source.unlink()
    (bench.scratch / "copy").unlink()
    return [
        Row(f"put {size // MIB} MiB: CPU of all processes", put_cpu, "s", stored, put_cpu / stored, 3.5),
        Row(f"put {size // MIB} MiB: time", put_s, "s"),
        Row(f"get {size // MIB} MiB: CPU of all processes", get_cpu, "s", read, get_cpu / read, 2.5),
        Row(f"get {size // MIB} MiB: time", get_s, "s"),
    ]


async def _small(bench: Bench) -> list[Row]:
    async with open_client(bench.home) as client:
        await client.put(random_file(bench.scratch / "warm", MIB))
        pairs = [await _batch_and_single(bench.scratch / f"pair-{number}", client) for number in range(PAIRS)]
        batch_s, single_s = (median(times) for times in zip(*pairs, strict=True))
        puts, gets = await _singles(bench, client)
    return [
        Row(f"{SMALL_FILES} files of {SMALL_BYTES} B in one put", batch_s, "s", single_s, batch_s / single_s, 3.0),
        Row("single puts of 2 KB", puts, "1/s", target=25),
        Row("single gets of 2 KB", gets, "1/s", target=100),
    ]


async def _paid(bench: Bench) -> list[Row]:
    """The same with a ledger: a quote, an escrow, a drawn reservation and a registration go with every put."""
    async with open_client(bench.home) as client:
        await client.put(random_file(bench.scratch / "warm", MIB))
        puts, _ = await _singles(bench, client)
    return [Row("single paid puts of 2 KB", puts, "1/s")]


async def _batch_and_single(folder: Path, client: Client) -> tuple[float, float]:
    """Seconds for many small files in one put, and for one file of as many bytes."""
    batch = folder / "batch"
    batch.mkdir(parents=True)
    for number in range(SMALL_FILES):
        (batch / f"{number:04}.txt").write_bytes(os.urandom(SMALL_BYTES))
    one = random_file(folder / "one", SMALL_FILES * SMALL_BYTES)
    return await _timed_put(client, batch), await _timed_put(client, one)


async def _timed_put(client: Client, path: Path) -> float:
    began = time.perf_counter()
    await client.put(path)
    return time.perf_counter() - began


async def _singles(bench: Bench, client: Client) -> tuple[float, float]:
    """Puts and gets a second, one after the other in one session."""
    paths = [random_file(bench.scratch / f"single-{number}", SMALL_BYTES) for number in range(SINGLES)]
    began = time.perf_counter()
    contents = [(await client.put(path)).content for path in paths]
    puts = SINGLES / (time.perf_counter() - began)
    began = time.perf_counter()
    for number, content in enumerate(contents):
        await client.get(content, bench.scratch / f"single-{number}.copy")
    return puts, SINGLES / (time.perf_counter() - began)


async def _paid_at_once(bench: Bench) -> list[Row]:
    """The same, AT_ONCE of them under way in one session."""
    paths = [random_file(bench.scratch / f"at-once-{number}", SMALL_BYTES) for number in range(SINGLES)]
    room = asyncio.Semaphore(AT_ONCE)

    async def put(client: Client, path: Path) -> None:
        async with room:
            await client.put(path)

    async with open_client(bench.home) as client:
        await client.put(random_file(bench.scratch / "warm", MIB))
        began = time.perf_counter()
        await asyncio.gather(*(put(client, path) for path in paths))
        puts = SINGLES / (time.perf_counter() - began)
    return [Row(f"paid puts of 2 KB, {AT_ONCE} at once", puts, "1/s")]


def _memory(bench: Bench, size: int) -> list[Row]:
    """A client process of its own puts and gets a large file; its peak is what the kernel says."""
    source = random_file(bench.scratch / "memory", size)
    rows = []
    for operation in ("put", "get"):
        command = [sys.executable, "-m", "benchmarks.network", operation, str(bench.home.root), str(source)]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        rows.append(Row(f"client's peak memory, {operation} of {size // MIB} MiB", peak / MIB, "MiB", target=300))
    return rows


def peak_bytes() -> int:
    """This process's peak of resident memory. Not getrusage's: that survives exec, and so shows the parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * KIB


async def _child(operation: str, home: Path, source: Path) -> None:
    note = source.with_suffix(".content")
    async with open_client(Home.open(home)) as client:
        if operation == "put":
            note.write_bytes((await client.put(source)).content)
        else:
            from dds.primitives.cid import CID

            await client.get(CID(note.read_bytes()), source.with_suffix(".copy"))


if __name__ == "__main__":
    asyncio.run(_child(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
    print(peak_bytes())

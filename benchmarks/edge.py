"""An edge near by against storage nodes in other regions, 80 ms of simulated round trip away: one read in a new session each.

Both kinds of reads are of the same objects, by the same client, on the same devnet of real processes: first with the edge's
process stopped, then with the edge warm. Only the get is timed, into memory: not the start of the session, and no sync of a
disk. The ratio is what counts.
"""

from __future__ import annotations

import asyncio
import io
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

import uvloop

from benchmarks.network import random_file
from benchmarks.rows import Row
from dds.primitives.cid import CID
from dds.primitives.units import KIB, MIB
from dds.runtime.client import open_client
from dds.runtime.devnet import Devnet
from dds.runtime.devnet_shape import Shape
from dds.runtime.results import GetResult
from dds.storage.home import Home
from dds.wire.codec import encode
from dds.wire.retrieval import EDGE_REPLY_BYTES_MAX, EdgeReadRequest

LATENCY_MS: Final = 80
SIZES: Final = (64 * KIB, 4 * MIB)
OBJECTS: Final = 7  # of each size
WARM_S_MAX: Final = 60.0
TARGET: Final = 3.0


@contextmanager
def running_devnet(folder: Path) -> Iterator[Devnet]:
    """Twenty storage nodes in five regions, and one edge in the region of the home."""
    devnet = Devnet(Home.open(folder / "home"))
    devnet.up(Shape(ledger="none", ecn=1, latency_ms=LATENCY_MS))
    try:
        yield devnet
    finally:
        devnet.down(purge=True)


def run() -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="dds-bench-") as name, running_devnet(Path(name)) as devnet:
        return [uvloop.run(_compare(devnet, Path(name), size)) for size in SIZES]


async def _compare(devnet: Devnet, folder: Path, size: int) -> Row:
    edge = next(node.name for node in devnet.status() if "ecn" in node.roles)
    async with open_client(devnet.home) as client:
        contents = [(await client.put(random_file(folder / "source", size))).content for _ in range(OBJECTS)]
    devnet.kill([edge])
    far = [await _timed(devnet.home, content) for content in contents]
    devnet.start([edge])
    for content in contents:
        await _warm(devnet.home, content, size)
    near = [await _timed(devnet.home, content) for content in contents]
    assert all(result.edge_bytes >= size for _, result in near), "a warm edge was not asked"
    far_s, near_s = (median(seconds for seconds, _ in reads) for reads in (far, near))
    what = f"read of {size // KIB} KiB at {LATENCY_MS} ms: from the edge"
    return Row(f"{what} (ratio: times as fast as without)", near_s, "s", far_s, far_s / near_s, TARGET)


async def _timed(home: Home, content: CID) -> tuple[float, GetResult]:
    async with open_client(home) as client:
        began = time.perf_counter()
        result = await client.get(content, io.BytesIO())
        return time.perf_counter() - began, result


async def _warm(home: Home, content: CID, size: int) -> None:
    """Ask the edge for the whole content, and wait until it serves it."""
    body = encode(EdgeReadRequest(content, [content]))
    async with open_client(home) as client, asyncio.timeout(WARM_S_MAX):
        edge, _ = client.network.edges()[0]
        await client.network.client.post(edge, "/v1/edge/read", body, max_bytes=2 * EDGE_REPLY_BYTES_MAX, timeout_s=WARM_S_MAX)
        while (await client.get(content, io.BytesIO())).edge_bytes < size:
            await asyncio.sleep(0.1)

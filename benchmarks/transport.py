"""CPU seconds per GB of PeerServer and PeerClient, against bare aiohttp over TLS in the same run.

Two processes, bodies in memory. CPU is user + system of both processes, so it holds on a machine that others use too; MB/s does
not. Ours authenticates both ends; bare aiohttp checks nothing. Run: `python -m benchmarks.transport [seconds per case]`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import ssl
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Final

import aiohttp
import uvloop
from aiohttp import web

from benchmarks.rows import Row
from dds.primitives.ids import NodeID
from dds.primitives.keys import SigningKey
from dds.primitives.units import GIB, KIB, MIB
from dds.transport.certificate import leaf_certificate, pem, private_key_der
from dds.transport.client import PeerClient
from dds.transport.heap import keep_freed_memory
from dds.transport.routes import Request, Response, Route
from dds.transport.server import PeerServer

SERVER: Final = SigningKey(bytes(32))
CLIENT: Final = SigningKey(bytes(31) + b"\x01")
NODE: Final = NodeID(SERVER.public)
CONCURRENT: Final = 4
SLICES: Final = 20
BODY: Final = bytes(range(256)) * (2 * MIB // 256)

Exchange = Callable[[str, int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Figure:
    side: str
    method: str
    size_bytes: int
    cpu_s_per_gib: float
    mib_per_s: float


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# ---- servers, each in a process of its own: send the port, then CPU seconds whenever asked


async def _ours_get(request: Request) -> Response:
    return Response(200, memoryview(BODY)[: int(request.params["size"])])


async def _ours_put(request: Request) -> Response:
    return Response(201, b"")


async def _bare_get(request: web.Request) -> web.Response:
    return web.Response(body=BODY[: int(request.match_info["size"])])


async def _bare_put(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(status=201)


def bare_context(kind: int, key: SigningKey) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(pem("PRIVATE KEY", private_key_der(key.seed)) + pem("CERTIFICATE", leaf_certificate(NodeID(key.public))))
        file.flush()
        context.load_cert_chain(file.name)
    context.verify_mode = ssl.CERT_NONE
    return context


async def _serve_ours(pipe: Pipe) -> None:
    routes = [Route("GET", "/{size}", _ours_get, 0, 2 * MIB), Route("PUT", "/{size}", _ours_put, 2 * MIB)]
    server = PeerServer(SERVER, network="bench", routes=routes)
    pipe.send(await server.start())
    await _answer_with_cpu(pipe)
    await server.stop(0)


async def serve_bare(pipe: Pipe) -> None:
    app = web.Application(client_max_size=4 * MIB)
    app.add_routes([web.get("/{size}", _bare_get), web.put("/{size}", _bare_put)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=bare_context(ssl.PROTOCOL_TLS_SERVER, SERVER))
    await site.start()
    pipe.send(runner.addresses[0][1])
    await _answer_with_cpu(pipe)
    await runner.cleanup()


async def _answer_with_cpu(pipe: Pipe) -> None:
    """Until the other end closes."""
    done = asyncio.Event()

    def ready() -> None:
        try:
            pipe.recv()
            pipe.send(_cpu_s())
        except EOFError:
            done.set()

    asyncio.get_running_loop().add_reader(pipe.fileno(), ready)
    await done.wait()
    asyncio.get_running_loop().remove_reader(pipe.fileno())


def serve_process(serve: Callable[[Pipe], Awaitable[None]], pipe: Pipe) -> None:
    keep_freed_memory()

    async def main() -> None:
        await serve(pipe)

    uvloop.run(main())


# ---- clients


async def _with_ours(port: int, measure: Callable[[Exchange], Awaitable[None]]) -> None:
    async with PeerClient(CLIENT, network="bench") as client:
        client.learn(NODE, [("127.0.0.1", port)])

        async def exchange(method: str, size: int) -> None:
            if method == "GET":
                assert len(await client.get(NODE, f"/{size}", max_bytes=size, timeout_s=30)) == size
            else:
                await client.put(NODE, f"/{size}", memoryview(BODY)[:size], timeout_s=30)

        await measure(exchange)


async def _with_bare(port: int, measure: Callable[[Exchange], Awaitable[None]]) -> None:
    context = bare_context(ssl.PROTOCOL_TLS_CLIENT, CLIENT)
    bodies = {size: BODY[:size] for size in (64 * KIB, MIB)}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:

        async def exchange(method: str, size: int) -> None:
            url = f"https://127.0.0.1:{port}/{size}"
            if method == "GET":
                async with session.get(url) as response:
                    assert len(await response.read()) == size
            else:
                async with session.put(url, data=bodies[size]) as response:
                    await response.read()

        await measure(exchange)


SIDES: Final = {"ours": (_serve_ours, _with_ours), "bare": (serve_bare, _with_bare)}


# ---- the comparison


@dataclass(slots=True)
class Side:
    """One server process and the client to it."""

    name: str
    pipe: Pipe
    exchange: Exchange

    def _cpu_now_s(self) -> float:
        self.pipe.send(None)
        return _cpu_s() + float(self.pipe.recv())

    async def slice(self, method: str, size: int, seconds: float) -> Figure:
        end = time.perf_counter() + seconds
        moved_bytes = 0

        async def worker() -> None:
            nonlocal moved_bytes
            while time.perf_counter() < end:
                await self.exchange(method, size)
                moved_bytes += size

        cpu_s, began_s = self._cpu_now_s(), time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(CONCURRENT)))
        cpu_s, took_s = self._cpu_now_s() - cpu_s, time.perf_counter() - began_s
        return Figure(self.name, method, size, cpu_s / max(moved_bytes, 1) * GIB, moved_bytes / MIB / took_s)


async def compare(sides: list[Side], seconds: float) -> list[Figure]:
    """Every case: the sides take turns in short slices and the slice with the least CPU counts, so that what else runs on the
    machine (and in its caches) falls on both alike and mostly drops out."""
    figures = []
    for size in (64 * KIB, MIB):
        for method in ("GET", "PUT"):
            for side in sides:
                await asyncio.gather(*(side.exchange(method, size) for _ in range(CONCURRENT)))  # connections, caches
            slices = [[await side.slice(method, size, seconds / SLICES) for side in sides] for _ in range(SLICES)]
            figures += [min(column, key=lambda figure: figure.cpu_s_per_gib) for column in zip(*slices, strict=True)]
    return figures


async def _open(sides: list[Side], names: list[str], seconds: float, into: list[Figure]) -> None:
    """Start the servers named, one inside the other's life, then compare."""
    if not names:
        into += await compare(sides, seconds)
        return
    serve, dial = SIDES[names[0]]
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve_process, args=(serve, there), daemon=True)
    process.start()
    there.close()

    async def opened(exchange: Exchange) -> None:
        await _open([*sides, Side(names[0], here, exchange)], names[1:], seconds, into)

    await dial(here.recv(), opened)
    here.close()
    process.join(10)


def run(seconds: float = 2.0) -> list[Figure]:
    """Figures of all cases; `seconds` per case and side."""
    keep_freed_memory()  # for both sides, else luck decides (dds/transport/heap.py)
    figures: list[Figure] = []
    uvloop.run(_open([], list(SIDES), seconds, figures))
    return figures


def rows() -> list[Row]:
    """For `make bench`: ours against bare aiohttp."""
    figures = iter(run())
    return [
        Row(
            f"{ours.method} of {ours.size_bytes // KIB} KiB: CPU of both ends",
            ours.cpu_s_per_gib,
            "s/GiB",
            bare.cpu_s_per_gib,
            ours.cpu_s_per_gib / bare.cpu_s_per_gib,
            1.15,
        )
        for ours, bare in zip(figures, figures, strict=True)
    ]


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    print(f"TLS 1.3 on loopback, {CONCURRENT} at once; CPU s per GiB of both ends together")
    figures = iter(run(seconds))
    for ours, bare in zip(figures, figures, strict=True):
        print(
            f"{ours.method} {ours.size_bytes // KIB:5} KiB   ours {ours.cpu_s_per_gib:5.2f} ({ours.mib_per_s:4.0f} MiB/s)"
            f"   bare aiohttp {bare.cpu_s_per_gib:5.2f} ({bare.mib_per_s:4.0f} MiB/s)"
            f"   ratio {ours.cpu_s_per_gib / bare.cpu_s_per_gib:.2f}"
        )


if __name__ == "__main__":
    main()

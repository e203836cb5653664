"""The baseline of the network benchmark: the same bytes, in bodies of the same size, between one client process and as many
server processes as the devnet has, by bare aiohttp over TLS. Nothing is hashed, stored or checked."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import ssl
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Final

import aiohttp
import psutil
import uvloop

from benchmarks import transport
from dds.primitives.units import MIB

IN_FLIGHT: Final = 32  # what a put or get of ours has under way
WARM_UP: Final = 2  # exchanges with each server before the count begins


@contextmanager
def bare_servers(count: int) -> Iterator[tuple[list[int], Callable[[], float]]]:
    """Ports of `count` running servers, and a function that gives the CPU seconds of all of them together with ours."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    for _ in range(count):
        here, there = context.Pipe()
        process = context.Process(target=transport.serve_process, args=(transport.serve_bare, there), daemon=True)
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    ports = [int(pipe.recv()) for pipe in pipes]
    watched = [psutil.Process(process.pid) for process in processes]

    def cpu_s() -> float:
        used = [process.cpu_times() for process in watched]
        return sum(os.times()[:2]) + sum(each.user + each.system for each in used)

    try:
        yield ports, cpu_s
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(10)


async def _move(ports: list[int], cpu_s: Callable[[], float], method: str, size: int) -> float:
    """CPU seconds for `size` bytes in bodies of 1 MiB, spread over all servers, connections kept."""
    context = transport.bare_context(ssl.PROTOCOL_TLS_CLIENT, transport.CLIENT)
    body = transport.BODY[:MIB]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=0)) as session:

        async def exchange(port: int) -> None:
            url = f"https://127.0.0.1:{port}/{MIB}"
            async with session.request(method, url, data=body if method == "PUT" else None) as response:
                await response.read()

        await _in_turn([exchange(port) for port in ports for _ in range(WARM_UP)])
        began = cpu_s()
        await _in_turn([exchange(ports[number % len(ports)]) for number in range(size // MIB)])
        return cpu_s() - began


async def _in_turn(work: list[Coroutine[Any, Any, None]]) -> None:
    """All of it, IN_FLIGHT at a time."""
    room = asyncio.Semaphore(IN_FLIGHT)

    async def one(each: Coroutine[Any, Any, None]) -> None:
        async with room:
            await each

    await asyncio.gather(*(one(each) for each in work))


def cpu_seconds(servers: int, put_bytes: int, get_bytes: int) -> tuple[float, float]:
    """CPU seconds of all processes for moving so many bytes in and out."""
    with bare_servers(servers) as (ports, cpu_s):
        put = uvloop.run(_move(ports, cpu_s, "PUT", put_bytes))
        get = uvloop.run(_move(ports, cpu_s, "GET", get_bytes))
    return put, get

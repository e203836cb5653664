"""Drives a DagReader over the network: fetches what it requests in batches, hands its events on in order.

A batch is what can be fetched together with one request a slot: neighbouring blocks up to BATCH_BYTES. Several batches are
under way at once, so that the next is on its way while one is being used.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Final

from dds.content.block import Ref
from dds.content.events import Event
from dds.content.reader import DagReader, Request, Window
from dds.primitives.cid import RAW, codec_of
from dds.primitives.units import MIB

READ_WINDOW: Final = Window(bytes_max=40 * MIB, requests_max=1024)
BATCH_BYTES: Final = 10 * MIB  # a full stripe of whole chunks
BATCH_REQUESTS: Final = 256

Fetch = Callable[[Sequence[Ref]], Awaitable[list[bytes]]]


async def drive(reader: DagReader, fetch: Fetch) -> AsyncGenerator[Event, None]:
    """The reader's events, in order.

    Raises:
        Whatever `fetch` and the reader raise; requests under way are cancelled.
    """
    running: dict[asyncio.Task[list[bytes]], list[Request]] = {}
    try:
        while not reader.done:
            for batch in batches(reader.requests()):
                running[asyncio.ensure_future(fetch([bounded(request) for request in batch]))] = batch
            for event in reader.events():
                yield event
            if running and not reader.done:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    for request, block in zip(running.pop(task), task.result(), strict=True):
                        reader.receive(request, block)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def bounded(request: Request) -> Ref:
    """The reference with the request's bound as its Tsize where that is the block's own size: a link may say one size for the
    window and another for the block, and thousands of large blocks would come at once."""
    ref = request.ref
    if codec_of(ref.cid) != RAW or ref.tsize == request.bytes_max:
        return ref
    return Ref(ref.cid, ref.start, request.bytes_max)


def batches(requests: Sequence[Request]) -> list[list[Request]]:
    """Neighbouring requests grouped up to BATCH_BYTES and BATCH_REQUESTS."""
    groups: list[list[Request]] = []
    size = 0
    for request in requests:
        if not groups or size + request.bytes_max > BATCH_BYTES or len(groups[-1]) >= BATCH_REQUESTS:
            groups.append([])
            size = 0
        groups[-1].append(request)
        size += request.bytes_max
    return groups

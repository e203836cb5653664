"""What a stream of iroh and a connection of the own server do to each other, without iroh."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dds.primitives.ids import NodeID
from dds.transport import iroh_link
from dds.transport.iroh_link import IrohLink, _splice

NODE = NodeID(b"n" * 32)


class Stream:
    """A stranger's: sends `sends`, then nothing more, and ends it or not."""

    def __init__(self, sends: bytes, *, ends: bool) -> None:
        self.waiting, self.ends, self.got, self.finished = [sends], ends, b"", False

    def send(self) -> Stream:
        return self

    def recv(self) -> Stream:
        return self

    async def read(self, _limit: int) -> bytes:
        if self.waiting:
            return self.waiting.pop()
        if not self.ends:
            await asyncio.Event().wait()
        return b""

    async def write_all(self, piece: bytes) -> None:
        self.got += piece

    async def finish(self) -> None:
        self.finished = True


async def spliced(stream: Stream, answer: bytes) -> bytes:
    """What the local server got; it answers and closes."""
    got = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        got = await reader.read(100)
        if stream.ends:
            await reader.read()
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    async with asyncio.timeout(5):
        await _splice(stream, reader, writer)  # type: ignore[arg-type]
    assert writer.is_closing()
    server.close()
    return got


async def test_a_stranger_that_never_ends_its_stream_keeps_no_socket_once_the_server_has_closed() -> None:
    stream = Stream(b"question", ends=False)
    assert await spliced(stream, b"answer") == b"question"
    assert (stream.got, stream.finished) == (b"answer", True)


async def test_an_answer_still_comes_when_the_asker_has_ended_its_half() -> None:
    stream = Stream(b"question", ends=True)
    await spliced(stream, b"answer" * 100_000)
    assert (stream.got, stream.finished) == (b"answer" * 100_000, True)


async def test_a_way_that_could_not_be_opened_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iroh_link, "_import_iroh", lambda: None)
    link: Any = IrohLink(None, lambda _node: ["127.0.0.1:1"])  # type: ignore[arg-type]
    link._endpoint = object()
    start_server = asyncio.start_server

    async def no_more_files(*_args: object, **_kwargs: object) -> None:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(asyncio, "start_server", no_more_files)
    assert await link.way_to(NODE) is None  # its other addresses are still tried
    monkeypatch.setattr(asyncio, "start_server", start_server)
    way = await link.way_to(NODE)
    assert way is not None and way[0] == "127.0.0.1"
    link._shut(NODE)
    assert not link._doors

"""Who keeps a place at an iroh endpoint: idle connections make way, and one key does not take all places. Without iroh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dds.transport import iroh_link
from dds.transport.iroh_link import IrohLink

PLACES, OWN = 6, 4


class Gone(Exception):
    """The connection was closed."""


class Connection:
    """A caller's, as the endpoint sees it; its own handshake too."""

    def __init__(self, key: bytes, *, streams: int = 0) -> None:
        self.key, self.is_refused, self.is_served = key, False, False
        self._streams, self._closed = streams, asyncio.Event()

    async def accept(self) -> Connection:
        return self

    async def connect(self) -> Connection:
        return self

    async def refuse(self) -> None:
        self.is_refused = True

    def remote_id(self) -> Any:
        return SimpleNamespace(to_bytes=lambda: self.key)

    def set_max_concurrent_bi_streams(self, _count: int) -> None:
        self.is_served = True

    async def accept_bi(self) -> object:
        if self._streams:
            self._streams -= 1
            return object()
        await self._closed.wait()
        raise Gone

    def close(self, _code: int, _reason: bytes) -> None:
        self._closed.set()

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()


class Door:
    """An endpoint to which connections come, one after another."""

    def __init__(self, link: Any) -> None:
        self.link = link
        self._come: asyncio.Queue[Connection] = asyncio.Queue()
        link._endpoint = self
        link.serve(("127.0.0.1", 1))

    async def accept_next(self) -> Connection:
        return await self._come.get()

    async def close(self) -> None:
        pass

    async def let_in(self, key: bytes, *, streams: int = 0) -> Connection:
        made = Connection(key, streams=streams)
        self._come.put_nowait(made)
        await until(lambda: made.is_refused or made.is_closed or (made.is_served and not made._streams))
        return made


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
async def door(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    monkeypatch.setattr(iroh_link, "_import_iroh", lambda: SimpleNamespace(IrohError=Gone))
    monkeypatch.setattr(iroh_link, "CONNECTIONS_MAX", PLACES)
    monkeypatch.setattr(iroh_link, "CONNECTIONS_PER_KEY_MAX", OWN)
    link: Any = IrohLink(None, lambda _node: [])  # type: ignore[arg-type]

    async def carry_to(_stream: object, _target: object) -> None:
        await asyncio.Event().wait()  # a long transfer

    monkeypatch.setattr(link, "_carry_to", carry_to)
    yield Door(link)
    await link.stop()


async def test_idle_connections_do_not_keep_others_out(door: Door) -> None:
    strangers = [await door.let_in(bytes([number])) for number in range(PLACES)]
    newcomer = await door.let_in(b"new")
    assert newcomer.is_served and not newcomer.is_closed
    assert [each.is_closed for each in strangers] == [True, *[False] * (PLACES - 1)]  # the idlest
    assert len(door.link._callers) == PLACES


async def test_the_key_with_the_most_idle_connections_loses_one_first(door: Door) -> None:
    reader = await door.let_in(b"reader")
    strangers = [await door.let_in(b"s") for _ in range(OWN)]
    for number in range(4):
        assert (await door.let_in(bytes([number]))).is_served
    assert strangers[0].is_closed
    assert not reader.is_closed


async def test_a_connection_at_work_is_not_dropped_and_who_comes_then_is_refused(door: Door) -> None:
    busy = [await door.let_in(bytes([number]), streams=2) for number in range(PLACES)]
    newcomer = await door.let_in(b"new")
    assert newcomer.is_refused
    assert not any(each.is_closed for each in busy)


async def test_one_key_has_so_many_places_and_no_more(door: Door) -> None:
    busy = [await door.let_in(b"s", streams=1) for _ in range(OWN)]
    assert (await door.let_in(b"s")).is_closed
    assert not any(each.is_closed for each in busy)
    assert len(door.link._callers) == OWN


async def test_a_new_connection_of_a_key_takes_the_place_of_its_idlest(door: Door) -> None:
    own = [await door.let_in(b"s") for _ in range(OWN)]
    newest = await door.let_in(b"s")
    assert not newest.is_closed
    assert [each.is_closed for each in own] == [True, *[False] * (OWN - 1)]

"""What a read waits for is let go of the moment it is there: a gigabyte must not wait for the collector of cycles."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from dds.runtime.get import _StallWatch


class Blocks(list[bytes]):
    """A result that can be watched."""


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


async def watched() -> Blocks:
    watch = _StallWatch(lambda: 0, lambda: False)
    try:
        async with asyncio.timeout(None) as limit:
            watch.start(limit)
            return Blocks([b"block"])
    finally:
        watch.stop()


async def test_a_finished_read_keeps_nothing_in_memory(no_collector: None) -> None:
    task = asyncio.create_task(watched())
    result = weakref.ref(await task)
    del task
    await asyncio.sleep(0)
    assert result() is None


async def wait_for_ever(watch: _StallWatch) -> None:
    async with asyncio.timeout(None) as limit:
        watch.start(limit)
        await asyncio.Event().wait()


async def test_a_read_without_a_byte_ends_when_there_is_somewhere_else_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dds.runtime.get.STALL_S", 0.01)
    watch = _StallWatch(lambda: 0, lambda: True)
    with pytest.raises(TimeoutError):
        await wait_for_ever(watch)
    watch.stop()

"""Writing behind the network: in order, all that was taken, and nothing behind a gap."""

from __future__ import annotations

import pytest

from dds.content.events import Data, Event
from dds.primitives.errors import DiskFullError, FormatError, StorageError
from dds.runtime.write_behind import GROUP_BYTES, WriteBehind


class FullOnce:
    """A disk that has no room for one event, and room again for the next."""

    def __init__(self, fails_at: int) -> None:
        self.fails_at, self.taken = fails_at, bytearray()
        self._calls = 0

    def write(self, event: Event) -> None:
        self._calls += 1
        if self._calls == self.fails_at:
            raise StorageError("no room")
        assert isinstance(event, Data)
        self.taken += event.data[:1]


async def write_all(writer: FullOnce, pieces: list[bytes], error: Exception | None = None) -> None:
    async with WriteBehind(writer) as out:
        for piece in pieces:
            await out.write(Data(piece))
        if error is not None:
            raise error


async def test_nothing_is_written_behind_a_write_that_failed() -> None:
    writer = FullOnce(fails_at=2)
    with pytest.raises(StorageError, match="no room"):
        await write_all(writer, [bytes([letter]) * GROUP_BYTES for letter in b"abcdef"])
    assert writer.taken == b"a"


async def test_what_was_taken_before_an_error_of_the_reader_is_written() -> None:
    writer = FullOnce(fails_at=-1)
    with pytest.raises(StorageError, match="reader"):
        await write_all(writer, [b"a", b"b", b"c"], StorageError("reader"))
    assert writer.taken == b"abc"


class FullDisk:
    """Takes nothing."""

    def write(self, event: Event) -> None:
        raise DiskFullError("no room")


async def read_that_fails(out: WriteBehind) -> None:
    async with out:
        await out.write(Data(b"taken"))
        raise FormatError("the manifest does not fit")


async def test_a_full_disk_is_told_even_when_the_read_failed_too() -> None:
    """Hidden behind the read's error, it let the next manifest go on behind a gap."""
    with pytest.raises(DiskFullError):
        await read_that_fails(WriteBehind(FullDisk()))

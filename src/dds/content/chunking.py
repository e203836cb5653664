"""Cutting a stream of bytes into leaf blocks.

Decides where chunks end, from the bytes alone: never from how they arrived. `fixed` is the canonical chunker of the profile
`unixfs-v1-2025` (IPIP-499); `fastcdc` is for files that are edited again and again and gives another ContentID.
Source: Xia et al., "FastCDC: a Fast and Efficient Content-Defined Chunking Approach for Data Deduplication", USENIX ATC 2016;
the rolling hash and its table are those of PyPI `fastcdc` 1.7, frozen by tests/vectors.
"""

from __future__ import annotations

from typing import Final, Protocol

from dds.primitives.errors import InputError
from dds.primitives.units import CHUNK_BYTES, KIB, MIB

FIXED: Final = "fixed"
FASTCDC: Final = "fastcdc"
CHUNKERS: Final = (FIXED, FASTCDC)

FASTCDC_BYTES_MIN: Final = 256 * KIB
FASTCDC_BYTES_AVERAGE: Final = 512 * KIB
FASTCDC_BYTES_MAX: Final = CHUNK_BYTES
_SCAN_BYTES = 4 * MIB  # gathered before a scan, so that the tail scanned twice stays a small part


class Chunker(Protocol):
    """Takes bytes in any slices, gives chunks of 1 to CHUNK_BYTES bytes as soon as they are certain."""

    def feed(self, data: bytes) -> list[bytes]:
        """Chunks that are complete now."""
        ...

    def finish(self) -> list[bytes]:
        """The rest. The chunker is used up."""
        ...


def make_chunker(name: str) -> Chunker:
    """A fresh chunker by its public name.

    Raises:
        InputError: no chunker of that name.
    """
    if name == FIXED:
        return FixedChunker()
    if name == FASTCDC:
        return FastCDCChunker()
    raise InputError(f"no chunker is called {name!r}", hint="one of: " + ", ".join(CHUNKERS))


class FixedChunker:
    """Chunks of exactly CHUNK_BYTES, the last one shorter. A slice of just that size passes through uncopied."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        if not self._rest and len(data) == CHUNK_BYTES:
            return [data]
        self._rest += data
        whole = len(self._rest) // CHUNK_BYTES * CHUNK_BYTES
        chunks = [bytes(self._rest[at : at + CHUNK_BYTES]) for at in range(0, whole, CHUNK_BYTES)]
        del self._rest[:whole]
        return chunks

    def finish(self) -> list[bytes]:
        rest, self._rest = bytes(self._rest), bytearray()
        return [rest] if rest else []


class FastCDCChunker:
    """Content-defined chunks of 256 KiB to 1 MiB, about 512 KiB on average.

    A boundary depends on the FASTCDC_BYTES_MAX bytes behind the previous one and on nothing else, so it is certain as soon as
    that many are there.
    """

    def __init__(self) -> None:
        from fastcdc import fastcdc  # here, because it pulls in a command-line library that a node has no use for

        self._scan = fastcdc
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._rest += data
        return self._cut(len(self._rest) - FASTCDC_BYTES_MAX) if len(self._rest) >= _SCAN_BYTES else []

    def finish(self) -> list[bytes]:
        return self._cut(len(self._rest))

    def _cut(self, start_max: int) -> list[bytes]:
        """Cut off every chunk that starts at or before `start_max`."""
        view = bytes(self._rest)
        chunks: list[bytes] = []
        done = 0
        for found in self._scan(view, FASTCDC_BYTES_MIN, FASTCDC_BYTES_AVERAGE, FASTCDC_BYTES_MAX):
            if done > start_max:
                break
            chunks.append(view[done : done + found.length])
            done += found.length
        del self._rest[:done]
        return chunks

"""Reed-Solomon over GF(2^8) with ISA-L's Cauchy matrix, by pyeclib: columns in, columns out.

The code is systematic: fragments 0..k-1 are the data slots themselves, fragment i >= k is the sum over slots j of
inv(i xor j) * slot j in GF(2^8) under polynomial 0x11d, byte by byte. So every column of bytes is a codeword of its own: any
range of columns may be decoded alone, and the strip size used here is a matter of speed only, never of bytes.

k = 1 bypasses the codec: every fragment is a verbatim copy (ISA-L's matrix would scale the copies).

The code cannot tell good input from bad: a corrupt or mislabelled fragment gives wrong bytes silently. Callers check the
fragments' roots before and after. Thread-safe; pyeclib is loaded at the first use.
Source: docs/spec/segments.md, "Reed-Solomon"; the ISA-L documentation of gf_gen_cauchy1_matrix; docs/adr/0004.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from dds.primitives.errors import FormatError, InputError, NotEnoughFragments
from dds.primitives.hashing import Buffer
from dds.primitives.units import K_MAX, KIB, MIB, N_MAX

STRIP_BYTES: Final = 16 * KIB  # of each fragment in one codec call: measured fastest for all classes
_STRIP_BYTES_MIN: Final = 64
_HEADER_BYTES: Final = 80  # what pyeclib puts before a fragment: sizes and library versions, never stored
_GEOMETRIES_CACHED: Final = 32
_HEAP_SLACK_BYTES: Final = 24 * MIB  # glibc then keeps twice as much: one stripe of 10+6 and the codec's own buffers


def encode(k: int, m: int, slots: Sequence[Buffer]) -> list[bytes]:
    """The m parity fragments of k slots of equal length (any length of at least one byte).

    Raises:
        InputError: a geometry out of bounds.
        FormatError: not k slots, or of unequal or no length.
    """
    length = _check(k, m, slots)
    if len(slots) != k:
        raise FormatError(f"{len(slots)} slots for k = {k}", actual=len(slots), expected=k)
    if m == 0:
        return []
    if k == 1:
        return [bytes(slots[0])] * m
    if length >= STRIP_BYTES:
        _keep_heap()
    codec = _codec(k, m)
    views = [memoryview(slot) for slot in slots]
    parts: list[list[memoryview]] = [[] for _ in range(m)]
    for at in range(0, length, STRIP_BYTES):
        fragments = codec.encode(b"".join([view[at : at + STRIP_BYTES] for view in views]))
        for part, fragment in zip(parts, fragments[k:], strict=True):
            part.append(memoryview(fragment)[_HEADER_BYTES:])
    return [b"".join(part) for part in parts]


def decode(k: int, m: int, have: Mapping[int, Buffer], want: Sequence[int]) -> dict[int, bytes]:
    """The fragments `want` (data or parity, by index) from any k others, over one and the same range of columns.

    Raises:
        InputError: a geometry out of bounds.
        FormatError: an index outside 0..k+m-1, or buffers of unequal or no length.
        NotEnoughFragments: fewer than k in `have`.
    """
    length = _check(k, m, list(have.values()))
    if not all(0 <= index < k + m for index in (*have, *want)):
        raise FormatError(f"a fragment index outside 0..{k + m - 1}")
    missing = [index for index in dict.fromkeys(want) if index not in have]
    if missing and len(have) < k:
        raise NotEnoughFragments(f"{len(have)} fragments of the {k} that are needed", actual=len(have), expected=k)
    if k == 1:
        copy = bytes(next(iter(have.values())))
        return dict.fromkeys(want, copy)
    rebuilt = _rebuild(k, m, have, missing, length) if missing else {}
    return {index: rebuilt[index] if index in rebuilt else bytes(have[index]) for index in want}


def _check(k: int, m: int, buffers: Sequence[Buffer]) -> int:
    """The buffers' common length in bytes."""
    if not (1 <= k <= K_MAX and m >= 0 and k + m <= N_MAX):
        raise InputError(f"no such geometry: {k}+{m}")
    lengths = {len(buffer) for buffer in buffers}
    if len(lengths) > 1 or 0 in lengths:
        raise FormatError(f"fragments of unequal or no length: {sorted(lengths)}")
    return lengths.pop() if lengths else 0


def _rebuild(k: int, m: int, have: Mapping[int, Buffer], missing: list[int], length: int) -> dict[int, bytes]:
    codec = _codec(k, m)
    chosen = sorted(have)[:k]  # data first: those need no arithmetic
    views = [memoryview(have[index]) for index in chosen]
    parts: dict[int, list[memoryview]] = {index: [] for index in missing}
    for at in range(0, length, STRIP_BYTES):
        width = min(STRIP_BYTES, length - at)
        strips = codec.rebuild(dict(zip(chosen, [view[at : at + width] for view in views], strict=True)), missing, width)
        for index, strip in strips.items():
            parts[index].append(strip[:width])
    return {index: b"".join(part) for index, part in parts.items()}


class _Codec:
    """pyeclib's driver of one geometry, with the header templates that its decoder insists on."""

    def __init__(self, k: int, m: int) -> None:
        from pyeclib.ec_iface import ECDriver

        self.k, self.m = k, m
        self._driver: Any = ECDriver(k=k, m=m, ec_type="isa_l_rs_cauchy")
        self._headers: dict[int, list[bytes]] = {}
        self.encode = self._driver.encode

    def rebuild(self, have: Mapping[int, memoryview], missing: list[int], width: int) -> dict[int, memoryview]:
        """Strips of `missing` from k strips of `width` bytes each, the result zero-padded to a strip size with templates."""
        padded = _padded_width(width)
        headers = self._templates(padded)
        filler = bytes(padded - width)
        strips = [b"".join((headers[index], strip, filler)) for index, strip in have.items()]
        if len(missing) <= 2:  # one decode costs as much as two reconstructions
            rebuilt = {index: self._driver.reconstruct(strips, [index])[0] for index in missing}
            return {index: memoryview(strip)[_HEADER_BYTES:] for index, strip in rebuilt.items()}
        data = self._driver.decode(strips)
        fragments = [memoryview(data)[at : at + padded] for at in range(0, self.k * padded, padded)]
        if max(missing) >= self.k:
            fragments += [memoryview(strip)[_HEADER_BYTES:] for strip in self.encode(data)[self.k :]]
        return {index: fragments[index] for index in missing}

    def _templates(self, width: int) -> list[bytes]:
        headers = self._headers.get(width)
        if headers is None:
            fragments = self.encode(bytes(self.k * width))
            headers = self._headers[width] = [fragment[:_HEADER_BYTES] for fragment in fragments]
        return headers


@lru_cache(_GEOMETRIES_CACHED)
def _codec(k: int, m: int) -> _Codec:
    return _Codec(k, m)


@lru_cache(1)
def _keep_heap() -> None:
    """Teach glibc's allocator to keep the free heap of one stripe instead of giving it back between stripes.

    Freeing one large block raises its limits for good (mallopt(3), "dynamic mmap threshold"). Without it every stripe pays
    for fresh pages, a fifth of the whole pipeline's time. Only encoders ask for it; other allocators are not affected.
    """
    bytes(_HEAP_SLACK_BYTES)


def _padded_width(width: int) -> int:
    """Strip sizes in use: powers of two, so that a handful of templates serves every range of columns."""
    return max(_STRIP_BYTES_MIN, 1 << (width - 1).bit_length())

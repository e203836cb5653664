"""Reed-Solomon the slow, obvious way: GF(2^8) under 0x11d by shift and xor, and the Cauchy rows inv(i xor j).

Shares nothing with the code under test, so that agreement means something.
"""

from __future__ import annotations

from collections.abc import Sequence

POLYNOMIAL = 0x11D


def gf_multiply(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0x100:
            a ^= POLYNOMIAL
        b >>= 1
    return product


def gf_inverse(a: int) -> int:
    return next(b for b in range(1, 256) if gf_multiply(a, b) == 1)


def parity_fragments(k: int, m: int, slots: Sequence[bytes]) -> list[bytes]:
    """Fragments k..k+m-1; for k = 1 they are copies, by definition."""
    if k == 1:
        return [slots[0]] * m
    return [_row([gf_inverse(index ^ slot) for slot in range(k)], slots) for index in range(k, k + m)]


def _row(factors: Sequence[int], slots: Sequence[bytes]) -> bytes:
    total = bytearray(len(slots[0]))
    for factor, slot in zip(factors, slots, strict=True):
        table = bytes(gf_multiply(factor, value) for value in range(256))
        for at, value in enumerate(slot.translate(table)):
            total[at] ^= value
    return bytes(total)

"""How often keys were asked for lately, in a few bits each: a count-min sketch with 4-bit counters that age.

Decides an upper bound of a key's recent count, at most COUNT_MAX. Four rows of counters; a key has one in each, drawn with a
secret seed, so that nobody can choose keys that share the counters of another. After SAMPLE_FACTOR times as many requests as
there are keys worth remembering, all are halved: what was popular last month does not outlive what is popular today. A row has
COUNTERS_FACTOR counters for each such key, so that even a sample of strangers only leaves most counters near zero.

Source: Einziger, Friedman, Manes, "TinyLFU: A Highly Efficient Cache Admission Policy" (ACM TOS 13(4), 2017), section 3.
"""

from __future__ import annotations

from typing import Final

from dds.primitives.hashing import tagged_hash

COUNT_MAX: Final = 15
SAMPLE_FACTOR: Final = 10
COUNTERS_FACTOR: Final = 8
KEYS_MIN: Final = 1 << 7
KEYS_MAX: Final = 1 << 17  # 2 MiB for all four rows
_ROWS: Final = 4
_HALVED: Final = bytes((byte >> 1) & 0x77 for byte in range(256))  # both counters of a byte


class FrequencySketch:
    """`keys`: how many are worth remembering; rounded up to a power of two within the limits."""

    def __init__(self, keys: int, seed: bytes) -> None:
        remembered = 1 << (min(max(keys, KEYS_MIN), KEYS_MAX) - 1).bit_length()
        self._width = COUNTERS_FACTOR * remembered
        self._sample = SAMPLE_FACTOR * remembered
        self._seed = seed
        self._rows = [bytearray(self._width // 2) for _ in range(_ROWS)]
        self._counted = 0

    def add(self, key: bytes) -> None:
        """The key was asked for once more."""
        for row, at in zip(self._rows, self._places(key), strict=True):
            shift = 4 * (at & 1)
            if (row[at >> 1] >> shift) & COUNT_MAX < COUNT_MAX:
                row[at >> 1] += 1 << shift
        self._counted += 1
        if self._counted >= self._sample:
            self._age()

    def estimate(self, key: bytes) -> int:
        """Never less than the key's count since it last aged, unless that is beyond COUNT_MAX."""
        places = zip(self._rows, self._places(key), strict=True)
        return min((row[at >> 1] >> 4 * (at & 1)) & COUNT_MAX for row, at in places)

    def _age(self) -> None:
        self._rows = [row.translate(_HALVED) for row in self._rows]
        self._counted //= 2

    def _places(self, key: bytes) -> list[int]:
        drawn = tagged_hash(b"dds/edge-sketch/v1", self._seed, key)
        return [int.from_bytes(drawn[at : at + 4], "big") & (self._width - 1) for at in range(0, 4 * _ROWS, 4)]

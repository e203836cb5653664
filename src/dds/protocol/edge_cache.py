"""What an edge keeps: W-TinyLFU over blocks of very different sizes, weighed by their bytes.

Decides which blocks are kept and which go for them, and when an unread one is too old. Does not touch a block's bytes, a disk
or a clock (storage/block_cache.py does): what happens comes in, what is to be kept and removed goes out, the same for the same
seed.

    new blocks -> window (1 %, least recently used goes on) -> main: probation (20 %) <-> protected (80 %)

What leaves the window must be asked for more often than all that would have to go for it *together* (frequency.py counts): one
large block does not push out many small ones that add up to more demand, and what is read once pushes out nothing. A block that
is read again in probation is protected; what protection has no room for falls back.

Source: docs/spec/retrieval.md, "What an edge keeps"; Einziger, Friedman, Manes, ACM TOS 13(4), 2017 (W-TinyLFU); Einziger,
Eytan, Friedman, Manes, "Lightweight Robust Size Aware Cache Management", ACM TOS 18(3), 2022 (aggregated victims).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from dds.primitives.units import KIB
from dds.protocol.frequency import FrequencySketch

ENTRIES_MAX: Final = 131_072  # blocks; some 300 bytes of memory each
WINDOW_SHARE: Final = 100  # one part in so many of the bytes
PROTECTED_PERCENT: Final = 80  # of the main part
VICTIMS_MAX: Final = 512  # looked at for one block
BLOCK_BYTES_TYPICAL: Final = 256 * KIB  # the sketch remembers a key for each such part of the cache


@dataclass(frozen=True, slots=True)
class Change:
    """What a host is to do: keep the block that was offered or not, and remove these."""

    kept: bool
    evicted: tuple[bytes, ...] = ()


@dataclass(slots=True)
class _Entry:
    size: int  # bytes
    read_s: float


class _Part:
    """Entries in the order of use, oldest first, and their bytes together."""

    def __init__(self) -> None:
        self.entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self.size = 0

    def push(self, key: bytes, entry: _Entry) -> None:
        self.entries[key] = entry
        self.size += entry.size

    def pop(self, key: bytes) -> _Entry:
        entry = self.entries.pop(key)
        self.size -= entry.size
        return entry

    def pop_oldest(self) -> tuple[bytes, _Entry]:
        key, entry = self.entries.popitem(last=False)
        self.size -= entry.size
        return key, entry


class EdgeCache:
    """Times are seconds of any one clock.

    Args:
        bytes_max: of all kept blocks together; never exceeded.
        seed: secret bytes, so that strangers cannot foresee which blocks share counters.
    """

    def __init__(self, bytes_max: int, seed: bytes, *, entries_max: int = ENTRIES_MAX) -> None:
        self._window_max = bytes_max // WINDOW_SHARE
        self.main_bytes_max = self._main_max = bytes_max - self._window_max  # what `restore` has room for
        self._protected_max = self._main_max * PROTECTED_PERCENT // 100
        self._entries_max = entries_max
        self._sketch = FrequencySketch(bytes_max // BLOCK_BYTES_TYPICAL, seed)
        self._window, self._probation, self._protected = _Part(), _Part(), _Part()

    def __len__(self) -> int:
        return len(self._window.entries) + len(self._probation.entries) + len(self._protected.entries)

    def __contains__(self, key: bytes) -> bool:
        return self._part_of(key) is not None

    @property
    def size(self) -> int:
        """Bytes kept."""
        return self._window.size + self._probation.size + self._protected.size

    def keys(self) -> list[bytes]:
        return [key for part in self._parts() for key in part.entries]

    def asked(self, key: bytes, now_s: float) -> bool:
        """Somebody asks for the block: it is counted, and moved up if it is kept. Whether it is."""
        self._sketch.add(key)
        part = self._part_of(key)
        if part is None:
            return False
        part.entries[key].read_s = now_s
        if part is self._probation and part.entries[key].size <= self._protected_max:
            self._protect(key)
        else:
            part.entries.move_to_end(key)
        return True

    def would_keep(self, key: bytes, size: int) -> bool:
        """Whether a block of about `size` bytes is worth fetching: it would find a place beyond the window."""
        if key in self:
            return True
        return size <= self._main_max and self._victims(key, size, len(self) + 1) is not None

    def offer(self, key: bytes, size: int, now_s: float) -> Change:
        """The block is at hand, and may be kept."""
        if key in self:
            return Change(True)
        if size > self._main_max:
            return Change(False, ())
        entry = _Entry(size, now_s)
        if size > self._window_max:
            evicted = self._enter_main(key, entry)
        else:
            self._window.push(key, entry)
            evicted = []
        while self._window.size > self._window_max or len(self) > self._entries_max:
            evicted += self._enter_main(*self._window.pop_oldest())
        return Change(key in self, tuple(gone for gone in evicted if gone != key))

    def restore(self, key: bytes, size: int, read_s: float) -> bool:
        """A block that an earlier run kept; the one read last comes last. Whether there is room for it."""
        if key in self or self._main_size + size > self._main_max or len(self) >= self._entries_max:
            return False
        self._probation.push(key, _Entry(size, read_s))
        return True

    def drop(self, key: bytes) -> bool:
        """The block is damaged or gone. Whether it was kept."""
        part = self._part_of(key)
        if part is not None:
            part.pop(key)
        return part is not None

    def expire(self, before_s: float) -> list[bytes]:
        """Forget what was last read before that time; these are to be removed."""
        old = [key for part in self._parts() for key, entry in part.entries.items() if entry.read_s < before_s]
        for key in old:
            self.drop(key)
        return old

    # -- parts ------------------------------------------------------------------------------------------------------------

    @property
    def _main_size(self) -> int:
        return self._probation.size + self._protected.size

    def _parts(self) -> tuple[_Part, _Part, _Part]:
        return self._window, self._probation, self._protected

    def _part_of(self, key: bytes) -> _Part | None:
        return next((part for part in self._parts() if key in part.entries), None)

    def _protect(self, key: bytes) -> None:
        self._protected.push(key, self._probation.pop(key))
        while self._protected.size > self._protected_max:
            self._probation.push(*self._protected.pop_oldest())

    def _enter_main(self, key: bytes, entry: _Entry) -> list[bytes]:
        """The block goes to the main part or out; who is out now."""
        victims = self._victims(key, entry.size, len(self) + 1)
        if victims is None:
            return [key]
        for victim in victims:
            self.drop(victim)
        self._probation.push(key, entry)
        return victims

    def _victims(self, key: bytes, size: int, count: int) -> list[bytes] | None:
        """Who must go from the main part for the block, oldest first, `count` being the entries with it; None: it loses."""
        if self._main_size + size <= self._main_max and count <= self._entries_max:
            return []
        demand = self._sketch.estimate(key)
        victims: list[bytes] = []
        freed = lost = 0
        for part in (self._probation, self._protected):
            for victim, entry in part.entries.items():
                victims.append(victim)
                freed += entry.size
                lost += self._sketch.estimate(victim)
                if lost >= demand or len(victims) > VICTIMS_MAX:
                    return None
                if self._main_size - freed + size <= self._main_max and count - len(victims) <= self._entries_max:
                    return victims
        return None

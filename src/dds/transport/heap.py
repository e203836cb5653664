"""One setting of the C heap for processes that move bodies.

glibc gives memory back to the kernel as soon as 128 KiB at the top of the heap are free, and takes allocations above 128 KiB
from the kernel directly. A process that allocates and frees a body per request then pays page faults for every one of them, or
not, by the luck of what lies on top of its heap: measured on 64 KiB bodies, 140 or 240 us of CPU per PUT in the server, stable
for the life of the process. Fixed thresholds take the luck out, and on 1 MiB bodies a quarter of the CPU.

Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD; benchmarks/transport.py.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

from dds.primitives.units import MIB

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
KEPT_BYTES: Final = 16 * MIB  # free memory that a process keeps at the top of its heap
MAPPED_BYTES_MIN: Final = 4 * MIB  # larger allocations come from the kernel and go back to it
ARENAS: Final = 2  # heaps; each keeps its own freed memory, and by default every thread that allocates may get one
CLIENT_KEPT_BYTES: Final = 48 * MIB  # a client holds whole stripes: the same, at their size
CLIENT_MAPPED_BYTES_MIN: Final = 32 * MIB


def keep_freed_memory(kept_bytes: int = KEPT_BYTES, mapped_bytes_min: int = MAPPED_BYTES_MIN) -> bool:
    """Let this process keep up to `kept_bytes` of freed memory. Call once, at the start of a daemon or a bulk transfer.

    False where the C library is not glibc; nothing is changed then.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = ((_M_TRIM_THRESHOLD, kept_bytes), (_M_MMAP_THRESHOLD, mapped_bytes_min), (_M_ARENA_MAX, ARENAS))
    return all(bool(mallopt(name, value)) for name, value in settings)

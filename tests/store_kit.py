"""What the tests of the fragment store share: small segments, a clock that is set by hand, a store with small limits."""

from __future__ import annotations

import hashlib
import random
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from dds.primitives.cid import CID, cid_of
from dds.primitives.ids import PublisherID, SegmentID
from dds.primitives.units import KIB
from dds.storage.commit import ManifestNote
from dds.storage.fileops import FileOps
from dds.storage.fragment_store import FragmentStore, StoreConfig
from dds.storage.image import build_image
from dds.storage.storetime import STEP_MS_MAX
from dds.storage.upkeep import Upkeep
from dds.wire.segment import EncodingRecord, FragmentRecord, StripeShape, leaf_count_of

OWNER = b"o" * 32
UPLOAD = b"u" * 16
SMALL = StoreConfig(1 << 30, device_reserve_bytes=0, packed_bytes_max=8 * KIB, pack_bytes=64 * KIB)


def content_of(seed: int | str, size: int = 2048) -> bytes:
    """Reproducible bytes that do not compress."""
    return random.Random(f"dds/{seed}").randbytes(size)


def segment_of(stripes: list[bytes], name: str = "", copies: int = 3) -> EncodingRecord:
    """A segment of verbatim copies (k=1), one stripe for each item; every index has the same fragments."""
    rows = []
    for data in stripes:
        root = build_image(data).root
        rows.append(tuple(FragmentRecord(root, len(data), at, leaf_count_of(len(data))) for at in range(copies)))
    shapes = tuple(StripeShape(1, copies - 1, len(data), len(data)) for data in stripes)
    segment = SegmentID(hashlib.sha256(b"".join(stripes) + name.encode()).digest())
    return EncodingRecord(segment, "standard", 0, sum(map(len, stripes)), shapes, tuple(rows))


def raw_of(encoding: EncodingRecord) -> bytes:
    return b"signed:" + encoding.encode()


def manifest_of(number: int, publisher: int = 0, created_ms: int = 1) -> ManifestNote:
    cid: CID = cid_of(f"content {number}".encode())
    return ManifestNote(
        cid, PublisherID(bytes([publisher]) * 32), created_ms, content_of(f"m{number}.{publisher}.{created_ms}", 300)
    )


def fast_directory(fallback: Path) -> AbstractContextManager[str]:
    """A directory in memory where there is one: what survives a kill is in the page cache, on a disk or not."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else fallback, prefix="dds-test-")


class Clock:
    """Milliseconds, set by hand."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def open_store(
    path: Path, *, config: StoreConfig = SMALL, clock: Clock | None = None, ops: FileOps | None = None
) -> FragmentStore:
    return FragmentStore(path, config, clock=clock or Clock(), ops=ops)


def let_pass(store: FragmentStore, clock: Clock, ms: int) -> None:
    """Let time pass as a sweeping node sees it: in steps of at most an hour."""
    while ms > 0:
        step = min(ms, STEP_MS_MAX)
        clock.now_ms += step
        ms -= step
        store.time.now_ms()


def sweep_all(store: FragmentStore) -> tuple[int, int, int]:
    """Sweep until nothing is left; (expired, purged, unlinked)."""
    upkeep, totals = Upkeep(store), [0, 0, 0]
    while True:
        swept = upkeep.sweep_step()
        for at, count in enumerate((swept.expired, swept.purged, swept.unlinked)):
            totals[at] += count
        if not (swept.expired or swept.purged or swept.unlinked):
            return totals[0], totals[1], totals[2]


def compact_all(store: FragmentStore, budget_bytes: int = 16 * KIB) -> int:
    """Compact until nothing is worth it; returns the number of steps."""
    upkeep, steps = Upkeep(store), 0
    while upkeep.compact_step(budget_bytes):
        steps += 1
        assert steps < 10_000, "compaction never ends"
    return steps

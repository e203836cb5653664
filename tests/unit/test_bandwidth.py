"""The token bucket, without a clock."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from dds.transport.bandwidth import Bandwidth, Gate, TokenBucket


def test_a_burst_passes_at_once_and_the_next_byte_waits() -> None:
    bucket = TokenBucket(rate=1000, burst=500)
    assert bucket.take(500, now_s=0.0) == 0.0
    assert bucket.take(100, now_s=0.0) == 0.1
    assert bucket.take(100, now_s=0.0) == 0.2


def test_a_quiet_bucket_holds_no_more_than_its_burst() -> None:
    bucket = TokenBucket(rate=1000, burst=500)
    bucket.take(500, now_s=0.0)
    assert bucket.take(500, now_s=1000.0) == 0.0
    assert bucket.take(1, now_s=1000.0) > 0.0


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=50), st.integers(1, 10_000_000), st.integers(1, 100_000))
def test_the_long_run_rate_is_exact(takes: list[int], rate: int, burst: int) -> None:
    bucket = TokenBucket(rate, burst)
    now_s = 0.0
    for count in takes:
        now_s += bucket.take(count, now_s)
    assert sum(takes) <= burst + now_s * rate + 1e-3 * len(takes)
    assert now_s <= sum(takes) / rate + 1e-6


async def test_an_uncapped_gate_never_yields() -> None:
    gate = Gate()
    assert gate.is_open
    step = gate.take(1 << 40)
    try:
        step.send(None)
    except StopIteration:
        return
    raise AssertionError("an uncapped gate waited")


async def test_takers_of_one_gate_share_its_rate() -> None:
    gate = Bandwidth.capped(up_bytes_per_s=1 << 20).up
    loop = asyncio.get_running_loop()
    began = loop.time()
    await asyncio.gather(*(gate.take(128 << 10) for _ in range(4)))
    took = loop.time() - began
    assert 0.2 < took < 1.0  # 512 KiB at 1 MiB/s with a burst of 256 KiB

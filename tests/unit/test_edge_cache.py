"""What an edge keeps and for whom: the seeded cache policy, without disk or network."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable

import pytest

from dds.protocol.edge_cache import VICTIMS_MAX, Change, EdgeCache
from dds.protocol.frequency import COUNT_MAX, KEYS_MIN, SAMPLE_FACTOR, FrequencySketch

SEED = bytes(32)
ROOM = 1000


def key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def ask(cache: EdgeCache, name: bytes, size: int = 10) -> bool:
    """A reader asks; what is missed is fetched and offered. Whether it was there."""
    was_here = cache.asked(name, 0.0)
    if not was_here:
        cache.offer(name, size, 0.0)
    return was_here


def filled(*, asked: int) -> EdgeCache:
    """A full cache, each block of which was asked for so often."""
    cache = EdgeCache(ROOM, SEED)
    for number in range(ROOM // 10):
        for _ in range(asked):
            ask(cache, key(number))
    return cache


def zipf_trace(seed: int, *, blocks: int, length: int) -> list[bytes]:
    source = random.Random(seed)
    weights = [1 / (rank + 1) ** 0.9 for rank in range(blocks)]
    return [key(number) for number in source.choices(range(blocks), weights, k=length)]


def hits_of_lru(trace: Iterable[bytes], count: int) -> int:
    kept: OrderedDict[bytes, None] = OrderedDict()
    hits = 0
    for name in trace:
        hits += name in kept
        kept[name] = None
        kept.move_to_end(name)
        if len(kept) > count:
            kept.popitem(last=False)
    return hits


def test_a_scan_does_not_push_out_what_is_popular() -> None:
    cache = filled(asked=3)
    popular = {key(number) for number in range(ROOM // 10)}
    before = popular.intersection(cache.keys())
    for number in range(1000, 1900):  # nine times what the cache holds, each once
        ask(cache, key(number))
    assert len(before) == 100
    assert len(before.intersection(cache.keys())) >= 98


def test_on_a_zipf_trace_it_hits_more_than_an_lru_of_the_same_size() -> None:
    trace = zipf_trace(7, blocks=5000, length=30_000)
    cache = EdgeCache(100 * 10, SEED)
    hits = sum(ask(cache, name) for name in trace)
    assert hits > 1.3 * hits_of_lru(trace, 100)


def test_what_was_popular_gives_way_to_what_is() -> None:
    cache = EdgeCache(ROOM, SEED)
    for _ in range(20):
        for number in range(100):
            ask(cache, key(number))
    for _ in range(200):
        for number in range(200, 280):
            ask(cache, key(number))
    assert sum(key(number) in cache for number in range(200, 280)) >= 79


def test_the_same_events_and_seed_give_the_same_cache() -> None:
    trace = zipf_trace(8, blocks=500, length=3000)
    made = []
    for _ in range(2):
        cache = EdgeCache(ROOM, SEED)
        for name in trace:
            ask(cache, name)
        made.append(cache.keys())
    assert made[0] == made[1]


def test_a_large_block_must_outdo_all_that_would_go_for_it_together() -> None:
    cache = filled(asked=2)
    large = key(5000)
    for _ in range(5):
        cache.asked(large, 0.0)
    assert not cache.would_keep(large, 100)  # ten blocks, each asked for twice, are worth more than five
    assert cache.offer(large, 100, 0.0) == Change(False)
    assert cache.would_keep(large, 20)
    change = cache.offer(large, 20, 0.0)
    assert change.kept
    assert 1 <= len(change.evicted) <= 3


def test_a_block_larger_than_the_cache_evicts_nothing() -> None:
    cache = filled(asked=1)
    before = cache.keys()
    assert cache.offer(key(9999), ROOM + 1, 0.0) == Change(False)
    assert cache.keys() == before


def test_one_block_makes_the_policy_look_at_a_bounded_number_of_others() -> None:
    cache = EdgeCache(10 * VICTIMS_MAX, SEED)
    for number in range(5 * VICTIMS_MAX):
        cache.offer(key(number), 1, 0.0)  # never asked for: each counts nothing
    for number in range(5 * VICTIMS_MAX, 20 * VICTIMS_MAX):
        cache.offer(key(number), 1, 0.0)
    large = key(10**6)
    cache.asked(large, 0.0)
    assert not cache.would_keep(large, 2 * VICTIMS_MAX)


def test_no_more_blocks_than_allowed_however_small() -> None:
    cache = EdgeCache(10**9, SEED, entries_max=50)
    for number in range(500):
        ask(cache, key(number), 1)
    assert len(cache) == 50


def test_what_is_not_read_for_long_is_forgotten() -> None:
    cache = EdgeCache(ROOM, SEED)
    for number in range(4):
        cache.offer(key(number), 10, float(number))
    cache.asked(key(0), 9.0)
    assert sorted(cache.expire(3.0)) == [key(1), key(2)]
    assert sorted(cache.keys()) == [key(0), key(3)]
    assert cache.size == 20


def test_what_an_earlier_run_kept_is_taken_up_while_there_is_room() -> None:
    cache = EdgeCache(ROOM, SEED)
    taken = [cache.restore(key(number), 10, 1.0) for number in range(200)]
    assert sum(taken) == cache.main_bytes_max // 10
    assert cache.size <= ROOM
    assert not cache.restore(key(0), 10, 1.0)


@pytest.mark.parametrize("keys", [1, KEYS_MIN, 5000])
def test_a_count_is_never_too_low_and_stops_at_its_bits(keys: int) -> None:
    sketch = FrequencySketch(keys, SEED)
    for number in range(40):
        for _ in range(number):
            sketch.add(key(number))
    assert all(min(number, COUNT_MAX) <= sketch.estimate(key(number)) <= COUNT_MAX for number in range(40))
    assert sketch.estimate(key(777)) <= 1


def test_counts_are_halved_as_they_age() -> None:
    sketch = FrequencySketch(KEYS_MIN, SEED)
    for _ in range(8):
        sketch.add(key(1))
    for number in range(SAMPLE_FACTOR * KEYS_MIN - 9):
        sketch.add(key(1000 + number % 3))
    assert sketch.estimate(key(1)) == 8
    sketch.add(key(1000))
    assert sketch.estimate(key(1)) == 4

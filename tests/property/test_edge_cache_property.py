"""Whatever readers ask for, in whatever sizes: an edge's cache keeps its books to the byte and stays under its cap."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dds.protocol.edge_cache import EdgeCache

KEYS = st.integers(0, 40).map(lambda number: bytes([number]))
SIZES = st.one_of(st.integers(0, 30), st.integers(0, 1200))
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), KEYS, st.just(0)),
        st.tuples(st.just("offer"), KEYS, SIZES),
        st.tuples(st.just("restore"), KEYS, SIZES),
        st.tuples(st.just("drop"), KEYS, st.just(0)),
        st.tuples(st.just("expire"), st.just(b""), st.integers(0, 100)),
    ),
    max_size=150,
)


@settings(deadline=None)
@given(EVENTS, st.integers(0, 1000), st.integers(1, 30), st.binary(min_size=1, max_size=4))
def test_never_above_the_cap_and_every_kept_block_is_accounted_to_the_byte(
    events: list[tuple[str, bytes, int]], bytes_max: int, entries_max: int, seed: bytes
) -> None:
    cache = EdgeCache(bytes_max, seed, entries_max=entries_max)
    kept: dict[bytes, int] = {}  # what a host that does as it is told has on its disk
    for now, (event, key, number) in enumerate(events):
        match event:
            case "ask":
                assert cache.asked(key, now) == (key in kept)
            case "offer":
                change = cache.offer(key, number, now)
                assert key not in change.evicted
                assert set(change.evicted) <= set(kept)
                for gone in change.evicted:
                    del kept[gone]
                if change.kept:
                    kept.setdefault(key, number)
                else:
                    assert key not in kept
            case "restore":
                if cache.restore(key, number, now):
                    kept[key] = number
            case "drop":
                assert cache.drop(key) == (kept.pop(key, None) is not None)
            case "expire":
                for gone in cache.expire(now - number):
                    del kept[gone]
        assert sorted(cache.keys()) == sorted(kept)
        assert cache.size == sum(kept.values()) <= bytes_max
        assert len(cache) == len(kept) <= entries_max


@settings(deadline=None)
@given(st.lists(st.tuples(KEYS, SIZES), max_size=100))
def test_what_would_be_kept_has_a_place_once_it_is_there(reads: list[tuple[bytes, int]]) -> None:
    cache = EdgeCache(1000, b"seed")
    for now, (key, size) in enumerate(reads):
        if not cache.asked(key, now) and cache.would_keep(key, size):
            cache.offer(key, size, now)
            assert cache.size <= 1000

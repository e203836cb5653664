"""Reed-Solomon: the matrix, every erasure pattern, any range of columns."""

from __future__ import annotations

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from math import comb

import pytest

from dds.erasure import reed_solomon
from dds.erasure.reed_solomon import STRIP_BYTES, decode, encode
from dds.primitives.errors import FormatError, InputError, NotEnoughFragments
from tests.vectors.cauchy_oracle import gf_inverse, parity_fragments

CLASS_GEOMETRIES = [(10, 6), (10, 10), (16, 16), (6, 6)]
WIDE_GEOMETRIES = [(20, 12), (64, 64), (2, 1), (3, 1), (64, 1), (2, 126)]


def random_stripe(k: int, m: int, length: int, seed: int = 0) -> list[bytes]:
    draw = random.Random(f"{k} {m} {length} {seed}")
    slots = [draw.randbytes(length) for _ in range(k)]
    return [*slots, *encode(k, m, slots)]


def assert_recovers(k: int, m: int, fragments: list[bytes], lost: tuple[int, ...]) -> None:
    have = {index: fragment for index, fragment in enumerate(fragments) if index not in lost}
    assert decode(k, m, have, lost) == {index: fragments[index] for index in lost}, f"{k}+{m} without {lost}"


def test_unit_data_in_column_zero_gives_the_inverses_of_the_row_numbers() -> None:
    parity = encode(10, 6, [b"\x01", *[b"\x00"] * 9])
    assert b"".join(parity).hex(" ") == "dd 98 3d aa 5d 96"
    assert b"".join(parity) == bytes(gf_inverse(row) for row in range(10, 16))


@pytest.mark.parametrize(("k", "m"), CLASS_GEOMETRIES + WIDE_GEOMETRIES)
def test_the_whole_matrix_is_cauchys(k: int, m: int) -> None:
    unit_slots = [bytes(column == slot for column in range(k)) for slot in range(k)]
    assert encode(k, m, unit_slots) == [bytes(gf_inverse(row ^ slot) for slot in range(k)) for row in range(k, k + m)]


@pytest.mark.parametrize(("k", "m"), [*CLASS_GEOMETRIES, (20, 12), (5, 3)])
def test_random_data_agrees_with_slow_arithmetic(k: int, m: int) -> None:
    fragments = random_stripe(k, m, 97)
    assert fragments[k:] == parity_fragments(k, m, fragments[:k])


def test_every_one_of_the_8008_patterns_of_six_lost_of_sixteen_is_recovered() -> None:
    fragments = random_stripe(10, 6, 3)
    patterns = list(combinations(range(16), 6))
    assert len(patterns) == comb(16, 6) == 8008
    for lost in patterns:
        assert_recovers(10, 6, fragments, lost)


@pytest.mark.parametrize(("k", "m"), CLASS_GEOMETRIES + WIDE_GEOMETRIES)
def test_random_patterns_of_m_lost_are_recovered(k: int, m: int) -> None:
    draw = random.Random(k * 1000 + m)
    fragments = random_stripe(k, m, 5)
    for _ in range(60):
        assert_recovers(k, m, fragments, tuple(draw.sample(range(k + m), m)))


@pytest.mark.parametrize(("k", "m"), [*CLASS_GEOMETRIES, (20, 12), (1, 6)])
def test_each_fragment_alone_is_rebuilt(k: int, m: int) -> None:
    fragments = random_stripe(k, m, 33)
    for lost in range(k + m):
        assert_recovers(k, m, fragments, (lost,))


@pytest.mark.parametrize("strip_bytes", [64, 1024, 4096])
def test_strip_size_never_changes_a_byte(monkeypatch: pytest.MonkeyPatch, strip_bytes: int) -> None:
    length = 2 * STRIP_BYTES + 77
    fragments = random_stripe(10, 6, length)
    have = {index: fragments[index] for index in range(6, 16)}
    monkeypatch.setattr(reed_solomon, "STRIP_BYTES", strip_bytes)
    assert encode(10, 6, fragments[:10]) == fragments[10:]
    assert decode(10, 6, have, range(6)) == dict(enumerate(fragments[:6]))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 3968, STRIP_BYTES - 1, STRIP_BYTES, STRIP_BYTES + 1, 3 * STRIP_BYTES + 5])
def test_any_length_round_trips(length: int) -> None:
    fragments = random_stripe(10, 6, length)
    assert_recovers(10, 6, fragments, (0, 3, 5, 9, 10, 15))
    assert_recovers(10, 6, fragments, (4,))


def test_any_range_of_columns_decodes_alone() -> None:
    draw = random.Random(7)
    fragments = random_stripe(10, 6, 40_000)
    for lo, hi in [(0, 1), (39_999, 40_000), *(sorted(draw.sample(range(40_001), 2)) for _ in range(10))]:
        have = {index: memoryview(fragments[index])[lo:hi] for index in draw.sample(range(16), 10)}
        want = [index for index in range(16) if index not in have]
        assert decode(10, 6, have, want) == {index: fragments[index][lo:hi] for index in want}


def test_one_fragment_more_than_k_does_not_disturb() -> None:
    fragments = random_stripe(10, 6, 10)
    have = {index: bytearray(fragments[index]) for index in reversed(range(1, 16))}
    assert decode(10, 6, have, [0, 12, 0]) == {0: fragments[0], 12: fragments[12]}


def test_k_of_one_copies() -> None:
    assert encode(1, 6, [b"post"]) == [b"post"] * 6
    assert decode(1, 6, {4: b"post"}, [0, 6, 4]) == {0: b"post", 6: b"post", 4: b"post"}


def test_no_parity_passes_data_through() -> None:
    assert encode(3, 0, [b"a", b"b", b"c"]) == []
    assert decode(3, 0, {0: b"a", 2: b"c"}, [2]) == {2: b"c"}
    with pytest.raises(NotEnoughFragments):
        decode(3, 0, {0: b"a", 2: b"c"}, [1])


def test_fewer_than_k_fragments_is_not_enough() -> None:
    fragments = random_stripe(10, 6, 4)
    with pytest.raises(NotEnoughFragments) as caught:
        decode(10, 6, {index: fragments[index] for index in range(9)}, [15])
    assert caught.value.fields == {"actual": 9, "expected": 10}
    with pytest.raises(NotEnoughFragments):
        decode(1, 6, {}, [0])


def test_what_is_already_there_needs_no_k() -> None:
    assert decode(10, 6, {3: b"abc"}, [3]) == {3: b"abc"}


@pytest.mark.parametrize("slots", [[b"a", b"bc"], [b"", b""], [b"a"], [b"a", b"b", b"c"]])
def test_malformed_slots_are_refused(slots: list[bytes]) -> None:
    with pytest.raises(FormatError):
        encode(2, 1, slots)


def test_malformed_fragments_are_refused() -> None:
    with pytest.raises(FormatError):
        decode(2, 1, {0: b"a", 1: b"bc"}, [2])
    with pytest.raises(FormatError):
        decode(2, 1, {0: b"", 1: b""}, [2])
    with pytest.raises(FormatError):
        decode(2, 1, {0: b"a", 3: b"b"}, [1])
    with pytest.raises(FormatError):
        decode(2, 1, {0: b"a", 1: b"b"}, [-1])


@pytest.mark.parametrize(("k", "m"), [(0, 1), (65, 1), (64, 65), (2, -1)])
def test_impossible_geometries_are_refused(k: int, m: int) -> None:
    with pytest.raises(InputError):
        encode(k, m, [b"a"] * max(k, 0))
    with pytest.raises(InputError):
        decode(k, m, {0: b"a"}, [0])


def test_threads_do_not_disturb_each_other() -> None:
    def one(seed: int) -> bool:
        k, m = [(10, 6), (6, 6), (16, 16)][seed % 3]
        fragments = random_stripe(k, m, 20_000, seed)
        have = {index: fragments[index] for index in range(m, k + m)}
        return decode(k, m, have, range(m)) == dict(enumerate(fragments[:m]))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(24)))


def test_the_codec_library_is_loaded_at_the_first_use_only() -> None:
    script = (
        "import sys, dds.erasure.segment_builder, dds.erasure.reed_solomon as rs\n"
        "rs.encode(1, 6, [b'copies need no codec'])\n"
        "assert 'pyeclib' not in sys.modules\n"
        "rs.encode(2, 1, [b'a', b'b'])\n"
        "assert 'pyeclib' in sys.modules\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

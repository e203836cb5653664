"""Chunks depend on the bytes, never on how they arrived."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dds.content.chunking import (
    CHUNKERS,
    FASTCDC,
    FASTCDC_BYTES_AVERAGE,
    FASTCDC_BYTES_MAX,
    FASTCDC_BYTES_MIN,
    FIXED,
    make_chunker,
)
from dds.primitives.errors import InputError
from dds.primitives.units import CHUNK_BYTES, MIB
from tests.content_trees import keystream

STREAM = keystream("chunking-property", 9 * MIB + 4321)
VECTOR = json.loads((Path(__file__).parent.parent / "vectors" / "fastcdc.json").read_text())


def lengths(name: str, slices: list[bytes]) -> list[int]:
    chunker = make_chunker(name)
    chunks = [chunk for data in slices for chunk in chunker.feed(data)]
    chunks += chunker.finish()
    assert b"".join(chunks) == b"".join(slices)
    return [len(chunk) for chunk in chunks]


def sliced(data: bytes, seed: int, mean_bytes: int) -> list[bytes]:
    order = random.Random(seed)
    slices, at = [], 0
    while at < len(data):
        step = order.choice([1, MIB, order.randint(1, 2 * mean_bytes)])
        slices.append(data[at : at + step])
        at += step
    return slices


@pytest.mark.parametrize("name", CHUNKERS)
@settings(max_examples=15, deadline=None)
@given(size=st.integers(0, len(STREAM)), seed=st.integers(0, 1 << 30), mean=st.sampled_from([100_000, 700_000, 5_000_000]))
def test_chunks_do_not_depend_on_how_reads_were_sliced(name: str, size: int, seed: int, mean: int) -> None:
    data = STREAM[:size]
    assert lengths(name, sliced(data, seed, mean)) == lengths(name, [data])


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_fixed_chunks_are_all_whole_but_the_last(size: int) -> None:
    whole, rest = divmod(size, CHUNK_BYTES)
    assert lengths(FIXED, [STREAM[:size]]) == [CHUNK_BYTES] * whole + [rest] * (rest > 0)


def test_content_defined_boundaries_are_the_frozen_ones() -> None:
    assert tuple(VECTOR[f"bytes_{which}"] for which in ("min", "average", "max")) == (
        FASTCDC_BYTES_MIN,
        FASTCDC_BYTES_AVERAGE,
        FASTCDC_BYTES_MAX,
    )
    assert lengths(FASTCDC, sliced(keystream(VECTOR["seed"], VECTOR["size"]), 1, 900_000)) == VECTOR["lengths"]


@pytest.mark.parametrize("data", [bytes(5 * MIB), STREAM])
def test_content_defined_chunks_keep_their_bounds(data: bytes) -> None:
    found = lengths(FASTCDC, [data])
    assert max(found) <= FASTCDC_BYTES_MAX
    assert min(found[:-1]) >= FASTCDC_BYTES_MIN


def test_an_edit_leaves_content_defined_chunks_elsewhere_alone() -> None:
    edited = STREAM[:3_000_000] + b"a few bytes more" + STREAM[3_000_000:]
    chunker, other = make_chunker(FASTCDC), make_chunker(FASTCDC)
    before = {hashlib.sha256(chunk).digest() for chunk in [*chunker.feed(STREAM), *chunker.finish()]}
    after = {hashlib.sha256(chunk).digest() for chunk in [*other.feed(edited), *other.finish()]}
    assert len(after - before) <= 3


def test_memory_of_a_content_defined_chunker_stays_bounded() -> None:
    chunker = make_chunker(FASTCDC)
    fed = given_back = 0
    for data in sliced(STREAM * 3, 5, 300_000):
        fed += len(data)
        given_back += sum(len(chunk) for chunk in chunker.feed(data))
        assert fed - given_back <= 5 * MIB


def test_an_unknown_chunker_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="rabin"):
        make_chunker("rabin")

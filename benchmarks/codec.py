"""The in-memory pipeline on one core, against SHA-256 alone over the same chunks in the same run.

Pipeline: cut into 1 MiB chunks, CID of each, compress where it pays, erasure-code 10+6, fragment trees of all 16 fragments.
CPU time of this thread, so neighbours on the machine disturb little; the best of several rounds of each, taken in turns.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice

from benchmarks.rows import Row
from dds.erasure.compression import compress
from dds.erasure.fragment_tree import record_of
from dds.erasure.geometry import STANDARD, full_stripe
from dds.erasure.reed_solomon import decode, encode
from dds.erasure.segment_builder import SegmentBuilder
from dds.erasure.stripes import encode_stripe
from dds.primitives.cid import cid_of
from dds.primitives.units import CHUNK_BYTES, MIB

STRIPES = 4
DATA_BYTES = STRIPES * STANDARD.stripe_bytes
ROUNDS = 7
TARGET_RATIO = 0.25  # hashing alone allows 0.38: each byte once for its CID, 1.6 times for the fragment trees


def run() -> list[Row]:
    """All rows; about ten seconds."""
    noise = random.Random(1).randbytes(DATA_BYTES)
    mix = compressible_mix(noise)
    rows = [_pipeline_row("pipeline, incompressible", noise), _pipeline_row("pipeline, 40 % text", mix)]
    return rows + _part_rows(noise)


def compressible_mix(noise: bytes) -> bytes:
    """Chunks of which two in five are text-like (about 3:1 under zstd) and the others noise."""
    words = [bytes(97 + byte % 26 for byte in noise[at : at + 3 + at % 7]) for at in range(0, 60_000, 12)]
    draw = random.Random(2)
    text = b" ".join(draw.choices(words, k=2 * CHUNK_BYTES // 6))[:CHUNK_BYTES]
    chunks = [text if number % 5 < 2 else None for number in range(len(noise) // CHUNK_BYTES)]
    return b"".join(chunk or noise[at * CHUNK_BYTES : (at + 1) * CHUNK_BYTES] for at, chunk in enumerate(chunks))


def pipeline(data: bytes) -> int:
    """Everything between a user's bytes and fragments that are ready to be sent; the bytes of all fragments."""
    builder = SegmentBuilder(*STANDARD, "standard")
    made = 0
    for chunk in chunks_of(data):
        for stripe in builder.add(cid_of(chunk), chunk):
            made += stripe.shape.slot_bytes * len(stripe.fragments)
    return made + sum(stripe.shape.slot_bytes * len(stripe.fragments) for stripe in builder.close().stripes)


def chunks_of(data: bytes) -> Iterator[bytes]:
    """Chunks of 1 MiB, each a copy, as reading a file would give them."""
    return (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))


def _pipeline_row(name: str, data: bytes) -> Row:
    plain, ours = _best_in_turns(
        [lambda: [hashlib.sha256(chunk).digest() for chunk in chunks_of(data)], lambda: pipeline(data)]
    )
    return Row(name, _mb_per_s(data, ours), "MB/s", _mb_per_s(data, plain), round(plain / ours, 3), TARGET_RATIO)


def _part_rows(noise: bytes) -> list[Row]:
    """Where the time goes: each part alone over one full stripe, or over one 1 MiB fragment."""
    stripe = noise[: STANDARD.stripe_bytes]
    slots = [stripe[at : at + MIB] for at in range(0, len(stripe), MIB)]
    fragments = encode_stripe(full_stripe(STANDARD), slots).fragments
    lost6 = {index: fragments[index] for index in range(STANDARD.m, STANDARD.n)}
    parts: list[tuple[str, bytes, Callable[[], object]]] = [
        ("encode 10+6", stripe, lambda: encode(*STANDARD, slots)),
        ("decode 10+6, six data lost", stripe, lambda: decode(*STANDARD, lost6, range(STANDARD.k))),
        ("rebuild one fragment from ten", stripe, lambda: decode(*STANDARD, lost6, [0])),
        ("fragment tree", slots[0], lambda: record_of(0, slots[0])),
        ("compress probe, incompressible", slots[0], lambda: compress(slots[0])),
    ]
    rows: list[Row] = []
    for name, data, work in parts:
        repeats = max(1, 20 * MIB // len(data))
        plain, ours = _best_in_turns([lambda d=data: hashlib.sha256(d).digest(), work], repeats)  # type: ignore[misc]
        rows.append(Row(name, _mb_per_s(data, ours), "MB/s", _mb_per_s(data, plain), round(plain / ours, 3)))
    return rows


def _best_in_turns(works: list[Callable[[], object]], repeats: int = 1) -> list[float]:
    """Seconds of CPU of the best round of each, after one round that warms up."""
    best = [float("inf")] * len(works)
    for number, work in islice(cycle(enumerate(works)), len(works) * (ROUNDS + 1)):
        start = time.thread_time()
        for _ in range(repeats):
            work()
        best[number] = min(best[number], (time.thread_time() - start) / repeats)
    return best


def _mb_per_s(data: bytes, seconds: float) -> float:
    return round(len(data) / seconds / 1e6, 1)

"""Puts over real servers and stores in one process: what nodes do to them, and what is left when they fail."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import time
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from dds.erasure import segment_builder
from dds.primitives.cid import CID
from dds.primitives.ids import NodeID, SegmentID
from dds.primitives.units import SECTION_BYTES_MAX
from dds.runtime.get import Reading
from dds.runtime.manifest_bodies import split_runs
from dds.runtime.packer import PlacedRun
from dds.runtime.put_segments import NewSegments
from dds.runtime.results import PutOptions
from dds.storage.source import compute_cid
from dds.wire.manifest import Body, Run, SegmentRow, encode_body
from tests.node_sites import holders_of, put, reader, sites

SMALL = PutOptions(class_name="custom", k=2, m=3)


async def test_put_get(tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(random.Random(1).randbytes(300_000))
    async with sites(tmp_path, 7) as nodes, reader(nodes) as network:
        result = await put(network, tmp_path / "home", source, SMALL)
        await Reading(network, CID(result.content)).to_path(tmp_path / "out", "", None, overwrite=False)
        assert (tmp_path / "out").read_bytes() == source.read_bytes()
        assert len(holders_of(nodes, result.content)) == 5


async def test_a_small_content_is_put_again_although_a_holder_is_gone(tmp_path: Path) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"a blog post")
    async with sites(tmp_path, 8) as nodes, reader(nodes) as network:
        first = await put(network, tmp_path / "home", source, SMALL)
        holders = holders_of(nodes, first.content)
        assert len(holders) == 4
        await holders[0].stop()
        again = await put(network, tmp_path / "home", source, SMALL)
        assert again.content == first.content
        assert again.sent_bytes == 0


async def test_a_put_goes_on_while_an_earlier_segment_is_being_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "tree"
    source.mkdir()
    for number in range(12):
        (source / f"{number}").write_bytes(random.Random(number).randbytes(1000))
    keep = NewSegments._keep

    def slowly(*values: Any) -> None:
        time.sleep(0.3)
        keep(*values)

    monkeypatch.setattr(NewSegments, "_keep", slowly)
    monkeypatch.setattr(segment_builder, "SEGMENT_ENTRIES_MAX", 2)
    async with sites(tmp_path, 6) as nodes, reader(nodes) as network:
        result = await put(network, tmp_path / "home", source, SMALL)
        assert result.segments > 4


def test_a_manifest_of_wide_segments_is_cut_into_sections_that_fit() -> None:
    holders = tuple(NodeID(bytes([n]) * 32) for n in range(128))
    runs = [PlacedRun(number, 0, 4096, number << 40) for number in range(1000)]
    for width in (2, 16, 128):
        parts = list(split_runs(runs, width))
        assert [run for part in parts for run in part] == runs
        for part in parts:
            rows = tuple(SegmentRow(SegmentID(run.position.to_bytes(32, "big")), holders[:width]) for run in part)
            body = Body(rows, tuple(Run(at, 0, 4096, (1 << 63) - 1) for at in range(len(part))))
            assert SECTION_BYTES_MAX // 2 < len(encode_body(body)) <= SECTION_BYTES_MAX or part is parts[-1]


async def test_a_put_that_waits_for_its_input_can_be_stopped(tmp_path: Path) -> None:
    ends = os.pipe()
    async with sites(tmp_path, 6) as nodes, reader(nodes) as network:
        with os.fdopen(ends[0], "rb") as silent, os.fdopen(ends[1], "wb"):
            putting = asyncio.create_task(put(network, tmp_path / "home", silent, SMALL))
            await asyncio.sleep(0.2)
            putting.cancel()
            done, _ = await asyncio.wait([putting], timeout=3)
        await asyncio.wait([putting])
        assert done, "it ended only when its input did"


async def test_a_stream_that_comes_in_pieces_is_put_whole(tmp_path: Path) -> None:
    data = random.Random(4).randbytes(2_500_000)
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as pipe:
        assert pipe.stdin is not None
        assert pipe.stdout is not None
        write, stream = pipe.stdin, pipe.stdout
        async with sites(tmp_path, 6) as nodes, reader(nodes) as network:
            putting = asyncio.create_task(put(network, tmp_path / "home", cast(BinaryIO, stream), SMALL))
            for at in range(0, len(data), 700_000):
                await asyncio.to_thread(write.write, data[at : at + 700_000])
                await asyncio.to_thread(write.flush)
            write.close()
            result = await putting
    (tmp_path / "same").write_bytes(data)
    assert result.content == compute_cid(tmp_path / "same")

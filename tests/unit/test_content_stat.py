"""What contents take, measured: sizes and savings add up, and agree with what was really stored."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dds.content.block import Block
from dds.erasure.compression import StoredBlock, store_block
from dds.erasure.savings import rows_of, stripe_shares
from dds.erasure.segment_builder import SegmentBuilder
from dds.ledger.records import Segment as LedgerSegment
from dds.ledger.records import SponsorEntry
from dds.primitives.cid import CID, cid_of
from dds.primitives.errors import UnavailableError
from dds.runtime.get import Reading
from dds.runtime.home_stat import index_from, measure_home
from dds.runtime.put import Put
from dds.runtime.results import ContentStat, PutOptions
from dds.storage.catalog import Catalog
from dds.storage.distinct import DistinctBlocks
from dds.storage.source import SourceOptions, build_dag
from dds.wire.manifest import Manifest
from dds.wire.segment import CODEC_PLAIN
from tests.node_sites import put, reader, sites

OPTIONS = PutOptions(class_name="custom", k=2, m=3)
TEXT = b"the same words again and again, and yet another time\n" * 4000  # 212 KB that compress well
NOISE = random.Random(3).randbytes(300_000)


def tree(root: Path, **files: bytes) -> Path:
    root.mkdir()
    for name, data in files.items():
        (root / name).write_bytes(data)
    return root


def blocks_of(*sources: Path) -> list[Block]:
    found: list[Block] = []
    for source in sources:
        build_dag(source, SourceOptions(), lambda block, position: found.append(block))
    return found


def assert_true(stat: ContentStat, source: Path) -> None:
    """Against the source itself, block by block."""
    blocks = blocks_of(source)
    distinct = {block.cid: block for block in blocks}.values()
    assert stat.dag_bytes == sum(len(block.data) for block in blocks)
    assert stat.unique_bytes == sum(len(block.data) for block in distinct)
    assert stat.stored_bytes == sum(len(store_block(block.cid, block.data).stored) for block in distinct)
    assert stat.dag_bytes == stat.unique_bytes + stat.dedup_saved_bytes
    assert stat.unique_bytes == stat.stored_bytes + stat.compression_saved_bytes
    assert stat.is_measured and stat.findings == []


async def test_sizes_and_savings_are_those_of_the_blocks_and_add_up(tmp_path: Path) -> None:
    source = tree(tmp_path / "tree", text=TEXT, noise=NOISE, again=NOISE)
    async with sites(tmp_path, 7) as nodes, reader(nodes) as network:
        result = await put(network, tmp_path / "home", source, OPTIONS)
        stat = await Reading(network, result.content).stat()
        assert_true(stat, source)
        assert stat.dedup_saved_bytes >= len(NOISE) and stat.compression_saved_bytes > len(TEXT) * 0.9
        assert stat.attributed_bytes == stat.encoded_bytes == result.encoded_bytes  # nobody else is in its segments
        assert stat.shared_bytes is None


async def test_reused_blocks_count_as_they_lie_there_and_not_by_their_raw_size(tmp_path: Path) -> None:
    first, second = tree(tmp_path / "a", text=TEXT, noise=NOISE), tree(tmp_path / "b", text=TEXT, more=NOISE[:100_000])
    async with sites(tmp_path, 7) as nodes, reader(nodes) as network:
        await put(network, tmp_path / "home", first, OPTIONS)
        result = await put(network, tmp_path / "home", second, OPTIONS)
        assert len(TEXT) == result.reused_bytes
        assert result.reused_stored_bytes == len(store_block(cid_of(TEXT), TEXT).stored)
        assert_true(await Reading(network, result.content).stat(), second)


async def test_what_two_contents_share_is_attributed_once_and_counts_once_for_the_home(tmp_path: Path) -> None:
    first, second = tree(tmp_path / "a", text=TEXT, noise=NOISE), tree(tmp_path / "b", noise=NOISE, more=NOISE[:99_000])
    async with sites(tmp_path, 7) as nodes, reader(nodes) as network:
        one = await put(network, tmp_path / "home", first, OPTIONS)
        two = await put(network, tmp_path / "home", second, OPTIONS)
        with Catalog(tmp_path / "home" / "catalog.sqlite") as catalog:
            home = await measure_home(network, catalog, lambda progress: None)
            stat = await Reading(network, two.content).stat(index_from(catalog))
    distinct = {block.cid: block for block in blocks_of(first, second)}.values()
    assert (home.contents, home.counted, home.findings) == (2, 2, [])
    assert home.logical_bytes == sum(len(block.data) for block in blocks_of(first, second))
    assert home.unique_bytes == sum(len(block.data) for block in distinct) == home.logical_bytes - home.dedup_saved_bytes
    assert home.stored_bytes == sum(len(store_block(block.cid, block.data).stored) for block in distinct)
    assert home.attributed_bytes == one.encoded_bytes + two.encoded_bytes  # every row of its segments is used
    assert two.encoded_bytes < stat.attributed_bytes < stat.encoded_bytes


async def test_a_block_that_is_stored_twice_is_told_and_still_counts_once(tmp_path: Path) -> None:
    first, second = tree(tmp_path / "a", noise=NOISE), tree(tmp_path / "b", noise=NOISE, x=b"x")
    async with sites(tmp_path, 7) as nodes, reader(nodes) as network:
        await put(network, tmp_path / "home", first, OPTIONS)
        await put(network, tmp_path / "home", second, replace(OPTIONS, dedup="off"))
        with Catalog(tmp_path / "home" / "catalog.sqlite") as catalog:
            home = await measure_home(network, catalog, lambda progress: None)
    assert home.stored_again_bytes == len(NOISE)
    assert home.unique_bytes == sum(len(block.data) for block in {b.cid: b for b in blocks_of(first, second)}.values())


async def test_a_large_manifest_in_sections_is_measured_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tree(tmp_path / "tree", **{f"f{n}": NOISE[n : n + 2000] for n in range(30)}, text=TEXT)
    async with sites(tmp_path, 7) as nodes, reader(nodes) as network:
        result = await put(network, tmp_path / "home", source, OPTIONS, inline_bytes=1)
        stat = await Reading(network, result.content).stat()
        assert_true(stat, source)
        assert stat.attributed_bytes == stat.encoded_bytes == result.encoded_bytes


async def test_a_manifest_that_says_otherwise_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tree(tmp_path / "tree", text=TEXT, noise=NOISE)
    made = Put._manifest

    def boasting(self: Put, *values: object, **named: object) -> Manifest:
        manifest = made(self, *values, **named)  # type: ignore[arg-type]
        return replace(manifest, unique_bytes=manifest.unique_bytes + 5, stored_bytes=1)

    monkeypatch.setattr(Put, "_manifest", boasting)
    async with sites(tmp_path, 7) as nodes, reader(nodes) as network:
        content = (await put(network, tmp_path / "home", source, OPTIONS)).content
        stat = await Reading(network, content).stat()
    assert stat.unique_bytes == stat.stored_bytes + stat.compression_saved_bytes
    assert stat.findings == [
        f"the manifest says {stat.unique_bytes + 5:,} bytes in distinct blocks, and there are {stat.unique_bytes:,}",
        f"the manifest says 1 bytes after compression, and there are {stat.stored_bytes:,}",
    ]


async def test_of_a_lost_content_the_manifests_sizes_are_shown_as_such(tmp_path: Path) -> None:
    source = tree(tmp_path / "tree", noise=NOISE, text=TEXT)
    async with sites(tmp_path, 5) as nodes, reader(nodes) as network:
        content = (await put(network, tmp_path / "home", source, OPTIONS)).content
        (segment,) = (await Reading(network, content).stat()).segments
        parity = segment.holders[-1].node
        for node in nodes:
            if node.node_id != parity:  # a data slot may have the index and the root block as they are
                await node.stop()
        stat = await Reading(network, content).stat()
    assert not stat.is_measured and stat.losses_survived == -1
    assert "the root block cannot be read" in stat.findings[0]
    assert stat.dag_bytes == stat.unique_bytes + stat.dedup_saved_bytes > 0


async def test_what_others_pay_for_too_is_the_share_in_stripes_with_several_sponsors(tmp_path: Path) -> None:
    source = tree(tmp_path / "tree", noise=NOISE, text=TEXT)

    def on_ledger(*stripes: int) -> LedgerSegment:
        sponsors = tuple(SponsorEntry(bytes([at]) * 32, bits, 1, 0, 9, 0, 0) for at, bits in enumerate(stripes))
        return LedgerSegment(b"", b"", b"", 1, 3, (), 0, (), sponsors, 0)

    async with sites(tmp_path, 7) as nodes, reader(nodes) as network:
        content = (await put(network, tmp_path / "home", source, OPTIONS)).content

        async def stat(*stripes: int) -> ContentStat:
            async def payers(segments: object) -> list[LedgerSegment | None]:
                return [on_ledger(*stripes)]

            return await Reading(network, content).stat(payers=payers)

        alone, together = await stat(1), await stat(1, 1)
        assert (alone.shared_bytes, alone.segments[0].sponsors) == (0, 1)
        assert (together.shared_bytes, together.segments[0].sponsors) == (together.attributed_bytes, 2)

        async def silent(segments: object) -> list[LedgerSegment | None]:
            raise UnavailableError("the ledger does not answer")

        unknown = await Reading(network, content).stat(payers=silent)
        assert unknown.shared_bytes is None and "does not answer" in unknown.findings[0]


SIZES = st.lists(st.integers(0, 400_000), min_size=1, max_size=12)


@given(SIZES, st.data())
def test_the_shares_of_all_users_are_the_segment_and_no_more(sizes: list[int], data: st.DataObject) -> None:
    builder = SegmentBuilder(2, 1, "custom")
    for number, size in enumerate(sizes):
        block = bytes([number]) + bytes(size)
        builder.add_stored(StoredBlock(cid_of(block), len(block), CODEC_PLAIN, block))
    closed = builder.close()
    entries, record = list(closed.entries), closed.record
    whole = [(shape.k + shape.m) * shape.slot_bytes for shape in record.stripes]
    assert stripe_shares(record, entries) == whole
    mask = data.draw(st.integers(0, (1 << len(entries)) - 1))
    parts = [[entries[row] for row in rows_of(bits)] for bits in (mask, ~mask & (1 << len(entries)) - 1)]
    together = [sum(pair) for pair in zip(*(stripe_shares(record, part) for part in parts), strict=True)]
    assert all(all_of - 2 < some <= all_of for some, all_of in zip(together, whole, strict=True))


def test_a_segment_of_one_empty_block_belongs_to_who_uses_it() -> None:
    builder = SegmentBuilder(2, 1, "custom")
    builder.add_stored(StoredBlock(cid_of(b""), 0, CODEC_PLAIN, b""))
    closed = builder.close()
    assert stripe_shares(closed.record, closed.entries) == [2 * len(closed.index)]
    assert stripe_shares(closed.record, []) == [0]


def test_a_set_of_blocks_says_what_is_new_even_within_one_call() -> None:
    a, b = CID(cid_of(b"a")), CID(cid_of(b"b"))
    with DistinctBlocks() as distinct:
        assert distinct.add([a, a, b]) == [True, False, True]
        assert distinct.add([b, a]) == [False, False]


def test_rows_of_bits() -> None:
    assert rows_of(0b101_0001) == [0, 4, 6]
    assert rows_of(0) == []

"""What a put finds on the network, and what strangers' hooks can do about it: two homes and real node processes."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from dds.erasure.compression import StoredBlock
from dds.primitives.cid import CID, cid_of
from dds.primitives.errors import InputError
from dds.primitives.hashing import Buffer
from dds.primitives.ids import NodeID, SegmentID, id_text
from dds.primitives.keys import SigningKey
from dds.primitives.units import MIB
from dds.runtime import dedup, network, packer
from dds.runtime.client import Client, open_client
from dds.runtime.hooks import Hooks, NewHook
from dds.runtime.results import PutOptions, PutResult
from dds.storage.catalog import Catalog
from dds.storage.home import Home, write_client_config
from dds.wire.segment import CODEC_PLAIN
from tests.e2e.devnet_cli import Program, running_devnet, same_file, write_random

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("deduplication")]

LARGE_BYTES = 64 * MIB
SMALL = PutOptions(class_name="custom", k=3, m=2)


@pytest.fixture(scope="module")
def dds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running_devnet(tmp_path_factory.mktemp("network") / "home", "--nodes", "7", "--regions", "7") as program:
        yield program


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random(tmp_path_factory.mktemp("input") / "large", LARGE_BYTES, seed=21)


def another_home(dds: Program, path: Path) -> Home:
    """A home on the same network, with a key of its own."""
    path.mkdir(mode=0o700)
    home = Home.open(path)
    write_client_config(home.config_file, Home.open(dds.home).client_config())
    return home


@pytest.fixture
def second(dds: Program, tmp_path: Path) -> Home:
    return another_home(dds, tmp_path / "second")


@pytest.fixture
def stranger(dds: Program, tmp_path: Path) -> Home:
    return another_home(dds, tmp_path / "stranger")


@pytest.fixture(scope="module")
def published(dds: Program, large: Path, tmp_path_factory: pytest.TempPathFactory) -> PutResult:
    """The large file as the first home put it; that home is gone since."""
    first = another_home(dds, tmp_path_factory.mktemp("first") / "home")

    async def publish() -> PutResult:
        async with open_client(first) as client:
            return await client.put(large, SMALL)

    told = asyncio.run(publish())
    shutil.rmtree(first.root)
    return told


async def publish(home: Home, source: Path, options: PutOptions = SMALL) -> None:
    async with open_client(home) as client:
        await client.put(source, options)


async def put(home: Home, source: Path, options: PutOptions = SMALL) -> tuple[PutResult, int]:
    """The result, and the bytes received meanwhile. What is found does not depend on how busy this machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "FIND_PATIENCE_S", 5.0)
        patch.setattr(dedup, "VET_PATIENCE_S", 10.0)
        patch.setattr(dedup, "LEARN_TIMEOUT_S", 10.0)
        patch.setattr(network, "ANNOUNCING_ENDS_S", 0.0)  # nobody looks for these
        async with open_client(home) as client:
            return await client.put(source, options), client.network.received_bytes()


async def assert_stored(home: Home, told: PutResult, source: Path) -> None:
    out = home.root / "out"
    async with open_client(home) as client:
        await client.get(told.content, out)
    assert same_file(out, source)
    out.unlink()


def chunks(path: Path) -> list[CID]:
    data = path.read_bytes()
    return [cid_of(data[at : at + MIB]) for at in range(0, len(data), MIB)]


async def test_second_home_sends_nothing_of_what_another_put_and_its_get_works(
    published: PutResult, second: Home, large: Path
) -> None:
    told, received_bytes = await put(second, large)
    assert told.content == published.content
    assert (told.sent_bytes, told.encoded_bytes) == (0, 0)
    assert told.reused_from_others_bytes == told.reused_bytes >= LARGE_BYTES
    assert LARGE_BYTES <= received_bytes < LARGE_BYTES * 1.1  # read back, once
    await assert_stored(second, told, large)
    with Catalog(second.catalog_file) as catalog:
        assert len(catalog.lookup(chunks(large))) == LARGE_BYTES // MIB


async def test_what_was_learned_needs_no_dht_and_no_reading_back_the_next_time(
    published: PutResult, second: Home, large: Path
) -> None:
    told, _ = await put(second, large)
    write_client_config(second.config_file, replace(second.client_config(), dht_bootstrap=()))
    again, received_bytes = await put(second, large)
    assert (again.sent_bytes, again.reused_from_others_bytes) == (0, told.reused_bytes)
    assert received_bytes < MIB // 4


async def test_file_with_something_in_front_or_behind_sends_only_that(
    published: PutResult, second: Home, large: Path, tmp_path: Path
) -> None:
    extra = Random(5).randbytes(MIB)
    longer = tmp_path / "longer"
    longer.write_bytes(large.read_bytes() + extra)
    told, _ = await put(second, longer)
    assert told.reused_from_others_bytes == LARGE_BYTES
    assert told.sent_bytes < 2 * MIB
    await assert_stored(second, told, longer)


async def test_shifted_file_is_found_by_its_cut_points(dds: Program, second: Home, stranger: Home, tmp_path: Path) -> None:
    cut = replace(SMALL, chunker="fastcdc")
    base, shifted = write_random(tmp_path / "base", 32 * MIB, seed=22), tmp_path / "shifted"
    shifted.write_bytes(Random(6).randbytes(MIB) + base.read_bytes())
    await publish(stranger, base, cut)
    told, _ = await put(second, shifted, cut)
    assert told.reused_from_others_bytes >= 30 * MIB
    assert told.sent_bytes < 6 * MIB
    await assert_stored(second, told, shifted)


async def test_lost_catalog_is_made_good_by_our_own_hooks_without_reading_back(
    dds: Program, second: Home, tmp_path: Path
) -> None:
    source = write_random(tmp_path / "source", 8 * MIB, seed=23)
    await publish(second, source)
    second.catalog_file.unlink()
    told, received_bytes = await put(second, source)
    assert (told.sent_bytes, told.reused_from_others_bytes) == (0, 0)
    assert told.reused_bytes >= 8 * MIB
    assert received_bytes < MIB // 4
    with Catalog(second.catalog_file) as catalog:
        assert len(catalog.lookup(chunks(source))) == 8


async def test_home_asks_nobody_and_off_not_even_itself(
    published: PutResult, second: Home, large: Path, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    part.write_bytes(large.read_bytes()[: 8 * MIB])
    async with open_client(second) as client:
        first, again, off = [await client.put(part, replace(SMALL, dedup=mode)) for mode in ("home", "home", "off")]
        with pytest.raises(InputError):
            await client.put(part, replace(SMALL, dedup="sometimes"))
    assert first.reused_bytes == 0
    assert (again.sent_bytes, again.reused_from_others_bytes) == (0, 0)
    assert off.reused_bytes == 0 and off.sent_bytes > 8 * MIB


async def test_weaker_code_of_another_is_not_relied_on(published: PutResult, second: Home, large: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.write_bytes(large.read_bytes()[: 8 * MIB])
    stronger, _ = await put(second, part, replace(SMALL, k=2, m=3))
    assert stronger.reused_bytes == 0
    assert (await put(second, part, SMALL))[0].sent_bytes == 0  # the stronger one will do


async def test_command_says_from_where_it_reused(published: PutResult, dds: Program, large: Path) -> None:
    assert (await put(Home.open(dds.home), large))[0].reused_from_others_bytes > 0
    options = ("--class", "custom", "-k", "3", "-m", "2")
    spoken = dds.run("put", *options, "--dedup", "home", large).stderr.decode()
    assert "already on the network, from another publisher" in spoken
    assert "sent 0 B" in spoken


# ---- strangers


async def announce(client: Client, blocks: list[CID], segment: SegmentID, holders: tuple[NodeID, ...]) -> None:
    Hooks(client.network).announce([NewHook(block, segment, holders) for block in blocks])


async def test_hooks_to_segments_that_do_not_exist_cost_little_and_everything_is_sent(
    dds: Program, second: Home, tmp_path: Path
) -> None:
    source = write_random(tmp_path / "source", 12 * MIB, seed=24)
    for number in range(3):  # Sybils: a key each
        async with open_client(another_home(dds, tmp_path / f"liar-{number}")) as client:
            named = [*client.network.known_nodes(), *(NodeID(SigningKey(os.urandom(32)).public) for _ in range(8))]
            for block in chunks(source):
                await announce(client, [block], SegmentID(os.urandom(32)), tuple(named))
    async with open_client(second) as client:
        told = await client.put(source, SMALL)
        received_bytes = client.network.received_bytes()
    assert told.reused_bytes == 0 and told.sent_bytes > 12 * MIB
    assert received_bytes < MIB // 2
    assert told.seconds < 10
    await assert_stored(second, told, source)


async def test_hook_to_a_segment_without_the_block_is_not_followed_twice(
    published: PutResult, second: Home, stranger: Home, large: Path, tmp_path: Path
) -> None:
    source = write_random(tmp_path / "source", 8 * MIB, seed=25)
    async with open_client(stranger) as client:
        seen = await Hooks(client.network).find(chunks(large)[0])
        real = SegmentID(seen[0].segment_id)
        await announce(client, chunks(source), real, tuple(NodeID(holder) for holder in seen[0].holders))
    told, _ = await put(second, source)
    assert told.reused_bytes == 0
    await assert_stored(second, told, source)


async def test_segment_with_other_bytes_than_its_index_says_is_found_out_and_its_nodes_are_not_blamed(
    dds: Program, second: Home, stranger: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_random(tmp_path / "source", 8 * MIB, seed=26)

    def poisoned(cid: CID, data: Buffer) -> StoredBlock:
        return StoredBlock(cid, len(data), CODEC_PLAIN, bytes(len(data)))

    with monkeypatch.context() as patch:
        patch.setattr(packer, "store_block", poisoned)
        await publish(stranger, source)
    told, _ = await put(second, source)
    assert (told.reused_bytes, told.notes) == (0, [])
    await assert_stored(second, told, source)
    with Catalog(second.catalog_file) as catalog:
        assert len(catalog.lookup(chunks(source))) == 8  # in the segment that was sent


async def test_lying_holder_is_named_and_its_segment_not_relied_on(
    dds: Program, second: Home, stranger: Home, tmp_path: Path
) -> None:
    source = write_random(tmp_path / "source", 9 * MIB, seed=27)
    await publish(stranger, source)
    first = chunks(source)[0]
    with Catalog(stranger.catalog_file) as catalog:
        segment = catalog.segment(catalog.lookup([first])[first].segment_id)
    assert segment is not None
    liar = id_text(segment.holders[0])
    dds.run("devnet", "kill", liar)
    dds.run("devnet", "start", "--tamper", liar)
    told, _ = await put(second, source)
    assert told.reused_bytes == 0 and told.sent_bytes > 9 * MIB
    assert any(liar[:12] in note and "caught while reading back" in note for note in told.notes)
    await assert_stored(second, told, source)

"""A node's proofs from its own store, and a witness that asks for a leaf itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.structs import replace as changed

from dds.erasure.fragment_tree import record_of
from dds.primitives.ids import FragmentRoot
from dds.primitives.units import GIB
from dds.proofs.audit import Asked, verify
from dds.proofs.challenge import SegmentFacts, Target
from dds.protocol.audit_round import Held
from dds.runtime.auditor import prove, spread
from dds.runtime.recheck import Rechecker
from dds.storage.fileops import FileOps
from dds.storage.fragment_store import FragmentStore, StoreConfig
from dds.transport.client import PeerClient
from dds.transport.routes import Request, Response, message_response
from dds.wire.api import LeavesReply, LeavesRequest, SegmentReply
from dds.wire.codec import decode
from dds.wire.segment import ENCODING_TAG
from dds.wire.signed import sign
from tests.audit_kit import BEACON, EPOCH, NETWORK, answer, runs_of, sample
from tests.discovery_samples import NETWORK as SITES_NETWORK
from tests.node_sites import PUBLISHER, Site, sites

ONE = sample()
INDEX = 1
TARGETS = tuple(sorted([ONE.target(INDEX, 0, 0), ONE.target(INDEX, 0, 5), ONE.target(INDEX, 1, 3), ONE.target(INDEX, 2, 0)]))


def fill(store: FragmentStore, network: str = NETWORK) -> None:
    store.stage_many(bytes(16), b"owner", [row[INDEX] for row in ONE.fragments])
    raw = sign(PUBLISHER, ENCODING_TAG, network, ONE.encoding.encode())
    store.commit(bytes(16), b"owner", ONE.encoding, raw, INDEX)


class CountedOps(FileOps):
    def __init__(self) -> None:
        self.forgotten = 0

    def forget_cached(self, fd: int, length: int, at: int) -> None:
        self.forgotten += 1
        super().forget_cached(fd, length, at)


@pytest.fixture
def ops() -> CountedOps:
    return CountedOps()


@pytest.fixture
def store(tmp_path: Path, ops: CountedOps) -> FragmentStore:
    store = FragmentStore(tmp_path / "store", StoreConfig(GIB), ops=ops)
    fill(store)
    return store


def test_what_a_store_holds_it_proves(store: FragmentStore) -> None:
    asked = ONE.asked(TARGETS)
    statements = list(prove(store, asked))
    assert verify(answer(statements), asked).passed == set(TARGETS)


def test_every_challenged_leaf_is_read_from_the_disk_itself(store: FragmentStore, ops: CountedOps) -> None:
    ops.forgotten = 0
    assert len(list(prove(store, ONE.asked(TARGETS)))) == len(TARGETS)
    assert ops.forgotten >= len(TARGETS)


def test_zeros_that_a_store_keeps_behind_a_fragment_are_not_stated(store: FragmentStore) -> None:
    """Fragments that differ in trailing zeros are kept once, at the longest length."""
    padded = ONE.fragments[2][INDEX] + b"\x00" * 40
    assert record_of(0, padded).root == ONE.encoding.records[2][INDEX].root
    store.stage(b"u" * 16, b"owner", padded)
    assert store.find(FragmentRoot(record_of(0, padded).root)) is not None
    asked = ONE.asked(TARGETS)
    assert verify(answer(prove(store, asked)), asked).passed == set(TARGETS)


def test_a_damaged_leaf_is_left_out_and_the_others_are_proven(store: FragmentStore, tmp_path: Path) -> None:
    (pack,) = (tmp_path / "store" / "packs").iterdir()
    raw = bytearray(pack.read_bytes())
    at = raw.index(ONE.fragments[1][INDEX])
    raw[at + 3 * 3968 + 10] ^= 1
    pack.write_bytes(raw)
    asked = ONE.asked(TARGETS)
    judged = verify(answer(prove(store, asked)), asked)
    assert ONE.target(INDEX, 1, 3) not in judged.passed and not judged.wrong
    assert {ONE.target(INDEX, 0, 0), ONE.target(INDEX, 2, 0)} <= judged.passed


def test_an_empty_store_states_nothing(tmp_path: Path) -> None:
    with FragmentStore(tmp_path / "other", StoreConfig(GIB)) as empty:
        assert list(prove(empty, ONE.asked(TARGETS))) == []


@pytest.mark.parametrize("lie", ["another root", "stripes in another order"])
def test_nothing_false_is_signed_about_a_segment_that_the_ledger_describes_wrongly(store: FragmentStore, lie: str) -> None:
    """Whoever registers a segment cannot make its honest holders sign what evidence would convict them of."""
    runs = runs_of(ONE.encoding)
    facts = SegmentFacts(bytes(32), runs, 2) if lie == "another root" else SegmentFacts(ONE.encoding.root(), runs[::-1], 2)
    targets = (*TARGETS, ONE.target(INDEX, 0, 200), ONE.target(INDEX, 9, 0))
    asked = replace(ONE.asked(targets), segments={ONE.segment_id: facts})
    judged = verify(answer(prove(store, asked)), asked)
    assert not judged.wrong


def test_nodes_begin_at_their_own_time_and_another_one_each_epoch() -> None:
    starts = [spread(BEACON, bytes([number]) * 32) for number in range(100)]
    assert all(0 <= start < 1 for start in starts) and len({int(start * 4) for start in starts}) == 4
    assert spread(b"n" * 32, bytes(32)) != spread(BEACON, bytes(32))


# -- a witness looks itself


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with sites(tmp_path, 1) as nodes:
        fill(nodes[0].store, SITES_NETWORK)
        yield nodes[0]


async def look(site: Site, *targets: Target, facts: SegmentFacts | None = None) -> list[Held]:
    host, port = site.address.rsplit(":", 1)
    asked = Asked(SITES_NETWORK, EPOCH, BEACON, 0, site.node_id, targets, {ONE.segment_id: facts or ONE.facts()})
    async with PeerClient(None, network=SITES_NETWORK) as client:
        rechecker = Rechecker(client, lambda node: client.learn(node, [(host, int(port))]))
        return [held for _, held in await rechecker.look_at(asked, targets)]


async def test_a_leaf_that_is_there_is_held(site: Site) -> None:
    assert await look(site, *TARGETS) == [Held.HELD] * 4


async def test_a_segment_that_is_not_there_is_lost(site: Site) -> None:
    site.store.release(ONE.encoding.segment_id, INDEX)
    assert await look(site, TARGETS[0]) == [Held.LOST]


async def test_damaged_bytes_are_lost(site: Site) -> None:
    for path in site.store.home.packs.iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    assert await look(site, TARGETS[0]) == [Held.LOST]


async def test_other_bytes_are_lost(site: Site) -> None:
    async def lie(request: Request) -> Response:
        asked = decode(request.body, LeavesRequest)
        size, leaves, paths = site.store.read_leaves(FragmentRoot(asked.root), asked.first, 1)
        return message_response(LeavesReply(size, [b"\x01" * len(leaves[0])], paths))

    site.lies["POST", "/v1/leaves"] = lie
    assert await look(site, TARGETS[0]) == [Held.LOST]


async def test_a_node_that_is_away_is_offline_and_asked_once(site: Site) -> None:
    await site.stop()
    assert await look(site, *TARGETS) == [Held.OFFLINE]


async def test_a_node_in_trouble_or_talking_nonsense_is_unknown(site: Site) -> None:
    async def broken(_request: Request) -> Response:
        raise RuntimeError("a bug")

    async def nonsense(_request: Request) -> Response:
        return Response(200, b"\xc1")

    async def other_records(_request: Request) -> Response:
        other = sample("another").encoding
        raw = sign(PUBLISHER, ENCODING_TAG, SITES_NETWORK, other.encode())
        return message_response(SegmentReply([b"\xc1", raw], [INDEX]))

    for handler in (broken, nonsense, other_records):
        site.lies["GET", "/v1/segments/{segment}"] = handler
        assert await look(site, TARGETS[0]) == [Held.UNKNOWN]


async def test_a_segment_that_the_ledger_describes_wrongly_is_not_lost(site: Site) -> None:
    runs = runs_of(ONE.encoding)
    for facts in (SegmentFacts(ONE.encoding.root(), runs[::-1], 2), SegmentFacts(bytes(32), runs, 2)):
        assert await look(site, TARGETS[0], facts=facts) == [Held.UNKNOWN]
    wider = (changed(runs[0], slot_bytes=30_000), *runs[1:])
    assert await look(site, TARGETS[0], facts=SegmentFacts(ONE.encoding.root(), wider, 2)) == [Held.UNKNOWN]

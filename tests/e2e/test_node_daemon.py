"""A storage node as others meet it: real processes, a real client, and what must hold whatever happens to either."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from dds.primitives.cid import CID, cid_of, cid_text
from dds.primitives.errors import ConfigError, PeerRefused, PeerUnreachable
from dds.primitives.ids import id_text
from dds.primitives.keys import SigningKey
from dds.primitives.units import LEAF_BYTES, MIB
from dds.runtime.node import open_node
from dds.storage.home import NodeHome, parse_host_port
from dds.transport.client import PeerClient
from dds.wire.api import (
    CONTENT_REPLY_BYTES_MAX,
    FRAME_BODY_BYTES_MAX,
    CommitReply,
    CommitRequest,
    ContentReply,
    HoldingReply,
    HoldingRequest,
    LeavesReply,
    LeavesRequest,
    ManifestReply,
    ManifestRequest,
    PeersReply,
    ReadItem,
    ReadRequest,
    SegmentReply,
    StagedReply,
    decode_frames,
)
from dds.wire.codec import decode
from dds.wire.discovery import NODE, open_record
from dds.wire.receipts import Receipt, open_receipt
from tests.e2e.node_process import NETWORK, SMALL_NODE, NodeProcess, client_of
from tests.e2e.sample_share import CREATOR, Share, make_share

pytestmark = pytest.mark.e2e
STRANGER = SigningKey(b"\x07" * 32)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node") / "node") as node:
        yield node


async def _stage(client: PeerClient, node: NodeProcess, share: Share, index: int) -> None:
    for root, data in share.held_by(index).items():
        await client.put(node.id, f"/v1/uploads/{share.upload.hex()}/{root.hex()}", data, timeout_s=10)


async def _commit(client: PeerClient, node: NodeProcess, share: Share, index: int, *, inline: bool = False) -> Receipt:
    carried = list(share.held_by(index).values()) if inline else []
    request = CommitRequest(share.upload, index, share.encoding, carried, share.manifest)
    reply = await client.call(node.id, "/v1/commit", request, CommitReply, max_bytes=4096, timeout_s=10)
    return open_receipt(reply.receipt, NETWORK)


async def _get(client: PeerClient, node: NodeProcess, path: str, **kwargs: tuple[int, int]) -> bytes:
    return await client.get(node.id, path, max_bytes=CONTENT_REPLY_BYTES_MAX, timeout_s=10, **kwargs)


# ---- storing and reading


async def test_what_is_staged_and_committed_is_receipted_and_read_back(node: NodeProcess) -> None:
    share = make_share(3 * MIB, k=2, m=1, network=NETWORK, seed=10)
    async with client_of(node, key=CREATOR) as client:
        await _stage(client, node, share, 1)
        receipt = await _commit(client, node, share, 1)
        held = [record for _, record in share.record.fragments_of(1)]
        assert (receipt.node_id, receipt.segment_id, receipt.index) == (node.id, share.record.segment_id, 1)
        assert (receipt.segment_root, receipt.expires_ms) == (share.record.root(), 0)
        assert receipt.fragment_bytes == sum(record.size for record in held)
        assert receipt.leaf_count == sum(record.leaf_count for record in held)
        for root, data in share.held_by(1).items():
            assert await _get(client, node, f"/v1/fragments/{root.hex()}") == data
            assert await _get(client, node, f"/v1/fragments/{root.hex()}", range=(70_000, 70_100)) == data[70_000:70_100]
        reply = decode(await _get(client, node, f"/v1/segments/{id_text(share.record.segment_id)}"), SegmentReply)
        assert (reply.encodings, reply.indices) == ([share.encoding], [1])


async def test_a_commit_may_be_repeated_and_gives_the_same_receipt(node: NodeProcess) -> None:
    share = make_share(100_000, k=2, m=1, network=NETWORK, seed=11)
    async with client_of(node, key=CREATOR) as client:
        await _stage(client, node, share, 0)
        first = await _commit(client, node, share, 0)
        assert await _commit(client, node, share, 0) == first
        staged = decode(await _get(client, node, f"/v1/uploads/{share.upload.hex()}"), StagedReply)
        assert staged.roots == []


async def test_small_content_is_stored_by_one_request_and_read_by_one(node: NodeProcess) -> None:
    share = make_share(5000, k=1, m=2, network=NETWORK, seed=12)
    async with client_of(node, key=CREATOR) as client:
        await _commit(client, node, share, 2, inline=True)
    async with client_of(node, key=None) as reader:
        reply = decode(await _get(reader, node, f"/v1/content/{cid_text(share.content)}"), ContentReply)
    assert (reply.manifests, reply.encodings) == ([share.manifest], [share.encoding])
    assert [(part.root, part.data) for part in reply.inline] == list(share.held_by(2).items())
    assert reply.inline[0].data.startswith(share.block)


async def test_large_content_is_named_but_not_sent_along(node: NodeProcess) -> None:
    share = make_share(MIB, k=2, m=1, network=NETWORK, seed=13)
    async with client_of(node, key=CREATOR) as client:
        await _stage(client, node, share, 0)
        await _commit(client, node, share, 0)
        reply = decode(await _get(client, node, f"/v1/content/{cid_text(share.content)}"), ContentReply)
    assert (reply.manifests, reply.encodings, reply.inline) == ([share.manifest], [share.encoding], [])


async def test_many_ranges_are_read_at_once_and_what_is_missing_is_absent(node: NodeProcess) -> None:
    share = make_share(60_000, k=1, m=1, network=NETWORK, seed=14)
    async with client_of(node, key=CREATOR) as client:
        await _commit(client, node, share, 0, inline=True)
        ((root, data),) = share.held_by(0).items()
        items = [ReadItem(root, 5, 100), ReadItem(b"\x00" * 32, 0, 10), ReadItem(root, 0, len(data))]
        raw = await _post(node, "/v1/read", msgspec.msgpack.encode(ReadRequest(items)))
        assert raw[0] == 200
        assert [None if frame is None else bytes(frame) for frame in decode_frames(raw[1])] == [data[5:105], None, data]


async def test_leaves_come_with_paths_that_hold(node: NodeProcess) -> None:
    from dds.primitives.merkle import leaf_hash, verify_path

    share = make_share(50_000, k=1, m=1, network=NETWORK, seed=15)
    async with client_of(node, key=CREATOR) as client:
        await _commit(client, node, share, 0, inline=True)
        ((root, data),) = share.held_by(0).items()
        request = LeavesRequest(root, 3, 2)
        reply = await client.call(node.id, "/v1/leaves", request, LeavesReply, max_bytes=MIB, timeout_s=10)
        count = -(-len(data) // LEAF_BYTES)
        assert reply.size == len(data)
        for at, (leaf, path) in enumerate(zip(reply.leaves, reply.paths, strict=True), 3):
            assert leaf == data[at * LEAF_BYTES : (at + 1) * LEAF_BYTES]
            assert verify_path(leaf_hash(leaf), at, count, path, root)
        with pytest.raises(PeerRefused):
            await client.call(node.id, "/v1/leaves", LeavesRequest(root, count, 1), LeavesReply, max_bytes=MIB, timeout_s=10)


async def test_the_newest_manifest_of_a_publisher_wins_and_needs_a_segment_here(node: NodeProcess) -> None:
    share = make_share(2000, k=1, m=1, network=NETWORK, seed=16, created_ms=500)
    newer = make_share(2000, k=1, m=1, network=NETWORK, seed=16, created_ms=900)
    older = make_share(2000, k=1, m=1, network=NETWORK, seed=16, created_ms=100)

    async def offer(raw: bytes) -> bool:
        reply = await client.call(node.id, "/v1/manifests", ManifestRequest(raw), ManifestReply, max_bytes=1024, timeout_s=10)
        return reply.kept

    async with client_of(node, key=CREATOR) as client:
        with pytest.raises(PeerRefused) as refused:
            await offer(share.manifest)
        assert (refused.value.status, refused.value.remote_code) == (400, "input")
        await _commit(client, node, share, 0, inline=True)
        assert [await offer(newer.manifest), await offer(older.manifest), await offer(newer.manifest)] == [True, False, True]
        reply = decode(await _get(client, node, f"/v1/content/{cid_text(share.content)}"), ContentReply)
        assert reply.manifests == [newer.manifest]


async def test_a_node_says_which_segments_it_holds(node: NodeProcess) -> None:
    share = make_share(3000, k=1, m=2, network=NETWORK, seed=17)
    async with client_of(node, key=CREATOR) as client:
        await _commit(client, node, share, 1, inline=True)
        request = HoldingRequest([share.record.segment_id, b"\x05" * 32])
        reply = await client.call(node.id, "/v1/segments", request, HoldingReply, max_bytes=4096, timeout_s=10)
    assert reply.indices == [[1], []]


# ---- refusals


async def test_only_authenticated_peers_write(node: NodeProcess) -> None:
    share = make_share(1000, k=1, m=1, network=NETWORK, seed=20)
    async with client_of(node, key=None) as client:
        for attempt in (_stage(client, node, share, 0), _commit(client, node, share, 0, inline=True)):
            with pytest.raises(PeerRefused) as refused:
                await attempt
            assert (refused.value.status, refused.value.remote_code) == (401, "unauthenticated")


async def test_a_fragment_under_a_wrong_root_is_refused_and_not_kept(node: NodeProcess) -> None:
    upload = "aa" * 16
    async with client_of(node, key=CREATOR) as client:
        with pytest.raises(PeerRefused) as refused:
            await client.put(node.id, f"/v1/uploads/{upload}/{'00' * 32}", b"other bytes", timeout_s=10)
        assert (refused.value.status, refused.value.remote_code) == (422, "integrity")
        assert decode(await _get(client, node, f"/v1/uploads/{upload}"), StagedReply).roots == []


async def test_too_large_a_fragment_is_refused(node: NodeProcess) -> None:
    async with client_of(node, key=CREATOR) as client:
        with pytest.raises(PeerRefused) as refused:
            await client.put(node.id, f"/v1/uploads/{'aa' * 16}/{'00' * 32}", bytes(MIB + 1), timeout_s=10)
        assert (refused.value.status, refused.value.remote_code) == (413, "too-large")


async def test_a_commit_of_what_was_never_staged_is_refused(node: NodeProcess) -> None:
    share = make_share(2 * MIB, k=2, m=1, network=NETWORK, seed=21)
    async with client_of(node, key=CREATOR) as client:
        with pytest.raises(PeerRefused) as refused:
            await _commit(client, node, share, 0)
    assert (refused.value.status, refused.value.remote_code) == (404, "not-found")


async def test_what_one_peer_staged_another_cannot_commit_or_discard(node: NodeProcess) -> None:
    share = make_share(200_000, k=2, m=1, network=NETWORK, seed=22)
    async with client_of(node, key=CREATOR) as creator, client_of(node, key=STRANGER) as stranger:
        await _stage(creator, node, share, 0)
        with pytest.raises(PeerRefused):
            await _commit(stranger, node, share, 0)
        await _delete(STRANGER, node, f"/v1/uploads/{share.upload.hex()}")
        await _commit(creator, node, share, 0)


async def test_a_commit_is_checked_before_anything_is_kept(node: NodeProcess) -> None:
    share = make_share(1000, k=1, m=1, network=NETWORK, seed=23)
    other = make_share(1000, k=1, m=1, network=NETWORK, seed=24)
    alien = make_share(1000, k=1, m=1, network="elsewhere", seed=23)
    fragment = list(share.held_by(0).values())
    wrong = {
        "integrity": CommitRequest(share.upload, 0, alien.encoding, fragment, None),
        "format": CommitRequest(b"short", 0, share.encoding, fragment, None),
        "input": CommitRequest(share.upload, 2, share.encoding, fragment, None),
        "limit": CommitRequest(share.upload, 0, share.encoding, [bytes(MIB)], None),
    }
    foreign = [
        CommitRequest(share.upload, 0, share.encoding, list(other.held_by(0).values()), None),
        CommitRequest(share.upload, 0, share.encoding, fragment, other.manifest),
        CommitRequest(share.upload, 0, share.encoding, fragment, alien.manifest),
    ]
    async with client_of(node, key=CREATOR) as client:
        for request in (*wrong.values(), *foreign):
            with pytest.raises(PeerRefused) as refused:
                await client.call(node.id, "/v1/commit", request, CommitReply, max_bytes=4096, timeout_s=10)
            assert 400 <= refused.value.status < 500
            assert request not in wrong.values() or refused.value.remote_code == _key_of(wrong, request)
        with pytest.raises(PeerRefused):
            await _get(client, node, f"/v1/segments/{id_text(share.record.segment_id)}")


def _key_of(wrong: dict[str, CommitRequest], request: CommitRequest) -> str:
    return next(code for code, candidate in wrong.items() if candidate is request)


async def test_a_full_node_says_so(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "full", capacity_bytes=12 * MIB) as node:
        async with client_of(node, key=CREATOR) as client:
            codes = []
            for seed in range(30, 44):
                share = make_share(MIB - 100, k=1, m=0, network=NETWORK, seed=seed)
                try:
                    await _stage(client, node, share, 0)
                    await _commit(client, node, share, 0)
                except PeerRefused as refused:
                    codes.append((refused.status, refused.remote_code))
            assert codes
            assert set(codes) == {(507, "disk-full")}
            assert json.loads(await _get(client, node, "/healthz"))["ready"] is True


async def test_uploads_that_never_commit_are_bounded(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "quota", capacity_bytes=16 * MIB) as node:
        async with client_of(node, key=CREATOR) as client:
            for seed in range(50, 54):  # a quarter of the capacity, to the last fragment
                await _stage(client, node, make_share(MIB - 100, k=1, m=0, network=NETWORK, seed=seed), 0)
            with pytest.raises(PeerRefused) as refused:
                await _stage(client, node, make_share(MIB - 100, k=1, m=0, network=NETWORK, seed=54), 0)
            assert (refused.value.status, refused.value.remote_code) == (429, "limit")
            await _delete(CREATOR, node, f"/v1/uploads/{(50).to_bytes(16, 'big').hex()}")
            await _stage(client, node, make_share(MIB - 100, k=1, m=0, network=NETWORK, seed=60), 0)
            await _commit(client, node, make_share(MIB - 100, k=1, m=0, network=NETWORK, seed=51), 0)
            await _stage(client, node, make_share(MIB - 100, k=1, m=0, network=NETWORK, seed=61), 0)
            node.kill()
            node.start()
            for seed in (52, 53, 60, 61):  # what was staged before counts again from its upload's next use on
                with suppress(PeerRefused):
                    await _stage(client, node, make_share(1000, k=1, m=0, network=NETWORK, seed=seed), 0)
            with pytest.raises(PeerRefused) as refused:
                await _stage(client, node, make_share(MIB - 100, k=1, m=0, network=NETWORK, seed=62), 0)
            assert refused.value.status == 429


# ---- life and death


async def test_what_was_acknowledged_survives_a_kill_in_the_middle_of_an_upload(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "killed") as node:
        done = make_share(2 * MIB, k=2, m=1, network=NETWORK, seed=70)
        address, identity = node.address, node.id
        acknowledged: set[bytes] = set()
        async with client_of(node, key=CREATOR) as client:
            await _stage(client, node, done, 0)
            await _commit(client, node, done, 0)
            upload = asyncio.create_task(_stage_until_it_fails(client, node, acknowledged))
            while len(acknowledged) < 5:
                await asyncio.sleep(0.005)
            node.kill()
            await upload
        node.start()
        assert (node.address, node.id) == (address, identity)
        async with client_of(node, key=CREATOR) as client:
            for root, data in done.held_by(0).items():
                assert await _get(client, node, f"/v1/fragments/{root.hex()}") == data
            staged = decode(await _get(client, node, f"/v1/uploads/{'bb' * 16}"), StagedReply)
            assert acknowledged <= set(staged.roots)
        assert node.stop() == 0


async def _stage_until_it_fails(client: PeerClient, node: NodeProcess, acknowledged: set[bytes]) -> None:
    target = node.id
    for seed in range(1000, 2000):
        share = make_share(200_000, k=1, m=0, network=NETWORK, seed=seed)
        ((root, data),) = share.held_by(0).items()
        try:
            await client.put(target, f"/v1/uploads/{'bb' * 16}/{root.hex()}", data, timeout_s=10)
        except PeerUnreachable:
            return
        acknowledged.add(root)
    raise AssertionError("the node was never killed")


async def test_a_stop_finishes_the_request_that_is_under_way_and_takes_no_new_one(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "stopped") as node:
        share = make_share(300_000, k=1, m=0, network=NETWORK, seed=80)
        ((root, data),) = share.held_by(0).items()
        path = f"/v1/uploads/{share.upload.hex()}/{root.hex()}"
        reader, writer = await _dial(node, CREATOR)
        writer.write(f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data[:1000])
        await writer.drain()
        await _until_in_flight(node)
        address = node.address
        node.signal(signal.SIGTERM)
        await _until_refused(address)
        writer.write(data[1000:])
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert answer.startswith(b"HTTP/1.1 201 ")
        assert await asyncio.to_thread(node.wait) == 0
        assert node.files.read_state() is None
        assert '"event": "stopped"' in node.log_text()
        node.start()
        async with client_of(node, key=CREATOR) as client:
            assert await _get(client, node, f"/v1/fragments/{root.hex()}") == data
        assert node.stop() == 0


async def test_a_second_signal_ends_the_node_at_once(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "twice") as node:
        _, writer = await _dial(node, CREATOR)
        writer.write(
            b"PUT /v1/uploads/" + b"aa" * 16 + b"/" + b"00" * 32 + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"
        )
        await writer.drain()
        await _until_in_flight(node)
        address = node.address
        node.signal(signal.SIGINT)
        await _until_refused(address)
        node.signal(signal.SIGINT)
        assert await asyncio.to_thread(node.wait, 2.0) == 128 + signal.SIGINT
        writer.close()


def test_a_node_whose_stdin_closes_goes_on_and_needs_no_terminal(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "node") as node:  # started with stdin at its end
        assert node.process.poll() is None
        assert node.stop() == 0


def test_bad_configuration_ends_with_code_2_and_a_reason(tmp_path: Path) -> None:
    node = NodeProcess(tmp_path / "bad", host="localhost")
    argv = [sys.executable, "-m", "dds.runtime.daemon", "--home", str(node.files.root)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 2
    assert "host must be an IP address" in ended.stderr


async def test_two_processes_never_share_a_store(node: NodeProcess) -> None:
    argv = [sys.executable, "-m", "dds.runtime.daemon", "--home", str(node.files.root)]
    ended = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 2
    assert node.state.pid == node.process.pid


# ---- hostile


async def test_hostile_requests_do_not_hurt(node: NodeProcess) -> None:
    host, port = node.address
    for payload in (b"\x00" * 2000, b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000)):
        _, writer = await asyncio.open_connection(host, port)
        writer.write(payload)
        await writer.drain()
        writer.close()
    hostile = [
        *(f"/v1/fragments/{name}" for name in ("", "zz", "00" * 31, "0" * 63 + "é", "%00" * 32, "..%2f..%2fetc%2fpasswd")),
        *("/v1/content/bafynotacid", "/v1/segments/UPPER", f"/v1/segments/{'a' * 52}", "/v1/blocks/x", "//", "/v1/uploads/aa"),
    ]
    async with client_of(node, key=STRANGER) as client:
        for path in hostile:
            with pytest.raises(PeerRefused) as refused:
                await _get(client, node, path.encode("ascii", "ignore").decode())
            assert 400 <= refused.value.status < 500, path
        for path in ("/v1/commit", "/v1/manifests", "/v1/segments", "/v1/leaves", "/v1/read", f"/v1/uploads/{'aa' * 16}"):
            for body in (b"", b"\xc1", b"\x91" * 900, b"\xdd\xff\xff\xff\xff", b"\xff\xff\xff\xff", os.urandom(300)):
                assert 400 <= (await _post(node, path, body))[0] < 500, (path, body[:4])
        greedy = ReadRequest([ReadItem(b"\x00" * 32, 0, FRAME_BODY_BYTES_MAX), ReadItem(b"\x00" * 32, 0, 1)])
        assert (await _post(node, "/v1/read", msgspec.msgpack.encode(greedy)))[0] == 429
        health = json.loads(await _get(client, node, "/healthz"))
    assert health["ready"] is True
    assert '"traceback"' not in node.log_text()


# ---- what a node says of itself


async def test_an_origin_may_serve_blocks_and_others_have_none(tmp_path: Path) -> None:
    config = replace(SMALL_NODE, roles=("origin",))
    block = b"a block of the origin's"

    async def source(cid: CID) -> bytes | None:
        return block if cid == cid_of(block) else None

    files = NodeHome(tmp_path / "home" / "node")
    files.root.mkdir(mode=0o700, parents=True)
    async with open_node(config, files) as node, PeerClient(None, network=NETWORK) as client:
        host, port = parse_host_port(node.addresses[0])
        client.learn(node.node_id, [(host, port)])
        path = f"/v1/blocks/{cid_text(cid_of(block))}"
        with pytest.raises(PeerRefused) as refused:
            await client.get(node.node_id, path, max_bytes=MIB, timeout_s=5)
        assert refused.value.status == 404
        node.routes.serve_blocks(source)
        assert await client.get(node.node_id, path, max_bytes=MIB, timeout_s=5) == block


async def test_an_origin_outside_a_home_is_refused(tmp_path: Path) -> None:
    files = NodeHome(tmp_path / "anywhere")
    files.root.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="home"):
        async with open_node(replace(SMALL_NODE, roles=("ssn", "origin")), files):
            pass


def test_a_daemon_carries_no_heavy_library() -> None:
    heavy = "{'numpy', 'rich', 'typer', 'cryptography', 'zstandard', 'pyeclib', 'psutil'}"
    code = f"import sys, dds.runtime.daemon, dds.runtime.node; sys.exit(str({heavy} & set(sys.modules) or ''))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert ended.stderr.strip() == ""


async def test_health_metrics_and_the_node_record_are_open_to_all(node: NodeProcess) -> None:
    async with client_of(node, key=None) as client:
        health = json.loads(await _get(client, node, "/healthz"))
        page = (await _get(client, node, "/metrics")).decode()
        record = open_record(await _get(client, node, "/v1/node"), NODE, NETWORK)
        peers = decode(await _get(client, node, "/v1/peers"), PeersReply)
    assert (health["ready"], health["node"], health["dht"]) == (True, node.state.id, True)
    for line in (
        'dds_requests_total{route="GET /healthz",status="200"}',
        "dds_fsync_seconds_count",
        'dds_store_bytes{kind="staged"}',
    ):
        assert line in page
    assert (record.node_id, record.addresses, record.roles) == (node.id, [node.state.address], ["ssn"])
    assert record.dht == node.state.dht_address
    assert [open_record(raw, NODE, NETWORK).node_id for raw in peers.records] == [node.id]


async def test_used_space_in_the_metrics_adds_up_to_the_capacity(node: NodeProcess) -> None:
    async with client_of(node, key=None) as client:
        page = (await _get(client, node, "/metrics")).decode()
    values = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    used = sum(int(value) for name, value in values.items() if name.startswith("dds_store_bytes{"))
    assert used + int(values["dds_store_free_bytes"]) == int(values["dds_store_capacity_bytes"])


async def test_nodes_that_are_bootstrapped_learn_of_each_other(tmp_path: Path, node: NodeProcess) -> None:
    with (
        NodeProcess(tmp_path / "second", **node.bootstrap) as second,
        NodeProcess(tmp_path / "third", **node.bootstrap) as third,
    ):
        async with client_of(second, third, key=None) as client, asyncio.timeout(15):
            while len(await _peers_of(client, third)) < 3 or len(await _peers_of(client, second)) < 3:
                await asyncio.sleep(0.2)
            assert await _peers_of(client, third) == {node.id, second.id, third.id}
        assert (second.stop(), third.stop()) == (0, 0)


async def _peers_of(client: PeerClient, node: NodeProcess) -> set[bytes]:
    reply = decode(await _get(client, node, "/v1/peers"), PeersReply)
    return {open_record(raw, NODE, NETWORK).node_id for raw in reply.records}


async def test_memory_stays_small_when_fresh_and_after_hundreds_of_mebibytes(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "measured") as node:
        assert node.resident_bytes() < 80 * MIB
        async with client_of(node, key=CREATOR) as client:
            target, upload = node.id, "cc" * 16
            blocks = [_numbered(number) for number in range(8)]
            for batch in range(30):
                fresh = [_numbered(batch * 8 + at, block) for at, block in enumerate(blocks)]
                await asyncio.gather(
                    *(client.put(target, f"/v1/uploads/{upload}/{root}", data, timeout_s=30) for root, data in fresh)
                )
                if batch % 4 == 0:
                    paths = [f"/v1/fragments/{root}" for root, _ in fresh]
                    got = await asyncio.gather(*(client.get(target, path, max_bytes=MIB, timeout_s=30) for path in paths))
                    assert got == [data for _, data in fresh]
        assert node.resident_bytes() < 140 * MIB
        assert node.stop() == 0


def _numbered(number: int, data: tuple[str, bytes] | None = None) -> tuple[str, bytes]:
    from dds.primitives.merkle import leaf_hashes, root_of

    raw = number.to_bytes(8, "big") + (os.urandom(MIB - 8) if data is None else data[1][8:])
    return root_of(leaf_hashes(raw, LEAF_BYTES)).hex(), raw


async def test_an_idle_node_costs_nearly_nothing(tmp_path: Path) -> None:
    with NodeProcess(tmp_path / "idle") as node:
        await asyncio.sleep(1.0)
        before = node.cpu_s()
        await asyncio.sleep(3.0)
        assert node.cpu_s() - before < 0.06


# ---- raw exchanges


async def _dial(node: NodeProcess, key: SigningKey | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    from dds.transport.certificate import host_name
    from dds.transport.tls import client_context

    return await asyncio.open_connection(*node.address, ssl=client_context(key), server_hostname=host_name(node.id))


async def _exchange(node: NodeProcess, key: SigningKey | None, head: str, body: bytes = b"") -> tuple[int, bytes]:
    reader, writer = await _dial(node, key)
    writer.write(f"{head} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    status, _, rest = answer.partition(b"\r\n")
    return int(status.split()[1]), rest.partition(b"\r\n\r\n")[2]


async def _post(node: NodeProcess, path: str, body: bytes) -> tuple[int, bytes]:
    return await _exchange(node, CREATOR, f"POST {path}", body)


async def _delete(key: SigningKey, node: NodeProcess, path: str) -> None:
    status, _ = await _exchange(node, key, f"DELETE {path}")
    assert status == 200


async def _until_in_flight(node: NodeProcess) -> None:
    """Until the node is reading a request other than the one that asks."""
    async with asyncio.timeout(5), client_of(node, key=None) as client:
        while "dds_requests_in_flight 2" not in (await _get(client, node, "/metrics")).decode():
            await asyncio.sleep(0.01)


async def _until_refused(address: tuple[str, int]) -> None:
    """Until nobody listens there any more."""
    async with asyncio.timeout(5):
        while True:
            try:
                _, writer = await asyncio.open_connection(*address)
            except OSError:
                return
            writer.close()
            await asyncio.sleep(0.01)

"""A segment's sender over real servers: what is left when it is stopped, and what it does not take for a receipt."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dds.erasure.segment_builder import ClosedSegment, SegmentBuilder
from dds.placement.draw import Draw
from dds.primitives.cid import cid_of
from dds.primitives.errors import NotEnoughNodes, UnavailableError
from dds.primitives.ids import UploadID
from dds.runtime.network import Network
from dds.runtime.segment_sender import SegmentSender
from dds.transport.routes import Request, Response, message_response
from dds.wire.api import CommitReply, CommitRequest
from dds.wire.codec import decode
from dds.wire.receipts import Receipt, sign_receipt
from dds.wire.segment import ENCODING_TAG, decode_encoding
from dds.wire.signed import open_signed, sign
from tests.discovery_samples import NETWORK
from tests.node_sites import PUBLISHER, Site, reader, sites

K, M = 2, 2
UPLOAD = UploadID(b"u" * 16)


async def hang(request: Request) -> Response:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def closed_segment() -> ClosedSegment:
    builder, data = SegmentBuilder(K, M, "custom"), random.Random(2).randbytes(200_000)
    assert not builder.add(cid_of(data), data)
    return builder.close()


@asynccontextmanager
async def sending(nodes: list[Site], network: Network, directory: Path, spares: int = 0) -> AsyncIterator[SegmentSender]:
    ids = [node.node_id for node in nodes]
    draw = Draw(tuple(ids[: K + M]), tuple(ids[K + M : K + M + spares]), ())
    sender = SegmentSender(network, draw, UPLOAD, directory / "spool")
    try:
        yield sender
    finally:
        await sender.cancel()


async def finish(sender: SegmentSender, closed: ClosedSegment) -> None:
    await sender.finish(closed.record, sign(PUBLISHER, ENCODING_TAG, NETWORK, closed.record.encode()), None)


async def test_a_sender_whose_finish_was_cancelled_is_ended_in_order(tmp_path: Path) -> None:
    closed = closed_segment()
    async with sites(tmp_path, K + M) as nodes, reader(nodes) as network:
        for node in nodes:
            node.lies["POST", "/v1/commit"] = hang
        async with sending(nodes, network, tmp_path) as sender:
            await sender.add(closed.stripes[0])
            finishing = asyncio.create_task(finish(sender, closed))
            await asyncio.sleep(0.1)
            finishing.cancel()
            assert (await asyncio.gather(finishing, return_exceptions=True))[0].__class__ is asyncio.CancelledError
            await sender.cancel()  # raised CancelledError itself once, and left the spool open
            with pytest.raises(UnavailableError, match="stopped"):
                await sender.add(closed.stripes[0])
            assert not sender._tasks.get((0, nodes[0].node_id)), "nothing is sent any more"


async def test_a_fault_of_ours_ends_a_segment_instead_of_hanging_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = closed_segment()

    async def broken(sender: SegmentSender, *_: object) -> bytes:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(SegmentSender, "_fragment", broken)
    async with sites(tmp_path, K + M) as nodes, reader(nodes) as network, sending(nodes, network, tmp_path) as sender:
        await sender.add(closed.stripes[0])
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(finish(sender, closed), 5)


@pytest.mark.parametrize(("contract", "expires_ms"), [(b"another", 0), (b"", 1)])
async def test_a_receipt_for_another_contract_or_expired_is_none(tmp_path: Path, contract: bytes, expires_ms: int) -> None:
    closed = closed_segment()
    async with sites(tmp_path, K + M) as nodes, reader(nodes) as network, sending(nodes, network, tmp_path) as sender:
        cheat = nodes[1]

        async def commit(request: Request) -> Response:
            asked = decode(request.body, CommitRequest)
            record = decode_encoding(open_signed(asked.encoding, ENCODING_TAG, NETWORK, max_bytes=1 << 20).payload)
            held = [fragment for _, fragment in record.fragments_of(asked.index)]
            size, leaves = sum(each.size for each in held), sum(each.leaf_count for each in held)
            named = (record.segment_id, record.root(), asked.index, cheat.node_id, size, leaves)
            return message_response(CommitReply(sign_receipt(cheat.key, Receipt(1, NETWORK, contract, *named, expires_ms))))

        cheat.lies["POST", "/v1/commit"] = commit
        await sender.add(closed.stripes[0])
        with pytest.raises(NotEnoughNodes, match="broke the protocol"):
            await finish(sender, closed)

"""The peer interface of a node: HTTP requests to calls of NodeService, and back.

Decides who may do what, the bound of every body, what runs in a worker thread and what is counted. Does not decide what a
message must satisfy (node_service.py), what becomes of errors (transport.routes) nor how bytes lie on disk.

Everything that touches the disk runs in a small pool of threads: a slow disk delays the requests that need it, never the event
loop. A write that its client gives up still ends in the pool, so quotas are settled there and not in the request.

Source: docs/spec/wire.md.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from dds.primitives.cid import CID, cid_text, parse_cid
from dds.primitives.errors import InputError, LimitError, NotFoundError, PaymentRequired
from dds.primitives.ids import ID_BYTES, UPLOAD_ID_BYTES, FragmentRoot, NodeID, SegmentID, UploadID, parse_id
from dds.primitives.units import BLOCK_BYTES_MAX, KIB
from dds.runtime.metrics import CONTENT_TYPE as METRICS_TYPE
from dds.runtime.node_service import NodeService, Receipted
from dds.runtime.staging import Staged, StagingQuota
from dds.transport.routes import Request, Response, Route, message_response, ranged_response, requested_span, rpc_route
from dds.wire.api import (
    COMMIT_BYTES_MAX,
    CONTENT_REPLY_BYTES_MAX,
    FRAGMENT_BODY_BYTES_MAX,
    FRAME_BODY_BYTES_MAX,
    FRAMES_MAX,
    LEAVES_MAX,
    PEERS_MAX,
    PEERS_REPLY_BYTES_MAX,
    SEGMENT_REPLY_BYTES_MAX,
    SEGMENTS_PER_QUERY_MAX,
    SMALL_REQUEST_BYTES_MAX,
    CommitReply,
    CommitRequest,
    HoldingReply,
    HoldingRequest,
    LeavesReply,
    LeavesRequest,
    ManifestReply,
    ManifestRequest,
    PaidCommitRequest,
    PeersReply,
    ReadRequest,
    StagedReply,
    StageManyReply,
    decode_frames,
    encode_frames,
)
from dds.wire.codec import decode
from dds.wire.manifest import SIGNED_MANIFEST_BYTES_MAX, Manifest
from dds.wire.retrieval import PopularityReply, PopularityRequest

if TYPE_CHECKING:
    from dds.runtime.admission import Admission
    from dds.runtime.popularity import PopularityCounter
    from dds.runtime.reading_port import ReadingMeter

FRAMES_BYTES_MAX = FRAME_BODY_BYTES_MAX + 4 * (FRAMES_MAX + 1)
MANIFEST_REQUEST_BYTES_MAX = SIGNED_MANIFEST_BYTES_MAX + KIB
STAGED_REPLY_BYTES_MAX = 256 * KIB
LEAVES_REPLY_BYTES_MAX = FRAGMENT_BODY_BYTES_MAX + LEAVES_MAX * 16 * (ID_BYTES + 2) + 4 * KIB
METRICS_REPLY_BYTES_MAX = 128 * KIB
READ_REQUEST_BYTES_MAX = FRAMES_MAX * (ID_BYTES + 24) + KIB

TICKET_BYTES_MAX = 64 * KIB

BlockSource = Callable[[CID], Awaitable[bytes | None]]
ContentCounts = Callable[[Sequence[bytes]], list[int]]  # bytes served of each content, fading
Params = ParamSpec("Params")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NodeFaces:
    """What the routes show of the daemon around them. All are called in the event loop and must be quick."""

    record: Callable[[], bytes]  # the node's own signed record as it is now
    peers: Callable[[], list[bytes]]  # signed records of other nodes
    health: Callable[[], dict[str, object]]  # "ready" says whether the node serves
    metrics: Callable[[], Awaitable[str]]  # the Prometheus page
    committed: Callable[[Receipted], None]  # a share of a segment has become durable
    published: Callable[[Manifest], None]  # a manifest has
    admission: Admission | None = None  # of a node that is paid
    meter: ReadingMeter | None = None  # of a node that is paid for reads
    popularity: PopularityCounter | None = None  # of a node that keeps fragments for others
    reserved: Callable[[Receipted, bytes], None] | None = (
        None  # of a paid node: a share was committed for a reservation; blocks
    )


class NodeRoutes:
    """The handlers of one node."""

    def __init__(self, service: NodeService, pool: Executor, quota: StagingQuota, faces: NodeFaces) -> None:
        self._service, self._pool, self._quota, self._faces = service, pool, quota, faces
        self._block_sources: tuple[BlockSource, ...] = ()
        self._content_bytes: ContentCounts = lambda contents: [0] * len(contents)

    def serve_blocks(self, *sources: BlockSource) -> None:
        """Let an origin and an edge answer GET /v1/blocks/{cid} from what they keep: the first that has the block. Each gives
        None for one that it has not."""
        self._block_sources = sources

    def count_contents(self, counts: ContentCounts) -> None:
        """Let an edge answer how much of a content it served."""
        self._content_bytes = counts

    def routes(self, *, stores: bool = True) -> list[Route]:
        """All routes; a node that keeps nothing for others has none to write by."""
        return [*self._open_routes(), *(self._write_routes() if stores else []), *self._read_routes()]

    def _open_routes(self) -> list[Route]:
        return [
            Route("GET", "/healthz", self._get_health),
            Route("GET", "/metrics", self._get_metrics, max_reply_bytes=METRICS_REPLY_BYTES_MAX),
            Route("GET", "/v1/node", self._get_node),
            Route("GET", "/v1/peers", self._get_peers, max_reply_bytes=PEERS_REPLY_BYTES_MAX),
        ]

    def _write_routes(self) -> list[Route]:
        upload, fragment = "/v1/uploads/{upload}", "/v1/uploads/{upload}/{root}"
        manifest_max = MANIFEST_REQUEST_BYTES_MAX
        return [
            Route("PUT", fragment, self._put_fragment, FRAGMENT_BODY_BYTES_MAX, peer_required=True),
            Route("POST", upload, self._post_fragments, FRAMES_BYTES_MAX, peer_required=True),
            Route("GET", upload, self._get_upload, max_reply_bytes=STAGED_REPLY_BYTES_MAX, peer_required=True),
            Route("DELETE", upload, self._delete_upload, peer_required=True),
            rpc_route("/v1/commit", CommitRequest, self._commit, max_body_bytes=COMMIT_BYTES_MAX, peer_required=True),
            rpc_route(
                "/v1/commit/paid",
                PaidCommitRequest,
                self._commit_paid,
                max_body_bytes=COMMIT_BYTES_MAX + TICKET_BYTES_MAX,
                peer_required=True,
            ),
            rpc_route("/v1/manifests", ManifestRequest, self._manifest, max_body_bytes=manifest_max, peer_required=True),
        ]

    def _read_routes(self) -> list[Route]:
        small = SMALL_REQUEST_BYTES_MAX
        return [
            Route("GET", "/v1/content/{cid}", self._get_content, max_reply_bytes=CONTENT_REPLY_BYTES_MAX),
            Route("GET", "/v1/segments/{segment}", self._get_segment, max_reply_bytes=SEGMENT_REPLY_BYTES_MAX),
            rpc_route("/v1/segments", HoldingRequest, self._holding, max_body_bytes=small, max_reply_bytes=small),
            self._metered(Route("GET", "/v1/fragments/{root}", self._get_fragment, max_reply_bytes=FRAGMENT_BODY_BYTES_MAX)),
            self._metered(Route("POST", "/v1/read", self._read, READ_REQUEST_BYTES_MAX, FRAMES_BYTES_MAX)),
            self._metered(
                rpc_route("/v1/leaves", LeavesRequest, self._leaves, max_body_bytes=KIB, max_reply_bytes=LEAVES_REPLY_BYTES_MAX)
            ),
            self._metered(Route("GET", "/v1/blocks/{cid}", self._get_block, max_reply_bytes=BLOCK_BYTES_MAX)),
            rpc_route("/v1/popularity", PopularityRequest, self._popularity, max_body_bytes=small, max_reply_bytes=small),
        ]

    def _metered(self, route: Route) -> Route:
        """The route of stored bytes, as a node that is paid for reads serves it; of any other as it is."""
        meter = self._faces.meter
        if meter is None:
            return route

        async def handle(request: Request) -> Response:
            meter.admit(request)
            response = await route.handler(request)
            if response.status < 300:
                meter.served(request, len(response.body))
            return response

        return replace(route, handler=handle)

    # ---- the node itself

    async def _get_health(self, _request: Request) -> Response:
        health = self._faces.health()
        return Response(200 if health["ready"] else 503, json.dumps(health).encode(), "application/json")

    async def _get_metrics(self, _request: Request) -> Response:
        return Response(200, (await self._faces.metrics()).encode(), METRICS_TYPE)

    async def _get_node(self, _request: Request) -> Response:
        return Response(200, self._faces.record())

    async def _get_peers(self, _request: Request) -> Response:
        records, room = [], PEERS_REPLY_BYTES_MAX
        for record in self._faces.peers()[:PEERS_MAX]:
            room -= len(record) + 8
            if room < KIB:
                break
            records.append(record)
        return message_response(PeersReply(records))

    # ---- writing

    async def _put_fragment(self, request: Request) -> Response:
        peer, upload = _writer(request), _upload(request)
        root = FragmentRoot(_hex(request.params["root"], ID_BYTES, "fragment root"))
        if not request.body:
            raise InputError("a fragment has at least one byte")
        await self._stage(peer, upload, [request.body], partial(self._service.stage, peer, upload, root, request.body))
        return Response(201)

    async def _post_fragments(self, request: Request) -> Response:
        peer, upload = _writer(request), _upload(request)
        fragments = [bytes(frame) for frame in decode_frames(request.body) if frame]
        roots = await self._stage(peer, upload, fragments, partial(self._service.stage_many, peer, upload, fragments))
        return message_response(StageManyReply(list(roots)))

    async def _stage(self, peer: NodeID, upload: UploadID, fragments: list[bytes], stage: Callable[[], T]) -> T:
        """Stage within the peer's quota. The store's answer settles the quota even if the client has gone by then."""
        before = Staged() if self._quota.knows(peer, upload) else await self._run(self._service.left, peer, upload)
        wanted = Staged(sum(map(len, fragments)), len(fragments))
        self._quota.take(peer, upload, wanted, self._now(), before=before)
        work = asyncio.get_running_loop().run_in_executor(self._pool, stage)
        work.add_done_callback(lambda done: self._quota.landed(peer, upload, wanted, kept=done.exception() is None))
        return await asyncio.shield(work)

    async def _get_upload(self, request: Request) -> Response:
        roots = await self._run(self._service.staged, _writer(request), _upload(request))
        return message_response(StagedReply(list(roots)))

    async def _delete_upload(self, request: Request) -> Response:
        peer, upload = _writer(request), _upload(request)
        mark = self._quota.mark(peer, upload)
        left = await self._run(self._service.discard, peer, upload)
        self._quota.correct(peer, upload, left, mark)
        return Response(200)

    async def _commit(self, request: Request, message: CommitRequest) -> CommitReply:
        if self._faces.admission is not None:
            raise PaymentRequired(
                "this node is paid by the ledger: it stores what a reservation gave it", hint="name the ledger in config.toml"
            )
        return await self._make_permanent(request, message, None)

    async def _commit_paid(self, request: Request, message: PaidCommitRequest) -> CommitReply:
        admission, commit = self._faces.admission, message.commit
        if admission is None:
            raise InputError("this node is not paid: it knows no ledger", hint="it must name one in node.toml")
        bytes_max = await admission.check(_writer(request), commit, message.ticket)
        return await self._make_permanent(request, commit, bytes_max)

    async def _make_permanent(self, request: Request, message: CommitRequest, bytes_max: int | None) -> CommitReply:
        peer, upload = _writer(request), UploadID(message.upload)
        mark = self._quota.mark(peer, upload)
        done = await self._run(self._service.commit, peer, message, bytes_max)
        self._quota.correct(peer, upload, done.left, mark)
        if self._faces.reserved is not None:
            await self._run(self._faces.reserved, done, message.contract[:ID_BYTES])
        self._faces.committed(done)
        return CommitReply(done.receipt)

    async def _manifest(self, _request: Request, message: ManifestRequest) -> ManifestReply:
        manifest, kept = await self._run(self._service.keep_manifest, message.manifest)
        if kept:
            self._faces.published(manifest)
        return ManifestReply(kept)

    # ---- reading

    async def _get_content(self, request: Request) -> Response:
        reply = await self._run(self._service.content, parse_cid(request.params["cid"]))
        for fragment in reply.inline:
            self._count(FragmentRoot(fragment.root), len(fragment.data))
        return message_response(reply)

    async def _get_segment(self, request: Request) -> Response:
        segment = SegmentID(parse_id(request.params["segment"], "segment"))
        return message_response(await self._run(self._service.segment, segment))

    async def _holding(self, _request: Request, message: HoldingRequest) -> HoldingReply:
        if len(message.segments) > SEGMENTS_PER_QUERY_MAX:
            raise LimitError(f"at most {SEGMENTS_PER_QUERY_MAX} segments in one query")
        return HoldingReply(await self._run(self._service.holding, message.segments))

    async def _get_fragment(self, request: Request) -> Response:
        root = FragmentRoot(_hex(request.params["root"], ID_BYTES, "fragment root"))
        # Size and bytes in one visit to the pool: for a small fragment the visits are most of the cost.
        size, body = await self._run(self._service.read_asked, root, partial(requested_span, request.headers))
        self._count(root, len(body))

        async def read(_start: int, _stop: int) -> bytes:
            return body

        return await ranged_response(request, size, read)

    async def _read(self, request: Request) -> Response:
        message = decode(request.body, ReadRequest, max_bytes=READ_REQUEST_BYTES_MAX)
        frames = await self._run(self._service.read_many, message)
        for item, frame in zip(message.items, frames, strict=True):
            self._count(FragmentRoot(item.root), 0 if frame is None else len(frame))
        return Response(200, encode_frames(frames))

    async def _leaves(self, _request: Request, message: LeavesRequest) -> LeavesReply:
        return await self._run(self._service.leaves, message)

    async def _popularity(self, _request: Request, message: PopularityRequest) -> PopularityReply:
        content_bytes = self._content_bytes(message.contents)
        if self._faces.popularity is None:
            return PopularityReply([0] * len(message.segments), content_bytes)
        return PopularityReply(await self._faces.popularity.reads(message.segments), content_bytes)

    def _count(self, root: FragmentRoot, byte_count: int) -> None:
        if self._faces.popularity is not None:
            self._faces.popularity.served(root, byte_count)

    async def _get_block(self, request: Request) -> Response:
        cid = parse_cid(request.params["cid"])
        for source in self._block_sources:
            block = await source(cid)
            if block is not None:
                return Response(200, block)
        raise NotFoundError(f"block {cid_text(cid)} is not served here")

    # ---- parts

    async def _run(self, work: Callable[Params, T], *args: Params.args, **kwargs: Params.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *args, **kwargs))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _writer(request: Request) -> NodeID:
    assert request.peer is not None  # the route requires it
    return request.peer


def _upload(request: Request) -> UploadID:
    return UploadID(_hex(request.params["upload"], UPLOAD_ID_BYTES, "upload identifier"))


def _hex(text: str, length: int, what: str) -> bytes:
    try:
        raw = bytes.fromhex(text) if len(text) == 2 * length and text.isascii() else b""
    except ValueError:
        raw = b""
    if len(raw) != length or raw.hex() != text:
        raise InputError(f"not a valid {what}", hint=f"{2 * length} lower-case hexadecimal digits")
    return raw

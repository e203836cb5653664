"""An edge's interface for readers: POST /v1/edge/read. Source: docs/spec/retrieval.md, "Edges".

Decides who may ask (whoever shows a key: accounts are kept by it) and what is counted as served. Single blocks are asked for at
GET /v1/blocks/{cid} (node_routes.py).
"""

from __future__ import annotations

from dds.primitives.units import CID_BYTES, KIB
from dds.runtime.edge import Edge
from dds.runtime.reading_port import ReadingMeter
from dds.transport.routes import Request, Response, Route
from dds.wire.api import encode_frames
from dds.wire.codec import decode
from dds.wire.retrieval import EDGE_BLOCKS_MAX, EDGE_REPLY_BYTES_MAX, EdgeReadRequest

EDGE_REQUEST_BYTES_MAX = EDGE_BLOCKS_MAX * (CID_BYTES + 4) + KIB


class EdgeRoutes:
    """`meter`: of a node that is paid for reading."""

    def __init__(self, edge: Edge, meter: ReadingMeter | None = None) -> None:
        self._edge, self._meter = edge, meter

    def routes(self) -> list[Route]:
        size = EDGE_REPLY_BYTES_MAX + 4 * (EDGE_BLOCKS_MAX + 1)
        return [Route("POST", "/v1/edge/read", self._read, EDGE_REQUEST_BYTES_MAX, size, peer_required=True)]

    async def _read(self, request: Request) -> Response:
        message = decode(request.body, EdgeReadRequest, max_bytes=EDGE_REQUEST_BYTES_MAX)
        if self._meter is not None:
            self._meter.admit(request)
        blocks = await self._edge.read(message, request.address)
        if self._meter is not None:
            self._meter.served(request, sum(len(block) for block in blocks if block is not None))
        return Response(200, encode_frames(list(blocks)))

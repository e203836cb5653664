"""CometBFT's side of the application socket, by hand: for tests and benchmarks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from dds.engines.abci_app import Application, app_state, chain_id
from dds.engines.abci_pb2 import (
    Empty,
    Request,
    RequestFinalizeBlock,
    RequestInitChain,
    Response,
    ResponseFinalizeBlock,
    Timestamp,
)
from dds.engines.abci_server import AbciServer
from dds.engines.replica import Replica
from dds.ledger.genesis import Genesis
from dds.ledger.machine import BlockResult, TxResult
from dds.primitives.varint import encode_varint


class Recorder:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.refusals: list[tuple[bytes, str]] = []
        self.heights: list[int] = []

    def refused(self, raw: bytes, refusal: TxResult) -> None:
        self.refusals.append((raw, refusal.code))

    def committed(self, height: int, txs: Sequence[bytes], result: BlockResult) -> None:
        self.heights.append(height)


class AbciClient:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, *requests: Request) -> list[Response]:
        """The answers, one a request, in order."""
        self.writer.write(b"".join(request_frame(request) for request in requests))
        await self.writer.drain()
        return [await self.read() for _ in requests]

    async def read(self) -> Response:
        length = shift = 0
        while True:
            (byte,) = await self.reader.readexactly(1)
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return Response.FromString(await self.reader.readexactly(length))

    async def begin(self, genesis: Genesis) -> bytes:
        """InitChain; the app hash."""
        init = RequestInitChain(
            chain_id=chain_id(genesis), app_state_bytes=f'"{app_state(genesis)}"'.encode(), initial_height=1
        )
        (answer,) = await self.ask(Request(init_chain=init))
        return answer.init_chain.app_hash

    async def finalize(self, height: int, txs: Sequence[bytes], time_ms: int = 0) -> ResponseFinalizeBlock:
        time = Timestamp(seconds=time_ms // 1000, nanos=time_ms % 1000 * 1_000_000)
        (answer,) = await self.ask(Request(finalize_block=RequestFinalizeBlock(txs=txs, height=height, time=time)))
        assert answer.WhichOneof("value") == "finalize_block", answer
        return answer.finalize_block

    async def commit(self) -> None:
        (answer,) = await self.ask(Request(commit=Empty()))
        assert answer.WhichOneof("value") == "commit", answer


def request_frame(request: Request) -> bytes:
    body = request.SerializeToString()
    return encode_varint(len(body)) + body


@asynccontextmanager
async def serving(path: Path, genesis: Genesis, watcher: Recorder | None = None) -> AsyncIterator[tuple[Replica, str]]:
    """A replica at `path` behind a server on a free loopback port; (replica, tcp://address)."""
    replica = Replica.open(path, genesis, engine="abci")
    server = AbciServer(Application(replica, watcher or Recorder()), "tcp://127.0.0.1:0")
    try:
        yield replica, await server.start()
    finally:
        await server.stop()
        replica.close()


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[AbciClient]:
    host, port = address.removeprefix("tcp://").rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield AbciClient(reader, writer)
    finally:
        writer.close()

"""What the transport's tests share: a serving node, hostile servers that script their bytes, forged certificates."""

from __future__ import annotations

import asyncio
import multiprocessing
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import psutil
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from dds.primitives.ids import NodeID
from dds.primitives.keys import SigningKey
from dds.primitives.units import MIB
from dds.transport.bandwidth import Bandwidth
from dds.transport.certificate import PUBLIC_ISSUER_SEED, host_name, issuer_certificate
from dds.transport.client import PeerClient
from dds.transport.limits import ClientLimits, ServerLimits
from dds.transport.routes import Request, Response, Route, ranged_response
from dds.transport.server import PeerServer
from dds.transport.tls import server_context

SERVER_KEY, CLIENT_KEY, ATTACKER_KEY = (SigningKey(bytes(31) + bytes((n,))) for n in (1, 2, 3))
SERVER, CLIENT, ATTACKER = NodeID(SERVER_KEY.public), NodeID(CLIENT_KEY.public), NodeID(ATTACKER_KEY.public)
NETWORK = "test"
DATA = bytes(range(256)) * (MIB // 256)


class Served:
    """A real server, and what its handlers saw."""

    def __init__(self, limits: ServerLimits | None = None, bandwidth: Bandwidth | None = None) -> None:
        self.seen: list[Request] = []
        self.release = asyncio.Event()
        routes = [
            Route("GET", "/data", self._data, max_reply_bytes=MIB),
            Route("GET", "/who", self._who),
            Route("PUT", "/data", self._stored, max_body_bytes=MIB),
            Route("PUT", "/mine", self._stored, max_body_bytes=MIB, peer_required=True),
            Route("GET", "/slow", self._slow),
            Route("GET", "/broken", self._broken),
        ]
        self.server = PeerServer(SERVER_KEY, network=NETWORK, routes=routes, limits=limits, bandwidth=bandwidth)
        self.port = 0

    async def _data(self, request: Request) -> Response:
        async def read(start: int, stop: int) -> memoryview:
            return memoryview(DATA)[start:stop]

        return await ranged_response(request, len(DATA), read)

    async def _who(self, request: Request) -> Response:
        self.seen.append(request)
        return Response(200, request.peer or b"anonymous")

    async def _stored(self, request: Request) -> Response:
        self.seen.append(request)
        return Response(201, str(len(request.body)).encode())

    async def _slow(self, request: Request) -> Response:
        self.seen.append(request)
        await self.release.wait()
        return Response(200, b"late")

    async def _broken(self, request: Request) -> Response:
        raise ZeroDivisionError("secret detail")


@asynccontextmanager
async def serving(limits: ServerLimits | None = None, bandwidth: Bandwidth | None = None) -> AsyncIterator[Served]:
    served = Served(limits, bandwidth)
    served.port = await served.server.start("127.0.0.1", 0)
    try:
        yield served
    finally:
        await served.server.stop(0)


def _serve_elsewhere(pipe: Pipe, limits: ServerLimits) -> None:
    async def main() -> None:
        async with serving(limits) as served:
            pipe.send(served.port)
            await asyncio.to_thread(pipe.poll, None)  # until the parent closes its end

    uvloop.run(main())


@contextmanager
def serving_elsewhere(limits: ServerLimits) -> Iterator[tuple[psutil.Process, int]]:
    """The same server in a process of its own: for measuring its memory. Yields the process and the port."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve_elsewhere, args=(there, limits), daemon=True)
    process.start()
    there.close()
    try:
        yield psutil.Process(process.pid), here.recv()
    finally:
        here.close()
        process.join(10)
        process.kill()
        process.join()


@asynccontextmanager
async def client_of(
    port: int, node_id: NodeID = SERVER, key: SigningKey | None = CLIENT_KEY, limits: ClientLimits | None = None
) -> AsyncIterator[PeerClient]:
    async with PeerClient(key, network=NETWORK, limits=limits) as client:
        client.learn(node_id, [("127.0.0.1", port)])
        yield client


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted_server(script: Script, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server that is really SERVER (unless `context` says otherwise), and whose bytes are the script's. Yields the port."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context or server_context(SERVER_KEY))
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answering(head: str, body: bytes = b"", then: Script | None = None) -> Script:
    """A script that reads a request's head and answers with these bytes."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head.replace("\n", "\r\n").encode() + b"\r\n" + body)
        await writer.drain()
        if then is not None:
            await then(reader, writer)

    return script


class Forger:
    """Makes certificates that look right and aren't."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def chain(
        self,
        name: str,
        key: SigningKey = ATTACKER_KEY,
        *,
        issuer_seed: bytes = PUBLIC_ISSUER_SEED,
        self_signed: bool = False,
        expired: bool = False,
    ) -> str:
        """A PEM file with a certificate for `name` on `key`, signed by the issuer's seed (by default the public one)."""
        leaf_key = Ed25519PrivateKey.from_private_bytes(key.seed)
        issuer_key = leaf_key if self_signed else Ed25519PrivateKey.from_private_bytes(issuer_seed)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.load_der_x509_certificate(issuer_certificate())
        key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        last = datetime(2001 if expired else 9999, 12, 31, 23, 59, 59, tzinfo=UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if self_signed else issuer.subject)
            .public_key(leaf_key.public_key())
            .serial_number(77)
            .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
            .not_valid_after(last)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier(key_id, None, None), critical=False)
            .sign(issuer_key, None)
        )
        path = self._directory / f"{abs(hash((name, key.public, issuer_seed, self_signed, expired)))}.pem"
        key_pem = leaf_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.write_bytes(key_pem + certificate.public_bytes(Encoding.PEM))
        return str(path)

    def server(self, chain: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context

    def client(self, chain: str | None) -> ssl.SSLContext:
        """A client that checks nothing about the server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if chain is not None:
            context.load_cert_chain(chain)
        return context


def anonymous_context() -> ssl.SSLContext:
    """Like `curl -k`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def raw_exchange(port: int, context: ssl.SSLContext | None, sent: bytes, node_id: NodeID = SERVER) -> bytes:
    """Everything a server answers to exactly these bytes, until it closes; b"" when it slams the door."""
    received = b""
    try:
        async with asyncio.timeout(20):
            name = host_name(node_id) if context else None
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
            try:
                writer.write(sent)
                while piece := await reader.read(1 << 16):
                    received += piece
            finally:
                writer.transport.abort()
    except OSError:
        pass
    return received


GET_WHO = b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

"""Nobody passes for a node whose key they have not: real sockets, real attackers, on both event loops."""

from __future__ import annotations

import asyncio
import base64
import glob
import os
import shutil
import ssl
import tempfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dds.primitives.errors import PeerRefused, PeerUnreachable
from dds.primitives.hashing import sha256
from dds.primitives.ids import id_text
from dds.transport.certificate import host_name, issuer_certificate, pem
from dds.transport.tls import client_context, server_context
from tests.e2e.transport.kit import (
    ATTACKER_KEY,
    CLIENT,
    CLIENT_KEY,
    GET_WHO,
    SERVER,
    SERVER_KEY,
    Forger,
    anonymous_context,
    answering,
    client_of,
    raw_exchange,
    scripted_server,
    serving,
)

BOTH_LOOPS = True
LIE = answering("HTTP/1.1 200 OK\nDDS-Network: test\nContent-Length: 3\n", b"lie")


@pytest.fixture
def forger(tmp_path: Path) -> Forger:
    return Forger(tmp_path)


async def test_both_ends_know_each_other_by_key() -> None:
    async with serving() as served, client_of(served.port) as client:
        assert await client.get(SERVER, "/who", max_bytes=32, timeout_s=20) == CLIENT
        assert served.seen[0].peer == CLIENT


async def test_a_reader_without_a_key_reads_but_cannot_write() -> None:
    async with serving() as served, client_of(served.port, key=None) as client:
        assert await client.get(SERVER, "/who", max_bytes=32, timeout_s=20) == b"anonymous"
        with pytest.raises(PeerRefused) as refused:
            await client.put(SERVER, "/mine", b"x", timeout_s=20)
        assert (refused.value.status, refused.value.remote_code) == (401, "unauthenticated")


# ---- servers that are not who was dialled


async def _refused(context: ssl.SSLContext) -> None:
    async with scripted_server(LIE, context) as port, client_of(port) as client:
        with pytest.raises(PeerUnreachable) as refused:
            await client.get(SERVER, "/who", max_bytes=32, timeout_s=20)
        assert refused.value.peer == id_text(SERVER)


async def test_another_node_at_the_address_is_refused() -> None:
    await _refused(server_context(ATTACKER_KEY))


async def test_the_victims_name_on_the_attackers_key_is_refused_though_the_issuer_signed_it(forger: Forger) -> None:
    await _refused(forger.server(forger.chain(host_name(SERVER))))


async def test_even_the_right_key_is_refused_in_another_certificate(forger: Forger) -> None:
    await _refused(forger.server(forger.chain(host_name(SERVER), SERVER_KEY)))


async def test_a_wildcard_name_is_refused(forger: Forger) -> None:
    await _refused(forger.server(forger.chain("*.dds.invalid")))


async def test_a_self_signed_certificate_is_refused(forger: Forger) -> None:
    await _refused(forger.server(forger.chain(host_name(SERVER), self_signed=True)))


async def test_another_issuers_certificate_is_refused(forger: Forger) -> None:
    await _refused(forger.server(forger.chain(host_name(SERVER), issuer_seed=bytes(32))))


async def test_an_expired_certificate_is_refused(forger: Forger) -> None:
    await _refused(forger.server(forger.chain(host_name(SERVER), expired=True)))


async def test_a_server_below_tls_1_3_is_refused() -> None:
    context = server_context(SERVER_KEY)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    await _refused(context)


async def test_a_liar_at_the_first_address_does_not_hide_the_node_at_the_second() -> None:
    async with scripted_server(LIE, server_context(ATTACKER_KEY)) as port, serving() as served, client_of(port) as client:
        client.learn(SERVER, [("127.0.0.1", port), ("127.0.0.1", served.port)])
        assert await client.get(SERVER, "/who", max_bytes=32, timeout_s=20) == CLIENT


# ---- clients that are not who they say


async def _shut_out(context: ssl.SSLContext) -> None:
    async with serving() as served:
        assert await raw_exchange(served.port, context, GET_WHO) == b""
        assert served.seen == []
        async with client_of(served.port) as client:  # and honest clients notice nothing
            assert await client.get(SERVER, "/who", max_bytes=32, timeout_s=20) == CLIENT


async def test_a_client_with_the_victims_name_on_its_own_key_is_shut_out(forger: Forger) -> None:
    await _shut_out(forger.client(forger.chain(host_name(CLIENT))))


async def test_a_client_with_the_right_key_in_another_certificate_is_shut_out(forger: Forger) -> None:
    await _shut_out(forger.client(forger.chain(host_name(CLIENT), CLIENT_KEY)))


async def test_a_self_signed_client_is_shut_out(forger: Forger) -> None:
    await _shut_out(forger.client(forger.chain(host_name(CLIENT), self_signed=True)))


async def test_a_client_of_another_issuer_is_shut_out(forger: Forger) -> None:
    await _shut_out(forger.client(forger.chain(host_name(CLIENT), issuer_seed=bytes(32))))


async def test_an_expired_client_is_shut_out(forger: Forger) -> None:
    await _shut_out(forger.client(forger.chain(host_name(CLIENT), expired=True)))


async def test_a_client_below_tls_1_3_is_shut_out() -> None:
    context = anonymous_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    await _shut_out(context)


# ---- those in between


class Relay:
    """A wire-tapper between client and server; `tamper` may change what flows to the client."""

    def __init__(self, port: int, flip_after: int | None = None) -> None:
        self._port = port
        self._flip_after = flip_after
        self.from_client = b""

    async def script(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)

        async def upward() -> None:
            while piece := await reader.read(1 << 16):
                self.from_client += piece
                up_writer.write(piece)

        async def downward() -> None:
            passed = 0
            while piece := await up_reader.read(1 << 16):
                if self._flip_after is not None and passed <= self._flip_after < passed + len(piece):
                    at = self._flip_after - passed
                    piece = piece[:at] + bytes((piece[at] ^ 1,)) + piece[at + 1 :]
                passed += len(piece)
                writer.write(piece)
            writer.close()

        try:
            await asyncio.gather(upward(), downward())
        finally:
            up_writer.transport.abort()

    async def open(self) -> asyncio.Server:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await self.script(reader, writer)
            except OSError:
                writer.transport.abort()

        return await asyncio.start_server(serve, "127.0.0.1", 0)


async def test_a_recorded_session_replayed_is_worth_nothing() -> None:
    async with serving() as served:
        relay = Relay(served.port)
        listening = await relay.open()
        async with client_of(listening.sockets[0].getsockname()[1]) as client:
            await client.put(SERVER, "/mine", b"x" * 1000, timeout_s=20)
        listening.close()
        assert len(served.seen) == 1
        assert len(relay.from_client) > 1000
        answer = await raw_exchange(served.port, None, relay.from_client)
        assert b"HTTP" not in answer
        assert len(served.seen) == 1


async def test_a_byte_changed_on_the_way_never_reaches_the_reader() -> None:
    async with serving() as served:
        relay = Relay(served.port, flip_after=500_000)
        listening = await relay.open()
        async with client_of(listening.sockets[0].getsockname()[1]) as client:
            with pytest.raises(PeerUnreachable):
                await client.get(SERVER, "/data", max_bytes=1 << 20, timeout_s=20)
        listening.close()


async def test_no_session_can_be_resumed() -> None:
    async with serving() as served:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", served.port, ssl=client_context(CLIENT_KEY), server_hostname=host_name(SERVER)
        )
        writer.write(GET_WHO)
        assert (await reader.read()).endswith(CLIENT)
        tls = writer.get_extra_info("ssl_object")
        assert tls.version() == "TLSv1.3"
        assert tls.session is None or not tls.session.has_ticket
        writer.transport.abort()


# ---- keys and people


async def test_a_context_leaves_no_key_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
    server_context(SERVER_KEY)
    if before:
        assert set(os.listdir("/proc/self/fd")) == before
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delattr(os, "memfd_create", raising=False)
    server_context(SERVER_KEY)
    assert glob.glob(f"{tmp_path}/**", recursive=True) == [f"{tmp_path}/"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_reads_and_can_pin_the_node(tmp_path: Path) -> None:
    spki = Ed25519PublicKey.from_public_bytes(SERVER).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pin = "sha256//" + base64.b64encode(sha256(spki)).decode()
    (tmp_path / "issuer.pem").write_text(pem("CERTIFICATE", issuer_certificate()))
    async with serving() as served:
        name = host_name(SERVER)
        resolve = ["--resolve", f"{name}:{served.port}:127.0.0.1", "--cacert", str(tmp_path / "issuer.pem")]
        for options, address, expected in [
            (["-k"], "127.0.0.1", b"anonymous"),
            (["-k", "--pinnedpubkey", pin], "127.0.0.1", b"anonymous"),
            (["-k", "--pinnedpubkey", pin.replace("//", "//A", 1)[:-2] + "="], "127.0.0.1", b""),
            ([*resolve, "--pinnedpubkey", pin], name, b"anonymous"),
        ]:
            curl = await asyncio.create_subprocess_exec(
                "curl", "-s", *options, f"https://{address}:{served.port}/who", stdout=asyncio.subprocess.PIPE
            )
            answer, _ = await curl.communicate()
            assert answer == expected, (options, id_text(SERVER))

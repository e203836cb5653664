"""TLS 1.3 contexts in which both ends are known by their Ed25519 key.

Decides: protocol version, what a server asks of a client, what either side accepts of the other. Does not decide what the
certificate looks like (certificate.py) nor what an authenticated or anonymous peer may do (the handlers).

The check hangs on `SSLContext.sslobject_class`, the documented way to have asyncio (and uvloop) use a subclass of
`ssl.SSLObject`: the handshake isn't over until the peer's certificate has been compared. There is no moment at which an
application sees a connection whose peer was not checked.

- A client dials a NodeID: the server's certificate must be that NodeID's one certificate.
- A server asks for a certificate (CERT_OPTIONAL). None: an anonymous reader. Otherwise it must be the one certificate of some
  NodeID, which is then the connection's peer.

Neither side resumes sessions: no tickets are issued, so there is nothing to replay.

Source: docs/spec/identity.md; RFC 8446; Python's ssl module documentation.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dds.primitives.errors import InputError
from dds.primitives.ids import NodeID
from dds.primitives.keys import SigningKey
from dds.transport.certificate import (
    certified_node,
    issuer_certificate,
    leaf_certificate,
    parse_host_name,
    pem,
    private_key_der,
)


class _PinnedServer(ssl.SSLObject):
    """The client's end: completes a handshake only with the NodeID that was dialled."""

    def do_handshake(self) -> None:
        super().do_handshake()
        try:
            expected = leaf_certificate(parse_host_name(self.server_hostname or ""))
        except InputError as error:
            raise ssl.SSLCertVerificationError(1, error.message) from None
        if self.getpeercert(binary_form=True) != expected:
            raise ssl.SSLCertVerificationError(1, "the server's certificate is not that of the node that was dialled")


class _KnownClient(ssl.SSLObject):
    """The server's end: `node_id` is the client's proven identity once the handshake is over, or None."""

    node_id: NodeID | None = None

    def do_handshake(self) -> None:
        super().do_handshake()
        presented = self.getpeercert(binary_form=True)
        if presented is None:
            return
        self.node_id = certified_node(presented)
        if self.node_id is None:
            raise ssl.SSLCertVerificationError(1, "the client's certificate is not the one certificate of any node")


def client_context(key: SigningKey | None) -> ssl.SSLContext:
    """A context for dialling nodes by `host_name(node_id)`; without a key the client is anonymous."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, key)
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    context.sslobject_class = _PinnedServer
    return context


def server_context(key: SigningKey) -> ssl.SSLContext:
    """A context for serving as the node `key.public`."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, key)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.sslobject_class = _KnownClient
    context.num_tickets = 0
    return context


def peer_of(ssl_object: Any) -> NodeID | None:
    """The authenticated client behind a transport's `ssl_object`; None for an anonymous one."""
    return ssl_object.node_id if isinstance(ssl_object, _KnownClient) else None


def _context(protocol: int, key: SigningKey | None) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=issuer_certificate())
    context.set_alpn_protocols(["http/1.1"])
    if key is not None:
        with _key_file(key) as path:
            context.load_cert_chain(path)
    return context


@contextmanager
def _key_file(key: SigningKey) -> Iterator[str]:
    """A path from which certificate and private key can be read once; OpenSSL takes no key from memory through Python.

    On Linux the file exists in memory only and has no name. Elsewhere it lies in a directory of mode 0700 for the call.
    """
    text = pem("PRIVATE KEY", private_key_der(key.seed)) + pem("CERTIFICATE", leaf_certificate(NodeID(key.public)))
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("dds-tls", os.MFD_CLOEXEC), "wb") as memory:
            memory.write(text.encode())
            memory.flush()
            yield f"/proc/self/fd/{memory.fileno()}"
        return
    with tempfile.TemporaryDirectory(prefix="dds-") as directory:
        path = os.path.join(directory, "key.pem")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text.encode())
        yield path

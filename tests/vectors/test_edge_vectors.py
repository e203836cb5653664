"""What a reader asks of an edge, byte for byte: a change of these bytes is a change of the protocol."""

from __future__ import annotations

from dds.primitives.cid import DAG_PB, cid_of
from dds.wire.codec import decode, encode
from dds.wire.retrieval import EdgeReadRequest

REQUEST = EdgeReadRequest(cid_of(b"content", DAG_PB), [cid_of(b"one"), cid_of(b"two")])
FROZEN = (
    "92c42401701220ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f7392c424015512207692"
    "c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431edc424015512203fc4ccfe745870e2c0d99f71"
    "f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"
)


def test_an_edge_read_request_keeps_its_bytes() -> None:
    assert encode(REQUEST).hex() == FROZEN
    assert decode(bytes.fromhex(FROZEN), EdgeReadRequest, max_bytes=1024) == REQUEST

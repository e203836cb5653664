"""Hostile bytes on the application socket's frames: refused, never more than a frame is held."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dds.engines.abci_pb2 import Request, RequestEcho, RequestFinalizeBlock
from dds.engines.abci_wire import FRAME_BYTES_MAX, Frames
from dds.primitives.errors import FormatError
from dds.primitives.varint import encode_varint
from tests.abci_client import request_frame

texts = st.text(max_size=40)
requests = st.one_of(
    st.builds(lambda text: Request(echo=RequestEcho(message=text)), texts),
    st.builds(
        lambda txs, height: Request(finalize_block=RequestFinalizeBlock(txs=txs, height=height)),
        st.lists(st.binary(max_size=50), max_size=5),
        st.integers(0, 2**40),
    ),
)


def read_all(pieces: list[bytes]) -> tuple[list[Request], bool]:
    """What can be read, and whether it ended in a refusal."""
    frames = Frames()
    found: list[Request] = []
    try:
        for piece in pieces:
            frames.feed(piece)
            found.extend(frames.requests())
    except FormatError:
        return found, True
    return found, False


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_are_requests_or_refused(pieces: list[bytes]) -> None:
    found, _ = read_all(pieces)
    assert all(request.WhichOneof("value") for request in found)


@given(st.lists(requests, max_size=6), st.lists(st.integers(0, 400), max_size=6))
def test_requests_are_read_the_same_wherever_the_stream_is_cut(sent: list[Request], cuts: list[int]) -> None:
    stream = b"".join(map(request_frame, sent))
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert read_all([stream[a:b] for a, b in pairwise(places)]) == (sent, False)


@given(st.lists(requests, max_size=3), st.integers(FRAME_BYTES_MAX + 1, 2**62), st.binary(max_size=20))
def test_a_length_beyond_the_bound_is_refused_before_its_bytes_come(sent: list[Request], length: int, rest: bytes) -> None:
    stream = b"".join(map(request_frame, sent)) + encode_varint(length) + rest
    assert read_all([stream]) == (sent, True)


@given(requests, st.data())
def test_a_request_with_a_byte_changed_is_a_request_or_refused(request: Request, data: st.DataObject) -> None:
    stream = bytearray(request_frame(request))
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    found, _ = read_all([bytes(stream)])
    assert all(each.WhichOneof("value") for each in found)

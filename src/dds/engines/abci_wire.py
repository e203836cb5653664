"""Frames of CometBFT's application socket: an unsigned varint with the length, then one protobuf message.

Decides where a frame ends and how large it may be; the messages are abci.proto's. Knows no meaning and does no I/O.
Source: CometBFT v0.38, spec/abci/abci++_client_server.md ("Socket", "varint-length-prefixed") and libs/protoio.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from google.protobuf.message import DecodeError

from dds.engines.abci_pb2 import Request, Response, Timestamp
from dds.primitives.errors import FormatError
from dds.primitives.units import MIB
from dds.primitives.varint import encode_varint

FRAME_BYTES_MAX: Final = 16 * MIB  # four times the largest block that our genesis allows
LENGTH_BYTES_MAX: Final = 4  # of the varint: 28 bits, more than FRAME_BYTES_MAX needs


class Frames:
    """Cuts a stream into requests. Holds at most one frame that is not whole yet, and what `feed` was given at once."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def requests(self) -> Iterator[Request]:
        """The requests that are whole by now.

        Raises:
            FormatError: a frame that is too long or no request. The stream has no meaning from there on.
        """
        buffer, at = self._buffer, 0
        try:
            while (found := _length(buffer, at)) is not None:
                length, begin = found
                if len(buffer) < begin + length:
                    break
                at = begin + length
                yield _request(bytes(buffer[begin:at]))
        finally:
            del buffer[:at]


def frame(response: Response) -> bytes:
    body = response.SerializeToString()
    return encode_varint(len(body)) + body


def milliseconds(time: Timestamp) -> int:
    """Since 1970, rounded down; 0 for anything before."""
    return max(0, time.seconds * 1000 + time.nanos // 1_000_000)


def _length(buffer: bytearray, at: int) -> tuple[int, int] | None:
    """A frame's length and where its message begins; None when the length itself is not whole yet."""
    length = 0
    for used, byte in enumerate(buffer[at : at + LENGTH_BYTES_MAX]):
        length |= (byte & 0x7F) << 7 * used
        if length > FRAME_BYTES_MAX:
            raise FormatError("an ABCI frame is too long", actual=length, expected=FRAME_BYTES_MAX)
        if byte < 0x80:
            return length, at + used + 1
    if len(buffer) - at >= LENGTH_BYTES_MAX:
        raise FormatError(f"an ABCI frame's length has more than {LENGTH_BYTES_MAX} bytes")
    return None


def _request(raw: bytes) -> Request:
    try:
        request = Request.FromString(raw)
    except DecodeError as error:
        raise FormatError(f"not an ABCI request: {error}") from None
    if request.WhichOneof("value") is None:
        raise FormatError("an ABCI request of a kind that v0.38 does not know")
    return request

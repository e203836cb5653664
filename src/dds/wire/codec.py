"""msgpack by msgspec: how every DDS message and record becomes bytes.

Structs are encoded as arrays (field order is the format), unknown fields are refused, and sizes are checked before parsing.
Records that are signed carry the exact bytes, so nothing depends on re-encoding.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

from dds.primitives.errors import FormatError

T = TypeVar("T")

MESSAGE_BYTES_MAX = 2 << 20  # the default bound of one message; routes set their own


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of every wire struct: immutable, positional, strict."""


_encoder = msgspec.msgpack.Encoder()
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {}


_building = threading.Lock()  # msgspec (0.22) crashes where two threads look into one struct type for the first time


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(raw: bytes | bytearray | memoryview, kind: type[T], *, max_bytes: int = MESSAGE_BYTES_MAX) -> T:
    """Parse foreign bytes into `kind`.

    Raises:
        FormatError: larger than `max_bytes`, or not exactly such a message.
    """
    if len(raw) > max_bytes:
        raise FormatError(f"{kind.__name__} of {len(raw)} bytes exceeds {max_bytes}", actual=len(raw), expected=max_bytes)
    decoder = _decoders.get(kind) or _new_decoder(kind)
    try:
        message: T = decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise FormatError(f"not a {kind.__name__}: {error}") from None
    return message


def _new_decoder(kind: type[T]) -> msgspec.msgpack.Decoder[T]:
    with _building:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    return decoder

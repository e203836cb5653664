"""Unsigned LEB128 varints as protobuf and multiformats use them; minimal encoding only, at most 9 bytes (63 bits)."""

from __future__ import annotations

from dds.primitives.errors import FormatError

VARINT_BYTES_MAX = 9


def encode_varint(value: int) -> bytes:
    assert 0 <= value < 1 << 63
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: bytes, at: int) -> tuple[int, int]:
    """The value at `at` and the offset behind it.

    Raises:
        FormatError: truncated, longer than 9 bytes, or not minimal.
    """
    value = shift = 0
    for used in range(VARINT_BYTES_MAX):
        if at + used >= len(data):
            raise FormatError("truncated varint")
        byte = data[at + used]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and used:
                raise FormatError("varint is not minimal")
            return value, at + used + 1
        shift += 7
    raise FormatError("varint longer than 9 bytes")

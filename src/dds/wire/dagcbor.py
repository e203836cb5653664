"""dag-cbor: the encoding of manifests (IPLD dag-cbor specification; RFC 8949 section 4.2.1).

Only the kinds that manifests use: null, booleans, integers of 64 bits, text, bytes, lists, and maps with text keys. Floats and
links are refused; a CID in a manifest is plain bytes.

Decoding is libipld's, which refuses duplicate or unsorted keys, NaN and trailing bytes. Encoding is our own, because libipld's
guesses: bytes that happen to parse as a CID, such as one random identifier in two thousand, it writes as a link. What it
decodes is encoded again and compared, so exactly one spelling of every value is accepted.
"""

from __future__ import annotations

from typing import Any

import libipld

from dds.primitives.errors import FormatError

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _LIST, _MAP = range(6)  # major types
_SIMPLE = {None: b"\xf6", True: b"\xf5", False: b"\xf4"}
_WIDTHS = ((0x100, 24, 1), (0x1_0000, 25, 2), (0x1_0000_0000, 26, 4))  # bound, additional information, bytes


def encode_dag_cbor(value: Any) -> bytes:
    """Canonical bytes of None, bool, int, str, bytes, list and dict with str keys.

    Raises:
        TypeError, AttributeError, OverflowError: another kind of value or key, or more than 64 bits (a bug of ours).
    """
    out: list[bytes] = []
    _write(value, out)
    return b"".join(out)


def decode_dag_cbor(raw: bytes, *, max_bytes: int) -> Any:
    """Parse foreign bytes.

    Raises:
        FormatError: too large, malformed, nested too deeply, not canonical, or of a kind that manifests do not use.
    """
    if len(raw) > max_bytes:
        raise FormatError(f"dag-cbor of {len(raw)} bytes exceeds {max_bytes}")
    try:
        value = libipld.decode_dag_cbor(raw)
        canonical = encode_dag_cbor(value) == raw
    except (ValueError, RecursionError, OverflowError, TypeError) as error:
        raise FormatError(f"not dag-cbor: {error}") from None
    if not canonical:
        raise FormatError("dag-cbor is not canonical")
    return value


def _write(value: Any, out: list[bytes]) -> None:
    kind = type(value)
    if kind is int:
        out.append(_head(_UNSIGNED, value) if value >= 0 else _head(_NEGATIVE, -1 - value))
    elif kind is bytes:
        out += (_head(_BYTES, len(value)), value)
    elif kind is str:
        text = value.encode()
        out += (_head(_TEXT, len(text)), text)
    elif kind is list:
        out.append(_head(_LIST, len(value)))
        for item in value:
            _write(item, out)
    elif kind is dict:
        _write_map(value, out)
    elif value is None or kind is bool:
        out.append(_SIMPLE[value])
    else:
        raise TypeError(f"{kind.__name__} has no place in a manifest")


def _write_map(value: dict[str, Any], out: list[bytes]) -> None:
    """Keys sorted by length, then bytewise, as dag-cbor wants."""
    out.append(_head(_MAP, len(value)))
    for key, item in sorted(((key.encode(), item) for key, item in value.items()), key=lambda pair: (len(pair[0]), pair[0])):
        out += (_head(_TEXT, len(key)), key)
        _write(item, out)


def _head(major: int, number: int) -> bytes:
    """Major type and number, in the shortest form."""
    if number < 24:
        return bytes((major << 5 | number,))
    for bound, info, width in _WIDTHS:
        if number < bound:
            return bytes((major << 5 | info,)) + number.to_bytes(width, "big")
    return bytes((major << 5 | 27,)) + number.to_bytes(8, "big")

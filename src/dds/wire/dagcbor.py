"""dag-cbor by libipld: the encoding of manifests (IPLD dag-cbor specification).

The decoder refuses duplicate or unsorted keys, NaN and trailing bytes; what it lets through that is not canonical (long
integer forms) is caught by encoding again and comparing.
"""

from __future__ import annotations

from typing import Any

import libipld

from dds.primitives.errors import FormatError


def encode_dag_cbor(value: Any) -> bytes:
    """Canonical bytes of None, bool, int, str, bytes, list and dict with str keys."""
    return bytes(libipld.encode_dag_cbor(value))


def decode_dag_cbor(raw: bytes, *, max_bytes: int) -> Any:
    """Parse foreign bytes.

    Raises:
        FormatError: too large, malformed, nested too deeply, or not canonical.
    """
    if len(raw) > max_bytes:
        raise FormatError(f"dag-cbor of {len(raw)} bytes exceeds {max_bytes}")
    try:
        value = libipld.decode_dag_cbor(raw)
        canonical = bytes(libipld.encode_dag_cbor(value)) == raw
    except (ValueError, RecursionError, OverflowError, TypeError) as error:
        raise FormatError(f"not dag-cbor: {error}") from None
    if not canonical:
        raise FormatError("dag-cbor is not canonical")
    return value

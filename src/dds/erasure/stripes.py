"""One stripe: from data to n fragments with their records, and back from any k of them.

Usable alone: a node that is replaced gets its stripe re-encoded from spooled data, a repairer rebuilds one fragment, a change
of class decodes whole stripes. Everything that leaves `rebuild_fragment` has passed its record.
Source: docs/spec/segments.md, "Stripes".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dds.erasure.fragment_tree import matches_record, record_of
from dds.erasure.reed_solomon import decode, encode
from dds.primitives.errors import FormatError, IntegrityError
from dds.primitives.hashing import Buffer
from dds.wire.segment import FragmentRecord, StripeShape


@dataclass(frozen=True, slots=True)
class EncodedStripe:
    """The n = k + m fragments of one stripe of a segment, by index, and their records."""

    number: int
    shape: StripeShape
    fragments: tuple[bytes, ...]
    records: tuple[FragmentRecord, ...]


def encode_stripe(shape: StripeShape, data: Buffer | Sequence[Buffer], number: int = 0) -> EncodedStripe:
    """Encode `shape.data_bytes` bytes of data space, in one buffer or in pieces that lie end to end.

    A piece that fills a slot exactly becomes that slot's fragment without a copy (when it is `bytes`).

    Raises:
        FormatError: another number of bytes than the shape says.
    """
    pieces = [data] if isinstance(data, bytes | bytearray | memoryview) else data
    total = sum(len(piece) for piece in pieces)
    if total != shape.data_bytes:
        raise FormatError(f"{total} bytes for a stripe of {shape.data_bytes}", actual=total, expected=shape.data_bytes)
    slots = cut_slots(shape, pieces)
    fragments = (*slots, *encode(shape.k, shape.m, slots))
    return EncodedStripe(number, shape, fragments, _records(shape, fragments))


def cut_slots(shape: StripeShape, pieces: Sequence[Buffer]) -> list[bytes]:
    """The k slots of a stripe's data, the last ones filled up with zero bytes."""
    slots: list[bytes] = []
    room, parts = shape.slot_bytes, list[Buffer]()
    for piece in pieces:
        at = 0
        while at < len(piece):
            taken = min(room, len(piece) - at)
            parts.append(piece if taken == len(piece) else memoryview(piece)[at : at + taken])
            at, room = at + taken, room - taken
            if not room:
                slots.append(_joined(parts))
                room, parts = shape.slot_bytes, []
    if parts:
        slots.append(b"".join((*parts, bytes(room))))
    return slots + [bytes(shape.slot_bytes)] * (shape.k - len(slots))


def decode_stripe(shape: StripeShape, have: Mapping[int, Buffer]) -> bytes:
    """The stripe's data bytes from any k whole fragments that passed their records.

    Raises:
        NotEnoughFragments, FormatError.
    """
    _check_sizes(shape, have)
    slots = decode(shape.k, shape.m, have, range(shape.k))
    return b"".join(slots[slot] for slot in range(shape.k))[: shape.data_bytes]


def rebuild_fragment(shape: StripeShape, record: FragmentRecord, have: Mapping[int, Buffer]) -> bytes:
    """One lost fragment, data or parity, from any k whole others, checked against its record.

    Raises:
        NotEnoughFragments, FormatError.
        IntegrityError: an input was not what it should be, or the stripe was encoded wrongly.
    """
    _check_sizes(shape, have)
    fragment = decode(shape.k, shape.m, have, [record.index])[record.index]
    if not matches_record(record, fragment):
        raise IntegrityError(f"rebuilt fragment {record.index} does not match its record", index=record.index)
    return fragment


def _records(shape: StripeShape, fragments: Sequence[bytes]) -> tuple[FragmentRecord, ...]:
    if shape.k == 1:
        first = record_of(0, fragments[0])
        return tuple(FragmentRecord(first.root, first.size, index, first.leaf_count) for index in range(len(fragments)))
    return tuple(record_of(index, fragment) for index, fragment in enumerate(fragments))


def _joined(parts: list[Buffer]) -> bytes:
    only = parts[0]
    return only if len(parts) == 1 and isinstance(only, bytes) else b"".join(parts)


def _check_sizes(shape: StripeShape, have: Mapping[int, Buffer]) -> None:
    if any(len(fragment) != shape.slot_bytes for fragment in have.values()):
        raise FormatError(f"a fragment that does not have the stripe's {shape.slot_bytes} bytes")

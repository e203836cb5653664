"""What a put will cost, before a byte of it is sent.

Decides which segments and fragments so many bytes become at most, and adds up what the ledger will charge for them. Compression
and deduplication can only make it less, and what is not needed comes back. Source: docs/spec/ledger.md, "Contracts".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dds.erasure.geometry import Geometry, stripe_shapes
from dds.ledger.params import Params
from dds.ledger.rent import Quote, quote
from dds.primitives.errors import InputError
from dds.primitives.units import CHUNK_BYTES, KIB, MIB
from dds.wire.ledger import EPOCH_MAX
from dds.wire.segment import INDEX_ROW_BYTES, StripeShape

TIB_MIBS: Final = 1 << 20
MONTH_EPOCHS: Final = 720  # 30 days of hours: what prices are quoted for
FRAME_BYTES: Final = 64 * KIB  # directory nodes, an index's head, the manifest: added to every put
_TERM = re.compile(r"([1-9][0-9]{0,11})(d|h|m|s|epochs?)?", re.ASCII)
_UNIT_MS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000}


@dataclass(frozen=True, slots=True)
class PutQuote:
    """An upper bound; money in base units."""

    data_bytes: int
    stored_bytes: int  # by all nodes together
    term_epochs: int
    price: int  # per MiB-epoch
    rent: int
    fee: int
    reserve: int  # for repairs; what is not needed comes back

    @property
    def total(self) -> int:
        return self.rent + self.fee + self.reserve

    @property
    def price_per_tib_month(self) -> int:
        return price_per_tib_month(self.price)


def price_per_tib_month(price: int) -> int:
    """A price per MiB-epoch as people know it: per TiB of fragments and 720 epochs."""
    return price * TIB_MIBS * MONTH_EPOCHS


def price_per_mib_epoch(per_tib_month: int) -> int:
    """The other way round, floored: a limit is never exceeded."""
    return per_tib_month // (TIB_MIBS * MONTH_EPOCHS)


def put_quote(params: Params, geometry: Geometry, data_bytes: int, price: int, epochs: int) -> PutQuote:
    """What `data_bytes` of files cost at most for `epochs`, at `price` per MiB-epoch."""
    return segments_quote(params, list(segments_of(geometry, data_bytes)), data_bytes, price, epochs)


def segments_quote(params: Params, segments: Sequence[list[StripeShape]], data_bytes: int, price: int, epochs: int) -> PutQuote:
    """What segments of these stripes cost: exactly, where they are what will be registered."""
    parts = [quote(params, sizes_by_index(shapes), price, epochs) for shapes in segments]
    stored = sum(sum(sizes_by_index(shapes)) for shapes in segments)
    return PutQuote(data_bytes, stored, epochs, price, *_sums(parts))


def _sums(parts: list[Quote]) -> tuple[int, int, int]:
    return sum(part.rent for part in parts), sum(part.fee for part in parts), sum(part.reserve for part in parts)


def segments_of(geometry: Geometry, data_bytes: int) -> Iterator[list[StripeShape]]:
    """The stripes of each segment that so much content fills, nothing compressed: blocks, their rows and directories too."""
    rows = -(-data_bytes // CHUNK_BYTES) * INDEX_ROW_BYTES
    left = data_bytes + rows + FRAME_BYTES
    full = geometry.segment_bytes - MIB  # a segment closes before the block that it has no room for
    while left > 0:
        taken = min(left, full)
        yield stripe_shapes(geometry, taken)
        left -= taken


def sizes_by_index(shapes: list[StripeShape]) -> list[int]:
    """Bytes that the holder of each index keeps."""
    width = max(shape.k + shape.m for shape in shapes)
    return [sum(shape.slot_bytes for shape in shapes if index < shape.k + shape.m) for index in range(width)]


def parse_term(text: str, epoch_ms: int) -> int:
    """`30d`, `12h`, `720` (epochs) -> epochs, rounded up.

    Raises:
        InputError
    """
    found = _TERM.fullmatch(text.strip())
    if found is None:
        raise InputError(f"not a term: {text[:40]!r}", hint="write it like 30d, 12h or 720 (a number of epochs)")
    count, unit = int(found[1]), found[2]
    epochs = -(-count * _UNIT_MS[unit] // epoch_ms) if unit in _UNIT_MS else count
    if not 0 < epochs <= EPOCH_MAX:
        raise InputError(f"a term of {epochs} epochs is too long")
    return epochs

"""A segment's spool: what is read back is what was appended, until it is closed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dds.erasure.stripes import encode_stripe
from dds.primitives.errors import StorageError
from dds.runtime.spool import Spool
from dds.wire.segment import StripeShape


def test_any_part_of_any_slot_is_read_back(tmp_path: Path) -> None:
    spool, source = Spool(tmp_path / "spool"), random.Random(1)
    shapes = [StripeShape(4, 2, 1000, 4000), StripeShape(4, 2, 500, 1999), StripeShape(1, 2, 70, 70)]
    stripes = [encode_stripe(shape, source.randbytes(shape.data_bytes), number) for number, shape in enumerate(shapes)]
    for stripe in stripes:
        spool.append(stripe)
    assert list(tmp_path.iterdir()) == []  # it has no name
    for stripe in stripes:
        shape = stripe.shape
        assert spool.read(stripe.number) == (shape, b"".join(stripe.fragments[: shape.k]))
        for slot in range(shape.k):
            lo = source.randrange(shape.slot_bytes)
            hi = source.randrange(lo, shape.slot_bytes) + 1
            assert spool.read_slot(stripe.number, slot, lo, hi) == stripe.fragments[slot][lo:hi]
    spool.close()
    spool.close()
    with pytest.raises(StorageError):
        spool.read_slot(0, 0, 0, 1)

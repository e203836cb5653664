"""How many fragments a byte becomes: storage classes, and the stripes that a data space is cut into.

Decides k, m and slot size of every stripe from (class geometry, bytes), with nothing random: the same data space always gets
the same stripes. Does not decide which class a content deserves (a policy) nor where fragments go (placement).
Source: docs/spec/segments.md, "Geometry".
"""

from __future__ import annotations

from collections.abc import Iterable
from math import comb
from typing import Final, NamedTuple

from dds.primitives.errors import InputError
from dds.primitives.units import K_MAX, N_MAX, SLOT_BYTES_MAX, SLOT_BYTES_MIN, STRIPES_PER_SEGMENT_MAX
from dds.wire.segment import StripeShape

SLOT_ALIGN_BYTES: Final = 64  # a vector register: slots of other sizes make the codec's last columns slow


class Geometry(NamedTuple):
    """k data and m parity fragments a stripe: any k of the n = k + m give the data back."""

    k: int
    m: int

    @property
    def n(self) -> int:
        return self.k + self.m

    @property
    def expansion(self) -> float:
        """Bytes stored for each byte of a full stripe."""
        return self.n / self.k

    @property
    def stripe_bytes(self) -> int:
        """Data bytes of a full stripe."""
        return self.k * SLOT_BYTES_MAX

    @property
    def segment_bytes(self) -> int:
        """The largest data space of a segment, its index included."""
        return STRIPES_PER_SEGMENT_MAX * self.stripe_bytes

    def __str__(self) -> str:
        return f"{self.k}+{self.m}"


STANDARD: Final = Geometry(10, 6)
HOT: Final = Geometry(10, 10)
ARCHIVE: Final = Geometry(16, 16)
ARCHIVE_SMALL: Final = Geometry(6, 6)  # archive on a network with fewer than 32 archive nodes, a devnet above all

CUSTOM_CLASS: Final = "custom"
ARCHIVE_CLASS: Final = "archive"
CLASSES: Final = {"standard": STANDARD, "hot": HOT, ARCHIVE_CLASS: ARCHIVE}
ARCHIVES: Final = {str(each): each for each in (ARCHIVE, ARCHIVE_SMALL)}  # as a network's configuration names them


def custom_geometry(k: int, m: int) -> Geometry:
    """A geometry that a creator names.

    Raises:
        InputError: k outside 1..64, no parity at all, or more than 128 fragments.
    """
    if not 1 <= k <= K_MAX:
        raise InputError(f"k must be 1 to {K_MAX}, not {k}")
    if m < 1 or k + m > N_MAX:
        raise InputError(f"m must be 1 to {N_MAX - k} for k = {k}, not {m}", hint="k + m is the number of nodes needed")
    return Geometry(k, m)


def class_geometry(name: str, k: int | None = None, m: int | None = None) -> Geometry:
    """The geometry of a storage class; `k` and `m` belong to "custom", and to "archive", which has one of two.

    Raises:
        InputError: no such class, or k and m where they do not belong or are out of bounds.
    """
    if name == CUSTOM_CLASS:
        if k is None or m is None:
            raise InputError("class custom needs both k and m")
        return custom_geometry(k, m)
    if name == ARCHIVE_CLASS and (k, m) in ARCHIVES.values():
        return Geometry(*ARCHIVES[f"{k}+{m}"])
    if k is not None or m is not None:
        raise InputError(f"class {name} has its own k and m", hint="name the class custom to choose them")
    if name not in CLASSES:
        raise InputError(f"no storage class {name!r}", hint="classes: " + ", ".join([*CLASSES, CUSTOM_CLASS]))
    return CLASSES[name]


def full_stripe(geometry: Geometry) -> StripeShape:
    k, m = geometry
    return StripeShape(k, m, SLOT_BYTES_MAX, k * SLOT_BYTES_MAX)


def last_stripe(geometry: Geometry, rest_bytes: int) -> StripeShape:
    """The stripe of what is left behind the full ones: 0 < `rest_bytes` < k MiB.

    Slots shrink with the rest, so that little data still spreads over k nodes; under 4 KiB a slot, copies are cheaper than
    requests to k nodes, and the stripe becomes k = 1 with m + 1 verbatim copies.
    """
    k, m = geometry
    assert 0 < rest_bytes < geometry.stripe_bytes
    if k == 1 or rest_bytes < k * SLOT_BYTES_MIN:
        return StripeShape(1, m, rest_bytes, rest_bytes)
    return StripeShape(k, m, _round_up(-(-rest_bytes // k), SLOT_ALIGN_BYTES), rest_bytes)


def stripe_shapes(geometry: Geometry, data_bytes: int) -> list[StripeShape]:
    """The stripes of `data_bytes` of data space, in order."""
    assert data_bytes >= 0
    full, rest = divmod(data_bytes, geometry.stripe_bytes)
    shapes = [full_stripe(geometry)] * full
    return [*shapes, last_stripe(geometry, rest)] if rest else shapes


def stored_bytes(shapes: Iterable[StripeShape]) -> int:
    """Bytes of all fragments of these stripes: what nodes keep and are paid for."""
    return sum((shape.k + shape.m) * shape.slot_bytes for shape in shapes)


def storage_expansion(geometry: Geometry, data_bytes: int) -> float:
    """Bytes stored for each of `data_bytes` of data space, padding and copies included."""
    return stored_bytes(stripe_shapes(geometry, data_bytes)) / data_bytes


def loss_probability(geometry: Geometry, node_loss: float) -> float:
    """Chance that one stripe is lost when each node is lost independently with chance `node_loss` and nothing is repaired.

    A binomial tail: more than m of n. Independence is an assumption; print it with every figure.
    """
    k, m = geometry
    n = k + m
    return sum(comb(n, lost) * node_loss**lost * (1 - node_loss) ** (n - lost) for lost in range(m + 1, n + 1))


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step

"""What storing costs and what it must be backed with: pure arithmetic that rules and clients share.

Decides sizes by index, quotes and collateral. Moves no money and reads no state. Charged: rounded up; locked and paid out:
rounded down. Source: docs/spec/ledger.md, "Contracts" and "Storage pay, fees, emission".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dds.ledger.params import RATE_DIVISOR, Params
from dds.primitives.money import MILLION, mul_div_ceil, mul_div_floor, share_ppm
from dds.wire.ledger import StripeRun
from dds.wire.segment import leaf_count_of


@dataclass(frozen=True, slots=True)
class Quote:
    """Base units. The whole is due when a segment is registered."""

    rent: int
    fee: int  # gone: partly burned, the rest to the treasury
    reserve: int  # for repairs; what is not spent comes back

    @property
    def total(self) -> int:
        return self.rent + self.fee + self.reserve


def rent(bytes_total: int, price: int, epochs: int) -> int:
    """Of `bytes_total` bytes (all fragments) for `epochs` epochs at `price` per MiB-epoch, rounded up."""
    return mul_div_ceil(bytes_total * price, epochs, RATE_DIVISOR)


def quote_rent(params: Params, amount: int) -> Quote:
    """What a payment of `amount` rent brings with it."""
    fee = mul_div_ceil(amount, params.fee_ppm, MILLION)
    return Quote(amount, fee, mul_div_ceil(amount, params.repair_reserve_ppm, MILLION))


def quote(params: Params, sizes_by_index: Iterable[int], price: int, epochs: int) -> Quote:
    """What one segment costs whose index i holds sizes_by_index[i] bytes: exactly what registering it takes."""
    return quote_rent(params, rent(sum(sizes_by_index), price, epochs))


def fee_burned(params: Params, fee: int) -> int:
    """The part of a fee that ceases to be; the rest is the treasury's."""
    return share_ppm(fee, params.fee_burned_ppm)


def collateral(params: Params, fragment_bytes: int, price: int) -> int:
    """What a node locks for one assignment of `fragment_bytes` bytes."""
    return mul_div_floor(fragment_bytes * price, params.collateral_epochs, RATE_DIVISOR)


# -- what the stripes of a segment imply ------------------------------------------------------------------------------------


def shapes(stripes: Sequence[StripeRun]) -> Iterator[tuple[int, StripeRun]]:
    """(stripe number, its shape), stripe by stripe."""
    number = 0
    for run in stripes:
        for _ in range(run.count):
            yield number, run
            number += 1


def stripe_count(stripes: Sequence[StripeRun]) -> int:
    return sum(run.count for run in stripes)


def width(stripes: Sequence[StripeRun]) -> int:
    """n: how many indices there are."""
    return max(run.k + run.m for run in stripes)


def stripes_bytes(stripes: Sequence[StripeRun], index: int, released: int = 0) -> int:
    """Bytes that the holder of `index` keeps: its fragment of every stripe that has one, `released` ones (bit s) left out."""
    return sum(run.slot_bytes for _, run in _held(stripes, index, released))


def sponsored_bytes(stripes: Sequence[StripeRun], sponsored: int) -> int:
    """Bytes of all fragments of the `sponsored` stripes (bit s: stripe s)."""
    return sum(run.slot_bytes * (run.k + run.m) for number, run in shapes(stripes) if sponsored >> number & 1)


def leaf_count(stripes: Sequence[StripeRun], index: int, released: int = 0) -> int:
    """Leaves that the holder of `index` can be asked for; they are numbered stripe by stripe."""
    return sum(leaf_count_of(run.slot_bytes) for _, run in _held(stripes, index, released))


def leaf_place(stripes: Sequence[StripeRun], index: int, leaf: int, released: int = 0) -> tuple[int, int] | None:
    """(stripe, leaf of its fragment) that leaf number `leaf` of the holder of `index` is; None: there is none such."""
    for number, run in _held(stripes, index, released):
        count = leaf_count_of(run.slot_bytes)
        if leaf < count:
            return number, leaf
        leaf -= count
    return None


def _held(stripes: Sequence[StripeRun], index: int, released: int) -> Iterator[tuple[int, StripeRun]]:
    return ((number, run) for number, run in shapes(stripes) if index < run.k + run.m and not released >> number & 1)

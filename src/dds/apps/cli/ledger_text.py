"""How the ledger's commands write money, prices, times and tables for people; machines get the integers.

Decides nothing about money: every amount is shown with all its digits. Spans of time are epochs of the network's own length,
told as people tell time. Tables are laid out by rich at any width: a line that a terminal wraps is whole, a cut one is not.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from dds.primitives.errors import InputError
from dds.primitives.money import AMOUNT_MAX, SYMBOL, format_tokens, mul_div_ceil, parse_tokens
from dds.primitives.units import GIB, MIB

if TYPE_CHECKING:
    from dds.ledger.params import Params

TABLE_WIDTH: Final = 400  # wider than any row
MONTH_MS: Final = 30 * 86_400_000  # what prices are told for: 30 days
YEAR_MS: Final = 365 * 86_400_000 + 21_600_000
TIB: Final = GIB << 10
_UNITS: Final = ((YEAR_MS, "y"), (86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms"))
_SPANS: Final = {"ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000, "y": YEAR_MS}


def table(head: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Rows under a heading; the columns whose numbers are in `right` are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for at, name in enumerate(head):
        made.add_column(name, justify="right" if at in right else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    console = Console(file=io.StringIO(), width=TABLE_WIDTH, color_system=None, legacy_windows=False)
    console.print(made)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def facts(pairs: Sequence[tuple[str, object]]) -> str:
    """`name   value` lines, the values in one column."""
    width = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in pairs)


def signed_tokens(amount: int) -> str:
    """An amount that came (+) or went (-)."""
    return f"+{format_tokens(amount)}" if amount > 0 else format_tokens(amount)


def span_text(epochs: int, params: Params) -> str:
    """`720` epochs of one hour -> `720 epochs (30 d)`."""
    return f"{epochs:,} epoch{'' if epochs == 1 else 's'} ({duration_text(epochs * params.epoch_ms)})"


def duration_text(span_ms: int) -> str:
    """The largest unit that fits, with one decimal where it is not whole."""
    for size, unit in _UNITS:
        if span_ms >= size:
            whole, rest = divmod(span_ms * 10 // size, 10)
            return f"{whole:,}.{rest} {unit}" if rest else f"{whole:,} {unit}"
    return "0 s"


def parse_span(text: str, params: Params) -> int:
    """`720` (epochs), `30d`, `12h`, `90s` -> epochs, rounded up: what is paid for lasts at least as long as was asked.

    Raises:
        InputError: not a span of time, or none at all.
    """
    bare = text.strip().lower().replace(" ", "")
    digits = bare.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = bare[len(digits) :]
    known = not unit or unit in _SPANS
    if not known or not digits.isascii() or not digits.isdigit() or len(digits) > 12 or int(digits) == 0:
        raise InputError(f"not a span of time: {text[:40]!r}", hint="a number of epochs, or for example 30d, 12h, 90s")
    return int(digits) if not unit else -(-int(digits) * _SPANS[unit] // params.epoch_ms)


def month_epochs(params: Params) -> int:
    """Epochs in 30 days, at least one."""
    return max(1, MONTH_MS // params.epoch_ms)


def month_price(price: int, size: int, params: Params) -> int:
    """What `size` bytes of fragments cost in 30 days at `price` per MiB-epoch; base units, ceiled."""
    return mul_div_ceil(size * price, month_epochs(params), MIB)


def price_text(price: int, params: Params) -> str:
    """A price as the ledger has it, and as people compare it."""
    return f"{price:,} per MiB-epoch ({about_tokens(month_price(price, TIB, params))} per TiB of fragments and 30 d)"


def about_tokens(amount: int) -> str:
    """An amount for comparing prices: four significant digits, and a sign that it is rounded."""
    digits = len(str(abs(amount)))
    step = 10 ** max(0, digits - 4)
    near = (amount + step // 2) // step * step
    return format_tokens(near) if near == amount else f"about {format_tokens(near)}"


def parse_price(text: str, params: Params) -> int:
    """`1325` base units per MiB-epoch, or `1.5 ECHO`: tokens per TiB of fragments and 30 days, floored to the ledger's unit.

    Raises:
        InputError: neither.
    """
    bare = text.strip().replace(",", "")
    if bare.isascii() and bare.isdigit() and len(bare) <= 18:
        return int(bare)
    if not bare.upper().endswith(SYMBOL):
        raise InputError(
            f"not a price: {text[:40]!r}",
            hint=f"base units per MiB-epoch as a whole number, or tokens per TiB of fragments and 30 days as '1.5 {SYMBOL}'",
        )
    price = parse_tokens(bare.upper()) * MIB // (TIB * month_epochs(params))
    if price > AMOUNT_MAX:
        raise InputError(f"a price beyond any: {text[:40]!r}")
    return price


def ppm_text(ppm: int) -> str:
    """`998500` -> `99.85 %`."""
    whole, part = divmod(ppm, 10_000)
    fraction = f".{part:04d}".rstrip("0") if part else ""
    return f"{whole}{fraction} %"

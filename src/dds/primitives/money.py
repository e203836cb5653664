"""Money: integers of the base unit, 10^-12 token, and the two ways of rounding.

The whole supply fits into 63 bits, so every amount fits into one msgpack integer; products are made in unbounded integers and
checked when they become amounts again. What is paid out is floored and what is charged is ceiled: dust stays with the payer's
contract and comes back to it.
"""

from __future__ import annotations

import re
from typing import Final

from dds.primitives.errors import InputError

TOKEN: Final = 10**12  # base units
AMOUNT_MAX: Final = (1 << 63) - 1
MILLION: Final = 10**6  # parts per million are how the ledger writes shares
SYMBOL: Final = "ECHO"

_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,6})(?:\.([0-9]{1,12}))?", re.ASCII)


def mul_div_floor(a: int, b: int, divisor: int) -> int:
    return a * b // divisor


def mul_div_ceil(a: int, b: int, divisor: int) -> int:
    return -(-a * b // divisor)


def share_ppm(amount: int, ppm: int) -> int:
    """A share of an amount, floored."""
    return amount * ppm // MILLION


def format_tokens(amount: int) -> str:
    """`1500000000000` -> `1.5 ECHO`: every digit that is not zero is shown, for money is never rounded for show."""
    sign, units = ("-", -amount) if amount < 0 else ("", amount)
    whole, part = divmod(units, TOKEN)
    fraction = f".{part:012d}".rstrip("0") if part else ""
    return f"{sign}{whole:,}{fraction} {SYMBOL}"


def parse_tokens(text: str) -> int:
    """`1.5`, `1,000 ECHO` -> base units.

    Raises:
        InputError: anything but a plain decimal of at most 12 places; no exponent, no sign.
    """
    plain = text.strip().removesuffix(SYMBOL).strip().replace(",", "")
    found = _DECIMAL.fullmatch(plain)
    amount = int(found[1]) * TOKEN + int((found[2] or "").ljust(12, "0")) if found else -1
    if not 0 <= amount <= AMOUNT_MAX:
        raise InputError(f"not an amount of tokens: {text[:40]!r}", hint="write it like 12 or 0.25, with at most 12 decimals")
    return amount

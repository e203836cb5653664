"""Why a transaction is refused. A refusal is an outcome, not an error of ours: it never leaves the machine as an exception."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any


class Refused(Exception):
    """Raised by a rule before or after it changed anything: the machine takes every change back.

    `code` is stable, for machines: lower-case words joined by hyphens. `message` is for people and names the numbers.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def require(condition: bool, code: str, message: str) -> None:
    if not condition:
        raise Refused(code, message)


def require_ascending(items: Sequence[Any], what: str) -> None:
    """
    Raises:
        Refused: `what` is a set, and `items` are not in ascending order, each once.
    """
    require(all(one < two for one, two in pairwise(items)), "not-ascending", f"{what} are to be strictly ascending")

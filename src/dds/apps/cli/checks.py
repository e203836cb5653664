"""What `dds doctor` finds: one check a line, and how the command ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from dds.apps.cli import exits

Grade = Literal["ok", "warn", "fail"]
SERVES, OUTSIDE = "serves", "outside"
OF_OTHERS: Final = frozenset({SERVES, OUTSIDE})  # what fails here is a node that is not reached, no fault of this machine


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    grade: Grade
    found: str
    todo: str = ""
    detail: object = None  # the numbers behind it, for machines


def exit_code_of(checks: Iterable[Check]) -> int:
    """0 when nothing failed, 4 when all that failed is that the node cannot be reached, else 1."""
    failed = {check.name for check in checks if check.grade == "fail"}
    if not failed:
        return exits.OK
    return exits.UNAVAILABLE if failed <= OF_OTHERS else exits.FAILED

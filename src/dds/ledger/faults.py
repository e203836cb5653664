"""Why a transaction is refused. A refusal is an outcome, not an error of ours: it never leaves the machine as an exception."""

from __future__ import annotations


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

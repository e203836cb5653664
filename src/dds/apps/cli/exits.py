"""Exit codes, and how an error is told: to a person in one line and a hint, to a machine as one JSON object.

    0    done
    1    failed (a disk, a bug, a check of `dds doctor`)
    2    bad usage, input or configuration
    3    not found: nobody known has it
    4    unavailable: not enough nodes or fragments, or a node could not be reached
    5    integrity: bytes fail their hash, or a record its signature
    130  interrupted (Ctrl-C); 143 terminated; 141 the reader of the output went away

With --json the object is the last line of standard error: {"error": {"code", "message", "hint", "exit_code", ...}}.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Final

from dds.primitives.errors import (
    BadBytesError,
    ConfigError,
    CorruptError,
    DDSError,
    FormatError,
    InputError,
    LimitError,
    NotFoundError,
    RemoteError,
    UnavailableError,
    UnsupportedVersion,
)

OK: Final = 0
FAILED: Final = 1
BAD_INPUT: Final = 2
NOT_FOUND: Final = 3
UNAVAILABLE: Final = 4
INTEGRITY: Final = 5
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
TERMINATED: Final = 143

DEBUG_VARIABLE: Final = "DDS_DEBUG"

_BY_KIND: Final = (  # the first that fits
    (InputError | ConfigError | LimitError, BAD_INPUT),
    (NotFoundError, NOT_FOUND),
    (CorruptError | BadBytesError, INTEGRITY),
    (UnsupportedVersion, FAILED),
    (FormatError, INTEGRITY),
    (UnavailableError | RemoteError, UNAVAILABLE),
)


class Interrupted(Exception):
    """Ctrl-C, after the command has cleaned up."""


class ReaderGone(Exception):
    """Nobody reads standard output any more."""


def exit_code(error: DDSError) -> int:
    return next((code for kind, code in _BY_KIND if isinstance(error, kind)), FAILED)


def tell(message: str, *, hint: str | None = None, code: str, exit_code: int, as_json: bool, fields: object = None) -> int:
    """Report a failure on standard error.

    Returns:
        `exit_code`.
    """
    if as_json:
        extra = fields if isinstance(fields, dict) else {}
        error = {**extra, "code": code, "message": message, "hint": hint, "exit_code": exit_code}
        print(json.dumps({"error": error}, default=str), file=sys.stderr, flush=True)
    else:
        print(f"dds: {message}" + (f"\nhint: {hint}" if hint else ""), file=sys.stderr, flush=True)
    return exit_code


def tell_error(error: BaseException, *, as_json: bool) -> int:
    """Report any exception that ended a command.

    Returns:
        the exit code.
    """
    if isinstance(error, DDSError):
        fields = error.to_dict()
        return tell(error.message, hint=error.hint, code=error.code, exit_code=exit_code(error), as_json=as_json, fields=fields)
    if isinstance(error, OSError):
        what = f"{error.filename}: " if error.filename else ""
        return tell(f"{what}{error.strerror or error}", code="os", exit_code=FAILED, as_json=as_json)
    return tell(
        f"internal error: {type(error).__name__}: {error}",
        hint=f"this is a bug in dds; {DEBUG_VARIABLE}=1 shows where",
        code="internal",
        exit_code=FAILED,
        as_json=as_json,
    )


def is_debugging() -> bool:
    return os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0")

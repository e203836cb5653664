"""The body of an answer that is an error, whatever the request was.

Source: docs/spec/identity.md, "Errors on the wire".
"""

from __future__ import annotations

import msgspec

from dds.primitives.errors import DDSError


class ErrorReply(msgspec.Struct, frozen=True):
    """`code` is stable and for programs, `message` and `hint` are for people."""

    code: str
    message: str
    hint: str | None = None


def error_reply(error: DDSError) -> ErrorReply:
    return ErrorReply(error.code, error.message, error.hint)

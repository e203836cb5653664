"""What the event loop reports of connections that are gone already, kept out of people's sight.

uvloop's TLS layer reports "Fatal error on SSL protocol" with a RuntimeError "the handler is closed" when bytes that arrive
after a request was cancelled find their connection closed. Nothing is lost: whoever waited was told, and the connection is
gone, as it should be. Every other report goes where it went before.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

_log = logging.getLogger(__name__)


def ignore_closed_connections(loop: asyncio.AbstractEventLoop) -> None:
    """Log such reports at debug level from now on; safe to call more than once."""
    before = loop.get_exception_handler()
    if isinstance(before, _Chained):
        return
    loop.set_exception_handler(_Chained(before))


class _Chained:
    """An exception handler that passes on what is not its business."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if is_closed_connection(context):
            _log.debug("a connection was closed under its TLS layer: %s", context.get("exception"))
        elif self._before is not None:
            self._before(loop, context)
        else:
            loop.default_exception_handler(context)


def is_closed_connection(context: dict[str, Any]) -> bool:
    """Whether a loop's report is only of a connection that is gone."""
    error = context.get("exception")
    return isinstance(error, RuntimeError) and "the handler is closed" in str(error) and "SSL" in str(context.get("message"))

"""Reports of connections that are gone already stay out of sight; all others are passed on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dds.transport.loop_faults import ignore_closed_connections

GONE = {
    "message": "Fatal error on SSL protocol",
    "exception": RuntimeError("unable to perform operation on <TCPTransport>; the handler is closed"),
}


async def test_a_closed_connection_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    ignore_closed_connections(loop)
    loop.call_exception_handler(dict(GONE))
    assert not caplog.records


async def test_everything_else_reaches_the_handler_that_was_there() -> None:
    loop = asyncio.get_running_loop()
    seen: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: seen.append(context))
    ignore_closed_connections(loop)
    ignore_closed_connections(loop)
    loop.call_exception_handler(dict(GONE))
    other = {"message": "Task exception was never retrieved", "exception": ValueError("x")}
    loop.call_exception_handler(other)
    assert seen == [other]

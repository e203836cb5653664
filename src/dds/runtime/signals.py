"""Being asked to stop: the first SIGTERM or SIGINT asks, the second insists.

Source: signal(7); a daemon that ignores a second request is one that people learn to kill -9.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_requests() -> Iterator[asyncio.Event]:
    """An event that is set by the first stop signal. The second ends the process at once, with 128 + its number."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()

    def on_signal(number: int) -> None:
        if asked.is_set():
            os._exit(128 + number)
        asked.set()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield asked
    finally:
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)

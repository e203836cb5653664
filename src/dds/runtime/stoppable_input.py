"""Reading a stream that may have nothing to say for long, in a thread that must end soon when it is asked to.

A read of a pipe or terminal blocks until its other end writes or goes away; nobody can wake the thread that waits in it. So
it is waited for in short steps, and read only when there is something. Does not decide what becomes of the bytes.

Source: poll(2).
"""

from __future__ import annotations

import io
import select
from collections.abc import Callable
from typing import BinaryIO, Final

from dds.primitives.errors import UnavailableError

STEP_MS: Final = 200


class StoppableInput:
    """What `stream.read` gives, as far as it is there; `is_stopped` is looked at every STEP_MS."""

    def __init__(self, stream: BinaryIO, is_stopped: Callable[[], bool]) -> None:
        self._stream, self._is_stopped = stream, is_stopped
        self._poll: select.poll | None = None
        try:
            descriptor = stream.fileno()
        except (OSError, io.UnsupportedOperation, AttributeError):
            return  # bytes in memory: never waited for
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN | select.POLLHUP)

    def read(self, size: int) -> bytes:
        """At most `size` bytes, none only at the end.

        Raises:
            UnavailableError: it was stopped.
        """
        if self._poll is None:
            return self._stream.read(size)
        while not self._poll.poll(STEP_MS):
            if self._is_stopped():
                raise UnavailableError("stopped while waiting for input")
        read1 = getattr(self._stream, "read1", self._stream.read)  # `read` of a buffered stream would wait for all of `size`
        data: bytes = read1(size)
        return data

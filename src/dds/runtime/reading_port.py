"""What the routes that serve bytes need of whoever keeps the readers' accounts.

Decides nothing: it is the seam between serving (node_routes.py, the edge cache's routes) and counting (reading_meter.py).
"""

from __future__ import annotations

from typing import Protocol

from dds.transport.routes import Request


class ReadingMeter(Protocol):
    """Called in the event loop, for each request that reads stored bytes; both must be quick."""

    def admit(self, request: Request) -> None:
        """
        Raises:
            PaymentRequired: the reader owes too much; the message says what, and how it goes on.
        """
        ...

    def served(self, request: Request, byte_count: int) -> None:
        """So many bytes of content went out to it."""
        ...

"""What every engine is: something that puts transactions into one order and makes them durable.

Decides the shape that hosts and tests see. The rules are the same behind each (dds.ledger), and so is the replica that applies
them (replica.py); only who orders, and who has to agree, differs.
Source: docs/spec/ledger.md, "Blocks".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dds.ledger.events import Event
from dds.ledger.machine import OK
from dds.wire.ledger_api import Head

if TYPE_CHECKING:
    from dds.engines.replica import Replica


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a transaction. `height` is that of its block; 0 where it was refused before it came into one."""

    height: int
    code: str  # empty where it did what it says, else why it was refused
    message: str = ""
    events: tuple[Event, ...] = ()

    @property
    def ok(self) -> bool:
        return self.code == OK


class Engine(Protocol):
    """One member of a ledger. All methods belong to one event loop."""

    @property
    def name(self) -> str:
        """ "embedded", "nats", "abci"."""
        ...

    @property
    def replica(self) -> Replica:
        """For reads; nobody but the engine applies to it."""
        ...

    async def start(self) -> None:
        """Take part.

        Raises:
            ConfigError, StorageError, UnavailableError: it cannot.
        """
        ...

    async def submit(self, raws: Sequence[bytes]) -> list[Outcome]:
        """Have transactions ordered and applied; returns when each is final and durable, in the order given.

        Raises:
            UnavailableError: nobody can say what became of them; submitting the same bytes again is safe, for a nonce counts
                once.
            StorageError: the disk failed, and nothing was done.
        """
        ...

    def head(self) -> Head:
        """The last durable block."""
        ...

    async def stop(self) -> None:
        """Finish what is under way, refuse what comes. The replica is closed after this, if not by it."""
        ...

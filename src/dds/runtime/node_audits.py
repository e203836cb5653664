"""What a node with a ledger does about it: it takes what it was drawn for, answers its audits, watches others' as a witness.

Decides which parts run and how they reach other nodes. Does not decide what they do (auditor.py, witness.py). A node without a
ledger has none of this.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dds.primitives.errors import FormatError, PeerProtocolError
from dds.primitives.ids import NodeID, id_text
from dds.primitives.keys import SigningKey
from dds.primitives.units import KIB
from dds.runtime.admission import Admission
from dds.runtime.auditor import Auditor
from dds.runtime.ledger_client import LedgerClient
from dds.runtime.let_go import Announcements, LetGo
from dds.runtime.metrics import Registry
from dds.runtime.recheck import Rechecker
from dds.runtime.settler import Settler
from dds.runtime.witness import Witness
from dds.storage.fragment_store import FragmentStore
from dds.storage.witness_log import WitnessLog
from dds.transport.client import PeerClient
from dds.transport.routes import Route
from dds.wire.audit import AuditReply
from dds.wire.codec import decode

SEND_TIMEOUT_S: Final = 20.0
AUDIT_REPLY_BYTES_MAX: Final = KIB


@dataclass(frozen=True, slots=True)
class AuditParts:
    """What a node lends to its audits."""

    key: SigningKey
    network: str
    ledger: LedgerClient
    client: PeerClient
    learn: Callable[[NodeID], None]  # lets the client dial a node; raises PeerUnreachable where nobody knows it
    pool: Executor
    metrics: Registry


class NodeAudits:
    """The parts that run, and their route."""

    def __init__(self, parts: AuditParts, *, store: FragmentStore | None, witness_dir: Path | None, settle_epochs: int) -> None:
        """`store`: of a node that stores for others; `witness_dir`: of a witness."""
        self._parts = parts
        self.auditor = self._make_auditor(store) if store is not None else None
        self.settler = None if store is None else Settler(parts.key, store, parts.ledger, settle_epochs, parts.metrics)
        self.witness = self._make_witness(witness_dir) if witness_dir is not None else None

    def _make_auditor(self, store: FragmentStore) -> Auditor:
        p = self._parts
        return Auditor(p.key, p.network, store, p.pool, p.ledger, self._send, p.metrics)

    def _make_witness(self, directory: Path) -> Witness:
        p = self._parts
        look_at = Rechecker(p.client, p.learn).look_at
        return Witness(p.key, p.network, p.ledger, WitnessLog(directory / p.network), p.pool, look_at, p.metrics)

    def letting_go(self, store: FragmentStore, directory: Path, said: Announcements) -> LetGo | None:
        """None for a node that keeps nothing for others."""
        p = self._parts
        node_id = NodeID(p.key.public)
        return None if self.auditor is None else LetGo(node_id, store, p.ledger, directory, said, p.metrics)

    def admission(self) -> Admission:
        """The door that commits come through."""
        p = self._parts
        return Admission(p.ledger, NodeID(p.key.public), lambda: time.time_ns() // 1_000_000)

    @property
    def ledger(self) -> LedgerClient:
        """One for all that the node signs: the nonces of a key have one counter."""
        return self._parts.ledger

    def routes(self) -> list[Route]:
        return [] if self.witness is None else [self.witness.route()]

    def jobs(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What is to be kept running, by name."""
        running = {"auditor": self.auditor, "settler": self.settler, "witness": self.witness}
        return {name: part.run for name, part in running.items() if part is not None}

    async def _send(self, witness: NodeID, message: bytes) -> AuditReply:
        self._parts.learn(witness)
        raw = await self._parts.client.post(
            witness, "/v1/audits", message, max_bytes=AUDIT_REPLY_BYTES_MAX, timeout_s=SEND_TIMEOUT_S
        )
        try:
            return decode(raw, AuditReply, max_bytes=AUDIT_REPLY_BYTES_MAX)
        except FormatError as error:
            raise PeerProtocolError(error.message, peer=id_text(witness)) from None

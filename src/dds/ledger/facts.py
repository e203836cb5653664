"""The ledger's public inputs to proofs, read from a state or from a light client's proven entries.

Decides where each input stands. Does not judge: proofs/ does. Source: docs/spec/proofs.md, "Challenges" and "Evidence".
"""

from __future__ import annotations

from typing import Protocol

from dds.ledger.records import CHAIN, PARAMS, SEGMENTS, Chain, Table, V
from dds.proofs.challenge import SegmentFacts


class Reader(Protocol):
    """A state, or a light client's proven entries."""

    def find(self, table: Table[V], identifier: bytes = b"") -> V | None: ...


class LedgerFacts:
    """What `verify_evidence` asks for, as of the reader's height."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    @property
    def network(self) -> str:
        return (self._reader.find(CHAIN) or Chain()).network

    @property
    def epochs(self) -> tuple[int, int]:
        """The evidence window: bond that is being taken out is slashable for as long."""
        chain, params = self._reader.find(CHAIN) or Chain(), self._reader.find(PARAMS)
        assert params is not None, "genesis was applied"
        return max(0, chain.epoch - params.evidence_epochs), chain.epoch

    def segment(self, segment_id: bytes) -> SegmentFacts | None:
        found = self._reader.find(SEGMENTS, segment_id)
        return None if found is None else SegmentFacts(found.segment_root, found.stripes, found.registered_epoch)

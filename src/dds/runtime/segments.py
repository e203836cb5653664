"""A segment as a reader knows it: its encoding record, who may hold which index, and, once loaded, its entries by CID."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from dds.primitives.cid import CID
from dds.primitives.errors import FormatError
from dds.primitives.ids import FragmentRoot, NodeID, SegmentID
from dds.primitives.units import RECORD_BYTES_MAX
from dds.wire.segment import ENCODING_TAG, EncodingRecord, Entry, decode_encoding, decode_index, segment_id_of
from dds.wire.signed import open_signed

HOLDERS_PER_INDEX_MAX = 4


@dataclass(slots=True)
class Segment:
    segment_id: SegmentID
    record: EncodingRecord
    encoding: bytes  # the signed record, as it came
    publisher: bytes  # who signed it
    source: NodeID | None = None  # who gave it
    search: asyncio.Task[bool] | None = None  # for more holders than were named
    _holders: dict[int, list[NodeID]] = field(default_factory=dict)
    shunned: set[NodeID] = field(default_factory=set)
    entries: list[Entry] | None = None
    by_cid: dict[CID, int] = field(default_factory=dict)
    inline: dict[FragmentRoot, tuple[NodeID, bytes]] = field(
        default_factory=dict
    )  # small fragments that came with the manifest

    def learn_holder(self, index: int, node: NodeID) -> bool:
        """A hint that `node` has fragment `index`; hints cost a wasted request at worst. Whether it is new."""
        known = self._holders.setdefault(index, [])
        if node in known or len(known) >= HOLDERS_PER_INDEX_MAX or not 0 <= index < self.record.width:
            return False
        known.append(node)
        return True

    def learn_holders(self, holders: Iterable[NodeID]) -> None:
        for index, node in enumerate(holders):
            self.learn_holder(index, node)

    def holders_of(self, index: int) -> list[NodeID]:
        return [node for node in self._holders.get(index, []) if node not in self.shunned]

    def nodes(self) -> list[NodeID]:
        """Every node named as a holder, by index."""
        return list(dict.fromkeys(node for index in sorted(self._holders) for node in self._holders[index]))

    def shun(self, node: NodeID) -> None:
        """Not asked again for this segment: it lied, or would not prove what it sent."""
        self.shunned.add(node)

    def accepts_index(self, raw: bytes | memoryview) -> bool:
        """Take the index if it is this segment's."""
        try:
            if segment_id_of(bytes(raw)) != self.segment_id:
                return False
            entries = decode_index(bytes(raw))
        except FormatError:
            return False
        self.entries = entries
        self.by_cid = {entry.cid: at for at, entry in enumerate(entries)}
        return True

    def entry_of(self, cid: CID) -> Entry | None:
        at = self.by_cid.get(cid)
        return None if at is None or self.entries is None else self.entries[at]


def open_segment(encoding: bytes, segment_id: SegmentID, network: str) -> Segment | None:
    """The segment that a signed encoding record describes, or None if it is not valid for `segment_id`."""
    try:
        envelope = open_signed(encoding, ENCODING_TAG, network, max_bytes=RECORD_BYTES_MAX)
        record = decode_encoding(envelope.payload)
    except FormatError:
        return None
    return Segment(segment_id, record, encoding, envelope.key) if record.segment_id == segment_id else None

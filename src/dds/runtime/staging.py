"""How much a peer may stage: the node's defence against uploads that never commit.

Decides whether a peer may stage more bytes now. Does not store anything: the fragment store does, apart for each peer, and its
time to live for staged fragments is the one used here. What was staged before a restart is counted again when its upload is
next touched.

A stranger can make as many keys as it likes, so the bound per peer keeps peers from hindering each other by accident, and the
bound over all peers keeps the disk.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dds.primitives.errors import LimitError
from dds.primitives.ids import NodeID, UploadID
from dds.primitives.units import GIB

STAGED_BYTES_PER_PEER_MAX = 1 * GIB
STAGED_SHARE_OF_CAPACITY = 4  # all peers together may stage capacity / 4
UPLOADS_PER_PEER_MAX = 1024
UPLOADS_MAX = 16_384


@dataclass(slots=True)
class _Upload:
    staged_bytes: int
    touched_s: float


class StagingQuota:
    """Bytes staged, by peer and in total. Time is an argument, in seconds, never decreasing."""

    def __init__(self, *, total_bytes_max: int, ttl_s: float, peer_bytes_max: int = STAGED_BYTES_PER_PEER_MAX) -> None:
        self._total_max = total_bytes_max
        self._peer_max = min(peer_bytes_max, total_bytes_max)
        self._ttl_s = ttl_s
        self._uploads: dict[tuple[NodeID, UploadID], _Upload] = {}
        self._bytes_of: Counter[NodeID] = Counter()
        self._uploads_of: Counter[NodeID] = Counter()
        self.total_bytes = 0

    def knows(self, peer: NodeID, upload: UploadID) -> bool:
        return (peer, upload) in self._uploads

    def take(self, peer: NodeID, upload: UploadID, size: int, now_s: float, *, staged_bytes: int = 0) -> None:
        """Count `size` bytes more, before they are staged; `staged_bytes` are there already if the upload is new here.

        Raises:
            LimitError: the peer, or all peers, staged too much.
        """
        known = self._uploads.get((peer, upload))
        added = size if known else size + staged_bytes
        if self.total_bytes + added > self._total_max:
            raise LimitError("all that this node keeps for uploads in progress is in use", hint="try again later")
        if self._bytes_of[peer] + added > self._peer_max:
            raise LimitError(f"a peer may stage {self._peer_max} bytes here before it commits")
        if known is None:
            known = self._open(peer, upload)
        known.touched_s = now_s
        self._add(peer, known, added)

    def give_back(self, peer: NodeID, upload: UploadID, size: int) -> None:
        """`size` bytes were committed, or not staged after all."""
        known = self._uploads.get((peer, upload))
        if known is None:
            return
        if size >= known.staged_bytes:
            self.forget(peer, upload)
        else:
            self._add(peer, known, -size)

    def forget(self, peer: NodeID, upload: UploadID) -> None:
        """Nothing is staged under `upload` any more."""
        known = self._uploads.pop((peer, upload), None)
        if known is None:
            return
        self._add(peer, known, -known.staged_bytes)
        self._uploads_of[peer] -= 1
        if not self._uploads_of[peer]:
            del self._uploads_of[peer], self._bytes_of[peer]

    def expire(self, now_s: float) -> None:
        """Forget uploads that the store's own sweep has removed by now."""
        for key in [key for key, known in self._uploads.items() if now_s - known.touched_s > self._ttl_s]:
            self.forget(*key)

    def _open(self, peer: NodeID, upload: UploadID) -> _Upload:
        if len(self._uploads) >= UPLOADS_MAX or self._uploads_of[peer] >= UPLOADS_PER_PEER_MAX:
            raise LimitError("too many uploads in progress", hint="commit or discard some")
        self._uploads_of[peer] += 1
        return self._uploads.setdefault((peer, upload), _Upload(0, 0))

    def _add(self, peer: NodeID, known: _Upload, size: int) -> None:
        known.staged_bytes += size
        self._bytes_of[peer] += size
        self.total_bytes += size

"""Who may stage how much: the node's defence against uploads that never commit.

Decides whether a peer may stage more bytes now. Does not store anything: the fragment store does, and its time to live for
staged fragments is the one used here. An upload belongs to the peer that first wrote to it. What was staged before a restart is
counted again when its upload is next touched.

A stranger can make as many keys as it likes, so the bound per peer keeps peers from hindering each other by accident, and the
bound over all peers keeps the disk.
"""

from __future__ import annotations

from dataclasses import dataclass

from dds.primitives.errors import InputError, LimitError
from dds.primitives.ids import NodeID, UploadID
from dds.primitives.units import GIB

STAGED_BYTES_PER_PEER_MAX = 1 * GIB
STAGED_SHARE_OF_CAPACITY = 4  # all peers together may stage capacity / 4
UPLOADS_PER_PEER_MAX = 1024
UPLOADS_MAX = 16_384


@dataclass(slots=True)
class _Upload:
    peer: NodeID
    staged_bytes: int
    touched_s: float


class StagingQuota:
    """Bytes staged, by peer and in total. Time is an argument, in seconds, never decreasing."""

    def __init__(self, *, total_bytes_max: int, ttl_s: float, peer_bytes_max: int = STAGED_BYTES_PER_PEER_MAX) -> None:
        self._total_max = total_bytes_max
        self._peer_max = min(peer_bytes_max, total_bytes_max)
        self._ttl_s = ttl_s
        self._uploads: dict[UploadID, _Upload] = {}
        self._bytes_of: dict[NodeID, int] = {}
        self._uploads_of: dict[NodeID, int] = {}
        self.total_bytes = 0

    def knows(self, upload: UploadID) -> bool:
        return upload in self._uploads

    def check_owner(self, upload: UploadID, peer: NodeID) -> None:
        """
        Raises:
            InputError: the upload is another peer's.
        """
        known = self._uploads.get(upload)
        if known is not None and known.peer != peer:
            raise InputError("this upload belongs to another peer", hint="every upload has an identifier of its own")

    def take(self, upload: UploadID, peer: NodeID, size: int, now_s: float, *, staged_bytes: int = 0) -> None:
        """Count `size` bytes more, before they are staged; `staged_bytes` are there already if the upload is new here.

        Raises:
            InputError: the upload is another peer's.
            LimitError: the peer, or all peers, staged too much.
        """
        self.check_owner(upload, peer)
        known = self._uploads.get(upload)
        added = size if known else size + staged_bytes
        if self.total_bytes + added > self._total_max:
            raise LimitError("all that this node keeps for uploads in progress is in use", hint="try again later")
        if self._bytes_of.get(peer, 0) + added > self._peer_max:
            raise LimitError(f"a peer may stage {self._peer_max} bytes here before it commits")
        if known is None:
            self._open(upload, peer, now_s)
        self._uploads[upload].touched_s = now_s
        self._add(upload, added)

    def give_back(self, upload: UploadID, size: int) -> None:
        """`size` bytes were committed, or not staged after all."""
        known = self._uploads.get(upload)
        if known is not None:
            self._add(upload, -min(size, known.staged_bytes))
            if not known.staged_bytes:
                self.forget(upload)

    def forget(self, upload: UploadID) -> None:
        """Nothing is staged under `upload` any more."""
        known = self._uploads.get(upload)
        if known is None:
            return
        self._add(upload, -known.staged_bytes)
        del self._uploads[upload]
        self._uploads_of[known.peer] -= 1
        if not self._uploads_of[known.peer]:
            del self._uploads_of[known.peer], self._bytes_of[known.peer]

    def expire(self, now_s: float) -> None:
        """Forget uploads that the store's own sweep has removed by now."""
        for upload in [upload for upload, known in self._uploads.items() if now_s - known.touched_s > self._ttl_s]:
            self.forget(upload)

    def _open(self, upload: UploadID, peer: NodeID, now_s: float) -> None:
        if len(self._uploads) >= UPLOADS_MAX or self._uploads_of.get(peer, 0) >= UPLOADS_PER_PEER_MAX:
            raise LimitError("too many uploads in progress", hint="commit or discard some")
        self._uploads[upload] = _Upload(peer, 0, now_s)
        self._uploads_of[peer] = self._uploads_of.get(peer, 0) + 1

    def _add(self, upload: UploadID, size: int) -> None:
        known = self._uploads[upload]
        known.staged_bytes += size
        self._bytes_of[known.peer] = self._bytes_of.get(known.peer, 0) + size
        self.total_bytes += size

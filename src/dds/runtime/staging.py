"""How much a peer may stage: the node's defence against uploads that never commit.

Decides whether a peer may stage more now. Does not store anything: the fragment store does, apart for each peer, and its time
to live for staged fragments is the one used here. The store is the authority on what is staged: it is asked when an upload is
first seen (also after a restart) and after each commit or discard, and what it says replaces what was counted here, unless
something was on its way meanwhile; then the higher count stays. So no order of requests makes the count too low.

A stranger can make as many keys as it likes: the bound per peer keeps peers from hindering each other by accident, the bound
over all peers keeps the disk.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from dds.primitives.errors import LimitError
from dds.primitives.ids import NodeID, UploadID
from dds.primitives.units import GIB

STAGED_BYTES_PER_PEER_MAX = 1 * GIB
STAGED_SHARE_OF_CAPACITY = 4  # all peers together may stage capacity / 4
FRAGMENTS_PER_UPLOAD_MAX = 4096
UPLOADS_PER_PEER_MAX = 1024
UPLOADS_MAX = 16_384


@dataclass(frozen=True, slots=True)
class Staged:
    """What lies or is about to lie under an upload."""

    size: int = 0  # bytes
    count: int = 0  # fragments

    def __add__(self, other: Staged) -> Staged:
        return Staged(self.size + other.size, self.count + other.count)

    def __sub__(self, other: Staged) -> Staged:
        return Staged(max(0, self.size - other.size), max(0, self.count - other.count))


@dataclass(slots=True)
class _Upload:
    staged: Staged  # what is on its way counts already
    touched_s: float
    on_its_way: int = 0  # requests
    takes: int = 0


Mark = tuple[int, int]  # (requests on their way, takes so far) of an upload


class StagingQuota:
    """What is staged, by peer and in total. Time is an argument, in seconds, never decreasing."""

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

    def take(self, peer: NodeID, upload: UploadID, wanted: Staged, now_s: float, *, before: Staged = Staged()) -> None:
        """Count `wanted` before it is staged; `before` lies there already if the upload is new here. Pair with `landed`.

        Raises:
            LimitError: the peer, or all peers, staged too much.
        """
        known = self._uploads.get((peer, upload))
        added = wanted if known else wanted + before
        if self.total_bytes + added.size > self._total_max:
            raise LimitError("all that this node keeps for uploads in progress is in use", hint="try again later")
        if self._bytes_of[peer] + added.size > self._peer_max:
            raise LimitError(f"a peer may stage {self._peer_max} bytes here before it commits")
        if added.count + (known.staged.count if known else 0) > FRAGMENTS_PER_UPLOAD_MAX:
            raise LimitError(f"an upload may stage {FRAGMENTS_PER_UPLOAD_MAX} fragments here before it commits")
        known = known or self._open(peer, upload)
        known.touched_s = now_s
        known.on_its_way += 1
        known.takes += 1
        self._set(peer, known, known.staged + added)

    def landed(self, peer: NodeID, upload: UploadID, wanted: Staged, *, kept: bool) -> None:
        """What `take` counted has been staged, or has not."""
        known = self._uploads[peer, upload]
        known.on_its_way -= 1
        if not kept:
            self._set(peer, known, known.staged - wanted)
        self._close_if_empty(peer, upload, known)

    def mark(self, peer: NodeID, upload: UploadID) -> Mark:
        """To be taken before the store is asked what is left, and given to `correct` with its answer."""
        known = self._uploads.get((peer, upload))
        return (known.on_its_way, known.takes) if known else (0, 0)

    def correct(self, peer: NodeID, upload: UploadID, left: Staged, mark: Mark) -> None:
        """The store said that `left` is what lies under the upload; ignored if anything was on its way since the mark."""
        known = self._uploads.get((peer, upload))
        if known is not None and mark == (0, known.takes) and not known.on_its_way:
            self._set(peer, known, left)
            self._close_if_empty(peer, upload, known)

    def expire(self, now_s: float) -> None:
        """Forget uploads that the store's own sweep has removed by now."""
        for (peer, upload), known in list(self._uploads.items()):
            if now_s - known.touched_s > self._ttl_s and not known.on_its_way:
                self._set(peer, known, Staged())
                self._close_if_empty(peer, upload, known)

    def _open(self, peer: NodeID, upload: UploadID) -> _Upload:
        if len(self._uploads) >= UPLOADS_MAX or self._uploads_of[peer] >= UPLOADS_PER_PEER_MAX:
            raise LimitError("too many uploads in progress", hint="commit or discard some")
        self._uploads_of[peer] += 1
        return self._uploads.setdefault((peer, upload), _Upload(Staged(), 0))

    def _close_if_empty(self, peer: NodeID, upload: UploadID, known: _Upload) -> None:
        if known.on_its_way or known.staged != Staged():
            return
        del self._uploads[peer, upload]
        self._uploads_of[peer] -= 1
        if not self._uploads_of[peer]:
            del self._uploads_of[peer], self._bytes_of[peer]

    def _set(self, peer: NodeID, known: _Upload, staged: Staged) -> None:
        self._bytes_of[peer] += staged.size - known.staged.size
        self.total_bytes += staged.size - known.staged.size
        known.staged = staged

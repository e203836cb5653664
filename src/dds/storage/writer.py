"""One writer, many callers: requests that come together share one write and one sync of the journal (group commit).

A request is a function that looks at the index and returns a draft of what to write, or raises. Drafts are prepared one after
the other inside one transaction of the index, so each sees those before it. Then all records are written, the directories of
new files and the journal are synced, and the transaction is committed; only then does any caller hear that it is done. When the
disk fails, the transaction is rolled back and the journal cut back: nothing was acknowledged, nothing has changed.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from dds.primitives.errors import DDSError, DiskFullError, StorageError
from dds.primitives.hashing import Buffer
from dds.storage.image import Image
from dds.storage.index import Index
from dds.storage.journal import Op, Put
from dds.storage.packs import Framed, PackLog
from dds.storage.recovery import Recovery, replay

T = TypeVar("T")
_BATCH_BYTES_MAX = 32 << 20  # of one shared write


@dataclass(slots=True)
class Draft(Generic[T]):
    """What a request wants written (nothing: it is answered when those before it are durable), and its answer."""

    result: T
    operations: list[Op] = field(default_factory=list)
    blobs: list[Buffer] = field(default_factory=list)
    directories: set[Path] = field(default_factory=set)  # hold new files which the operations name; to be synced first
    body_bytes: int = 0
    noted: bool = False  # `prepare` noted something in the index alone, which is to be kept

    def add_blob(self, blob: Buffer) -> int:
        """Returns where the blob lies in the record's body."""
        at = self.body_bytes
        self.blobs.append(blob)
        self.body_bytes += len(blob)
        return at

    def add_images(self, images: list[Image]) -> None:
        for image in images:
            at = self.add_blob(image.tables)
            self.add_blob(image.data)
            self.operations.append(Put(image.root, len(image.data), at, image.length))


Prepare = Callable[[Index], Draft[T]]


@dataclass(slots=True)
class _Request:
    prepare: Prepare[Any]
    done: bool = False
    noted: bool = False
    result: Any = None
    error: BaseException | None = None


class GroupWriter:
    """Owns the writing side of index and journal."""

    def __init__(self, index: Index, log: PackLog) -> None:
        self._index, self._log = index, log
        self._turn = threading.Lock()  # held by the caller who writes for all
        self._queue: list[_Request] = []
        self._queue_lock = threading.Lock()
        self._broken: StorageError | None = None
        self._behind = False
        self.closed = False

    def submit(self, prepare: Prepare[T]) -> T:
        """Run a request; returns its result when everything it wrote is durable.

        Raises:
            OSError, sqlite3.Error: the disk failed; nothing of this request was kept.
            StorageError: the journal may have it, but the index failed behind it; or an earlier failure left the journal's
                end unknown; or the store is closed.
            DDSError: what `prepare` raised.
        """
        request = _Request(prepare)
        with self._queue_lock:
            self._queue.append(request)
        with self._turn:
            if not request.done:
                self._run(self._take(request))
        if request.error is not None:
            raise request.error
        return cast(T, request.result)

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Hold off all writers for a moment."""
        with self._turn:
            yield

    def shut(self) -> None:
        with self._turn:
            self.closed = True

    def _take(self, own: _Request) -> list[_Request]:
        with self._queue_lock:
            batch, self._queue = self._queue, []
        assert own in batch
        return batch

    def _run(self, batch: list[_Request]) -> None:
        """Serve a batch; a failure of the disk is every request's failure."""
        waiting = batch
        while waiting:
            try:
                waiting = self._serve(waiting)
            except BaseException as error:
                self._index.rollback()
                for request in waiting:
                    request.done, request.error = True, request.error or error
                return

    def _serve(self, batch: list[_Request]) -> list[_Request]:
        """Prepare, write, sync and commit as many as fit one write; returns the rest."""
        self._check_usable()
        self._log.rotate_if_full()
        self._index.begin()
        end, records, directories, taken = self._log.end, [], set[Path](), 0
        for request in batch:
            taken += 1
            framed = self._prepare(request, end)
            if framed is not None:
                record, wanted = framed
                records.append(record)
                directories |= wanted
                end = record.end
            if end - self._log.end > _BATCH_BYTES_MAX:
                break
        if records:
            self._make_durable(records, directories)
            self._commit_index(end)
        elif any(request.noted for request in batch[:taken]):
            self._index.commit()
        else:
            self._index.rollback()
        for request in batch[:taken]:
            request.done = True
        return batch[taken:]

    def _check_usable(self) -> None:
        if self.closed:
            raise StorageError("the store is closed")
        if self._broken is not None:
            raise StorageError(f"the store takes no more writes: {self._broken.message}", hint="restart the node")
        if self._behind:
            self._catch_up()

    def _prepare(self, request: _Request, at: int) -> tuple[Framed, set[Path]] | None:
        """A request's record, applied to the index; None when it has nothing to write or is refused."""
        try:
            draft = request.prepare(self._index)
            request.result, request.noted = draft.result, draft.noted
            if not draft.operations:
                return None
            record = self._log.frame(at, draft.operations, draft.blobs)
        except DDSError as error:
            request.error = error
            return None
        self._index.apply(draft.operations, self._log.current, record.body_at)
        return record, draft.directories

    def _make_durable(self, records: list[Framed], directories: set[Path]) -> None:
        try:
            self._log.append(records, directories)
        except StorageError as error:
            self._broken = error
            raise
        self._behind = True

    def _commit_index(self, end: int) -> None:
        try:
            self._index.set_applied(self._log.current, end)
            self._index.commit()
        except sqlite3.Error as error:
            kind = DiskFullError if "disk is full" in str(error) else StorageError
            raise kind(f"the index failed behind the journal: {error}", hint="free space on the device") from error
        self._behind = False

    def _catch_up(self) -> None:
        found = Recovery()
        if replay(self._index, self._log, found, (self._log.current, self._log.end)) or found.damage:
            raise StorageError("the journal cannot be read back", hint="restart the node")
        self._behind = False

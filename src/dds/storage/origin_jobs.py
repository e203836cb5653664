"""An origin's queue on disk: a directory for each job, with what was asked and how far it is, and the copy of the blocks.

    origin/JOB/job      SavedJob, msgpack, replaced atomically at every change of state
    origin/JOB/blocks, index   the copy (block_file.py)

Decides names and when a change is durable. Does not decide what happens to a job (runtime/origin.py).
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dds.primitives.errors import ConfigError, FormatError, StorageError
from dds.storage.block_file import BLOCKS_NAME, INDEX_NAME
from dds.storage.fileops import FileOps, disk_errors
from dds.storage.home import private_directory, write_atomic
from dds.wire.codec import Message, decode, encode
from dds.wire.origin import ORIGIN_JOB_BYTES_MAX, READING, OriginPut, OriginResult

JOB_VERSION: Final = 1
JOB_ID_BYTES: Final = 8
_JOB_NAME: Final = "job"

log = logging.getLogger("dds.origin")


class SavedJob(Message, frozen=True):
    put: OriginPut
    created_ms: int
    state: str = READING  # or SENDING, DONE, FAILED: what a restart goes on from
    is_enough: bool = False
    ended_ms: int = 0
    error_code: str = ""
    error: str = ""
    hint: str = ""
    result: OriginResult | None = None
    version: int = JOB_VERSION


class JobDirectory:
    """The jobs under one directory, which belongs to one daemon."""

    def __init__(self, root: Path) -> None:
        """
        Raises:
            ConfigError: it is not ours.
        """
        self._root = private_directory(root)

    def path(self, job: str) -> Path:
        return self._root / job

    def create(self, saved: SavedJob) -> str:
        """A new job; durable, name and all, when this returns its id.

        Raises:
            StorageError, DiskFullError
        """
        job = secrets.token_hex(JOB_ID_BYTES)
        with disk_errors("noting a job"):
            self.path(job).mkdir(mode=0o700)
            self.save(job, saved)
            FileOps().sync_directory(self.path(job))
            FileOps().sync_directory(self._root)
        return job

    def save(self, job: str, saved: SavedJob) -> None:
        """
        Raises:
            StorageError
        """
        try:
            write_atomic(self.path(job) / _JOB_NAME, encode(saved))
        except ConfigError as error:
            raise StorageError(error.message) from None

    def load(self) -> Iterator[tuple[str, SavedJob]]:
        """Every job, oldest first. What was broken off before it was noted is removed; what can't be read is left alone."""
        found: list[tuple[str, SavedJob]] = []
        with disk_errors(f"reading {self._root}"):
            for directory in list(self._root.iterdir()):
                if not (directory / _JOB_NAME).exists():
                    self.remove(directory.name)
                    continue
                try:
                    raw = (directory / _JOB_NAME).read_bytes()
                    found.append((directory.name, decode(raw, SavedJob, max_bytes=ORIGIN_JOB_BYTES_MAX)))
                except (FormatError, OSError) as error:
                    log.error("job %s cannot be read and is left alone: %s", directory, error)
        yield from sorted(found, key=lambda pair: pair[1].created_ms)

    def has_copy(self, job: str) -> bool:
        """Whether the whole source has been copied, whatever the job's note says: the index is written last."""
        return (self.path(job) / INDEX_NAME).exists()

    def remove_copy(self, job: str) -> None:
        """Free what a job took; it is still shown."""
        for name in (INDEX_NAME, BLOCKS_NAME):
            (self.path(job) / name).unlink(missing_ok=True)

    def remove(self, job: str) -> None:
        shutil.rmtree(self.path(job), ignore_errors=True)

"""Large fragments, one file each: frags/DDDDDDD/NNNNNNNNNN.frag, numbered in sequence, 1,024 to a directory.

Sequence numbers make neighbours in time neighbours on disk, so that one sync of a directory serves all files just written. A
file is complete and synced before the journal names it; a file which the journal never named is a leftover of a crash and is
removed at the next start. Numbers are never used twice while the index lives.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from dds.storage.fileops import FileOps
from dds.storage.image import Image

FILES_PER_DIRECTORY = 1024
_DIRECTORY = re.compile(r"\d{7,}")
_FILE = re.compile(r"(\d{10,})\.frag")


class FragmentFiles:
    def __init__(self, ops: FileOps, directory: Path) -> None:
        self._ops, self.directory = ops, directory
        self._lock = threading.Lock()
        self._next = 0
        self._made: int | None = None  # the directory that was made last

    def start_at(self, number: int) -> None:
        """The first free number."""
        self._next = number

    def directory_of(self, number: int) -> Path:
        return self.directory / f"{number // FILES_PER_DIRECTORY:07d}"

    def path(self, number: int) -> Path:
        return self.directory_of(number) / f"{number:010d}.frag"

    def write(self, image: Image) -> int:
        """Write and sync one image to a new file; its directory is still to be synced. Returns its number.

        Raises:
            OSError: no file is left behind.
        """
        number = self._take_number()
        path = self.path(number)
        fd = self._ops.create(path)
        try:
            self._ops.write(fd, [image.tables, image.data], 0)
            self._ops.sync(fd)
        except OSError:
            self._ops.unlink(path)
            raise
        finally:
            self._ops.close(fd)
        return number

    def _take_number(self) -> int:
        with self._lock:
            number = self._next
            slot = number // FILES_PER_DIRECTORY
            if self._made != slot:
                if not self.directory_of(number).is_dir():
                    self._ops.make_directory(self.directory_of(number))
                self._ops.sync_directory(self.directory)
                self._made = slot
            self._next += 1
        return number

    def unlink(self, numbers: list[int]) -> None:
        """Remove files for good: their directories are synced, so that no power loss brings one back unseen."""
        for number in numbers:
            self._ops.unlink(self.path(number))
        self.sync_directories(numbers)

    def sync_directories(self, numbers: Iterable[int]) -> None:
        """Make the names of these files durable."""
        for directory in sorted({self.directory_of(number) for number in numbers}):
            if directory.is_dir():
                self._ops.sync_directory(directory)

    def listing(self, first: int = 0) -> Iterator[tuple[int, int]]:
        """(number, bytes) of every file in the directories from that of number `first` on."""
        floor = first // FILES_PER_DIRECTORY
        names = sorted(name for name in os.listdir(self.directory) if _DIRECTORY.fullmatch(name))
        for name in names:
            if int(name) < floor:
                continue
            for entry in os.scandir(self.directory / name):
                match = _FILE.fullmatch(entry.name)
                if match:
                    yield int(match[1]), entry.stat().st_size

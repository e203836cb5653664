"""A disk that remembers in which order it was told things, and what a power loss at any moment would leave of them.

What was synced is there. What was written but not synced is there wholly, in part, or not at all; the same for names in a
directory that was not synced. (The page cache survives a kill, so only such a model shows whether a sync is missing.)
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dds.primitives.hashing import Buffer
from dds.storage.fileops import FileOps

SECTOR_BYTES = 512
Event = tuple[Any, ...]


class RecordingOps(FileOps):
    """Does everything for real, and records it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._paths: dict[int, Path] = {}

    def create(self, path: Path) -> int:
        fd = super().create(path)
        self.events.append(("create", path))
        self._paths[fd] = path
        return fd

    def open(self, path: Path, *, write: bool = False) -> int:
        fd = super().open(path, write=write)
        self._paths[fd] = path
        return fd

    def write(self, fd: int, parts: Sequence[Buffer], at: int) -> None:
        self.events.append(("write", self._paths[fd], at, b"".join(bytes(part) for part in parts)))
        super().write(fd, parts, at)

    def sync(self, fd: int) -> None:
        super().sync(fd)
        self.events.append(("sync", self._paths[fd]))

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self.events.append(("sync directory", path))

    def truncate(self, fd: int, size: int) -> None:
        self.events.append(("truncate", self._paths[fd], size))
        super().truncate(fd, size)

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.events.append(("rename", source, target))

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.events.append(("unlink", path))

    def make_directory(self, path: Path) -> None:
        if not path.exists():
            super().make_directory(path)
            self.events.append(("make directory", path))


class _File:
    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []  # (offset, bytes) or (size, None): a truncation

    def sync(self) -> None:
        for at, data in self.pending:
            _apply(self.durable, at, data)
        self.pending.clear()

    def after_loss(self, rng: random.Random, kept: float) -> bytes:
        """The durable bytes, and of the rest some sectors."""
        raw = bytearray(self.durable)
        for at, data in self.pending:
            if data is None:
                if rng.random() < kept:
                    _apply(raw, at, None)
                continue
            for start in range(0, len(data), SECTOR_BYTES):
                if rng.random() < kept:
                    _apply(raw, at + start, data[start : start + SECTOR_BYTES])
        return bytes(raw)


def _apply(raw: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        del raw[at:]
        return
    if len(raw) < at:
        raw.extend(bytes(at - len(raw)))
    raw[at : at + len(data)] = data


class Disk:
    """Replays events, and gives what a power loss now would leave."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._now: dict[Path, _File | None] = {root: None}  # None: a directory
        self._durable: dict[Path, _File | None] = {root: None}

    def do(self, event: Event) -> None:
        match event:
            case ("create", path):
                self._now[path] = _File()
            case ("make directory", path):
                self._now[path] = None
            case ("write", path, at, data):
                self._file(path).pending.append((at, data))
            case ("truncate", path, size):
                self._file(path).pending.append((size, None))
            case ("sync", path):
                self._file(path).sync()
            case ("rename", source, target):
                self._now[target] = self._now.pop(source)
            case ("unlink", path):
                self._now.pop(path, None)
            case ("sync directory", path):
                self._sync_directory(path)

    def _file(self, path: Path) -> _File:
        file = self._now[path]
        assert file is not None
        return file

    def _sync_directory(self, path: Path) -> None:
        for name in [name for name in self._durable if name.parent == path and name not in self._now]:
            del self._durable[name]
        self._durable.update({name: file for name, file in self._now.items() if name.parent == path})

    def lose_power(self, target: Path, rng: random.Random, kept: float) -> None:
        """Write to `target` what is left. `kept`: the chance of each unsynced thing to have reached the disk."""
        names = dict(self._durable)
        for name, file in self._now.items():
            if names.get(name, self) is not file and rng.random() < kept:
                names[name] = file
        for name in [name for name in names if name not in self._now and rng.random() < kept]:
            del names[name]
        for name in sorted(names):
            place, file = target / name.relative_to(self._root), names[name]
            if not place.parent.is_dir():
                continue  # its directory's own name was lost
            if file is None:
                place.mkdir(exist_ok=True)
            else:
                place.write_bytes(file.after_loss(rng, kept))

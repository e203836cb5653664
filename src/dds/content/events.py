"""What a reader is told, in order, while a DAG is read.

`OpenDirectory` and `OpenFile` are closed by `Close`; between them lie their contents. Names are the entry's bytes, empty at
the root, and have passed names.check_name. A file's `Data` add up to exactly its `size` (or to the asked range of it).
"""

from __future__ import annotations

from dataclasses import dataclass

from dds.content.block import Ref


@dataclass(frozen=True, slots=True)
class OpenDirectory:
    name: bytes
    ref: Ref


@dataclass(frozen=True, slots=True)
class OpenFile:
    """`size` is the whole file's, in bytes, even when only a range of it follows."""

    name: bytes
    size: int
    ref: Ref


@dataclass(frozen=True, slots=True)
class Data:
    data: bytes


@dataclass(frozen=True, slots=True)
class Symlink:
    name: bytes
    target: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a directory that is being listed, not descended into."""

    name: bytes
    ref: Ref


@dataclass(frozen=True, slots=True)
class Close:
    """The innermost open file or directory is complete."""


Event = OpenDirectory | OpenFile | Data | Symlink | Entry | Close
CLOSE = Close()

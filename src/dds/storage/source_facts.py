"""What the class policy is told of a source on this machine: name, type and size, from metadata alone.

Decides what a directory's type and size are: those of the files that a put would take. Reads no file. Source:
docs/spec/policy.md, "Facts".
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dds.placement.content_type import UNKNOWN, content_type, dominant_type
from dds.placement.policy import Facts
from dds.primitives.errors import InputError
from dds.storage.source import SourceOptions

STREAM = Facts("-", "stream", UNKNOWN, None)


def facts_of(path: Path, options: SourceOptions) -> Facts:
    """Blocks while it walks a directory; run it in a thread.

    Raises:
        InputError: the source cannot be read.
    """
    name = os.path.basename(os.path.abspath(path))
    try:
        if not path.is_dir() or (path.is_symlink() and not options.follow_symlinks):
            return Facts(name, "file", content_type(name), path.stat(follow_symlinks=options.follow_symlinks).st_size)
        sizes: Counter[str] = Counter()
        for file, size in _files(path, options):
            sizes[content_type(file)] += size
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror}") from None
    return Facts(name, "directory", dominant_type(sizes), sum(sizes.values()))


def _files(root: Path, options: SourceOptions) -> Iterator[tuple[str, int]]:
    """(name, bytes) of every file below. Links to directories are not walked: they may lead back, and the put will tell."""
    waiting = [os.fspath(root)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.startswith(".") and not options.hidden:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file(follow_symlinks=options.follow_symlinks):
                    yield entry.name, entry.stat(follow_symlinks=options.follow_symlinks).st_size

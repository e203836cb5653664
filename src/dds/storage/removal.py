"""Removing a file or a tree, whatever its depth, following nothing.

`shutil.rmtree` recurses and holds a descriptor for each level, so a tree of a thousand levels defeats it; this walks with one.
"""

from __future__ import annotations

import os
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(path: Path) -> bool:
    """Remove what is at `path`, if anything. Whether nothing is left there; refusals of the disk are not raised, because this
    clears up after something else."""
    try:
        if path.is_dir() and not path.is_symlink():
            _empty(path)
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def _empty(path: Path) -> None:
    cwd = os.open(path, _DIRECTORY)
    try:
        levels = [_unlink_files(cwd)]
        names: list[str] = []
        while levels:
            if levels[-1]:
                names.append(levels[-1].pop())
                cwd = _move(cwd, names[-1])
                levels.append(_unlink_files(cwd))
                continue
            levels.pop()
            if levels:
                cwd = _move(cwd, "..")
                os.rmdir(names.pop(), dir_fd=cwd)
    finally:
        os.close(cwd)


def _unlink_files(cwd: int) -> list[str]:
    """Unlink everything but directories; returns those."""
    with os.scandir(cwd) as listing:
        entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in listing]
    for name, is_directory in entries:
        if not is_directory:
            os.unlink(name, dir_fd=cwd)
    return [name for name, is_directory in entries if is_directory]


def _move(cwd: int, name: str) -> int:
    """Open `name` relative to `cwd` and close the latter."""
    fd = os.open(name, _DIRECTORY, dir_fd=cwd)
    os.close(cwd)
    return fd

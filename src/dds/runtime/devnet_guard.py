"""Takes a devnet down when the program that uses it ends, however it ends.

A devnet outlives its starter on purpose. A program that starts one for itself (the demonstration, a test run) holds a guard: a
small process of its own session that waits for a pipe to close. The system closes it when the program ends, killed or not; then
the guard does what the program no longer can.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from dds.primitives.errors import InputError
from dds.storage.home import Home

PATIENCE_S: Final = 90.0  # a command that is just starting nodes is let finish
RETRY_S: Final = 0.2


@contextmanager
def guard(home: Path, scratch: Path | None = None) -> Iterator[None]:
    """Until this ends, the devnet of `home` is sure to be taken down; with `scratch`, that directory is removed too. At the
    normal end it has been when this returns."""
    command = [sys.executable, "-m", "dds.runtime.devnet_guard", str(home), *([str(scratch)] if scratch else [])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        try:
            yield
        finally:
            process.stdin.close()
            process.wait()


def main(argv: Sequence[str]) -> int:
    sys.stdin.buffer.read()  # until nobody holds the other end
    home = Path(argv[0])
    if home.is_dir():
        take_down(home)
    if len(argv) > 1:
        shutil.rmtree(argv[1], ignore_errors=True)
    return 0


def take_down(home: Path) -> None:
    """Stop the devnet of `home` and remove it, after whatever command is at work on it."""
    from dds.runtime.devnet import Devnet

    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            Devnet(Home(home)).down(purge=True)
        except InputError:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)
        else:
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

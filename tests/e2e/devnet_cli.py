"""The real program against a real devnet, for the end-to-end tests."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dds.runtime import processes
from dds.runtime.devnet_guard import guard

COMMAND = (sys.executable, "-m", "dds.apps.cli.main")
TIMEOUT_S = 180


@dataclass(frozen=True)
class Program:
    """`dds` with a home."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "DDS_HOME": str(self.home)}

    def run(self, *argv: object, code: int = 0, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [*COMMAND, *map(str, argv)],
            env=self.environment,
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == code, f"dds {argv}: {done.returncode}\n{done.stdout[-2000:]!r}\n{done.stderr.decode()}"
        return done

    def attempt(self, *argv: object) -> int:
        """The exit code of a command that may fail."""
        command = [*COMMAND, *map(str, argv)]
        return subprocess.run(command, env=self.environment, capture_output=True, timeout=TIMEOUT_S, check=False).returncode

    def text(self, *argv: object, stdin: bytes = b"") -> str:
        """Standard output without its last newline."""
        return self.run(*argv, stdin=stdin).stdout.decode().removesuffix("\n")

    def json(self, *argv: object) -> Any:
        return json.loads(self.run("--json", *argv).stdout)

    def error(self, *argv: object, code: int) -> dict[str, Any]:
        """The error object of a command that fails."""
        made: dict[str, Any] = json.loads(self.run("--json", *argv, code=code).stderr.splitlines()[-1])["error"]
        return made

    def start(self, *argv: object) -> subprocess.Popen[bytes]:
        command = [*COMMAND, *map(str, argv)]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def nodes(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.json("devnet", "status")["nodes"]
        return rows

    def names(self, state: str = "running") -> list[str]:
        return [row["name"] for row in self.nodes() if row["state"] == state]

    def heal(self) -> None:
        """All nodes run again."""
        if paused := self.names("paused"):
            self.run("devnet", "resume", *paused)
        if stopped := self.names("stopped"):
            self.run("devnet", "start", *stopped)


@contextmanager
def running_devnet(home: Path, *options: str) -> Iterator[Program]:
    """A devnet that is gone, process by process, when this ends. Nobody pays in it unless the options name a ledger."""
    program = Program(home)
    with guard(home):
        program.run("devnet", "up", *options, *(() if "--ledger" in options else ("--ledger", "none")))
        yield program
        nodes = [*(home / "devnet" / "nodes").iterdir(), home / "devnet" / "ledger"]
        program.run("devnet", "down", "--purge")
        assert processes.find(nodes) == {}


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
    """Poll what another process does; the test fails when it never comes true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s:.0f} s in vain")
        time.sleep(0.01)


@dataclass
class Daemon:
    """The home's origin daemon."""

    dds: Program
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def jobs(self) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = self.dds.json("node", "status")["jobs"]
        return jobs

    def state_of(self, content: str) -> str:
        return next((job["state"] for job in self.jobs() if job["content"] == content), "")


@contextmanager
def running_origin(dds: Program) -> Iterator[Daemon]:
    state = dds.home / "node" / "state.json"
    state.unlink(missing_ok=True)
    with dds.start("node", "run") as process:
        try:
            wait_until(state.exists)
            yield Daemon(dds, process)
        finally:
            if process.poll() is None:
                process.terminate()
                assert process.wait(30) == 0


def write_random(path: Path, size: int, *, seed: int) -> Path:
    """A file of incompressible bytes, the same for the same seed."""
    source = random.Random(seed)
    with path.open("wb") as file:
        for at in range(0, size, 1 << 20):
            file.write(source.randbytes(min(1 << 20, size - at)))
    return path


def same_file(a: Path, b: Path) -> bool:
    if a.stat().st_size != b.stat().st_size:
        return False
    with a.open("rb") as left, b.open("rb") as right:
        while piece := left.read(1 << 20):
            if piece != right.read(1 << 20):
                return False
    return True

"""Node processes as the operating system sees them: started detached, found again, signalled, waited for.

A process is recognised by its own command line and our user id: `-m dds.runtime... --home ROOT` is a node or a ledger's host,
`... start --home ROOT` a CometBFT validator, `... --config ROOT/nats.conf` a NATS server. They are read from the process table
each time, so there is no pid file to go stale and nothing is lost when a starter dies between starting a process and noting it
down. Once found, a process is held by (pid, start time): a pid that the system has given to another one is never signalled. A
zombie has no command line and counts as gone.

Decides nothing about which nodes there are or what they do.
"""

from __future__ import annotations

import math
import os
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from dds.engines.nats_net import CONFIG_NAME as NATS_CONFIG_NAME
from dds.runtime.daemon import READY_BYTE

NODE_MODULES: Final = "dds.runtime."  # what a node's program is called; the command line is none
READY_FD: Final = 3  # the child writes one byte here when it serves
CONSOLE_TAIL_BYTES_MAX: Final = 2048
POLL_S: Final = 0.02  # the system tells of nobody's end but a child's

RUNNING, STOPPED, PAUSED, STARTING = "running", "stopped", "paused", "starting"  # what people are told that one does


def find(roots: Iterable[Path]) -> dict[Path, psutil.Process]:
    """The live processes whose homes are `roots` (absolute paths)."""
    wanted = {str(root): root for root in roots}
    found: dict[Path, psutil.Process] = {}
    for process in psutil.process_iter(["cmdline", "uids"]):
        root = _home_argument(process.info["cmdline"] or [])
        if root in wanted and process.info["uids"].real == os.getuid():
            found[wanted[root]] = process
    return found


def _home_argument(argv: list[str]) -> str | None:
    """The home that a command line of ours names; None for any other program."""
    if argv[-3:-1] == ["start", "--home"]:
        return argv[-1]
    if argv[-2:-1] == ["--config"] and argv[-1].endswith("/" + NATS_CONFIG_NAME):
        return argv[-1].removesuffix("/" + NATS_CONFIG_NAME)
    if "-m" not in argv or "--home" not in argv:
        return None
    module, home = argv.index("-m") + 1, argv.index("--home") + 1
    if max(module, home) >= len(argv) or not argv[module].startswith(NODE_MODULES):
        return None
    return argv[home]


def is_paused(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_STOPPED
    return False


def state_of(process: psutil.Process, serving_pid: int | None) -> str:
    """What a live process of ours is doing; `serving_pid` is who last wrote down that it serves."""
    if is_paused(process):
        return PAUSED
    return RUNNING if process.pid == serving_pid else STARTING


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal; a process that is gone, or whose pid now is another's, is left alone."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def terminate(processes: Iterable[psutil.Process], *, grace_s: float) -> None:
    """Ask the processes to end, paused ones too; kill those that have not within `grace_s`; return when all are gone."""
    processes = list(processes)
    for process in processes:
        send(process, signal.SIGTERM)
        send(process, signal.SIGCONT)
    kill(_left_after(processes, grace_s))


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL, all at once; return when all are gone."""
    processes = list(processes)
    for process in processes:
        send(process, signal.SIGKILL)
    _left_after(processes, math.inf)


def _left_after(processes: Iterable[psutil.Process], patience_s: float) -> list[psutil.Process]:
    """Those that still run when all have ended or `patience_s` is over. Nobody waits for another's parent to notice the end."""
    deadline = time.monotonic() + patience_s
    left = list(processes)
    while left := [process for process in left if not _has_ended(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    return left


def _has_ended(process: psutil.Process) -> bool:
    with suppress(psutil.TimeoutExpired):
        process.wait(0)  # a child of ours is gone with that
        return True
    with suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def is_gone(pid: int) -> bool:
    """Whether a child of ours has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def launch(argv: list[str], *, console: Path, environment: Mapping[str, str] | None = None, ready: int | None = None) -> int:
    """Start a program in a session of its own: no terminal, stdin empty, output appended to `console`. `ready`, if given, is a
    descriptor that it inherits as READY_FD.

    Returns:
        the pid.

    Raises:
        OSError: it is no program, or the console cannot be written.
    """
    actions: list[tuple[object, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(console), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    if ready is not None:
        actions.append((os.POSIX_SPAWN_DUP2, ready, READY_FD))
    return os.posix_spawn(argv[0], argv, {**os.environ, **(environment or {})}, file_actions=actions, setsid=True)


def spawn(module: str, root: Path, *, console: Path, environment: Mapping[str, str] | None = None) -> tuple[int, int]:
    """Start `python -m module --home ROOT`, as `launch` does.

    Returns:
        the pid, and the read end of its readiness pipe, which the caller closes.
    """
    ready, told = os.pipe()
    argv = [sys.executable, "-m", module, "--home", str(root), "--ready-fd", str(READY_FD)]
    try:
        return launch(argv, console=console, environment=environment, ready=told), ready
    except OSError:
        os.close(ready)
        raise
    finally:
        os.close(told)


def await_ready(pipes: Mapping[str, int], *, timeout_s: float, on_ready: Callable[[str], None]) -> dict[str, str]:
    """Wait until every named process has said that it serves. Closes the pipes.

    Returns:
        what went wrong, by name; empty when all are ready. Ends at the first failure: the others may not be ready.
    """
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        try:
            for name, pipe in pipes.items():
                selector.register(pipe, selectors.EVENT_READ, name)
            while selector.get_map():
                events = selector.select(max(0.0, deadline - time.monotonic()))
                if not events:
                    return {key.data: f"not ready after {timeout_s:.0f} s" for key in selector.get_map().values()}
                for key, _ in events:
                    selector.unregister(key.fileobj)
                    if os.read(key.fd, 1) != READY_BYTE:
                        return {key.data: "ended before it was ready"}
                    on_ready(key.data)
        finally:
            for pipe in pipes.values():
                os.close(pipe)
    return {}


def last_line(console: Path) -> str:
    """The last line that a process wrote; empty when there is none."""
    with suppress(OSError), console.open("rb") as file:
        file.seek(max(0, console.stat().st_size - CONSOLE_TAIL_BYTES_MAX))
        lines = file.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""
    return ""

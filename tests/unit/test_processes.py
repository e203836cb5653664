"""Finding and signalling node processes, with real processes that look like nodes."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from dds.runtime import processes
from dds.runtime.daemon import READY_BYTE

SLEEPER = "import sys, time; print(flush=True); time.sleep(120)"
STUBBORN = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(120)"


@contextmanager
def lookalike(root: Path, program: str = SLEEPER, module: str = "dds.runtime.daemon") -> Iterator[subprocess.Popen[bytes]]:
    """A process whose command line is a node's; ready when this yields."""
    argv = [sys.executable, "-c", program, "-m", module, "--home", str(root)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_a_node_is_found_by_its_home_and_nothing_else_is(tmp_path: Path) -> None:
    ours, other = tmp_path / "a", tmp_path / "b"
    with lookalike(ours) as node, lookalike(tmp_path / "ab"), lookalike(other, module="dds.apps.cli.main"):
        assert {root: process.pid for root, process in processes.find([ours, other]).items()} == {ours: node.pid}


def test_stopping_does_not_wait_for_a_parent_that_never_notices(tmp_path: Path) -> None:
    node = [sys.executable, "-c", SLEEPER, "-m", "dds.runtime.daemon", "--home", str(tmp_path)]
    parent = f"import subprocess, time; subprocess.Popen({node}); time.sleep(120)"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as careless:
        try:
            assert careless.stdout is not None
            careless.stdout.readline()  # the child's
            found = processes.find([tmp_path])
            stopping = threading.Thread(target=processes.terminate, args=(found.values(),), kwargs={"grace_s": 60}, daemon=True)
            stopping.start()
            stopping.join(30)
            assert len(found) == 1 and not stopping.is_alive()
        finally:
            careless.kill()


def test_a_killed_node_is_gone_even_before_its_parent_notices(tmp_path: Path) -> None:
    with lookalike(tmp_path) as node:
        os.kill(node.pid, signal.SIGKILL)
        os.waitid(os.P_PID, node.pid, os.WEXITED | os.WNOWAIT)
        assert psutil.Process(node.pid).status() == psutil.STATUS_ZOMBIE
        assert processes.find([tmp_path]) == {}


def test_a_paused_node_is_told_apart_and_ends_when_asked(tmp_path: Path) -> None:
    with lookalike(tmp_path) as node:
        process = processes.find([tmp_path])[tmp_path]
        assert not processes.is_paused(process)
        processes.send(process, signal.SIGSTOP)
        os.waitid(os.P_PID, node.pid, os.WSTOPPED | os.WNOWAIT)
        assert processes.is_paused(process)
        processes.terminate([process], grace_s=10)
        assert processes.find([tmp_path]) == {}


def test_a_node_that_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for name in ("a", "b"):
            stack.enter_context(lookalike(tmp_path / name, STUBBORN))
        found = processes.find([tmp_path / "a", tmp_path / "b"])
        assert len(found) == 2
        processes.terminate(found.values(), grace_s=0.1)
        assert processes.find([tmp_path / "a", tmp_path / "b"]) == {}


def test_a_pid_that_is_another_process_by_now_is_never_signalled(tmp_path: Path) -> None:
    with lookalike(tmp_path) as node:
        process = processes.find([tmp_path])[tmp_path]
        vars(process)["_ident"] = (process.pid, 1.0)  # as if a process that started earlier had had this pid
        processes.send(process, signal.SIGKILL)
        assert node.poll() is None


def test_a_process_that_ends_before_it_is_ready_is_reported_with_its_last_words(tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    _, pipe = processes.spawn("dds.runtime.daemon", tmp_path / "empty", console=console)
    failures = processes.await_ready({"n": pipe}, timeout_s=30, on_ready=lambda _: pytest.fail("it was not ready"))
    assert failures == {"n": "ended before it was ready"}
    assert "node.toml" in processes.last_line(console)


def test_readiness_is_heard_from_each_and_silence_ends_in_time() -> None:
    pipes = {name: os.pipe() for name in ("a", "b", "c")}
    heard: list[str] = []
    for name in ("a", "b"):
        os.write(pipes[name][1], READY_BYTE)
    ends = {name: pipe[0] for name, pipe in pipes.items()}
    assert processes.await_ready(ends, timeout_s=0.05, on_ready=heard.append) == {"c": "not ready after 0 s"}
    assert sorted(heard) == ["a", "b"]
    for _, told in pipes.values():
        os.close(told)


def test_a_detached_process_has_no_terminal_no_input_and_a_session_of_its_own(tmp_path: Path) -> None:
    pid, pipe = processes.spawn("dds.runtime.daemon", tmp_path / "empty", console=tmp_path / "console.log")
    try:
        assert os.getsid(pid) == pid
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
        assert os.readlink(f"/proc/{pid}/fd/1") == str(tmp_path / "console.log")
    finally:
        os.close(pipe)
        processes.kill([psutil.Process(pid)])

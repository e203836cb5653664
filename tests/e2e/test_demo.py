"""The demonstration itself: it holds, and whatever stops it, nothing is left behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dds.apps.demo import compare
from dds.apps.demo_stage import ClaimFailed
from tests.e2e.devnet_cli import wait_until, write_random

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("demo")]


@contextmanager
def demo(directory: Path, temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """The demonstration, with its temporary files in a place of our own."""
    temporary.mkdir()
    command = [sys.executable, "-m", "dds.apps.demo", "--dir", str(directory)]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process:
        yield process


def left_behind(temporary: Path) -> list[object]:
    running = [
        p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(temporary) in " ".join(p.info["cmdline"] or [])
    ]
    return [*running, *temporary.iterdir()]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    write_random(root / "big", 11 << 20, seed=1)
    write_random(root / "sub" / "small", 10_000, seed=2)
    (root / ".hidden").write_text("not stored")
    return root


def test_every_claim_of_the_demonstration_holds(tree: Path, tmp_path: Path) -> None:
    with demo(tree, tmp_path / "t") as process:
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    for told in ("20 nodes", "ContentID", "expansion", "deduplication", "compression", "killed", "2 files compared", "caught"):
        assert told in out
    assert "Traceback" not in out
    assert left_behind(tmp_path / "t") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demonstration_leaves_nothing(tree: Path, tmp_path: Path, number: signal.Signals) -> None:
    with demo(tree, tmp_path / "t") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Store" in line:
                break
        process.send_signal(number)
        out = process.stdout.read()
        assert process.wait(60) == 130, out
    assert left_behind(tmp_path / "t") == []


def test_even_a_killed_demonstration_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    with demo(tree, tmp_path / "t") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Store" in line:
                break
        process.kill()
    wait_until(lambda: left_behind(tmp_path / "t") == [])


def test_a_missing_directory_is_bad_input(tmp_path: Path) -> None:
    with demo(tmp_path / "none", tmp_path / "t") as process:
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, left_behind(tmp_path / "t")) == (2, []), out


@pytest.mark.parametrize("change", ["byte", "missing", "extra", "link"])
def test_the_comparison_sees_every_difference(tree: Path, tmp_path: Path, change: str) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(tree), str(copy)], check=True)
    assert compare(tree, copy) == 2
    match change:
        case "byte":
            with (copy / "big").open("r+b") as file:
                file.seek(5 << 20)
                file.write(b"?")
        case "missing":
            (copy / "sub" / "small").unlink()
        case "extra":
            (copy / "new").touch()
        case _:
            (copy / "sub" / "small").unlink()
            (copy / "sub" / "small").symlink_to("../big")
    with pytest.raises(ClaimFailed):
        compare(tree, copy)

"""The walls between the rooms of src/dds hold, and the linter that guards them bites."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [str(program), "--no-cache"],
        cwd=tree,
        env={"PYTHONPATH": str(tree / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the project to plant violations in."""
    shutil.copytree(REPOSITORY / "src" / "dds", tmp_path / "src" / "dds", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_go_downward_only_and_pure_rooms_do_no_io(tree: Path) -> None:
    done = lint_imports(tree)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "planted", "told"),
    [
        ("wire/signed.py", "from dds.storage import home", "Imports go downward only"),
        ("content/unixfs.py", "import dds.erasure.stripes", "Imports go downward only"),
        ("transport/client.py", "def late() -> None:\n    from dds.runtime import client", "Imports go downward only"),
        ("protocol/upload.py", "import asyncio", "Pure rooms do no I/O"),
        ("placement/draw.py", "from random import choice", "Pure rooms do no I/O"),
    ],
)
def test_a_planted_violation_is_caught(tree: Path, module: str, planted: str, told: str) -> None:
    path = tree / "src" / "dds" / module
    path.write_text(path.read_text() + f"\n{planted}\n")
    done = lint_imports(tree)
    assert done.returncode == 1, done.stdout
    assert f"{told}" in done.stdout.split("Broken contracts")[-1]

"""Planted mistakes in the ledger's rules: each must be noticed by a test, or the rule is not tested.

`mutants.toml` lists them: the claim that the mutant breaks, the file, the exact text and what stands in its place, and the
tests most likely to notice. Every worker has a copy of the package of its own; the working tree is never touched. A text that
does not occur exactly once is stale and fails the run, so that the list follows the code. Who hangs is noticed too, and named.

Each mutant's tests run in a process of their own, forked from one that has imported everything but `dds`: they take a fraction
of the time that pytest and its plugins take to be imported.

    python -m tests.mutants [--only WORDS] [--jobs 2]
"""

from __future__ import annotations

import argparse
import compileall
import multiprocessing
import os
import shutil
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import Final

import pytest

HERE: Final = Path(__file__).resolve().parent
PACKAGE: Final = HERE.parent / "src" / "dds"
LIST: Final = HERE / "mutants.toml"
TIMEOUT_S: Final = 120
IMPORTED_BEFORE: Final = ("pytest", "pytest_asyncio.plugin", "hypothesis", "hypothesis.stateful", "msgspec", "nacl.signing")
ALL_TESTS: Final = (
    "tests/unit/test_ledger_*.py",
    "tests/unit/test_audit_answers.py",
    "tests/unit/test_audit_facts.py",
    "tests/unit/test_audit_money.py",
    "tests/unit/test_endowments.py",
    "tests/unit/test_evidence.py",
    "tests/unit/test_explain.py",
    "tests/unit/test_market.py",
    "tests/unit/test_node_requirements.py",
    "tests/unit/test_retrieval.py",
    "tests/property/test_endowment_pause.py",
    "tests/property/test_ledger_st*.py",
    "tests/property/test_ledger_tree_property.py",
    "tests/property/test_voucher_hostile.py",
    "tests/vectors/test_ledger_state_vectors.py",
    "tests/vectors/test_voucher_vectors.py",
    "tests/vectors/test_wire_vectors.py",
)  # that are asked when the likely ones noticed nothing

_forks = multiprocessing.get_context("forkserver")

KILLED, HUNG, SURVIVED, STALE, BROKEN = "killed", "hung", "SURVIVED", "STALE", "BROKEN"


# -- in the tests' process --------------------------------------------------------------------------------------------------


class Noticed:
    """A plugin that writes down the first test that failed, and makes sure of what is tested."""

    def __init__(self, root: Path, report: Path) -> None:
        self._root, self._report = root, report

    def pytest_configure(self, config: pytest.Config) -> None:
        """Tests of the wrong package would let every mutant live, or none."""
        import dds

        if not Path(str(dds.__file__)).is_relative_to(self._root):
            raise pytest.UsageError(f"dds is imported from {dds.__file__}, not from {self._root}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self._report.exists():
            self._report.write_text(report.nodeid, encoding="utf-8")


def run_tests(root: Path, tests: Sequence[str]) -> None:
    """Run pytest over the package in `root` and exit with its code; what it says stands in `root`/log."""
    import hypothesis.configuration

    assert "dds" not in sys.modules, "the package was imported before its copy could be"
    log = os.open(root / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.path.insert(0, str(root))
    os.environ["PYTHONPATH"] = str(root)  # for what tests start
    hypothesis.configuration.set_hypothesis_home_dir(root / "hypothesis")
    own = ["-p", "no:cacheprovider", "-o", f"pythonpath={root} .", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    sys.exit(pytest.main([*own, "--tb=short", "-x", "-q", *tests], plugins=[Noticed(root, root / "noticed")]))


# -- in the runner's process ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    file: str  # below src/dds
    old: str
    new: str
    tests: tuple[str, ...]  # pytest arguments


@dataclass(frozen=True, slots=True)
class Verdict:
    mutant: Mutant
    outcome: str
    by: str  # the test that noticed, or what is wrong
    seconds: float

    def __str__(self) -> str:
        return f"{self.outcome:8} {self.mutant.name}: {self.by} ({self.seconds:.1f} s)"


def read_list(path: Path = LIST) -> list[Mutant]:
    found = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    mutants = [Mutant(each["name"], each["file"], each["old"], each["new"], tuple(each["tests"])) for each in found]
    twice = [name for name, times in Counter(mutant.name for mutant in mutants).items() if times > 1]
    assert not twice, f"mutants of one name: {twice}"
    return mutants


class Workspace:
    """A copy of the package, in which one mutant at a time is planted."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(PACKAGE, root / "dds", ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(root / "dds", quiet=2)

    @contextmanager
    def planted(self, mutant: Mutant) -> Iterator[None]:
        path = self.root / "dds" / mutant.file
        before = path.read_text(encoding="utf-8")
        path.write_text(before.replace(mutant.old, mutant.new), encoding="utf-8")
        self._forget_bytecode(path)
        try:
            yield
        finally:
            path.write_text(before, encoding="utf-8")
            compileall.compile_file(path, quiet=2, force=True)

    @staticmethod
    def _forget_bytecode(path: Path) -> None:
        """Bytecode is told from old bytecode by size and second: a mutant may share both with what it replaces."""
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()

    def test(self, tests: Sequence[str], timeout_s: float) -> tuple[str, str]:
        """The outcome, and the test that noticed or what is wrong."""
        noticed, log = self.root / "noticed", self.root / "log"
        noticed.unlink(missing_ok=True)
        process = _forks.Process(target=run_tests, args=(self.root, tests))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            return HUNG, f"a test did not end within {timeout_s} s"
        if process.exitcode == pytest.ExitCode.OK:
            return SURVIVED, "no test noticed"
        if process.exitcode == pytest.ExitCode.TESTS_FAILED and noticed.exists():
            return KILLED, noticed.read_text(encoding="utf-8")
        return BROKEN, f"the tests did not run: {log.read_text(encoding='utf-8')[-1000:] if log.exists() else process.exitcode}"


def all_tests() -> list[str]:
    return [str(path.relative_to(HERE.parent)) for pattern in ALL_TESTS for path in sorted(HERE.parent.glob(pattern))]


def stale(mutant: Mutant) -> str:
    """Why it cannot be planted; empty: it can."""
    path = PACKAGE / mutant.file
    times = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
    if times != 1:
        return f"stale mutant: its text occurs {times} times in {mutant.file}"
    return "" if mutant.new != mutant.old else "stale mutant: it changes nothing"


def judge(mutant: Mutant, workspace: Workspace) -> Verdict:
    began = monotonic()
    problem = stale(mutant)
    if problem:
        return Verdict(mutant, STALE, problem, 0)
    with workspace.planted(mutant):
        outcome, by = workspace.test(mutant.tests, TIMEOUT_S)
        if outcome in (SURVIVED, BROKEN):  # or the tests named are gone: then they are no hint any more
            outcome, by = workspace.test(all_tests(), TIMEOUT_S)
    return Verdict(mutant, outcome, by, monotonic() - began)


def sound(workspaces: Sequence[Workspace], pool: ThreadPoolExecutor) -> bool:
    """Whether the tests pass while nothing is planted."""
    began, tests = monotonic(), all_tests()
    parts = [tests[number :: len(workspaces)] for number in range(len(workspaces))]
    found = list(pool.map(lambda space, part: space.test(part, 5 * TIMEOUT_S), workspaces, parts))
    for outcome, by in found:
        if outcome != SURVIVED:
            print(f"the tests do not pass without a mutant: {by}")
    print(f"the tests were run without a mutant ({monotonic() - began:.1f} s)", flush=True)
    return all(outcome == SURVIVED for outcome, _ in found)


def run(mutants: Sequence[Mutant], jobs: int) -> int:
    """The exit code: 0 when every mutant was noticed."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="dds-mutants-") as directory, ThreadPoolExecutor(jobs) as pool:
        workspaces = [Workspace(Path(directory) / str(number)) for number in range(jobs)]
        if not sound(workspaces, pool):
            return 1
        idle: SimpleQueue[Workspace] = SimpleQueue()
        for workspace in workspaces:
            idle.put(workspace)

        def work(mutant: Mutant) -> Verdict:
            workspace = idle.get()
            try:
                return judge(mutant, workspace)
            finally:
                idle.put(workspace)

        for verdict in pool.map(work, mutants):
            print(verdict, flush=True)
            outcomes[verdict.outcome] += 1
    print(f"{len(mutants)} mutants: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    return 0 if outcomes[KILLED] + outcomes[HUNG] == len(mutants) else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Plant mistakes; every one must be noticed.")
    parser.add_argument("--only", default="", help="mutants whose name or file contains these words")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    options = parser.parse_args()
    mutants = [mutant for mutant in read_list() if options.only in mutant.name or options.only in mutant.file]
    if not mutants:
        parser.error(f"no mutant has {options.only!r} in its name or file")
    _forks.set_forkserver_preload(list(IMPORTED_BEFORE))
    return run(mutants, options.jobs)


if __name__ == "__main__":
    sys.exit(main())

"""Seeds for the simulation: many by default, one with `--sim-seed`; a failure says how to replay it."""

from __future__ import annotations

from collections.abc import Generator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sim-seed", type=int, default=None, help="replay the simulation with this seed only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" not in metafunc.fixturenames:
        return
    chosen = metafunc.config.getoption("--sim-seed", None)
    marker = metafunc.definition.get_closest_marker("seeds")
    count = marker.args[0] if marker else 20
    seeds = [chosen] if chosen is not None else list(range(count))
    metafunc.parametrize("seed", seeds, ids=[f"seed{seed}" for seed in seeds])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "seeds(count): how many seeds a plain run of this simulation plays")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    callspec = getattr(item, "callspec", None)
    if report.failed and callspec is not None and "seed" in callspec.params:
        report.sections.append(("replay", f"make sim SEED={callspec.params['seed']}"))
    return report

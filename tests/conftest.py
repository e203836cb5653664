"""Every test begins with an interrupt that interrupts, whoever started pytest.

A shell without job control starts background commands with SIGINT ignored, and children inherit that: tests of Ctrl-C would
then test the shell.

And tests that share a devnet stay on one worker: pytest-xdist groups by names that pytest must let it change, and a pytest that
does not would run them side by side without a word.
"""

import signal

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    """
    Raises:
        UsageError: groups are asked for and do not hold.
    """
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group") is not None]
    if getattr(session.config.option, "loadgroup", False) and any("@" not in item.nodeid for item in grouped):
        raise pytest.UsageError("this pytest and this pytest-xdist do not group tests: see requirements/dev.in")

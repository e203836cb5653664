"""The heap setting, in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CHURN = """
import resource
from dds.transport.heap import keep_freed_memory
assert keep_freed_memory() is True
keep = [bytes(1 << 20) for _ in range(4)]
del keep
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    bytearray(b"x") * (1 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_allocating_body_after_body_costs_no_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", CHURN], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200 * 256 // 20  # a MiB has 256 pages

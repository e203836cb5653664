"""Decoders are made in threads: a struct type that two of them meet for the first time does not end the process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from dds.wire.codec import decode
from dds.wire.ledger import TxPayload, Transfer
from dds.wire.codec import encode
raw = encode(TxPayload(1, 0, Transfer(bytes(32), 1)))
sys.setswitchinterval(1e-6)
together = Barrier(4)
def work(_):
    together.wait()
    return decode(raw, TxPayload)
with ThreadPoolExecutor(4) as pool:
    assert len(set(pool.map(work, range(4)))) == 1
"""


def test_threads_that_decode_a_kind_for_the_first_time_at_once_all_come_through() -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr.decode()

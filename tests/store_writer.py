"""A process that writes to a fragment store until it is killed: run by test_store_crash.

It reads seeds from standard input, one a line. For each it forks a child which opens the store and works with two threads,
saying on standard output "intent ..." before each operation and "done ..." after it was acknowledged. When the child has died
it says "dead".
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from dds.primitives.ids import SegmentID
from dds.storage.fragment_store import FragmentStore, StoreConfig
from dds.storage.upkeep import Upkeep
from dds.wire.segment import EncodingRecord
from tests.store_kit import OWNER, content_of, manifest_of, raw_of, segment_of

CONFIG = StoreConfig(capacity_bytes=1 << 30, trash_window_ms=20, packed_bytes_max=6000, pack_bytes=128 << 10)
THREADS = 2
SIZES = (100, 3000, 5999, 6000, 20_000)
Op = dict[str, Any]
Change = dict[str, Any]


@lru_cache(512)
def data_of(number: int) -> bytes:
    return content_of(f"crash {number}", SIZES[number % len(SIZES)])


def upload_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


@lru_cache(512)
def encoding_of(number: int) -> EncodingRecord:
    """Segment `number` has two stripes: fragments 2 x number and 2 x number + 1."""
    return segment_of([data_of(2 * number), data_of(2 * number + 1)], name=str(number))


def segment_id_of(number: int) -> SegmentID:
    return encoding_of(number).segment_id


def change_of(op: Op) -> Change:
    """The facts that an acknowledged operation makes true: all of them, or without acknowledgement perhaps none."""
    match op["op"]:
        case "stage":
            return {f"staged {op['upload']} {number}": True for number in op["numbers"]}
        case "commit":
            gone = {f"staged {op['upload']} {2 * op['segment'] + at}": False for at in (0, 1)}
            return {**gone, f"held {op['segment']}": True}
        case "inline":
            return {f"held {op['segment']}": True, f"manifest {op['segment']}": op["created"]}
        case "manifest":
            return {f"manifest {op['segment']}": op["created"]}
        case "release":
            return {f"held {op['segment']}": False}
        case "abort":
            return {f"staged {op['upload']} {number}": False for number in op["numbers"]}
    return {}


def plan(seed: int, thread: int) -> list[Op]:
    """What one thread does, on keys of its own."""
    rng, ops = random.Random(seed * THREADS + thread), []
    for step in range(400):
        key = (seed * THREADS + thread) * 400 + step
        numbers = [2 * key, 2 * key + 1]
        ops.append({"op": "stage", "upload": key, "numbers": numbers})
        kind = rng.randrange(6)
        if kind == 0:
            ops.append({"op": "abort", "upload": key, "numbers": numbers})
        elif kind == 1:
            ops.append({"op": "inline", "segment": key, "created": 5})
            ops.append({"op": "manifest", "segment": key, "created": 6})
        elif kind < 5:
            ops.append({"op": "commit", "segment": key, "upload": key})
            if kind == 2:
                ops.append({"op": "release", "segment": key})
        if rng.randrange(8) == 0:
            ops.append({"op": "upkeep"})
    return ops


def perform(store: FragmentStore, op: Op, upkeep_lock: threading.Lock) -> None:
    match op["op"]:
        case "stage":
            upload, numbers = upload_of(op["upload"]), op["numbers"]
            if op["upload"] % 2:
                store.stage_many(upload, OWNER, [data_of(number) for number in numbers])
            else:
                for number in numbers:
                    store.stage(upload, OWNER, data_of(number))
        case "commit":
            encoding = encoding_of(op["segment"])
            store.commit(upload_of(op["upload"]), OWNER, encoding, raw_of(encoding), 0)
        case "inline":
            encoding = encoding_of(op["segment"])
            inline = [data_of(2 * op["segment"] + at) for at in (0, 1)]
            store.commit(bytes(16), OWNER, encoding, raw_of(encoding), 0, inline, manifest_of(op["segment"], 0, op["created"]))
        case "manifest":
            assert store.put_manifest(manifest_of(op["segment"], 0, op["created"]))
        case "release":
            store.release(segment_id_of(op["segment"]), 0)
        case "abort":
            store.abort(upload_of(op["upload"]), OWNER)
        case _:
            with upkeep_lock:
                upkeep = Upkeep(store)
                upkeep.sweep_step(8)
                upkeep.compact_step(20_000)
                upkeep.scrub_step(20_000)


def say(word: str, op: Op) -> None:
    os.write(1, f"{word} {json.dumps(op)}\n".encode())


def work(store: FragmentStore, seed: int, thread: int, upkeep_lock: threading.Lock) -> None:
    for op in plan(seed, thread):
        op["thread"] = thread
        say("intent", op)
        perform(store, op, upkeep_lock)
        say("done", op)


def child(path: Path, seed: int) -> None:
    store = FragmentStore(path, CONFIG)
    upkeep_lock = threading.Lock()
    threads = [threading.Thread(target=work, args=(store, seed, at, upkeep_lock)) for at in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if seed % 2:
        store.close()


def main() -> None:
    path = Path(sys.argv[1])
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                child(path, int(line))
            except BaseException as error:
                os.write(1, f"failed {error!r}\n".encode())
            os._exit(0)
        os.write(1, f"child {pid}\n".encode())
        os.waitpid(pid, 0)
        os.write(1, b"dead\n")


if __name__ == "__main__":
    main()

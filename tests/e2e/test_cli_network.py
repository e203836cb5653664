"""What the data path promises, through the program and against 20 real node processes."""

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.devnet_cli import Program, running_devnet, same_file, wait_until, write_random

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("cli-network")]

MIB = 1 << 20
LARGE_BYTES = 256 * MIB
SIX = 6


@pytest.fixture(scope="module")
def dds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running_devnet(tmp_path_factory.mktemp("network") / "home") as program:
        yield program


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random(tmp_path_factory.mktemp("input") / "large", LARGE_BYTES, seed=1)


@pytest.fixture(autouse=True)
def healthy(dds: Program) -> None:
    """Every test starts with all nodes."""
    dds.heal()


@pytest.fixture(scope="module")
def stored(dds: Program, large: Path) -> str:
    """The large file's ContentID. Six nodes are killed the moment its put has returned."""
    pids = {row["name"]: row["pid"] for row in dds.nodes()}
    victims = random.SystemRandom().sample(sorted(pids), SIX)
    content = dds.text("put", "--yes", large)
    for name in victims:
        os.kill(pids[name], signal.SIGKILL)
    out = large.with_name("back")
    dds.run("get", content, "-o", out)
    assert same_file(large, out), f"wrong bytes after {victims} were killed"
    out.unlink()
    return content


def is_writing(directory: Path) -> bool:
    """Whether a get has bytes in its temporary file already."""
    return any(path.stat().st_size for path in directory.glob(".dds-*.part"))


def stored_bytes(dds: Program) -> int:
    """What the nodes' stores take on disk together."""
    total = 0
    for path in dds.home.glob("devnet/nodes/*/store/**/*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def test_any_six_may_be_killed_the_moment_put_returns(dds: Program, stored: str, large: Path) -> None:
    assert dds.text("cid", large) == stored  # the fixture has fetched it with six nodes gone


def test_six_paused_in_mid_get_do_not_stop_it(dds: Program, stored: str, large: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def healthy_get_s() -> float:
        started = time.monotonic()
        dds.run("get", stored, "-o", out, "--force")
        return time.monotonic() - started

    before_s = healthy_get_s()
    rows = dds.nodes()
    victims = random.SystemRandom().sample(rows, SIX)
    started = time.monotonic()
    with dds.start("get", stored, "-o", out, "--force") as process:
        wait_until(lambda: is_writing(tmp_path))
        for row in victims:
            os.kill(row["pid"], signal.SIGSTOP)
        _, err = process.communicate(timeout=120)
    took_s = time.monotonic() - started
    assert process.returncode == 0, err
    assert same_file(large, out)
    for row in victims:
        os.kill(row["pid"], signal.SIGCONT)
    healthy_s = max(before_s, healthy_get_s())  # on both sides of it: what else the machine does changes meanwhile
    assert took_s < 2 * healthy_s + 2, f"{took_s:.1f} s with six paused, {healthy_s:.1f} s without"


def test_one_too_many_lost_is_a_clear_error_and_leaves_no_file(dds: Program, tmp_path: Path) -> None:
    source = write_random(tmp_path / "source", 3 * MIB, seed=4)
    content = dds.text("put", source)
    holders = dds.json("stat", content)["segments"][0]["holders"]
    names = {row["id"]: row["name"] for row in dds.nodes()}
    lost = [names[holder["node"]] for holder in holders[-SIX - 1 :]]
    dds.run("devnet", "kill", *lost)
    error = dds.error("get", content, "-o", tmp_path / "out", code=4)
    assert (error["code"], error["missing"], error["need"]) == ("not-enough-fragments", 1, 10)
    spoken = dds.run("get", content, "-o", tmp_path / "out", code=4).stderr.decode()
    assert spoken.startswith("dds: ")
    assert "1 too few" in spoken
    assert all(f"{holder['index']} at " in spoken for holder in holders[-SIX - 1 :])  # where they were
    assert "Traceback" not in spoken
    assert list(tmp_path.iterdir()) == [source]


def test_a_hundred_bytes_of_256_mib_move_less_than_3_mib(dds: Program, stored: str, large: Path, tmp_path: Path) -> None:
    for first in (0, 123 * MIB + 4_567, LARGE_BYTES - 100):
        out = tmp_path / str(first)
        told = dds.json("get", stored, "--range", f"{first}-{first + 99}", "-o", out)
        with large.open("rb") as file:
            file.seek(first)
            assert out.read_bytes() == file.read(100)
        assert told["content_bytes"] == 100
        assert told["moved_bytes"] < 3 * MIB


def test_a_second_put_of_the_same_sends_nothing_and_says_so(dds: Program, stored: str, large: Path) -> None:
    told = dds.json("put", large)
    assert told["content"] == stored
    assert told["sent_bytes"] < MIB // 4
    assert told["reused_bytes"] >= LARGE_BYTES
    assert "already" in dds.run("put", large).stderr.decode()


def test_a_file_that_grew_sends_what_is_new(dds: Program, stored: str, large: Path, tmp_path: Path) -> None:
    longer = tmp_path / "longer"
    longer.write_bytes(large.read_bytes() + random.Random(5).randbytes(MIB))
    told = dds.json("put", longer)
    assert told["content"] == dds.text("cid", longer)
    assert told["content"] != stored
    assert told["sent_bytes"] < 2 * MIB + MIB // 2  # 1 MiB as 10+6, the DAG's upper nodes and the manifest
    out = tmp_path / "out"
    dds.run("get", told["content"], "-o", out)
    assert same_file(longer, out)


def test_a_killed_put_is_resumed_by_the_next_one(dds: Program, tmp_path: Path) -> None:
    source = write_random(tmp_path / "source", 64 * MIB, seed=7)
    before = stored_bytes(dds)
    with dds.start("put", source) as process:
        wait_until(lambda: stored_bytes(dds) > before + 16 * MIB)
        process.kill()
    told = dds.json("put", source)
    assert told["content"] == dds.text("cid", source)
    assert told["sent_bytes"] < told["encoded_bytes"] - 8 * MIB  # what the nodes had already was not sent again
    out = tmp_path / "out"
    dds.run("get", told["content"], "-o", out)
    assert same_file(source, out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_get_leaves_nothing_half_written(
    dds: Program, stored: str, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with dds.start("get", stored, "-o", tmp_path / "out") as process:
        wait_until(lambda: is_writing(tmp_path))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert (out, list(tmp_path.iterdir())) == (b"", [])
    assert b"Traceback" not in err


def test_two_puts_of_the_same_at_once_both_succeed(dds: Program, tmp_path: Path) -> None:
    source = write_random(tmp_path / "source", 8 * MIB, seed=8)
    running = [dds.start("put", source) for _ in range(2)]
    told = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    assert {out.decode().strip() for out, _ in told} == {dds.text("cid", source)}

"""What an origin promises, through the program and against real node processes: it serves before the network can, and what it
has taken over is finished whatever happens to it."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dds.primitives.errors import DDSError, PeerRefused
from dds.primitives.ids import NodeID, parse_id
from dds.primitives.keys import SigningKey
from dds.storage.home import Home, load_node_config, parse_host_port, write_node_config
from dds.transport.client import PeerClient
from dds.wire.codec import encode
from dds.wire.origin import OriginPut
from tests.e2e.devnet_cli import Program, running_devnet, running_origin, same_file, wait_until, write_random

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("origin")]

MIB = 1 << 20
NODES = 20
LIVE_OF_FAST = 14  # k + ceil(2m/3) of 10 + 6


@pytest.fixture(scope="module")
def dds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running_devnet(tmp_path_factory.mktemp("origin") / "home", "--nodes", str(NODES)) as program:
        program.run("node", "init", "--role", "origin")
        yield program


def a_reader(dds: Program, home: Path) -> Program:
    """Another person on the same network, who knows nothing of the first one's puts."""
    home.mkdir(mode=0o700)
    shutil.copy(dds.home / "config.toml", home)
    return Program(home)


@pytest.fixture(scope="module")
def reader(dds: Program, tmp_path_factory: pytest.TempPathFactory) -> Program:
    return a_reader(dds, tmp_path_factory.mktemp("reader") / "home")


def test_a_reader_is_served_by_the_put_itself_while_the_nodes_take_their_time(tmp_path: Path) -> None:
    """Six nodes that receive 64 KiB a second: the put takes a minute, a get at the same time two or three seconds."""
    with running_devnet(tmp_path / "home", "--nodes", "6", "--operators", "6") as dds:
        dds.run("devnet", "down")
        for file in (dds.home / "devnet" / "nodes").glob("*/node.toml"):
            write_node_config(file, replace(load_node_config(file), download_bytes_per_s=MIB // 16))
        dds.run("devnet", "up")
        reader = a_reader(dds, tmp_path / "reader")
        source, out = write_random(tmp_path / "source", 5 * MIB, seed=1), tmp_path / "out"
        content = dds.text("cid", source)
        with dds.start("put", "--class", "custom", "-k", "4", "-m", "2", source) as put:
            wait_until(lambda: reader.attempt("get", content, "-o", out) == 0)
            assert put.poll() is None, "the put cannot have ended"
            assert same_file(source, out)
            put.terminate()
            printed, err = put.communicate(timeout=30)
        assert (put.returncode, printed) == (143, b""), err.decode()


def test_fast_needs_a_daemon_and_says_so(dds: Program, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("in")
    error = dds.error("put", "--ack", "fast", tmp_path / "in", code=2)
    assert "no" in error["message"] and "--role origin" in error["hint"]


def test_after_a_fast_put_any_four_of_its_nodes_may_die_and_a_killed_daemon_still_finishes(
    dds: Program, reader: Program, tmp_path: Path
) -> None:
    """The whole life of a job on a network that is six nodes short: enough, killed, source gone, restarted, done."""
    source = write_random(tmp_path / "source", 35 * MIB, seed=2)
    expected = Path(shutil.copy(source, tmp_path / "expected"))
    names = dds.names()
    dds.run("devnet", "kill", *names[LIVE_OF_FAST:])
    with running_origin(dds) as daemon:
        told = dds.json("put", "--ack", "fast", source)
        content = told["content"]
        assert told["losses_survived"] == 4
        assert any("any 4 of its nodes" in note and "finishes the rest" in note for note in told["notes"])
        daemon.kill()
    source.unlink()
    dds.run("devnet", "kill", *random.SystemRandom().sample(names[:LIVE_OF_FAST], 4))
    reader.run("get", content, "-o", tmp_path / "out")
    assert same_file(expected, tmp_path / "out")
    dds.heal()
    with running_origin(dds) as daemon:
        wait_until(lambda: daemon.state_of(content) == "done")
        assert dds.json("stat", content)["losses_survived"] == 6


@pytest.mark.parametrize("when", ["copied", "sending"])
def test_a_daemon_killed_in_the_middle_finishes_when_it_runs_again(
    dds: Program, reader: Program, tmp_path: Path, when: str
) -> None:
    source = write_random(tmp_path / "source", 48 * MIB, seed=len(when))
    content = dds.text("cid", source)
    before, stored = copies(dds), fragments(dds)
    with running_origin(dds) as daemon, dds.start("put", "--ack", "fast", source) as put:
        wait_until(lambda: copies(dds) > before and (when == "copied" or fragments(dds) > stored + 20))
        daemon.kill()
        put.communicate(timeout=60)
    source.unlink()
    with running_origin(dds) as daemon:
        wait_until(lambda: daemon.state_of(content) == "done")
    reader.run("get", content, "-o", tmp_path / "out")
    assert reader.text("cid", tmp_path / "out") == content


def copies(dds: Program) -> int:
    """Contents that the daemon has copied whole."""
    return len(list((dds.home / "node" / "origin").glob("*/index")))


def fragments(dds: Program) -> int:
    """Large fragments at the nodes."""
    return sum(path.stat().st_size >= MIB for path in (dds.home / "devnet" / "nodes").glob("*/store/**/*") if path.is_file())


def test_what_is_wrong_with_a_source_is_told_as_if_it_were_put_here(dds: Program, tmp_path: Path) -> None:
    with running_origin(dds) as daemon:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        error = dds.error("put", "--ack", "fast", fifo, code=2)
        assert (error["code"], "named pipe" in error["message"]) == ("input", True)
        failed = [job for job in daemon.jobs() if job["state"] == "failed"]
        assert [job["copy_bytes"] for job in failed] == [0]


def test_nobody_but_the_home_itself_hands_jobs_over_or_sees_them(dds: Program, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of this user")
    put = encode(OriginPut(os.fsencode(secret), "standard", None, None, "fixed", False, False))
    with running_origin(dds) as daemon:
        before = len(daemon.jobs())
        state = Home(dds.home).node.read_state()
        assert state is not None
        node, address = NodeID(parse_id(state.id)), parse_host_port(state.address)

        async def refused(key: SigningKey | None) -> list[int]:
            statuses: list[int] = []
            async with PeerClient(key, network=network_of(dds)) as client:
                client.learn(node, [address])
                for request in (
                    client.post(node, "/v1/origin/jobs", put, max_bytes=4096, timeout_s=5),
                    client.get(node, "/v1/origin/jobs", max_bytes=4096, timeout_s=5),
                    client.get(node, "/v1/origin/jobs/00", max_bytes=4096, timeout_s=5),
                    client.put(node, f"/v1/uploads/{'0' * 32}/{'0' * 64}", b"x", timeout_s=5),
                ):
                    with pytest.raises(DDSError) as caught:
                        await request
                    assert isinstance(caught.value, PeerRefused)
                    statuses.append(int(str(caught.value.fields["status"])))
            return statuses

        node_key = SigningKey(bytes.fromhex((dds.home / "node" / "node.key").read_text()))
        assert asyncio.run(refused(SigningKey(b"\x09" * 32))) == [403, 403, 403, 404]  # it stores for nobody, either
        assert asyncio.run(refused(node_key)) == [403, 403, 403, 404]
        assert asyncio.run(refused(None)) == [401, 401, 401, 404]
        assert len(daemon.jobs()) == before


def network_of(dds: Program) -> str:
    return Home(dds.home).client_config().network

"""Directories, names, ranges, listings, liars, and the devnet itself: through the program, against 17 nodes."""

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dds.apps.cli.session import plain
from dds.primitives.cid import cid_of, cid_text
from dds.runtime import processes
from dds.runtime.client import open_client
from dds.runtime.devnet import free_ports
from dds.runtime.devnet_guard import guard
from dds.runtime.results import ContentStat, HomeStat, PutResult
from dds.storage.home import Home
from tests.e2e.devnet_cli import COMMAND, Program, running_devnet, wait_until, write_random

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("cli-content")]

UNKNOWN = cid_text(cid_of(b"nobody has this"))
STATUS_KEYS = ["name", "id", "pid", "region", "operator", "roles", "state", "address"]


@pytest.fixture(scope="module")
def dds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with running_devnet(tmp_path_factory.mktemp("content") / "home", "--nodes", "17") as program:
        yield program


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a.txt").write_text("hello world")
    (root / "nothing").touch()
    (root / "sub" / "ünïcode 名前").write_bytes(b"x" * 5000)
    (root / "sub" / "deep" / "big").write_bytes(os.urandom(2_500_000))
    (root / "sub" / "link").symlink_to("../a.txt")
    Path(os.fsdecode(os.fsencode(root) + b"/not-utf8-\xff")).write_bytes(b"1")
    return root


def snapshot(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for directory, names, files in os.walk(root):
        for path in (Path(directory) / name for name in names + files):
            what: object = path.readlink() if path.is_symlink() else path.is_dir() or path.read_bytes()
            found[str(path.relative_to(root))] = what
    return found


def test_a_tree_comes_back_as_it_was(dds: Program, tree: Path, tmp_path: Path) -> None:
    done = dds.run("put", tree)
    content = done.stdout.decode().strip()
    assert done.stdout == content.encode() + b"\n"  # the ContentID alone
    assert content == dds.text("cid", tree)
    dds.run("get", content, "-o", tmp_path / "back")
    assert snapshot(tmp_path / "back") == snapshot(tree)


def test_a_directory_is_listed_and_its_parts_are_fetched(dds: Program, tree: Path, tmp_path: Path) -> None:
    content = dds.text("put", tree)
    assert sorted((row["name"], row["kind"]) for row in dds.json("ls", content)["entries"]) == [
        ("a.txt", "file"),
        ("empty", "directory"),
        ("not-utf8-\udcff", "file"),
        ("nothing", "file"),
        ("sub", "directory"),
    ]
    assert [row["name"] for row in dds.json("ls", f"{content}/sub/deep")["entries"]] == ["big"]
    assert "not-utf8-\\xff" in dds.text("ls", content)
    assert dds.text("ls", f"{content}/empty") == ""
    dds.run("get", f"{content}/sub/deep/big", "-o", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == (tree / "sub" / "deep" / "big").read_bytes()
    dds.run("get", content, "--path", "sub", "-o", tmp_path / "sub")
    assert snapshot(tmp_path / "sub") == snapshot(tree / "sub")


def test_standard_input_goes_in_and_standard_output_comes_out(dds: Program) -> None:
    data = os.urandom(1_500_000)
    content = dds.text("put", "-", stdin=data)
    assert content == dds.text("cid", "-", stdin=data)
    assert dds.run("get", content, "-o", "-").stdout == data
    assert dds.run("get", content, "-o", "-", "--range", "1000-1999").stdout == data[1000:2000]
    assert dds.run("get", content, "-o", "-", "--range", "1499990-").stdout == data[1_499_990:]


def test_several_paths_give_a_line_each_in_order(dds: Program, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "cab"]
    for path in paths:
        path.write_text(path.name)
    assert dds.text("put", *paths).splitlines() == [dds.text("cid", path) for path in paths]


def test_an_existing_output_is_kept_unless_forced(dds: Program, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("new")
    content = dds.text("put", tmp_path / "in")
    out = tmp_path / "out"
    out.write_text("mine")
    dds.run("get", content, "-o", out, code=2)
    assert out.read_text() == "mine"
    dds.run("get", content, "-o", out, "--force")
    assert out.read_text() == "new"


def test_stat_counts_places_and_what_may_be_lost(dds: Program, tmp_path: Path) -> None:
    content = dds.text("put", write_random(tmp_path / "in", 3_000_000, seed=1))
    told = dds.json("stat", content)
    assert (told["content"], told["content_bytes"], told["class_name"]) == (content, 3_000_000, "standard")
    assert told["losses_survived"] == 6
    assert all(segment["live"] == segment["n"] for segment in told["segments"])
    assert "any 6 more nodes" in dds.text("stat", content)


def test_a_custom_geometry_is_what_was_asked_for(dds: Program, tmp_path: Path) -> None:
    source = write_random(tmp_path / "in", 500_000, seed=2)
    content = dds.text("put", "--class", "custom", "-k", "3", "-m", "2", source)
    assert [(segment["k"], segment["n"]) for segment in dds.json("stat", content)["segments"]] == [(3, 5)]


def test_unknown_content_ends_with_3_and_says_so(dds: Program, tmp_path: Path) -> None:
    for argv in (["get", UNKNOWN, "-o", tmp_path / "out"], ["ls", UNKNOWN], ["stat", UNKNOWN]):
        assert dds.error(*argv, code=3)["code"] == "not-found"
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_not_there_is_bad_input(dds: Program, tree: Path, tmp_path: Path) -> None:
    content = dds.text("put", tree)
    done = dds.run("get", f"{content}/sub/none", "-o", tmp_path / "out", code=2)
    assert b"none" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_liar_is_named_and_its_bytes_replaced(dds: Program, tmp_path: Path) -> None:
    source = write_random(tmp_path / "in", 12_000_000, seed=3)
    content = dds.text("put", source)
    names = {row["id"]: row["name"] for row in dds.nodes()}
    liar = next(row["node"] for row in dds.json("stat", content)["segments"][0]["holders"] if row["index"] == 0)
    dds.run("devnet", "start", "--tamper", names[liar], code=2)  # it runs
    dds.run("devnet", "kill", names[liar])
    dds.run("devnet", "start", "--tamper", names[liar])
    try:
        told = dds.json("get", content, "-o", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == source.read_bytes()
        assert {culprit["node"] for culprit in told["culprits"]} == {liar}
        assert liar in dds.run("get", content, "-o", tmp_path / "again").stderr.decode()
    finally:
        dds.run("devnet", "kill", names[liar])
        dds.run("devnet", "start", names[liar])


def test_devnet_status_has_exactly_the_documented_keys(dds: Program) -> None:
    told = dds.json("devnet", "status")
    assert list(told) == ["nodes", "ledger"] and told["ledger"] is None
    assert all(list(row) == STATUS_KEYS for row in told["nodes"])
    assert [row["name"] for row in told["nodes"]] == [f"node-{number:02}" for number in range(17)]
    assert {row["state"] for row in told["nodes"]} == {"running"}


def test_nodes_keep_their_id_and_address_over_kill_pause_and_start(dds: Program) -> None:
    before = {row["name"]: row for row in dds.nodes()}
    assert dds.json("devnet", "kill", "node-03")["nodes"][0]["state"] == "stopped"
    assert dds.json("devnet", "pause", "node-04")["nodes"][0]["state"] == "paused"
    assert [row["pid"] for row in dds.nodes() if row["state"] == "stopped"] == [None]
    dds.run("devnet", "resume", "node-04")
    dds.run("devnet", "start", "node-03")
    after = {row["name"]: row for row in dds.nodes()}
    assert after["node-03"].pop("pid") != before["node-03"].pop("pid")
    assert after == before


def test_up_twice_is_a_clear_message(dds: Program) -> None:
    assert b"up already" in dds.run("devnet", "up", code=2).stderr


def test_doctor_is_content_with_a_running_devnet(dds: Program) -> None:
    told = dds.json("doctor")
    grades = {check["name"]: check["grade"] for check in told["checks"]}
    assert grades["bootstrap"] == grades["dht"] == grades["config"] == "ok", told


def test_node_commands_work_on_a_node_of_the_devnet(dds: Program) -> None:
    root = dds.home / "devnet" / "nodes" / "node-05"
    told = dds.json("--home", root, "node", "status")
    assert (told["name"], told["state"]) == ("node-05", "running")
    dds.run("--home", root, "node", "fsck", code=2)  # in use
    dds.run("devnet", "kill", "node-05")
    assert dds.json("--home", root, "node", "fsck", "--deep")["clean"] is True
    assert b"stopped" in dds.run("--home", root, "node", "status", code=4).stdout
    dds.run("devnet", "start", "node-05")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Program]:
    """A home of the test's own, without a devnet yet."""
    with guard(tmp_path / "home"):
        yield Program(tmp_path / "home")


def test_down_finds_the_nodes_of_a_starter_that_was_killed(own: Program) -> None:
    nodes = own.home / "devnet" / "nodes"
    with subprocess.Popen([*COMMAND, "devnet", "up", "--nodes", "4"], env=own.environment) as starter:
        wait_until(lambda: nodes.is_dir() and bool(processes.find(nodes.iterdir())))
        starter.kill()
    assert own.json("devnet", "down")["stopped"] > 0
    assert processes.find(nodes.iterdir()) == {}
    assert own.json("devnet", "down")["stopped"] == 0
    assert len(own.json("devnet", "up")["nodes"]) == 4  # what the broken start laid out still holds
    assert own.json("devnet", "down", "--purge")["stopped"] == 4
    assert not (own.home / "config.toml").exists()


def test_a_node_that_cannot_start_takes_the_whole_network_down(own: Program) -> None:
    own.run("devnet", "up", "--nodes", "3")
    host, _, port = own.nodes()[1]["address"].rpartition(":")
    own.run("devnet", "down")
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past the nodes' closed connections
        squatter.bind((host, int(port)))
        squatter.listen()
        assert b"node-01 did not start" in own.run("devnet", "up", code=4).stderr
        assert processes.find((own.home / "devnet" / "nodes").iterdir()) == {}


def test_dds_node_run_serves_until_it_is_asked_to_stop(tmp_path: Path) -> None:
    program = Program(tmp_path / "home")
    port, dht_port = free_ports(2)
    program.run("node", "init", "--network", "alone", "--port", port, "--dht-port", dht_port)
    with program.start("node", "run") as process:
        try:
            wait_until((program.home / "node" / "state.json").exists)
            told = program.json("node", "status")
            assert (told["state"], told["pid"]) == ("running", process.pid)
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert not (program.home / "node" / "state.json").exists()


def test_a_homes_totals_count_what_two_contents_share_once(dds: Program, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        root.mkdir()
        write_random(root / "same", 700_000, seed=61)
    (second / "words").write_text("over and over again\n" * 30_000)

    async def work() -> tuple[HomeStat, HomeStat, PutResult, ContentStat, ContentStat]:
        async with open_client(Home.open(dds.home)) as client:
            before = await client.home_stat()
            one, two = await client.put(first), await client.put(second)
            stats = await client.stat(one.content), await client.stat(two.content)
            return before, await client.home_stat(), two, *stats

    before, after, put, one, two = asyncio.run(work())
    assert put.reused_bytes == put.reused_stored_bytes == 700_000
    assert one.findings == two.findings == after.findings == []
    assert after.contents == after.counted == before.contents + 2
    assert after.logical_bytes - before.logical_bytes == one.dag_bytes + two.dag_bytes
    assert after.unique_bytes - before.unique_bytes == one.unique_bytes + two.unique_bytes - 700_000
    assert dds.json("stat") == plain(after)

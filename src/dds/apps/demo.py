"""The demonstration: `make demo [DIR=path]`, or `python -m dds.apps.demo [--dir PATH]`.

Twenty node processes store a real directory, six of them are killed, and a reader who has never seen it fetches every byte
back; then a range of one file, then all of it again without a region, past a node that lies, and beside an edge. Everything
shown is measured here and now, and every claim is checked: the exit code is 0 only if all of them hold. Whatever happens,
Ctrl-C and SIGKILL included, what was started is taken down.

Without DIR the input is the source tree of this Python's own standard library, without site-packages and caches.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import uvloop

from dds.apps.cli import exits
from dds.apps.cli.session import show_log
from dds.apps.demo_ledger import EPOCH_MS, audit_the_ledger, show_offer, show_payment, watch_pay
from dds.apps.demo_places import EDGE, lose_region, read_at_the_edge, show_edge_pay
from dds.apps.demo_stage import ClaimFailed, Scene, Stage, claim
from dds.primitives.cid import CID, cid_text
from dds.primitives.errors import DDSError, InputError
from dds.primitives.ids import id_text
from dds.primitives.units import human_bytes
from dds.runtime.client import Client, open_client
from dds.runtime.devnet import HOSTILE_DAEMON, Devnet, Shape
from dds.runtime.devnet_guard import guard
from dds.runtime.results import ContentStat, PutOptions, PutResult
from dds.storage.home import Home, write_client_config

KILLED: Final = 6
RANGE_BYTES: Final = 100
PIECE_BYTES: Final = 1 << 20
LEFT_OUT: Final = ("site-packages", "dist-packages", "__pycache__")
T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make demo", description="Store a directory, lose six nodes, get every byte back.")
    parser.add_argument("--dir", type=Path, help="what to store [default: this Python's standard library]")
    arguments = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))  # ends like Ctrl-C, so that it cleans up
    show_log(verbose=False)
    stage = Stage()
    try:
        with tempfile.TemporaryDirectory(prefix="dds-demo-") as work, guard(Path(work) / "creator", Path(work)):
            play(stage, Path(work), arguments.dir)
    except KeyboardInterrupt:
        stage.bad("interrupted; everything was taken down")
        return exits.INTERRUPTED
    except ClaimFailed as error:
        stage.bad(str(error))
        return exits.FAILED
    except DDSError as error:
        if exits.is_debugging():
            raise
        return exits.tell_error(error, as_json=False)
    stage.good(f"all of it held, in {stage.seconds():.0f} s")
    return exits.OK


def play(stage: Stage, work: Path, directory: Path | None) -> None:
    """The whole demonstration, in `work`.

    Raises:
        ClaimFailed, DDSError: after everything was taken down.
    """
    source = checked(directory) if directory else copy_standard_library(work / "input")
    creator, reader = Home.open(work / "creator"), Home.open(work / "reader")
    title = str(source) if directory else f"the standard library of this Python ({sysconfig.get_path('stdlib')})"
    scene = Scene(stage, Devnet(creator), creator, reader, source, title, work)
    try:
        start_network(scene)
        put = store(scene)
        lost = kill_six(scene)
        fetch_everything(scene, put.content)
        fetch_range(scene, put.content)
        scene.devnet.start(lost)
        lose_region(scene, put.content, with_client, compare)
        liar = catch_liar(scene, put.content)
        read_at_the_edge(scene, put.content, with_client, compare)
        watch_pay(scene, liar)
        show_edge_pay(scene)
        audit_the_ledger(scene)
    finally:
        take_down(scene)


def start_network(scene: Scene) -> None:
    scene.stage.step("A network of 20 node processes on this machine")
    started = time.monotonic()
    rows = scene.devnet.up(Shape(epoch_ms=EPOCH_MS, ecn=1))
    scene.devnet.stop([EDGE])  # its turn comes
    rows = [row for row in rows if row.name != EDGE]
    write_client_config(scene.reader.config_file, scene.creator.client_config())
    regions, operators = {row.region for row in rows}, {row.operator for row in rows}
    scene.stage.fact("up", f"{len(rows)} nodes, {len(operators)} operators, {len(regions)} regions")
    witnesses = sum("witness" in row.roles for row in rows)
    scene.stage.fact("ledger", f"one sequencer, {witnesses} witnesses, epochs of {EPOCH_MS / 1000:.0f} s")
    scene.stage.fact("time", f"{time.monotonic() - started:.1f} s")


def store(scene: Scene) -> PutResult:
    scene.stage.step(f"Store {scene.title}")
    stage = scene.stage
    put = with_client(
        scene.creator, lambda client: client.put(scene.source, PutOptions(), confirm=lambda offer: show_offer(scene, offer))
    )
    stage.fact("ContentID", f"[bold]{cid_text(put.content)}[/]")
    stage.fact("input", f"{put.files:,} files, {human_bytes(put.content_bytes)}")
    stage.fact("time", f"{put.seconds:.1f} s, every fragment with a durable receipt")
    stage.fact("on nodes", f"{human_bytes(put.encoded_bytes)}, {put.encoded_bytes / max(1, put.content_bytes):.2f} x the input")
    expansion = put.encoded_bytes / max(1, put.stored_bytes)
    stage.fact("expansion", f"{expansion:.2f} x of what was left to store, any 10 of 16 fragments rebuild it")
    stage.fact("deduplication", f"saved {human_bytes(max(0, put.dag_bytes - put.unique_bytes))}")
    stage.fact("compression", f"saved {human_bytes(max(0, put.unique_bytes - put.stored_bytes))}")
    stage.fact("spread", f"{put.segments} segments on {put.nodes} nodes, {put.operators} operators, {put.regions} regions")
    for note in put.notes:
        stage.fact("note", note)
    show_payment(scene, put.payment)
    return put


def kill_six(scene: Scene) -> list[str]:
    """Six nodes, drawn anew each time.

    Returns:
        their names.
    """
    scene.stage.step(f"Kill any {KILLED} nodes (SIGKILL)")
    names = [member.name for member in scene.devnet.members() if member.name != EDGE]
    chosen = sorted(random.SystemRandom().sample(names, KILLED))
    rows = scene.devnet.kill(chosen)
    claim(all(row.state == "stopped" for row in rows), "a killed node still runs")
    scene.stage.fact("killed", ", ".join(chosen))
    return chosen


def fetch_everything(scene: Scene, content: CID) -> None:
    scene.stage.step("Fetch all of it into a new folder, as a reader who has never seen it")
    target = scene.work / "fetched"
    got = with_client(scene.reader, lambda client: client.get(content, target))
    stage = scene.stage
    stage.fact("time", f"{got.seconds:.1f} s, {human_bytes(got.moved_bytes)} moved")
    stage.fact("rebuilt", f"{got.decoded_stripes} stripes from the fragments that were left")
    stage.good(f"{compare(scene.source, target):,} files compared byte by byte: all identical")


def fetch_range(scene: Scene, content: CID) -> None:
    path = largest_file(scene.source)
    size = path.stat().st_size
    scene.stage.step(f"Fetch {RANGE_BYTES} bytes from the middle of one file")
    start = max(0, size // 2 - RANGE_BYTES // 2)
    inner = "" if path == scene.source else path.relative_to(scene.source).as_posix()
    out = scene.work / "range"
    window = (start, min(size, start + RANGE_BYTES))
    got = with_client(scene.reader, lambda client: client.get(content, out, path=inner, byte_range=window))
    with path.open("rb") as file:
        file.seek(start)
        claim(out.read_bytes() == file.read(RANGE_BYTES), "the range differs from the file's bytes")
    scene.stage.fact("file", f"{inner or path.name}, {human_bytes(size)}, bytes {window[0]} to {window[1] - 1}")
    scene.stage.good(f"identical; {human_bytes(got.moved_bytes)} moved, in {got.seconds:.2f} s")


def catch_liar(scene: Scene, content: CID) -> str:
    """Turn one holder into a liar, and read past it.

    Returns:
        its name.
    """
    scene.stage.step("One of the holders starts to lie")
    liar = busiest_data_holder(scene, with_client(scene.reader, lambda client: client.stat(content)))
    scene.devnet.kill([liar])
    scene.devnet.start([liar], module=HOSTILE_DAEMON)
    scene.stage.fact("liar", f"{liar} now serves altered bytes, with its own key and address")
    target = scene.work / "fetched-again"
    got = with_client(scene.reader, lambda client: client.get(content, target))
    count = compare(scene.source, target)
    names = {member.id: member.name for member in scene.devnet.members()}
    caught = {id_text(culprit.node): culprit.reason for culprit in got.culprits}
    for node, reason in caught.items():
        scene.stage.fact("caught", f"[bold]{names.get(node, 'a stranger')}[/] ({node[:12]}...): {reason}")
    named = sorted(names.get(node, node) for node in caught)
    claim(named == [liar], f"{liar} lied, but {', '.join(named) or 'nobody'} was named")
    scene.stage.good(f"the liar was named, nobody else was; {count:,} files compared: all identical")
    return liar


def busiest_data_holder(scene: Scene, stat: ContentStat) -> str:
    """The node that a reader asks first for most: it holds data slots of the largest segments."""
    load: dict[str, int] = {}
    for segment in stat.segments:
        for holder in segment.holders:
            if holder.index < segment.k:
                load[id_text(holder.node)] = load.get(id_text(holder.node), 0) + segment.stripes
    names = {member.id: member.name for member in scene.devnet.members()}
    return names[max(load, key=lambda node: load[node])]


def take_down(scene: Scene) -> None:
    scene.stage.step("Take everything down")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave processes behind
    stopped = scene.devnet.down(purge=True)
    scene.stage.good(f"{stopped} nodes stopped, none left; temporary files removed")


def with_client(home: Home, use: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    """One operation in a session of its own."""

    async def work() -> T:
        async with open_client(home) as client:
            return await use(client)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work())


def checked(path: Path) -> Path:
    """
    Raises:
        InputError: there is nothing at `path`.
    """
    if not path.exists():
        raise InputError(f"no such directory: {path}", hint="make demo DIR=path")
    return path.resolve()


def copy_standard_library(target: Path) -> Path:
    """This Python's library sources, as they are installed."""
    shutil.copytree(sysconfig.get_path("stdlib"), target, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    return target


def entries(root: Path) -> Iterator[Path]:
    """Everything below `root` that a put takes, relative; a file is itself."""
    if not root.is_dir():
        yield Path()
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".")]
        for name in (*names, *files):
            if not name.startswith("."):
                yield (Path(directory) / name).relative_to(root)


def compare(source: Path, target: Path) -> int:
    """Compare two trees: the same names, kinds, links and bytes.

    Returns:
        how many files were compared.

    Raises:
        ClaimFailed: naming the first difference.
    """
    wanted, found = set(entries(source)), set(entries(target))
    claim(wanted == found, f"{len(wanted ^ found)} names differ, for example {next(iter(wanted ^ found), None)}")
    files = 0
    for path in sorted(wanted):
        ours, theirs = source / path, target / path
        if ours.is_symlink():
            claim(theirs.is_symlink() and ours.readlink() == theirs.readlink(), f"the link {path} differs")
        elif ours.is_dir():
            claim(theirs.is_dir() and not theirs.is_symlink(), f"{path} is no directory")
        else:
            claim(same_bytes(ours, theirs), f"{path} differs")
            files += 1
    return files


def same_bytes(ours: Path, theirs: Path) -> bool:
    with ours.open("rb") as left, theirs.open("rb") as right:
        while True:
            piece = left.read(PIECE_BYTES)
            if piece != right.read(PIECE_BYTES):
                return False
            if not piece:
                return True


def largest_file(root: Path) -> Path:
    """
    Raises:
        InputError: there is no file.
    """
    files = [root / path for path in entries(root) if (root / path).is_file() and not (root / path).is_symlink()]
    if not files:
        raise InputError(f"there is no file in {root}")
    return max(files, key=lambda path: path.stat().st_size)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())

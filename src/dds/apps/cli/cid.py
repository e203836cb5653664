"""`dds cid`: the ContentID that `dds put` would give, without any network."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal

import typer

from dds.apps.cli.session import Session, command, printable
from dds.primitives.cid import CID, cid_text
from dds.primitives.errors import InputError
from dds.primitives.units import CHUNK_BYTES

Chunker = Literal["fixed", "fastcdc"]
ChunkerOption = Annotated[
    Chunker,
    typer.Option(
        "--chunker", help="fixed gives the same ContentID as 'ipfs add'; fastcdc suits files that are edited again and again."
    ),
]
HiddenOption = Annotated[bool, typer.Option("--hidden", help="Take hidden files too (a name that starts with a dot).")]
STDIN: Final = "-"


def register(app: typer.Typer) -> None:
    command(app)(cid)


def cid(
    session: Session,
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Files or directories; - reads standard input.")],
    chunker: ChunkerOption = "fixed",
    hidden: HiddenOption = False,
) -> None:
    """Print the ContentID of PATH; needs no network and stores nothing."""
    from dds.storage.source import SourceOptions, compute_cid

    check_paths(paths)
    options = SourceOptions(chunker=chunker, hidden=hidden)
    for path in paths:
        found = stream_cid(sys.stdin.buffer, chunker) if path == STDIN else compute_cid(Path(path), options)
        session.result({"path": path, "content": found}, cid_text(found))


def check_paths(paths: list[str]) -> None:
    """Before any work: every path is there, and standard input is named once at most.

    Raises:
        InputError: naming the path.
    """
    for path in paths:
        if path != STDIN and not os.path.lexists(path):
            raise InputError(f"no such file or directory: {printable(path)}")
    if paths.count(STDIN) > 1:
        raise InputError("standard input can be read once only")


def stream_cid(stream: BinaryIO, chunker: Chunker) -> CID:
    """The ContentID of a file with the stream's bytes."""
    from dds.content.builder import FileBuilder, PostOrder
    from dds.content.chunking import make_chunker

    cutter, builder = make_chunker(chunker), FileBuilder(PostOrder(lambda block, position: None))
    while data := stream.read(CHUNK_BYTES):
        for chunk in cutter.feed(data):
            builder.add(chunk)
    for chunk in cutter.finish():
        builder.add(chunk)
    return builder.finish().cid

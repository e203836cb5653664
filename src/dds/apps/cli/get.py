"""`dds get`: fetch content or a range of it, verified, to a file, a directory or standard output."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dds.apps.cli.session import Session, command, fields, progress_on, with_client
from dds.primitives.cid import CID, cid_text, parse_cid
from dds.primitives.errors import InputError
from dds.primitives.ids import id_text
from dds.primitives.money import format_tokens
from dds.primitives.units import human_bytes

if TYPE_CHECKING:
    from dds.runtime.client import Client
    from dds.runtime.results import GetResult

STDOUT: Final = "-"
GRANT_FILE_BYTES_MAX: Final = 1024
OFFSET_MAX: Final = (1 << 63) - 1
_RANGE = re.compile(r"([0-9]{1,19})-([0-9]{1,19})?", re.ASCII)


def register(app: typer.Typer) -> None:
    command(app)(get)


def get(
    session: Session,
    content: Annotated[str, typer.Argument(metavar="CONTENTID[/PATH]", help="What to fetch.")],
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="OUT", help="Where to; - is standard output [default: the content's name, here]"),
    ] = None,
    byte_range: Annotated[
        str | None, typer.Option("--range", metavar="A-B", help="Only bytes A to B, both included, as in HTTP; A- to the end.")
    ] = None,
    path: Annotated[str, typer.Option("--path", metavar="SUB/FILE", help="A file or directory inside.")] = "",
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace what is at OUT.")] = False,
    region: Annotated[
        str | None, typer.Option("--region", metavar="REGION", help="Read as from there. [default: that of config.toml]")
    ] = None,
    grant: Annotated[
        Path | None, typer.Option("--grant", metavar="FILE", help="A grant for this home: its sponsor pays what is not free.")
    ] = None,
) -> None:
    """Fetch CONTENTID, check every byte against it, and write it to OUT."""
    root, inner = split_content(content, path)
    window = parse_range(byte_range) if byte_range is not None else None
    target = None if out == STDOUT else Path(out or default_name(root, inner))
    if target is not None and not force and os.path.lexists(target):
        raise InputError(f"{target} exists already", hint="choose another place with -o, or replace it with --force")
    if target is not None and not target.absolute().parent.is_dir():
        raise InputError(f"no such directory: {target.absolute().parent}")

    async def work(client: Client) -> GetResult:
        with progress_on(session) as report:
            to = target or sys.stdout.buffer
            return await client.get(root, to, path=inner, byte_range=window, overwrite=force, progress=report)

    sponsor = read_grant(grant) if grant is not None else b""
    result = with_client(session, work, region=region, grant=sponsor)
    if target is not None:
        session.result({"out": str(target), **fields(result)}, str(target))
    for line in summary(result):
        session.say(line)


def read_grant(path: Path) -> bytes:
    """
    Raises:
        InputError: not to be read, or too large to be a grant.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(GRANT_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InputError(f"cannot read the grant {path}: {error.strerror}") from None
    if len(raw) > GRANT_FILE_BYTES_MAX:
        raise InputError(f"{path} is too large to be a grant")
    return raw


def split_content(text: str, path: str = "") -> tuple[CID, str]:
    """`CONTENTID/a/b` and `--path c` -> the ContentID and `a/b/c`; empty and `.` parts are dropped.

    Raises:
        InputError: not a ContentID, or a path with `..`.
    """
    bare = text.strip().removeprefix("ipfs://").removeprefix("/ipfs/")
    name, _, inner = bare.partition("/")
    parts = [part for part in f"{inner}/{path}".split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InputError("a path inside content has no '..'")
    return parse_cid(name), "/".join(parts)


def parse_range(text: str) -> tuple[int, int | None]:
    """`A-B` (both included) or `A-` -> the half-open range (A, B + 1), or (A, None) to the end.

    Raises:
        InputError: not of that form, or empty.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"not a range: {text[:40]!r}", hint="the form is A-B, both included, or A- for all from A on")
    first = int(match[1])
    stop = int(match[2]) + 1 if match[2] else None
    if first > OFFSET_MAX or (stop is not None and not first < stop <= OFFSET_MAX):
        raise InputError(f"an empty range, or one beyond any file: {text[:40]!r}")
    return first, stop


def default_name(root: CID, inner: str) -> str:
    """The file name that content is fetched to when the user names none."""
    return inner.rpartition("/")[2] or cid_text(root)


def summary(result: GetResult) -> list[str]:
    """What a person wants to know about a get."""
    speed = f"{human_bytes(int(result.content_bytes / result.seconds))}/s" if result.seconds > 0 else "at once"
    what = f"{result.files:,} files, " if result.kind == "directory" else ""
    lines = [
        f"{what}{human_bytes(result.content_bytes)} in {result.seconds:.1f} s ({speed}), "
        f"{human_bytes(result.moved_bytes)} moved, every byte verified"
    ]
    if result.edge_bytes:
        lines.append(f"{human_bytes(result.edge_bytes)} came from an edge cache")
    if result.decoded_stripes:
        lines.append(f"{result.decoded_stripes} stripes were rebuilt from the fragments that were left")
    if result.paid:
        lines.append(f"{format_tokens(result.paid)} promised to nodes for what was not free")
    return lines + [f"warning: node {id_text(culprit.node)} sent wrong bytes: {culprit.reason}" for culprit in result.culprits]

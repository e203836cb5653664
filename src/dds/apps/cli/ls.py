"""`dds ls`: what is in a directory of the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dds.apps.cli.get import split_content
from dds.apps.cli.session import Session, command, printable, with_client
from dds.primitives.cid import cid_text
from dds.primitives.units import human_bytes

if TYPE_CHECKING:
    from dds.runtime.client import Client
    from dds.runtime.results import Entry


def register(app: typer.Typer) -> None:
    command(app)(ls)


def ls(
    session: Session,
    content: Annotated[str, typer.Argument(metavar="CONTENTID[/PATH]", help="A directory, or a file.")],
) -> None:
    """List a directory: kind, size, ContentID, name."""
    root, path = split_content(content)

    async def work(client: Client) -> list[Entry]:
        return await client.ls(root, path)

    entries = with_client(session, work)
    lines = [row(entry, exact=session.verbose) for entry in entries]
    if session.json or lines:
        session.result({"content": root, "path": path, "entries": entries}, "\n".join(lines))


def row(entry: Entry, *, exact: bool) -> str:
    size = f"{entry.size:>14}" if exact else f"{human_bytes(entry.size):>10}"
    slash = "/" if entry.kind == "directory" else ""
    return f"{entry.kind:<9} {size}  {cid_text(entry.content)}  {printable(entry.name)}{slash}"

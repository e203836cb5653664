"""`dds stat`: how a ContentID is kept: stripes, live fragments, nodes, regions, sizes, savings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dds.apps.cli.get import split_content
from dds.apps.cli.session import Session, command, with_client
from dds.primitives.cid import cid_text
from dds.primitives.errors import InputError
from dds.primitives.ids import id_text
from dds.primitives.units import human_bytes

if TYPE_CHECKING:
    from dds.runtime.client import Client
    from dds.runtime.results import ContentStat, SegmentStat


def register(app: typer.Typer) -> None:
    command(app)(stat)


def stat(session: Session, content: Annotated[str, typer.Argument(metavar="CONTENTID", help="What was stored.")]) -> None:
    """Show how CONTENTID is kept, and how many more nodes may be lost."""
    root, path = split_content(content)
    if path:
        raise InputError("stat takes a ContentID without a path", hint=f"dds ls {cid_text(root)} shows what is inside")

    async def work(client: Client) -> ContentStat:
        return await client.stat(root)

    result = with_client(session, work)
    session.result(result, "\n".join(describe(result, verbose=session.verbose)))


def describe(result: ContentStat, *, verbose: bool) -> list[str]:
    """The report, a line a fact; with `verbose` every segment's holders too."""
    fragments = sum(segment.n for segment in result.segments)
    expansion = result.encoded_bytes / max(1, result.content_bytes)
    live = sum(segment.live for segment in result.segments)
    lines = [
        f"content      {cid_text(result.content)}",
        f"kind         {result.kind}, class {result.class_name}, chunker {result.chunker}",
        f"publisher    {id_text(result.publisher)}",
        f"size         {human_bytes(result.content_bytes)} ({result.content_bytes} bytes)",
        f"dag          {human_bytes(result.dag_bytes)} in blocks, {human_bytes(result.unique_bytes)} of them distinct",
        f"saved        {human_bytes(result.dedup_saved_bytes)} by deduplication, "
        f"{human_bytes(result.compression_saved_bytes)} by compression",
        f"on nodes     {human_bytes(result.encoded_bytes)}, {expansion:.2f} x the size",
        f"segments     {len(result.segments)}, {sum(segment.stripes for segment in result.segments)} stripes",
        f"live         {live} of {fragments} places, on {result.nodes} nodes of {result.operators} operators "
        f"in {result.regions} regions",
        f"may lose     {_losses(result.losses_survived)}",
    ]
    for number, segment in enumerate(result.segments if verbose else ()):
        lines += _segment(number, segment)
    return lines


def _losses(count: int) -> str:
    if count < 0:
        return f"not readable now: {-count} more nodes are needed"
    return f"any {count} more nodes" if count else "no more nodes"


def _segment(number: int, segment: SegmentStat) -> list[str]:
    head = (
        f"segment {number}    {id_text(segment.segment)}: any {segment.k} of {segment.n}, {segment.live} live, "
        f"{segment.stripes} stripes, {human_bytes(segment.encoded_bytes)}"
    )
    rows = [
        f"  {holder.index:>3}  {'live' if holder.live else 'lost'}  {id_text(holder.node)}  {holder.region}  {holder.operator}"
        for holder in segment.holders
    ]
    return [head, *rows]

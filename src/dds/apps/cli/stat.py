"""`dds stat`: how a ContentID is kept: stripes, live fragments, nodes, measured sizes and savings; a home's totals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dds.apps.cli.get import split_content
from dds.apps.cli.session import Session, command, progress_on, with_client
from dds.primitives.cid import cid_text
from dds.primitives.errors import InputError
from dds.primitives.ids import id_text
from dds.primitives.units import human_bytes

if TYPE_CHECKING:
    from dds.runtime.client import Client
    from dds.runtime.results import ContentStat, HomeStat, SegmentStat


def register(app: typer.Typer) -> None:
    command(app)(stat)


def stat(
    session: Session,
    content: Annotated[
        str, typer.Argument(metavar="[CONTENTID]", help="What was stored; left out: this home as a whole.")
    ] = "",
) -> None:
    """Show how CONTENTID is kept, what it takes and how many more nodes may be lost; without it, what this home takes."""
    if not content:
        _home(session)
        return
    root, path = split_content(content)
    if path:
        raise InputError("stat takes a ContentID without a path", hint=f"dds ls {cid_text(root)} shows what is inside")

    async def work(client: Client) -> ContentStat:
        return await client.stat(root)

    result = with_client(session, work)
    session.result(result, "\n".join(describe(result, verbose=session.verbose)))


def _home(session: Session) -> None:
    async def work(client: Client) -> HomeStat:
        with progress_on(session) as report:
            return await client.home_stat(report)

    result = with_client(session, work)
    session.result(result, "\n".join(describe_home(result)))


def describe_home(result: HomeStat) -> list[str]:
    """Totals, a line a fact."""
    left_out = f", {result.contents - result.counted} not counted" if result.counted < result.contents else ""
    lines = [
        f"contents     {result.counted} of this home{left_out}",
        f"dag          {human_bytes(result.logical_bytes)} in blocks, {human_bytes(result.unique_bytes)} of them distinct, "
        f"{human_bytes(result.stored_bytes)} after compression",
        f"saved        {human_bytes(result.dedup_saved_bytes)} by deduplication, "
        f"{human_bytes(result.compression_saved_bytes)} by compression",
        f"on nodes     {human_bytes(result.attributed_bytes)} as fragments, its share of {result.segments} segments",
    ]
    return lines + _again(result.stored_again_bytes) + [f"finding      {text}" for text in result.findings]


def _again(count: int) -> list[str]:
    return [f"twice        {human_bytes(count)} are stored in a second segment too"] if count else []


def describe(result: ContentStat, *, verbose: bool) -> list[str]:
    """The report, a line a fact; with `verbose` every segment's holders too."""
    fragments = sum(segment.n for segment in result.segments)
    live = sum(segment.live for segment in result.segments)
    source = "" if result.is_measured else ", as its manifest says"
    lines = [
        f"content      {cid_text(result.content)}",
        f"kind         {result.kind}, class {result.class_name}, chunker {result.chunker}",
        f"publisher    {id_text(result.publisher)}",
        f"size         {human_bytes(result.content_bytes)} ({result.content_bytes} bytes)",
        f"dag          {human_bytes(result.dag_bytes)} in blocks, {human_bytes(result.unique_bytes)} of them distinct, "
        f"{human_bytes(result.stored_bytes)} after compression{source}",
        f"saved        {human_bytes(result.dedup_saved_bytes)} by deduplication, "
        f"{human_bytes(result.compression_saved_bytes)} by compression",
        *_again(result.stored_again_bytes),
        *_on_nodes(result),
        f"segments     {len(result.segments)}, {sum(segment.stripes for segment in result.segments)} stripes",
        f"live         {live} of {fragments} places, on {result.nodes} nodes of {result.operators} operators "
        f"in {result.regions} regions",
        f"may lose     {_losses(result.losses_survived)}",
        *(f"finding      {text}" for text in result.findings),
    ]
    for number, segment in enumerate(result.segments if verbose else ()):
        lines += _segment(number, segment)
    return lines


def _on_nodes(result: ContentStat) -> list[str]:
    if not result.is_measured:
        return [f"on nodes     {human_bytes(result.encoded_bytes)} in all segments that it uses"]
    times = result.attributed_bytes / max(1, result.content_bytes)
    whole = f"; the segments that it uses have {human_bytes(result.encoded_bytes)}"
    shared = "not known" if result.shared_bytes is None else f"{human_bytes(result.shared_bytes)} of its share"
    return [
        f"on nodes     {human_bytes(result.attributed_bytes)}, {times:.2f} x the size"
        + (whole if result.attributed_bytes < result.encoded_bytes else ""),
        f"others pay   for {shared} too" if result.shared_bytes is not None else f"others pay   {shared}",
    ]


def _losses(count: int) -> str:
    if count < 0:
        return f"not readable now: {-count} more nodes are needed"
    return f"any {count} more nodes" if count else "no more nodes"


def _segment(number: int, segment: SegmentStat) -> list[str]:
    head = (
        f"segment {number}    {id_text(segment.segment)}: any {segment.k} of {segment.n}, {segment.live} live, "
        f"{segment.stripes} stripes, {human_bytes(segment.encoded_bytes)}, "
        f"{human_bytes(segment.attributed_bytes)} of them for this"
    )
    if segment.sponsors is not None:
        head += f", {segment.sponsors} contracts pay"
    rows = [
        f"  {holder.index:>3}  {'live' if holder.live else 'lost'}  {id_text(holder.node)}  {holder.region}  {holder.operator}"
        for holder in segment.holders
    ]
    return [head, *rows]

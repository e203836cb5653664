"""`dds node fsck`: check everything that a stopped node stores, to the byte."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dds.apps.cli import exits
from dds.apps.cli.node_home import load
from dds.apps.cli.session import Session
from dds.primitives.units import human_bytes

if TYPE_CHECKING:
    from dds.storage.fsck import Report


def fsck(
    session: Session,
    deep: Annotated[bool, typer.Option("--deep", help="Recompute every Merkle root, not only checksums.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Bring it into order; never deletes what may be data.")] = False,
) -> None:
    """Check everything that this home's stopped node stores. Ends with 5 when something is wrong."""
    from dds.storage.fsck import fsck as check

    node, _ = load(session)
    report = check(node.store_dir, repair=repair, deep=deep)
    session.result(report.to_dict(), "\n".join(describe(report)))
    if not report.clean:
        raise typer.Exit(exits.INTEGRITY)


def describe(report: Report) -> list[str]:
    """The report, a line a fact."""
    counts = ", ".join(f"{count} {name}" for name, count in report.fragments.items())
    lines = [f"store      {report.path}", f"fragments  {counts or 'none'}", f"records    {report.records}"]
    lines += [f"space      {name} {human_bytes(size)}" for name, size in report.space.items()]
    exact = "to the byte" if report.used_bytes == report.walked_bytes else f"but {report.walked_bytes} on disk"
    lines.append(f"used       {report.used_bytes} bytes accounted for, {exact}")
    for name, findings in (("note", report.notes), ("repaired", report.repaired), ("PROBLEM", report.problems)):
        lines += [f"{name:<10} {finding.kind}: {finding.detail}" for finding in findings]
    lines.append("clean" if report.clean else f"{report.problem_count} problems")
    return lines

"""`dds node`: the storage node of this home. Its commands are the files node_*.py."""

from __future__ import annotations

import typer

from dds.apps.cli import node_earnings, node_fsck, node_init, node_run, node_status
from dds.apps.cli.session import command, group


def app() -> typer.Typer:
    """The `node` group."""
    made = group("node", "The storage node of this home.")
    command(made, "init")(node_init.init)
    command(made, "run")(node_run.run)
    command(made, "status")(node_status.status)
    command(made, "earnings")(node_earnings.earnings)
    command(made, "fsck")(node_fsck.fsck)
    return made

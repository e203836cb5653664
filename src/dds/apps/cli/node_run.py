"""`dds node run`: become the node's daemon."""

from __future__ import annotations

import os
import sys
from typing import Final

from dds.apps.cli.node_home import load
from dds.apps.cli.session import Session

DAEMON: Final = "dds.runtime.daemon"


def run(session: Session) -> None:
    """Run this home's node until Ctrl-C or SIGTERM; it logs to node.log.

    The process is replaced by the daemon, which carries nothing of this command line and keeps the pid.
    """
    node, config = load(session)
    session.say(f"{config.name} of network {config.network}, log in {node.log_file}")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", DAEMON, "--home", str(node.root)])  # noqa: S606 - our own program

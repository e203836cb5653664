"""`dds node fsck`: check everything that a stopped node stores."""

from __future__ import annotations

from dds.apps.cli.session import Session


def fsck(session: Session) -> None:
    """Check everything that this home's node stores."""

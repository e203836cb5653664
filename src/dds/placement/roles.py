"""Which nodes keep which class: archive content lies on archive nodes, every other on storage nodes.

Decides the role that a node must declare to be drawn for a class, and in which words a network is told to be too small for one.
Does not decide how many nodes a class needs (erasure/geometry.py).
Source: docs/spec/placement.md, "Who may be drawn".
"""

from __future__ import annotations

from typing import Final

from dds.erasure.geometry import ARCHIVE_CLASS
from dds.primitives.errors import NotEnoughNodes

SSN: Final = "ssn"  # storage nodes
ASN: Final = "asn"  # archive nodes: slow reads allowed, longer terms, terms of their own
STORAGE_ROLES: Final = frozenset({SSN, ASN})


def storage_role(class_name: str) -> str:
    """The role that keeps content of this class."""
    return ASN if class_name == ARCHIVE_CLASS else SSN


def too_few(class_name: str, needed: int, known: int) -> NotEnoughNodes:
    """What to say, and to do, when fewer than `needed` nodes of the class's role are there."""
    role = storage_role(class_name)
    return NotEnoughNodes(
        f"class {class_name} needs {needed} {role} nodes, and {known} are known",
        hint=more_nodes(role, needed),
        needed=needed,
        known=known,
        role=role,
    )


def more_nodes(role: str, needed: int) -> str:
    """What to do where a role has too few nodes."""
    devnet = f"dds devnet up --asn {needed}" if role == ASN else f"dds devnet up --nodes {needed}"
    return f"start more (dds node init --role {role}; a new local network: {devnet}), or fewer do: --class custom -k K -m M"

"""What a node must bring: the ledger's parameters where it has a ledger, else what works in practice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dds.primitives.units import GIB, MIB

if TYPE_CHECKING:
    from dds.ledger.params import Params

STORAGE_ROLES = frozenset({"ssn", "asn"})


@dataclass(frozen=True, slots=True)
class Requirements:
    capacity_bytes_min: int = GIB  # of a node that stores
    bandwidth_bytes_per_s_min: int = MIB  # each way


def requirements_of(params: Params | None) -> Requirements:
    """None: no ledger, or one that cannot be asked."""
    if params is None:
        return Requirements()
    from dds.ledger.requirements import requirements

    least = {each.name: each.least for each in requirements(params)}
    return Requirements(least["capacity"], least["bandwidth"])

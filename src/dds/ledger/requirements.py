"""What a network asks of its nodes at least: capacity, bandwidth, uptime, as the parameters say.

Decides which requirement stands for what and whether a measured value meets it. The ledger refuses too little capacity and
draws no node whose uptime is too low; bandwidth is measured by operators alone (`dds doctor`), for no rule can see it.
Source: docs/spec/ledger.md, "Minimum requirements".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dds.ledger.params import Params
from dds.placement.roles import STORAGE_ROLES


@dataclass(frozen=True, slots=True)
class Requirement:
    """`least` in `unit`; who is below is told so, and by the ledger where it is `enforced`."""

    name: str
    least: int
    unit: str
    enforced: bool
    otherwise: str  # what becomes of a node that does not meet it

    def is_met(self, actual: int) -> bool:
        return actual >= self.least


def requirements(params: Params) -> tuple[Requirement, ...]:
    """Of a node that stores, in the order that an operator should see to them."""
    window = (
        f"of downtime windows of {params.downtime_window_epochs} epochs with a proof, in the last {params.downtime_windows}"
    )
    return (
        Requirement("capacity", params.capacity_bytes_min, "bytes", True, "registering and asking are refused"),
        Requirement("bandwidth", params.bandwidth_bytes_per_s_min, "bytes per second", False, "reads and proofs come too late"),
        Requirement(
            "uptime", params.downtime_suspend_ppm, f"ppm {window}", True, "it is suspended: nothing new is drawn for it"
        ),
    )


def capacity_least(params: Params, roles: Sequence[str]) -> int:
    """Bytes that a node of these roles must offer: none where it does not store."""
    return 0 if STORAGE_ROLES.isdisjoint(roles) else params.capacity_bytes_min

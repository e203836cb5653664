"""Every number of the ledger's rules, with its unit and default. Fixed by genesis; a change is a new network.

Source: docs/spec/ledger.md, "Parameters".
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta
from msgspec.structs import replace

from dds.primitives.money import MILLION, TOKEN
from dds.primitives.units import GIB, MIB
from dds.wire.codec import Message
from dds.wire.ledger import Amount

HOUR_MS: Final = 3_600_000
EPOCHS_PER_YEAR: Final = 8766  # of one hour each
RATE_DIVISOR: Final = MIB  # rents are priced per MiB and epoch: bytes x price / 2^20
SHARES: Final = 10**12  # the emission's rate is a share of what may still be minted

Ppm = Annotated[int, Meta(ge=0, le=MILLION)]
Number = Annotated[int, Meta(ge=0, le=1 << 60)]


class Params(Message, frozen=True):
    """Shares are in ppm, times in epochs, money in base units, space in bytes."""

    # time
    genesis_ms: Number = 0  # epoch 0 begins
    epoch_ms: Annotated[int, Meta(ge=100, le=366 * 24 * HOUR_MS)] = HOUR_MS

    # supply
    supply_cap: Amount = 9_000_000 * TOKEN
    emission_rate: Number = 13_179_000  # of (cap - minted), in 10^-12, an epoch: a six-year half-life
    subsidy_ppm: Ppm = 900_000  # of the fee burned for a rent payment: the most that its assignments earn on top

    # rent
    price_start: Amount = 1_325  # per MiB-epoch: one token per TiB and 30 days
    fee_ppm: Ppm = 20_000  # of the rent
    fee_burned_ppm: Ppm = 500_000  # of the fee; the rest goes to the treasury
    repair_reserve_ppm: Ppm = 100_000  # of the rent, on top of it; what is not spent comes back
    collateral_epochs: Number = 1_440  # of its rent, locked for an assignment: 60 days
    reservation_epochs: Number = 24  # then a pending assignment expires
    sponsors_max: Annotated[int, Meta(ge=1, le=8)] = 8  # of one segment
    release_epochs: Annotated[int, Meta(ge=2, le=1 << 40)] = 2  # that a node keeps what was freed: it may be asked for it still

    # operators
    bond_min: Amount = 100 * TOKEN
    bond_need_per_tib: Amount = 10 * TOKEN  # of capacity: below it a node's weight shrinks in proportion
    capacity_bytes_min: Number = 10 * GIB  # that a storing node offers
    bandwidth_bytes_per_s_min: Number = MIB  # each way, of a storing node: for its operator to measure, no rule sees it
    unbonding_epochs: Number = 24 * 21  # bond that leaves stays slashable: the evidence window
    evidence_epochs: Number = 24 * 21  # evidence older than this is refused
    jail_epochs: Number = 24 * 7

    # audits
    audit_leaves: Annotated[int, Meta(ge=1, le=64)] = 20  # a node and epoch
    committee_max: Annotated[int, Meta(ge=1, le=64)] = 48  # who said what is a bit in a 64-bit word
    quorum_ppm: Ppm = 666_666  # of the committee, ceiled: 2 of 3, 32 of 48
    missed_in_row_free: Number = 2  # from the next on an epoch missed costs
    missed_slash_ppm: Ppm = 10_000  # of the assignments' collateral
    down_epochs: Number = 24  # missed in a row: the assignments are freed
    down_slash_ppm: Ppm = 250_000
    self_reported_slash_ppm: Ppm = 250_000
    loss_slash_ppm: Ppm = 500_000
    fraud_bond_ppm: Ppm = 500_000
    equivocation_bond_ppm: Ppm = 50_000
    wrong_vote_bond_ppm: Ppm = 10_000
    no_reveal_bond_ppm: Ppm = 1_000

    # who gets what of a slash of collateral; the rest is burned
    slash_reporter_ppm: Ppm = 200_000
    slash_repair_ppm: Ppm = 300_000
    bond_slash_reporter_ppm: Ppm = 200_000

    # reputation, in ppm
    reputation_start: Number = 10**9
    reputation_keep_ppm: Ppm = 999_000  # of the counters, a verdict
    downtime_window_epochs: Annotated[int, Meta(ge=1)] = 12
    downtime_windows: Annotated[int, Meta(ge=1, le=60)] = 60
    downtime_suspend_ppm: Ppm = 600_000
    vetted_audits: Number = 100
    vetted_epochs: Number = 24 * 21
    unvetted_share_ppm: Ppm = 50_000
    weight_cap_bytes: Number = 1 << 44  # free space beyond 16 TiB draws no more

    # retrieval
    retrieval_price: Amount = 1_862  # per KiB: two tokens per TiB
    withdrawal_epochs: Number = 24

    # endowments
    cost_decline_ppm: Ppm = 5_000  # a year
    spend_multiple: Number = 3  # times the decline: the most of the pool that a year may spend

    # market
    reference_percentile_ppm: Ppm = 666_667  # of bond-weighted asks are at or below it
    reference_step_ppm: Ppm = 20_000  # an epoch
    price_ceiling_multiple: Number = 3  # times the reference: no clearing price above

    def epoch_of(self, time_ms: int) -> int:
        return max(0, time_ms - self.genesis_ms) // self.epoch_ms


def devnet_params(genesis_ms: int, epoch_ms: int = 5_000) -> Params:
    """A network to look at: epochs of seconds, nobody waits for days, everything else as it is."""
    return replace(
        Params(),
        genesis_ms=genesis_ms,
        epoch_ms=epoch_ms,
        capacity_bytes_min=MIB,
        unbonding_epochs=12,
        evidence_epochs=12,
        jail_epochs=12,
        reservation_epochs=60,
        withdrawal_epochs=4,
        vetted_epochs=10,
        vetted_audits=10,
    )

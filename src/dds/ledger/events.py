"""What a transaction did, for people and machines: the record that `dds explain` reads.

Events are a function of the block like the state is, but no part of it: whoever replays the log gets the same ones. Every
change of an account's balance is exactly one event with its `delta`, so the events of an account sum to its balance.
"""

from __future__ import annotations

from dds.ledger.records import NOBODY
from dds.wire.codec import Message


class Event(Message, frozen=True):
    name: str  # what happened: "pay", "subsidy", "slash", "withheld", "fee", "refund", "transfer", ...
    epoch: int
    account: bytes = b""  # whose balance changed by `delta`
    delta: int = 0  # base units
    amount: int = 0  # what moved where no account's balance changed: slashed, burned, locked, withheld
    node: int = NOBODY
    contract: bytes = b""
    segment: bytes = b""
    index: int = -1
    detail: str = ""  # the reason, in a few words
    evidence: bytes = b""  # hash of what proves it

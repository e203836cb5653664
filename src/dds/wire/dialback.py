"""Asking another node how one looks from outside: messages and their limits (docs/spec/wire.md, "Dial-back").

    POST /v1/dialback            DialbackRequest -> DialbackReply; the caller must be a node that proved its key
    GET  /v1/dialback/{nonce}    the bytes that the caller agreed to send, once, to the node that it asked
    POST /v1/selftest            SelfTestRequest -> SelfTestReply; only for who holds the node's own key

The nonce is in hex. Which addresses are dialled follows from the caller's signed record and from where its connection came
from (protocol/dialback.py), never from a field of the request.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from dds.primitives.units import KIB, MIB
from dds.wire.codec import Message
from dds.wire.discovery import ADDRESSES_MAX, SIGNED_RECORD_BYTES_MAX
from dds.wire.ledger import ID

NONCE_BYTES: Final = 16
TRANSFER_BYTES_MAX: Final = MIB
OBSERVERS_MAX: Final = 5
DIALBACK_REQUEST_BYTES_MAX: Final = SIGNED_RECORD_BYTES_MAX + KIB
DIALBACK_REPLY_BYTES_MAX: Final = 8 * KIB
SELF_TEST_REQUEST_BYTES_MAX: Final = KIB
SELF_TEST_REPLY_BYTES_MAX: Final = OBSERVERS_MAX * (DIALBACK_REPLY_BYTES_MAX + 2 * KIB)
PROBLEM_CHARS_MAX: Final = 256
ADDRESS_CHARS_MAX: Final = 300

Count = Annotated[int, Meta(ge=0, le=1 << 62)]
Text = Annotated[str, Meta(max_length=PROBLEM_CHARS_MAX)]
Address = Annotated[str, Meta(max_length=ADDRESS_CHARS_MAX)]


class DialbackRequest(Message, frozen=True):
    record: Annotated[bytes, Meta(max_length=SIGNED_RECORD_BYTES_MAX)]  # the caller's own, signed
    nonce: Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
    transfer_bytes: Annotated[int, Meta(ge=0, le=TRANSFER_BYTES_MAX)]  # the caller agrees to send so many; 0: none


class AddressSeen(Message, frozen=True):
    """One address of the caller's record."""

    address: Address
    problem: Text  # empty: the caller answered there under its key
    round_trip_us: Count  # of one exchange on an open connection
    bytes_per_s: Count  # 0: not measured


class DialbackReply(Message, frozen=True):
    """What the asked node saw, and how its peer table rates the caller."""

    seen: Annotated[tuple[AddressSeen, ...], Meta(max_length=ADDRESSES_MAX)]
    time_ms: Count  # its clock
    health: Annotated[str, Meta(max_length=16)]  # of protocol/peers.py; empty: it did not know the caller
    latency_us: Count  # its moving average; 0: none
    successes: Count  # of requests in a row
    failures: Count


class SelfTestRequest(Message, frozen=True):
    observers: Annotated[int, Meta(ge=1, le=OBSERVERS_MAX)]
    transfer_bytes: Annotated[int, Meta(ge=0, le=TRANSFER_BYTES_MAX)]


class Observation(Message, frozen=True):
    """What one observer said, or why it said nothing."""

    node_id: ID
    region: Annotated[str, Meta(max_length=64)]
    operator: Annotated[str, Meta(max_length=64)]
    problem: Text
    clock_skew_ms: Annotated[int, Meta(ge=-(1 << 62), le=1 << 62)]  # its clock less ours; 0 where it said nothing
    reply: DialbackReply | None


class SelfTestReply(Message, frozen=True):
    peers: Count  # how many the node knows
    observations: Annotated[tuple[Observation, ...], Meta(max_length=OBSERVERS_MAX)]

"""Every message of dialling back, from fixed inputs."""

from __future__ import annotations

from dds.wire.codec import Message
from dds.wire.dialback import AddressSeen, DialbackReply, DialbackRequest, Observation, SelfTestReply, SelfTestRequest

SEEN = (AddressSeen("127.0.0.1:20607", "", 81_250, 41_943_040), AddressSeen("[::1]:443", "not tried", 0, 0))
REPLY = DialbackReply(SEEN, 1_750_000_000_000, "healthy", 80_900, 17, 0)
OBSERVED = Observation(bytes(range(32)), "region-2", "operator-7", "", -12, REPLY)
SILENT = Observation(bytes(range(1, 33)), "region-3", "operator-8", "no connection in time", 0, None)


def samples() -> dict[str, Message]:
    return {
        "dialback request": DialbackRequest(b"a signed record", bytes(range(16)), 1 << 20),
        "dialback reply": REPLY,
        "self-test request": SelfTestRequest(5, 1 << 20),
        "self-test reply": SelfTestReply(48, (OBSERVED, SILENT)),
    }

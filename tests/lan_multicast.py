"""Whether this machine's loopback carries multicast, which the LAN tests need."""

from __future__ import annotations

import socket
import struct
from functools import cache

import pytest

GROUP = "239.255.77.77"
LOOPBACK = "127.0.0.1"
WAIT_S = 2.0


@cache
def _why_not() -> str:
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind((GROUP, 0))
            member = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(LOOPBACK))
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            receiver.settimeout(WAIT_S)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
            sender.sendto(b"x", (GROUP, receiver.getsockname()[1]))
            receiver.recv(16)
    except OSError as error:
        return f"the loopback of this machine carries no multicast: {error}"
    return ""


def need_multicast() -> None:
    """Skip the test, with the reason, where there is none."""
    if why := _why_not():
        pytest.skip(why)

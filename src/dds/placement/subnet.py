"""The subnet that an address shares its fate with: a label for placement, which puts no two fragments of a segment on one.

IPv4 networks of /24 and IPv6 networks of /48 are what providers hand out to one customer or rack. Addresses that are not global
say nothing of the kind (a home's 192.168.1.0/24 is everybody's), so they give no label. Source: docs/spec/placement.md.
"""

from __future__ import annotations

import ipaddress
from typing import Final

IPV4_PREFIX_BITS: Final = 24
IPV6_PREFIX_BITS: Final = 48


def subnet_of(host: str) -> str | None:
    """`5.9.1.7` -> `5.9.1.0-24`, `2001:db8:1::7` -> `2001.db8.1-48`; None for a host name or a local address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if not address.is_global:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return f"{ipaddress.ip_network((address, IPV4_PREFIX_BITS), strict=False).network_address}-{IPV4_PREFIX_BITS}"
    network = ipaddress.ip_network((address, IPV6_PREFIX_BITS), strict=False).network_address
    groups = network.exploded.split(":")[: IPV6_PREFIX_BITS // 16]
    return ".".join(group.lstrip("0") or "0" for group in groups) + f"-{IPV6_PREFIX_BITS}"

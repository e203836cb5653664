"""Which label an address gives."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dds.placement.subnet import subnet_of

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # what configuration and the ledger take


@pytest.mark.parametrize(
    ("host", "label"),
    [
        ("5.9.1.7", "5.9.1.0-24"),
        ("5.9.1.255", "5.9.1.0-24"),
        ("2001:4860:4860::8888", "2001.4860.4860-48"),
        ("2001:4860:4860:1::1", "2001.4860.4860-48"),
        ("2a00:0:1::1", "2a00.0.1-48"),
        ("192.168.1.20", None),
        ("127.0.0.1", None),
        ("fe80::1", None),
        ("node.example.org", None),
        ("", None),
    ],
)
def test_neighbours_share_a_label_and_local_addresses_have_none(host: str, label: str | None) -> None:
    assert subnet_of(host) == label


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_every_label_is_one_that_configurations_take(address: IPv4Address | IPv6Address) -> None:
    label = subnet_of(str(address))
    assert label is None or LABEL.fullmatch(label)

"""Blocks for a shared log: one spelling, one signer, one network, bounded; and who is spared the client of that log."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dds.engines.nats_log import NatsLog, parse_servers
from dds.primitives.errors import ConfigError, FormatError, IntegrityError
from dds.primitives.keys import SigningKey
from dds.wire.ledger import TX_BYTES_MAX
from dds.wire.ledger_api import BLOCK_TXS_MAX
from dds.wire.ledger_block import ENTRY_BYTES_MAX, ENTRY_TX_BYTES_MAX, block_room, open_block, sign_block

KEY = SigningKey(b"k" * 32)
ROOT = bytes(range(32))
BLOCK = sign_block(KEY, "test", 7, 1_700_000_000_000, ROOT, [b"one", b"two"])


def test_a_block_comes_back_as_it_was_signed() -> None:
    key, block = open_block(BLOCK, "test")
    assert (key, block.height, block.time_ms, block.parent) == (KEY.public, 7, 1_700_000_000_000, ROOT)
    assert block.txs == [b"one", b"two"]


def test_a_block_of_another_network_does_not_hold() -> None:
    with pytest.raises(IntegrityError):
        open_block(BLOCK, "other")


@given(st.integers(0, len(BLOCK) - 1), st.integers(1, 255))
def test_no_changed_byte_passes(position: int, flip: int) -> None:
    changed = bytearray(BLOCK)
    changed[position] ^= flip
    with pytest.raises(FormatError):
        open_block(bytes(changed), "test")


@given(st.binary(max_size=300))
def test_foreign_bytes_are_no_block(raw: bytes) -> None:
    with pytest.raises(FormatError):
        open_block(raw, "test")


def test_the_largest_block_that_is_allowed_fits_into_an_entry() -> None:
    full = [bytes(TX_BYTES_MAX)] * 3
    full += [bytes((ENTRY_TX_BYTES_MAX - sum(map(len, full))) // (BLOCK_TXS_MAX - 3))] * (BLOCK_TXS_MAX - 3)
    assert block_room(full) == BLOCK_TXS_MAX
    raw = sign_block(KEY, "test", 1 << 60, 1 << 60, ROOT, full)
    assert len(raw) <= ENTRY_BYTES_MAX
    assert open_block(raw, "test")[1].txs == full


@pytest.mark.parametrize(
    ("sizes", "room"),
    [
        ([], 0),
        ([1] * (BLOCK_TXS_MAX + 1), BLOCK_TXS_MAX),
        ([TX_BYTES_MAX] * 5, 3),
        ([ENTRY_TX_BYTES_MAX, 1], 1),
        ([ENTRY_TX_BYTES_MAX - 1, 1, 1], 2),
    ],
)
def test_a_block_takes_what_fits(sizes: list[int], room: int) -> None:
    assert block_room([bytes(size) for size in sizes]) == room


def test_servers_are_named_with_their_ports() -> None:
    assert parse_servers("nats://10.0.0.1:4222,u:p@host:1") == ("nats://10.0.0.1:4222", "nats://u:p@host:1")


@pytest.mark.parametrize(
    "address", ["", "nats://", "nats://host", "nats://a:1,,b:2", "http://a:1", "a:1", "nats://a:1,b", "nats://a:"]
)
def test_an_address_without_its_form_is_refused(address: str) -> None:
    with pytest.raises(ConfigError):
        parse_servers(address)


@pytest.mark.parametrize("network", ["a.b", "a b", "a>", "*", "ä", ""])
def test_a_network_that_cannot_name_a_stream_is_refused(network: str) -> None:
    with pytest.raises(ConfigError):
        NatsLog(("nats://a:1",), network)


def test_clients_and_nodes_do_not_load_the_nats_client() -> None:
    code = "import sys, dds.runtime.client, dds.runtime.node, dds.apps.cli.main; sys.exit('nats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0

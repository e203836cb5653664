"""Hostile bytes for every parser of discovery: a verdict or an error of the tree, never anything else."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dds.primitives.errors import FormatError, InputError
from dds.protocol.discovery import select_records, unseal_all
from dds.protocol.peers import FROM_DHT, PeerTable, Verdict
from dds.runtime.peers import format_bootstrap, parse_bootstrap
from dds.storage.announce_queue import AnnounceQueue
from dds.wire.codec import decode, encode
from dds.wire.discovery import (
    CONTENT_ANNOUNCE,
    CONTENT_PROVIDER,
    NODE,
    SEGMENT_HOOK,
    SEGMENT_PROVIDER,
    Kind,
    content_place,
    format_address,
    open_record,
    parse_address,
    unseal,
)
from dds.wire.signed import Signed, sign
from tests.discovery_samples import (
    CONTENT,
    NETWORK,
    NOW_MS,
    node_id,
    signed_announce,
    signed_hook,
    signed_node,
    signed_provider,
    signed_segment,
    signing_key,
)

KEY = signing_key(1)
PLACE = content_place(NETWORK, CONTENT)
GENUINE = (
    signed_node(KEY),
    signed_provider(KEY),
    signed_announce(KEY, [KEY.public]),
    signed_segment(KEY, 3),
    signed_hook(KEY, [KEY.public] * 16),
)
KINDS: tuple[Kind[Any], ...] = (NODE, CONTENT_PROVIDER, CONTENT_ANNOUNCE, SEGMENT_PROVIDER, SEGMENT_HOOK)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A genuine record with some bytes changed, cut or added."""
    raw = bytearray(draw(st.sampled_from(GENUINE)))
    for _ in range(draw(st.integers(1, 4))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw[: draw(st.integers(0, len(raw)))]) + draw(st.binary(max_size=4))


@st.composite
def signed_nonsense(draw: st.DrawFn) -> bytes:
    """A payload damaged before it was signed, by the right key: only the field checks can catch it."""
    at = draw(st.integers(0, len(GENUINE) - 1))
    payload = bytearray(decode(GENUINE[at], Signed).payload)
    for _ in range(draw(st.integers(1, 6))):
        payload[draw(st.integers(0, len(payload) - 1))] = draw(st.integers(0, 255))
    return sign(KEY, KINDS[at].tag, NETWORK, bytes(payload))


def is_genuine(raw: bytes) -> bool:
    return any(decode(raw, Signed) == decode(each, Signed) for each in GENUINE)


@given(st.one_of(st.binary(max_size=1500), damaged()))
@settings(max_examples=300, deadline=None)
def test_no_damaged_record_opens(raw: bytes) -> None:
    for kind in KINDS:
        with suppress(FormatError):
            open_record(raw, kind, NETWORK)
            assert is_genuine(raw)


@given(signed_nonsense())
@settings(max_examples=300, deadline=None)
def test_whatever_opens_is_within_its_bounds_and_parses_again(raw: bytes) -> None:
    for kind in KINDS:
        with suppress(FormatError):
            record = open_record(raw, kind, NETWORK)
            assert kind.signer(record) == KEY.public
            assert len(encode(record)) <= 1024
            for address in getattr(record, "addresses", []):
                parse_address(address)


@given(st.lists(st.one_of(st.binary(max_size=400), damaged(), signed_nonsense()), max_size=20))
@settings(max_examples=100, deadline=None)
def test_selection_holds_verified_records_only(values: list[bytes]) -> None:
    for kind in KINDS:
        for claim in select_records(values, kind, NETWORK, NOW_MS).claims:
            assert open_record(claim.raw, kind, NETWORK) == claim.record
    assert unseal_all(values, PLACE, CONTENT_PROVIDER) == []
    assert all(unseal(PLACE, value) is None for value in values)


@given(st.lists(st.tuples(st.one_of(st.binary(max_size=400), damaged(), signed_nonsense()), st.integers(0, 3)), max_size=20))
@settings(max_examples=100, deadline=None)
def test_peer_table_takes_nothing_that_is_not_signed(offers: list[tuple[bytes, int]]) -> None:
    peers = PeerTable(NETWORK, node_id(9), bytes(32))
    for raw, source in offers:
        verdict = peers.offer(raw, FROM_DHT if source == 0 else node_id(source), NOW_MS)
        if verdict in (Verdict.ADDED, Verdict.REFRESHED):
            open_record(raw, NODE, NETWORK)
    assert len(peers) <= 1


@given(st.text(max_size=120))
@settings(max_examples=300, deadline=None)
def test_address_and_bootstrap_text_parse_to_themselves_or_not_at_all(text: str) -> None:
    with suppress(FormatError):
        assert format_address(*parse_address(text)) == text
    with suppress(InputError):
        assert format_bootstrap(parse_bootstrap(text)) == text.strip()


@given(st.binary(max_size=300))
@settings(max_examples=50, deadline=None)
def test_old_queue_that_is_damaged_is_refused_and_left_as_it_is(state: bytes) -> None:
    with TemporaryDirectory() as directory:
        old, queue = Path(directory) / "old", AnnounceQueue(Path(directory) / "queue")
        old.write_bytes(state)
        try:
            queue.take_over(old, NOW_MS)
        except FormatError:
            assert old.read_bytes() == state
        queue.close()

"""Choosing records: bounded work, newest wins, those that proved good come first."""

from __future__ import annotations

import time

from dds.primitives.cid import cid_of
from dds.protocol.discovery import (
    RECORDS_MAX,
    SUBJECTS_REMEMBERED_MAX,
    VALUES_MAX,
    VERIFICATIONS_MAX,
    Memory,
    Selection,
    select_records,
    unseal_all,
)
from dds.wire.codec import decode, encode
from dds.wire.discovery import (
    CONTENT_ANNOUNCE,
    CONTENT_PROVIDER,
    PROVIDER_LIFETIME_MS,
    ContentProvider,
    content_place,
    seal,
)
from dds.wire.signed import Signed
from tests.discovery_samples import CONTENT, NETWORK, NOW_MS, node_id, signed_announce, signed_provider, signing_key

PLACE = content_place(NETWORK, CONTENT)


def choose(signed: list[bytes], *, last_good: list[bytes] | None = None, seed: bytes = b"") -> Selection[ContentProvider]:
    good = last_good or []
    return select_records(signed, CONTENT_PROVIDER, NETWORK, NOW_MS, subject=CONTENT, last_good=good, seed=seed)


def forged(number: int, seq: int) -> bytes:
    """A record in the name of key `number` that it never signed."""
    envelope = decode(signed_provider(signing_key(number), seq=seq), Signed)
    return encode(Signed(envelope.payload, envelope.key, bytes(64)))


def test_newest_record_of_a_node_wins_in_any_order() -> None:
    old, new = (signed_provider(signing_key(1), seq=NOW_MS - age, port=port) for age, port in ((1000, 1), (0, 2)))
    for order in ([old, new], [new, old], [new, old, new]):
        assert [record.addresses for record in choose(order).records] == [["203.0.113.10:2"]]


def test_expired_foreign_and_malformed_records_are_ignored() -> None:
    good = signed_provider(signing_key(1))
    bad = [
        signed_provider(signing_key(2), seq=NOW_MS - PROVIDER_LIFETIME_MS),
        signed_provider(signing_key(3), network="devnet-2"),
        signed_provider(signing_key(4), content=cid_of(b"another page")),
        signed_provider(signing_key(5), seq=NOW_MS + 3_600_000),
        signed_announce(signing_key(6), [node_id(1)]),
        forged(7, NOW_MS),
        b"",
        b"\xff" * 300,
    ]
    selection = choose([*bad, good])
    assert [record.node_id for record in selection.records] == [node_id(1)]
    assert (selection.examined, selection.refused, selection.forged) == (9, 7, 1)


def test_forgeries_in_an_honest_nodes_name_do_not_hide_its_record() -> None:
    honest = signed_provider(signing_key(1))
    assert [r.node_id for r in choose([*(forged(1, NOW_MS + age) for age in range(1, 100)), honest]).records] == [node_id(1)]


def test_forgeries_in_one_name_do_not_use_up_the_work_that_others_need() -> None:
    attacked = [forged(1, NOW_MS + age) for age in range(1, 2000)]
    others = [signed_provider(signing_key(number), seq=NOW_MS - 1000) for number in range(2, 12)]
    selection = choose(attacked + others)
    assert {record.node_id for record in selection.records} == {node_id(number) for number in range(2, 12)}
    assert selection.verified == VERIFICATIONS_MAX


def test_at_most_48_records_are_used_however_many_are_valid() -> None:
    assert len(choose([signed_provider(signing_key(number)) for number in range(1, 80)]).claims) == RECORDS_MAX == 48


def test_holder_that_proved_good_survives_a_flood_of_fresher_valid_records() -> None:
    good = signed_provider(signing_key(1), seq=NOW_MS - 3_600_000)
    sybils = [signed_provider(signing_key(number)) for number in range(2, 300)]
    assert choose([*sybils, good], last_good=[node_id(1)]).records[0].node_id == node_id(1)


def test_older_honest_records_keep_a_share_against_fresh_sybils() -> None:
    honest = {node_id(number) for number in range(1, 25)}
    values = [signed_provider(signing_key(number), seq=NOW_MS - 1000) for number in range(1, 25)]
    values += [signed_provider(signing_key(number)) for number in range(25, 73)]
    found = [sum(r.node_id in honest for r in choose(values, seed=bytes((seed,))).records) for seed in range(10)]
    assert min(found) > 0
    assert sum(found) / len(found) >= 6


def test_key_flooded_with_thousands_of_junk_values_costs_bounded_work() -> None:
    good = seal(PLACE, CONTENT_PROVIDER, signed_provider(signing_key(1)))
    junk = [b"\x01" + number.to_bytes(300, "big") for number in range(VALUES_MAX - 1)]
    began = time.process_time()
    found = choose(unseal_all([*junk, good], PLACE, CONTENT_PROVIDER))
    assert [record.node_id for record in found.records] == [node_id(1)]
    assert found.examined == 1
    assert time.process_time() - began < 1.0


def test_values_beyond_the_limit_are_not_looked_at() -> None:
    sealed = seal(PLACE, CONTENT_PROVIDER, signed_provider(signing_key(1)))
    assert unseal_all([b"junk"] * VALUES_MAX + [sealed], PLACE, CONTENT_PROVIDER) == []
    distinct = [number.to_bytes(8, "big") for number in range(VALUES_MAX + 10)]
    assert choose(distinct).examined == VALUES_MAX


def test_both_kinds_under_one_key_are_told_apart() -> None:
    provider, announce = signed_provider(signing_key(1)), signed_announce(signing_key(2), [node_id(1)])
    values = [seal(PLACE, CONTENT_PROVIDER, provider), seal(PLACE, CONTENT_ANNOUNCE, announce)]
    assert unseal_all(values, PLACE, CONTENT_PROVIDER) == [provider]
    assert unseal_all(values, PLACE, CONTENT_ANNOUNCE) == [announce]


def test_memory_keeps_the_latest_success_first_and_forgets_failures() -> None:
    memory = Memory()
    memory.proved(CONTENT, node_id(1))
    memory.proved(CONTENT, node_id(2))
    assert memory.recall(CONTENT) == [node_id(2), node_id(1)]
    memory.proved(CONTENT, node_id(1))
    memory.failed(CONTENT, node_id(2))
    memory.failed(CONTENT, node_id(9))
    assert memory.recall(CONTENT) == [node_id(1)]
    memory.failed(CONTENT, node_id(1))
    assert (len(memory), memory.recall(CONTENT)) == (0, [])


def test_memory_is_bounded_in_subjects_and_signers() -> None:
    memory = Memory()
    for number in range(SUBJECTS_REMEMBERED_MAX + 10):
        memory.proved(number.to_bytes(36, "big"), node_id(1))
    for number in range(RECORDS_MAX + 10):
        memory.proved(CONTENT, number.to_bytes(32, "big"))
    assert len(memory) == SUBJECTS_REMEMBERED_MAX
    assert len(memory.recall(CONTENT)) == RECORDS_MAX
    assert memory.recall((0).to_bytes(36, "big")) == []

"""The peer table: bounded under floods, states by outcomes only, probes that are seldom."""

from __future__ import annotations

from dds.primitives.ids import NodeID
from dds.protocol.peers import (
    FROM_DHT,
    UNPROVEN_FROM_DHT_MAX,
    UNPROVEN_PER_SOURCE_MAX,
    Health,
    PeerPolicy,
    PeerTable,
    Verdict,
)
from dds.wire.codec import decode, encode
from dds.wire.discovery import NODE_LIFETIME_MS
from dds.wire.signed import Signed
from tests.discovery_samples import NETWORK, NOW_MS, node_id, signed_node, signing_key

POLICY = PeerPolicy()
OWN = node_id(99_999)


def table(seed: bytes = b"t" * 32) -> PeerTable:
    return PeerTable(NETWORK, OWN, seed, POLICY)


def proven(count: int) -> PeerTable:
    peers = table()
    for number in range(1, count + 1):
        assert peers.offer(signed_node(signing_key(number)), FROM_DHT, NOW_MS) is Verdict.ADDED
        assert peers.outcome(node_id(number), True, NOW_MS, 0.01) is Health.HEALTHY
    return peers


def test_newer_record_replaces_and_older_or_replayed_ones_do_not() -> None:
    peers, key = table(), signing_key(1)
    old, new = signed_node(key), signed_node(key, seq=NOW_MS + 60_000, dht="203.0.113.10:5000")
    assert peers.offer(old, FROM_DHT, NOW_MS) is Verdict.ADDED
    assert peers.offer(new, node_id(5), NOW_MS + 60_000) is Verdict.REFRESHED
    assert peers.offer(old, FROM_DHT, NOW_MS + 60_000) is Verdict.STALE
    assert peers.offer(new, FROM_DHT, NOW_MS + 60_000) is Verdict.STALE
    peer = peers.get(node_id(1))
    assert peer is not None
    assert peer.record is not None
    assert peer.record.dht == "203.0.113.10:5000"
    assert peer.raw == new


def test_foreign_forged_expired_and_malformed_records_are_refused() -> None:
    peers = table()
    envelope = decode(signed_node(signing_key(1)), Signed)
    forged = encode(Signed(envelope.payload, envelope.key, bytes(64)))
    assert peers.offer(forged, FROM_DHT, NOW_MS) is Verdict.FORGED
    assert peers.offer(signed_node(signing_key(1), network="other"), FROM_DHT, NOW_MS) is Verdict.MALFORMED
    assert peers.offer(signed_node(signing_key(1)), FROM_DHT, NOW_MS + NODE_LIFETIME_MS) is Verdict.EXPIRED
    assert peers.offer(b"junk", FROM_DHT, NOW_MS) is Verdict.MALFORMED
    assert peers.offer(signed_node(signing_key(99_999)), FROM_DHT, NOW_MS) is Verdict.STALE
    assert len(peers) == 0


def test_node_that_changes_its_record_all_the_time_is_not_listened_to() -> None:
    peers, key = table(), signing_key(1)
    verdicts = [peers.offer(signed_node(key, seq=NOW_MS + ms), FROM_DHT, NOW_MS) for ms in range(0, 4000, 100)]
    assert verdicts.count(Verdict.ADDED) == 1
    assert verdicts.count(Verdict.REFRESHED) == 1
    assert verdicts.count(Verdict.FLOODED) == 38


def test_sybil_flood_is_bounded_and_displaces_no_proven_peer() -> None:
    peers = proven(20)
    liar = node_id(3)
    for number in range(100, 100 + 3 * UNPROVEN_PER_SOURCE_MAX):
        peers.offer(signed_node(signing_key(number)), liar, NOW_MS)
    assert len(peers) == 20 + UNPROVEN_PER_SOURCE_MAX
    assert all(peers.get(node_id(number)) is not None for number in range(1, 21))
    assert [peer.node_id for peer in peers.candidates(NOW_MS)[:20]] == sorted(node_id(number) for number in range(1, 21))


def test_flooding_source_spoils_its_own_quota_and_no_others() -> None:
    peers = table()
    honest = [signed_node(signing_key(number)) for number in range(1, 31)]
    for number in range(100, 100 + 2 * UNPROVEN_PER_SOURCE_MAX):
        peers.offer(signed_node(signing_key(number)), node_id(7), NOW_MS)
    assert [peers.offer(raw, node_id(8), NOW_MS) for raw in honest] == [Verdict.ADDED] * 30


def test_sample_of_a_flooded_source_depends_on_the_seed_and_not_on_the_order() -> None:
    flood = [signed_node(signing_key(number)) for number in range(1, 2 * UNPROVEN_PER_SOURCE_MAX)]

    def kept(seed: bytes, records: list[bytes]) -> set[NodeID]:
        peers = table(seed)
        for raw in records:
            peers.offer(raw, node_id(7), NOW_MS)
        return {peer.node_id for peer in peers}

    first = kept(b"a" * 32, flood)
    assert len(first) == UNPROVEN_PER_SOURCE_MAX
    assert kept(b"a" * 32, flood[::-1]) == first
    assert kept(b"b" * 32, flood) != first


def test_flood_from_the_dht_is_bounded() -> None:
    peers = table()
    verdicts = [
        peers.offer(signed_node(signing_key(number)), FROM_DHT, NOW_MS) for number in range(1, UNPROVEN_FROM_DHT_MAX + 300)
    ]
    assert len(peers) == UNPROVEN_FROM_DHT_MAX
    assert set(verdicts) == {Verdict.ADDED, Verdict.FULL}


def test_two_failures_in_a_row_make_suspect_and_one_alone_does_not() -> None:
    peers = proven(1)
    assert peers.outcome(node_id(1), False, NOW_MS + 1) is Health.HEALTHY
    assert peers.outcome(node_id(1), True, NOW_MS + 2) is Health.HEALTHY
    assert peers.outcome(node_id(1), False, NOW_MS + 3) is Health.HEALTHY
    assert peers.outcome(node_id(1), False, NOW_MS + 4) is Health.SUSPECT


def test_many_failures_at_once_do_not_make_offline_before_its_time() -> None:
    peers = proven(1)
    for _ in range(50):
        assert peers.outcome(node_id(1), False, NOW_MS + 1) is not Health.OFFLINE
    assert peers.outcome(node_id(1), False, NOW_MS + 1 + POLICY.offline_after_ms) is Health.OFFLINE
    assert peers.outcome(node_id(1), False, NOW_MS + 2 + POLICY.offline_after_ms) is Health.OFFLINE
    assert peers.outcome(node_id(1), False, NOW_MS + 1 + POLICY.lost_after_ms) is Health.LOST


def test_rebooted_peer_is_healthy_again_only_after_two_successes() -> None:
    peers = proven(1)
    for at in (1, 2, POLICY.offline_after_ms + 2):
        peers.outcome(node_id(1), False, NOW_MS + at)
    later = NOW_MS + 10 * POLICY.offline_after_ms
    assert peers.outcome(node_id(1), True, later) is Health.SUSPECT
    assert peers.outcome(node_id(1), True, later + 1) is Health.HEALTHY
    assert peers.outcome(node_id(2), True, later) is None


def test_flapping_peer_never_counts_as_healthy() -> None:
    peers = proven(1)
    peers.outcome(node_id(1), False, NOW_MS)
    peers.outcome(node_id(1), False, NOW_MS)
    states = {peers.outcome(node_id(1), ok, NOW_MS + at) for at, ok in enumerate([True, False] * 10)}
    assert states == {Health.SUSPECT}


def test_unproven_peers_leave_with_their_record_and_proven_ones_stay_as_offline() -> None:
    peers = proven(1)
    peers.offer(signed_node(signing_key(2)), FROM_DHT, NOW_MS)
    after = NOW_MS + NODE_LIFETIME_MS
    assert peers.expire(after - 1) == []
    assert peers.expire(after) == [node_id(2)]
    assert [peer.node_id for peer in peers.candidates(after)] == [node_id(1)]
    assert peers.to_share(after, 10) == []
    for at in (0, 1, POLICY.lost_after_ms):
        peers.outcome(node_id(1), False, after + at)
    assert peers.counts()[Health.LOST] == 1
    assert peers.candidates(after) == []
    assert peers.expire(after + POLICY.forget_after_ms + 1) == [node_id(1)]


def test_old_single_failure_does_not_get_a_working_peer_forgotten() -> None:
    peers = proven(1)
    peers.outcome(node_id(1), False, NOW_MS)
    peers.outcome(node_id(1), True, NOW_MS + 1)
    assert peers.expire(NOW_MS + 2 * POLICY.forget_after_ms) == []


def test_pinned_node_is_dialled_before_any_record_and_never_expires() -> None:
    peers = table()
    peers.pin(node_id(1), ["127.0.0.1:4433"], NOW_MS)
    assert [peer.addresses for peer in peers.candidates(NOW_MS)] == [("127.0.0.1:4433",)]
    assert peers.offer(signed_node(signing_key(1)), FROM_DHT, NOW_MS) is Verdict.REFRESHED
    assert peers.expire(NOW_MS + 10 * POLICY.forget_after_ms) == []
    peers.pin(OWN, ["127.0.0.1:1"], NOW_MS)
    assert len(peers) == 1


def test_candidates_come_healthy_first_then_faster_first_and_can_be_asked_by_role() -> None:
    peers = proven(3)
    for number, latency_s in ((1, 0.5), (2, 0.001), (3, 0.1)):
        for _ in range(30):
            peers.outcome(node_id(number), True, NOW_MS, latency_s)
    peers.outcome(node_id(2), False, NOW_MS)
    peers.outcome(node_id(2), False, NOW_MS)
    peers.offer(signed_node(signing_key(4)), FROM_DHT, NOW_MS)
    expected = [node_id(number) for number in (3, 1, 2, 4)]
    assert [peer.node_id for peer in peers.candidates(NOW_MS)] == expected
    assert [peer.node_id for peer in peers.candidates(NOW_MS, role="ssn")] == expected
    assert peers.candidates(NOW_MS, role="gateway") == []


def simulate(peers: PeerTable, alive: set[NodeID], duration_ms: int) -> int:
    probes, now_ms = 0, NOW_MS
    while (at := peers.next_probe_ms()) is not None and at < NOW_MS + duration_ms:
        now_ms = max(now_ms, at)
        for node in peers.due_probes(now_ms, 4):
            probes += 1
            peers.outcome(node, node in alive, now_ms)
    return probes


def test_idle_node_probes_each_of_twenty_peers_once_in_five_minutes() -> None:
    peers = proven(20)
    probes = simulate(peers, {node_id(number) for number in range(1, 21)}, 3_600_000)
    assert 12 * 20 * 0.75 <= probes <= 12 * 20 * 1.4


def test_node_with_many_peers_keeps_its_pace_of_one_probe_in_three_seconds() -> None:
    peers = proven(400)
    probes = simulate(peers, {node_id(number) for number in range(1, 401)}, 3_600_000)
    assert probes <= 1200 * 1.4


def test_dead_peer_is_probed_ever_less() -> None:
    peers = proven(1)
    peers.outcome(node_id(1), False, NOW_MS)
    assert 10 <= simulate(peers, set(), 3_600_000) <= 25


def test_traffic_replaces_probes() -> None:
    peers = proven(1)
    for at in range(0, 3_600_000, 60_000):
        peers.outcome(node_id(1), True, NOW_MS + at)
        assert peers.due_probes(NOW_MS + at + 59_000, 10) == []


def test_shared_records_are_proven_ones_first_in_a_draw_of_ones_own() -> None:
    peers = proven(30)
    for number in range(31, 41):
        peers.offer(signed_node(signing_key(number)), FROM_DHT, NOW_MS)
    shared = peers.to_share(NOW_MS, 30, draw=b"1")
    assert set(shared) == {signed_node(signing_key(number)) for number in range(1, 31)}
    assert peers.to_share(NOW_MS, 5, draw=b"1") == shared[:5]
    assert peers.to_share(NOW_MS, 30, draw=b"2") != shared

"""Uploads that never commit cannot fill a node."""

from __future__ import annotations

import pytest

from dds.primitives.errors import LimitError
from dds.primitives.ids import NodeID, UploadID
from dds.runtime import staging
from dds.runtime.staging import StagingQuota

ALICE, BOB = NodeID(b"a" * 32), NodeID(b"b" * 32)


def _upload(number: int) -> UploadID:
    return UploadID(number.to_bytes(16, "big"))


def _quota() -> StagingQuota:
    return StagingQuota(total_bytes_max=150, ttl_s=10, peer_bytes_max=100)


def test_a_peer_cannot_stage_more_than_its_quota_over_all_its_uploads() -> None:
    quota = _quota()
    quota.take(ALICE, _upload(1), 60, 0)
    with pytest.raises(LimitError):
        quota.take(ALICE, _upload(2), 41, 0)
    quota.take(ALICE, _upload(2), 40, 0)


def test_all_peers_together_cannot_stage_more_than_the_nodes_share() -> None:
    quota = _quota()
    quota.take(ALICE, _upload(1), 100, 0)
    with pytest.raises(LimitError):
        quota.take(BOB, _upload(2), 51, 0)
    quota.take(BOB, _upload(2), 50, 0)
    assert quota.total_bytes == 150


def test_committed_and_discarded_bytes_make_room_again() -> None:
    quota = _quota()
    quota.take(ALICE, _upload(1), 100, 0)
    quota.give_back(ALICE, _upload(1), 30)
    quota.take(ALICE, _upload(2), 30, 0)
    quota.forget(ALICE, _upload(1))
    assert quota.total_bytes == 30
    quota.give_back(ALICE, _upload(2), 1000)
    assert quota.total_bytes == 0
    assert not quota.knows(ALICE, _upload(2))


def test_peers_with_the_same_upload_id_do_not_meet() -> None:
    quota = _quota()
    quota.take(ALICE, _upload(1), 10, 0)
    quota.take(BOB, _upload(1), 20, 0)
    quota.forget(BOB, _upload(1))
    assert (quota.total_bytes, quota.knows(ALICE, _upload(1))) == (10, True)


def test_abandoned_uploads_expire_and_touched_ones_stay() -> None:
    quota = _quota()
    quota.take(ALICE, _upload(1), 50, 0)
    quota.take(ALICE, _upload(2), 10, 0)
    quota.take(ALICE, _upload(2), 10, 9)
    quota.expire(11)
    assert not quota.knows(ALICE, _upload(1))
    assert quota.total_bytes == 20


def test_what_was_staged_before_a_restart_counts_once() -> None:
    quota = _quota()
    quota.take(ALICE, _upload(1), 10, 0, staged_bytes=50)
    quota.take(ALICE, _upload(1), 10, 0, staged_bytes=50)
    assert quota.total_bytes == 70


def test_a_refused_take_changes_nothing() -> None:
    quota = _quota()
    with pytest.raises(LimitError):
        quota.take(ALICE, _upload(1), 101, 0)
    assert (quota.total_bytes, quota.knows(ALICE, _upload(1))) == (0, False)


def test_uploads_without_bytes_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "UPLOADS_PER_PEER_MAX", 3)
    quota = _quota()
    for number in range(3):
        quota.take(ALICE, _upload(number), 0, 0)
    with pytest.raises(LimitError):
        quota.take(ALICE, _upload(3), 0, 0)

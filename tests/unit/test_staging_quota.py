"""Uploads that never commit cannot fill a node, whatever the order of requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dds.primitives.errors import LimitError
from dds.primitives.ids import NodeID, UploadID
from dds.runtime import staging
from dds.runtime.staging import Staged, StagingQuota

ALICE, BOB = NodeID(b"a" * 32), NodeID(b"b" * 32)


def _upload(number: int) -> UploadID:
    return UploadID(number.to_bytes(16, "big"))


def _quota() -> StagingQuota:
    return StagingQuota(total_bytes_max=150, ttl_s=10, peer_bytes_max=100)


def _stage(quota: StagingQuota, peer: NodeID, number: int, size: int, now_s: float = 0) -> None:
    quota.take(peer, _upload(number), Staged(size, 1), now_s)
    quota.landed(peer, _upload(number), Staged(size, 1), kept=True)


def test_a_peer_cannot_stage_more_than_its_quota_over_all_its_uploads() -> None:
    quota = _quota()
    _stage(quota, ALICE, 1, 60)
    with pytest.raises(LimitError):
        _stage(quota, ALICE, 2, 41)
    _stage(quota, ALICE, 2, 40)


def test_all_peers_together_cannot_stage_more_than_the_nodes_share() -> None:
    quota = _quota()
    _stage(quota, ALICE, 1, 100)
    with pytest.raises(LimitError):
        _stage(quota, BOB, 2, 51)
    _stage(quota, BOB, 2, 50)
    assert quota.total_bytes == 150


def test_what_is_on_its_way_counts_and_what_was_not_kept_does_not() -> None:
    quota = _quota()
    quota.take(ALICE, _upload(1), Staged(100, 1), 0)
    with pytest.raises(LimitError):
        _stage(quota, ALICE, 2, 1)
    quota.landed(ALICE, _upload(1), Staged(100, 1), kept=False)
    assert (quota.total_bytes, quota.knows(ALICE, _upload(1))) == (0, False)


def test_after_a_commit_the_stores_word_replaces_the_count() -> None:
    quota = _quota()
    _stage(quota, ALICE, 1, 60)
    _stage(quota, ALICE, 1, 40)
    quota.correct(ALICE, _upload(1), Staged(40, 1), quota.mark(ALICE, _upload(1)))
    assert quota.total_bytes == 40
    quota.correct(ALICE, _upload(1), Staged(), quota.mark(ALICE, _upload(1)))
    assert (quota.total_bytes, quota.knows(ALICE, _upload(1))) == (0, False)


def test_a_commit_that_crosses_an_upload_gives_nothing_back() -> None:
    quota = _quota()
    _stage(quota, ALICE, 1, 30)
    mark = quota.mark(ALICE, _upload(1))
    quota.take(ALICE, _upload(1), Staged(50, 1), 0)
    quota.correct(ALICE, _upload(1), Staged(), mark)
    quota.landed(ALICE, _upload(1), Staged(50, 1), kept=True)
    quota.correct(ALICE, _upload(1), Staged(), mark)
    assert quota.total_bytes == 80


def test_peers_with_the_same_upload_id_do_not_meet() -> None:
    quota = _quota()
    _stage(quota, ALICE, 1, 10)
    _stage(quota, BOB, 1, 20)
    quota.correct(BOB, _upload(1), Staged(), quota.mark(BOB, _upload(1)))
    assert (quota.total_bytes, quota.knows(ALICE, _upload(1))) == (10, True)


def test_abandoned_uploads_expire_and_touched_ones_stay() -> None:
    quota = _quota()
    _stage(quota, ALICE, 1, 50, 0)
    _stage(quota, ALICE, 2, 10, 0)
    _stage(quota, ALICE, 2, 10, 9)
    quota.expire(11)
    assert not quota.knows(ALICE, _upload(1))
    assert quota.total_bytes == 20


def test_what_was_staged_before_a_restart_counts_once() -> None:
    quota = _quota()
    quota.take(ALICE, _upload(1), Staged(10, 1), 0, before=Staged(50, 2))
    quota.take(ALICE, _upload(1), Staged(10, 1), 0, before=Staged(50, 2))
    assert quota.total_bytes == 70


def test_a_refused_take_changes_nothing() -> None:
    quota = _quota()
    with pytest.raises(LimitError):
        quota.take(ALICE, _upload(1), Staged(101, 1), 0)
    assert (quota.total_bytes, quota.knows(ALICE, _upload(1))) == (0, False)


def test_uploads_and_fragments_are_bounded_in_number_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "UPLOADS_PER_PEER_MAX", 3)
    monkeypatch.setattr(staging, "FRAGMENTS_PER_UPLOAD_MAX", 2)
    quota = _quota()
    for number in (1, 2, 3, 3):
        _stage(quota, ALICE, number, 1)
    for number in (3, 4):
        with pytest.raises(LimitError):
            _stage(quota, ALICE, number, 1)


@given(st.lists(st.tuples(st.sampled_from(("begin", "end", "ask", "answer")), st.integers(0, 3), st.integers(1, 40))))
def test_the_count_is_never_below_what_the_store_holds(script: list[tuple[str, int, int]]) -> None:
    """Requests of one upload cross each other and commits (which empty the store) in any order."""
    quota, upload = _quota(), _upload(1)
    flying: list[Staged] = []
    asked: list[tuple[Staged, tuple[int, int]]] = []
    held = Staged()
    for what, which, size in script:
        if what == "begin":
            try:
                quota.take(ALICE, upload, Staged(size, 1), 0, before=held)
            except LimitError:
                continue
            flying.append(Staged(size, 1))
        elif what == "end" and flying:
            wanted = flying.pop(which % len(flying))
            kept = size % 2 == 0
            held = held + wanted if kept else held
            quota.landed(ALICE, upload, wanted, kept=kept)
        elif what == "ask":
            mark = quota.mark(ALICE, upload)
            held = Staged()
            asked.append((held, mark))
        elif what == "answer" and asked:
            left, mark = asked.pop(which % len(asked))
            quota.correct(ALICE, upload, left, mark)
        assert quota.total_bytes >= held.size

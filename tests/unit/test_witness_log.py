"""What a witness must not forget."""

from __future__ import annotations

from pathlib import Path

import pytest

from dds.primitives.keys import SigningKey
from dds.runtime.witness import beacon_secret
from dds.storage.witness_log import EPOCHS_KEPT, WitnessLog


@pytest.fixture
def log(tmp_path: Path) -> WitnessLog:
    return WitnessLog(tmp_path / "witness")


def test_the_last_word_on_a_node_counts(log: WitnessLog) -> None:
    log.note_proven(5, 7, 20, 0b1)
    log.note_proven(5, 8, 84, (1 << 84) - 1)
    log.note_proven(5, 7, 20, 0b11)
    log.note_proven(6, 7, 20, 0)
    assert log.proven(5) == {7: (20, 0b11), 8: (84, (1 << 84) - 1)} and log.proven(4) == {}


def test_an_entry_cut_short_by_a_crash_costs_no_other(log: WitnessLog, tmp_path: Path) -> None:
    log.note_proven(5, 7, 20, 1)
    log.note_proven(5, 8, 20, 2)
    path = tmp_path / "witness" / "5.proven"
    path.write_bytes(path.read_bytes()[:-9])
    assert log.proven(5) == {7: (20, 1)}
    log.note_proven(5, 9, 20, 3)
    assert log.proven(5) == {7: (20, 1), 9: (20, 3)}


def test_a_damaged_entry_is_passed_over(log: WitnessLog, tmp_path: Path) -> None:
    log.note_proven(5, 7, 20, 1)
    log.note_proven(5, 8, 20, 2)
    path = tmp_path / "witness" / "5.proven"
    raw = bytearray(path.read_bytes())
    raw[20] ^= 1
    path.write_bytes(raw)
    assert log.proven(5) == {8: (20, 2)}


def test_a_report_is_kept_as_it_was_said(log: WitnessLog, tmp_path: Path) -> None:
    assert log.report(5) is None
    log.keep_report(5, b"said")
    assert WitnessLog(tmp_path / "witness").report(5) == b"said"


def test_only_old_epochs_are_forgotten(log: WitnessLog, tmp_path: Path) -> None:
    for epoch in range(8):
        log.note_proven(epoch, 1, 1, 1)
        log.keep_report(epoch, b"said")
    (tmp_path / "witness" / "mine.txt").write_text("not the log's")
    log.forget(8)
    kept = {path.name for path in (tmp_path / "witness").iterdir()}
    oldest = 8 - EPOCHS_KEPT
    assert kept == {"mine.txt", *(f"{e}.{kind}" for e in range(oldest, 8) for kind in ("proven", "report"))}


def test_secrets_follow_from_the_key_and_differ_by_round_network_and_witness() -> None:
    one, other = SigningKey(b"1" * 32), SigningKey(b"2" * 32)
    assert beacon_secret(one, "n", 5) == beacon_secret(SigningKey(b"1" * 32), "n", 5)
    secrets = {beacon_secret(key, network, epoch) for key in (one, other) for network in ("n", "m") for epoch in (5, 6)}
    assert len(secrets) == 8

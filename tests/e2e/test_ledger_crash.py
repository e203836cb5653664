"""Whatever moment the process dies at, height, state and root belong together, and nothing that was committed is lost."""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dds.engines.replica import Replica
from dds.ledger.records import ACCOUNTS
from dds.ledger.tree import bucket_of
from dds.primitives.errors import CorruptError, StorageError
from tests.ledger_kit import ANNA, BERT, EPOCH_MS, FUNDS, START_MS, small_genesis, transfer
from tests.ledger_writer import TXS_PER_BLOCK

REPOSITORY = Path(__file__).resolve().parents[2]
KILLS = 30


def check_whole(path: Path, height_min: int) -> int:
    """The height of a ledger whose parts belong together."""
    replica = Replica.open(path, small_genesis())
    try:
        anna, bert = replica.find(ACCOUNTS, ANNA.public), replica.find(ACCOUNTS, BERT.public)
        assert anna is not None and bert is not None
        assert replica.height >= height_min
        assert replica.recompute_root() == replica.root
        assert anna.nonce == replica.height * TXS_PER_BLOCK == FUNDS - anna.balance == bert.balance - FUNDS
        assert len(replica.events(account=ANNA.public, limit=1_000_000)) == anna.nonce
        block = replica.block(replica.height)
        assert replica.height == 0 or (block is not None and block.root == replica.root)
        assert replica.block(replica.height + 1) is None
        return replica.height
    finally:
        replica.close()


def kill_after(path: Path, lines: int, delay_s: float) -> int:
    """Let a writer make blocks and kill it; the last height that it said was committed."""
    argv = [sys.executable, "-m", "tests.ledger_writer", str(path)]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for _ in range(lines):
            writer.stdout.readline()
        time.sleep(delay_s)
        writer.kill()
        said = writer.stdout.read().split()
    assert writer.returncode == -9
    return int(said[-1]) if said else 0


def test_a_killed_ledger_opens_whole_thirty_times(tmp_path: Path) -> None:
    path, height = tmp_path / "ledger.sqlite", 0
    chance = random.Random(7)
    for _ in range(KILLS):
        said = kill_after(path, chance.randrange(1, 4), chance.uniform(0, 0.02))
        height = check_whole(path, max(height, said))
    assert height >= KILLS


class Watched(sqlite3.Connection):
    """Calls `before` with the number of each statement of a commit, counted from its BEGIN."""

    statements = -1
    before: Any = None

    def _note(self, sql: str) -> None:
        if sql.startswith("BEGIN"):
            self.statements = 0
        if self.statements >= 0 and Watched.before is not None and not sql.startswith(("PRAGMA", "ROLLBACK")):
            Watched.before(self.statements)
            self.statements += 1

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self._note(sql)
        return super().execute(sql, *values)

    def executemany(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self._note(sql)
        return super().executemany(sql, *values)


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replica:
    monkeypatch.setattr(Watched, "before", None)
    return Replica.open(tmp_path / "ledger.sqlite", small_genesis(), factory=Watched)


def apply(replica: Replica, height: int) -> None:
    raws = [transfer((height - 1) * TXS_PER_BLOCK + each) for each in range(TXS_PER_BLOCK)]
    replica.apply(height, START_MS + height * EPOCH_MS, raws)


def test_a_disk_that_fails_at_any_statement_leaves_the_block_before(replica: Replica, tmp_path: Path) -> None:
    apply(replica, 1)
    replica.commit()
    root, failed = replica.root, 0
    for failing in range(100):

        def fail(statement: int, failing: int = failing) -> None:
            if statement == failing:
                raise sqlite3.OperationalError("disk I/O error")

        apply(replica, 2)
        Watched.before = fail
        try:
            replica.commit()
            break
        except StorageError:
            failed += 1
        Watched.before = None
        assert (replica.height, replica.root, replica.recompute_root()) == (1, root, root)
    assert failed >= 8 and replica.height == 2
    replica.close()
    assert check_whole(tmp_path / "ledger.sqlite", 2) == 2


def test_a_power_cut_before_any_statement_leaves_one_block_or_the_other(replica: Replica, tmp_path: Path) -> None:
    """What is on the disk before each statement is copied, as a cut would leave it, and opened."""
    cuts: list[Path] = []

    def copy(statement: int) -> None:
        cut = tmp_path / f"cut{len(cuts)}"
        cut.mkdir()
        for name in ("ledger.sqlite", "ledger.sqlite-wal"):
            shutil.copy(tmp_path / name, cut / name)
        cuts.append(cut)

    for height in (1, 2):
        apply(replica, height)
        Watched.before = copy
        replica.commit()
        Watched.before = None
    copy(0)
    replica.close()
    heights = [check_whole(cut / "ledger.sqlite", 0) for cut in cuts]
    assert heights == sorted(heights) and set(heights) == {0, 1, 2}


def test_entries_that_were_tampered_with_are_told(replica: Replica, tmp_path: Path) -> None:
    apply(replica, 1)
    replica.commit()
    replica.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("UPDATE state SET value = x'920101' WHERE key = ?", (ACCOUNTS.key(ANNA.public),))
    db.close()
    again = Replica.open(tmp_path / "ledger.sqlite", small_genesis())
    assert again.recompute_root() != again.root
    again.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
        db.execute("DELETE FROM leaves WHERE bucket = ?", (bucket_of(ACCOUNTS.key(ANNA.public)),))
    db.close()
    with pytest.raises(CorruptError):
        Replica.open(tmp_path / "ledger.sqlite", small_genesis())

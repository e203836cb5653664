"""Torn tails, flipped bits, full and failing disks, other processes and other users: a clear error, and no wrong byte."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dds.primitives.errors import ConfigError, CorruptError, DDSError, DiskFullError, StorageError, UnsupportedVersion
from dds.primitives.hashing import Buffer
from dds.storage.fileops import FileOps
from dds.storage.fragment_store import FragmentStore, StoreConfig
from dds.storage.fsck import fsck
from dds.storage.image import build_image
from dds.storage.upkeep import Upkeep
from tests.store_kit import (
    OWNER,
    SMALL,
    UPLOAD,
    content_of,
    fast_directory,
    manifest_of,
    open_store,
    raw_of,
    segment_of,
    sweep_all,
)

DATA = [content_of("first", 700), content_of("second", 9000), content_of("third", 1200)]
SEGMENT = segment_of(DATA[:2])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    with fast_directory(tmp_path) as name:
        yield Path(name)


def written(path: Path) -> Path:
    """A store with a committed segment of a small and a large fragment, a manifest, and a staged fragment."""
    with open_store(path) as store:
        store.stage_many(UPLOAD, OWNER, DATA)
        store.commit(UPLOAD, OWNER, SEGMENT, raw_of(SEGMENT), 0, (), manifest_of(1))
    return path


def readable(store: FragmentStore) -> list[bytes | None]:
    """What each fragment reads as; None where it is not there or known to be damaged. Never wrong bytes."""
    found: list[bytes | None] = []
    for data in DATA:
        try:
            found.append(store.read(build_image(data).root))
        except DDSError:
            found.append(None)
    assert all(got in (None, data) for got, data in zip(found, DATA, strict=True)), "wrong bytes were returned"
    return found


def test_a_tail_torn_at_any_byte_leaves_what_was_acknowledged_before(place: Path) -> None:
    path = place / "store"
    with open_store(path) as store:
        root = store.stage(UPLOAD, OWNER, DATA[0])
        before = store.log.end
        encoding = segment_of([content_of("torn", 150)])
        store.commit(UPLOAD, OWNER, encoding, raw_of(encoding), 0, [content_of("torn", 150)], manifest_of(1))
        after = store.log.end
    pack, copy = path / "packs" / "00000001.pack", place / "copy"
    raw = pack.read_bytes()
    shutil.copytree(path, copy)
    for cut in range(before, after + 1):
        for name in ("index.db", "index.db-wal", "index.db-shm"):
            (copy / name).unlink(missing_ok=True)
        (copy / "packs" / "00000001.pack").write_bytes(raw[:cut])
        if cut % 50 == 0:
            assert fsck(copy).clean
        with open_store(copy) as store:
            whole = cut >= after
            assert store.recovery.is_sound
            assert store.recovery.torn_bytes == (0 if whole else cut - before)
            assert store.staged(UPLOAD, OWNER) == [root]
            assert store.holding([encoding.segment_id]) == [[0] if whole else []]
            assert len(store.manifests(manifest_of(1).cid)) == whole


def every_file(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size and file.name != "LOCK")


def test_a_flipped_bit_in_any_file_is_found_and_never_returned(place: Path) -> None:
    path, rng, copy = written(place / "store"), random.Random(11), place / "copy"
    for file in every_file(path):
        size = file.stat().st_size
        spread = min(size, 40 if file.suffix in (".pack", ".frag") else 6)
        for at in sorted(rng.sample(range(size), spread)):
            shutil.copytree(path, copy)
            target = copy / file.relative_to(path)
            raw = bytearray(target.read_bytes())
            raw[at] ^= 1 << rng.randrange(8)
            target.write_bytes(raw)
            check_flipped(copy, target, at)
            shutil.rmtree(copy)


def check_flipped(copy: Path, target: Path, at: int) -> None:
    where = f"{target.name} at {at}"
    try:
        report = fsck(copy, deep=True)
    except (ConfigError, UnsupportedVersion):
        assert target.name == "FORMAT", where
        return
    if report.clean:  # a bit of the index that nothing depends on, or the salt: then the store is whole
        assert target.suffix in (".db", ""), where
    try:
        with open_store(copy) as store:
            readable(store)
    except DDSError:
        assert target.suffix in (".db", ""), where
    if target.suffix == ".db":
        fsck(copy, repair=True)
        with open_store(copy) as store:
            assert readable(store) == DATA, where


def test_damage_in_the_middle_is_set_aside_and_drops_nothing_behind_it(place: Path) -> None:
    path = place / "store"
    with open_store(path) as store:
        first = store.log.end
        store.stage(UPLOAD, OWNER, DATA[0])
        second = store.log.end
        store.stage_many(UPLOAD, OWNER, DATA[1:])
        left = store.files.path(0)
    pack = path / "packs" / "00000001.pack"
    raw = bytearray(pack.read_bytes())
    raw[first + 5] ^= 1
    pack.write_bytes(raw)
    assert not fsck(path).clean
    for name in ("index.db", "index.db-wal", "index.db-shm"):
        (path / name).unlink(missing_ok=True)
    with open_store(path) as store:
        assert [(damage.offset, damage.end) for damage in store.recovery.damage] == [(first, second)]
        assert readable(store) == [None, *DATA[1:]]
        assert left.exists()
        assert store.stats().used_bytes == sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    kept = path / "quarantine" / f"00000001-{first:08d}.bad"
    assert kept.read_bytes() == raw[first:second]
    report = fsck(path, repair=True)
    assert report.clean, report.problems
    assert [finding.kind for finding in report.repaired] == ["journal", "index"]
    json.dumps(report.to_dict())
    with open_store(path) as store:
        assert store.recovery.is_sound
        assert readable(store) == [None, *DATA[1:]]


def test_bytes_of_a_fragment_are_never_taken_for_a_record(place: Path) -> None:
    path = place / "store"
    with open_store(path) as store:
        start = store.log.end
        store.stage(UPLOAD, OWNER, DATA[0])
        hostile = (path / "packs" / "00000001.pack").read_bytes()[start : store.log.end]
        store.abort(UPLOAD, OWNER)
        at = store.log.end
        store.stage(bytes(16), OWNER, hostile * 3)
        store.stage(bytes(16), OWNER, DATA[2])
    pack = path / "packs" / "00000001.pack"
    raw = bytearray(pack.read_bytes())
    raw[at] ^= 1  # now the scan must look for the next record within the hostile fragment's bytes
    pack.write_bytes(raw)
    for name in ("index.db", "index.db-wal", "index.db-shm"):
        (path / name).unlink(missing_ok=True)
    with open_store(path) as store:
        assert store.staged(UPLOAD, OWNER) == []
        assert readable(store) == [None, None, DATA[2]]


def test_a_file_that_was_never_named_is_removed_at_the_next_start(place: Path) -> None:
    path = written(place / "store")
    stray = path / "frags" / "0000000" / "0000000077.frag"
    shutil.copy(path / "frags" / "0000000" / "0000000000.frag", stray)
    report = fsck(path)
    assert report.clean
    assert [finding.kind for finding in report.notes] == ["leftover"]
    assert report.space["overhead.leftover"] == stray.stat().st_size
    with open_store(path) as store:
        assert store.recovery.leftover_files == 1
        assert readable(store) == DATA
    assert not stray.exists()
    assert fsck(path).notes == []


def test_a_missing_file_or_pack_is_found(place: Path) -> None:
    path = written(place / "store")
    frag = path / "frags" / "0000000" / "0000000000.frag"
    frag.unlink()
    assert [finding.kind for finding in fsck(path).problems] == ["fragment", "space"]
    with open_store(path) as store, pytest.raises(CorruptError, match="its file is gone"):
        store.read(SEGMENT.records[1][0].root)


def stage_until_full(store: FragmentStore) -> list[bytes]:
    """Stage until the store is full; returns what it acknowledged."""
    kept: list[bytes] = []
    with pytest.raises(DiskFullError):  # noqa: PT012
        for number in range(1000):
            data = content_of(number, 9000 if number % 2 else 1000)
            store.stage(UPLOAD, OWNER, data)
            kept.append(data)
    return kept


def test_the_quota_is_enforced_before_anything_is_written(place: Path) -> None:
    config = StoreConfig(capacity_bytes=400_000, packed_bytes_max=8192)
    with FragmentStore(place / "store", config) as store:
        kept = stage_until_full(store)
        assert 2 < len(kept) < 60
        used = sum(file.stat().st_size for file in store.home.path.rglob("*") if file.is_file())
        assert used <= config.capacity_bytes
        assert all(store.read(build_image(data).root) == data for data in kept)
        store.abort(UPLOAD, OWNER)  # giving back needs no room
        sweep_all(store)
        assert store.stats().staged_bytes == 0


class FailingOps(FileOps):
    """Answers the n-th call of some kind with an error, half of a write done."""

    def __init__(self) -> None:
        self.fail: dict[str, int] = {}  # kind -> error number, from now on
        self.left = 0

    def _fails(self, kind: str) -> None:
        if kind in self.fail:
            if self.left == 0:
                raise OSError(self.fail[kind], os.strerror(self.fail[kind]))
            self.left -= 1

    def write(self, fd: int, parts: Sequence[Buffer], at: int) -> None:
        try:
            self._fails("write")
        except OSError:
            whole = b"".join(bytes(part) for part in parts)
            super().write(fd, [whole[: len(whole) // 2]], at)
            raise
        super().write(fd, parts, at)

    def create(self, path: Path) -> int:
        self._fails("create")
        return super().create(path)

    def sync(self, fd: int) -> None:
        self._fails("sync")
        super().sync(fd)

    def sync_directory(self, path: Path) -> None:
        self._fails("sync directory")
        super().sync_directory(path)

    def truncate(self, fd: int, size: int) -> None:
        self._fails("truncate")
        super().truncate(fd, size)

    def read(self, fd: int, length: int, at: int) -> bytes:
        self._fails("read")
        return super().read(fd, length, at)


def operations(store: FragmentStore) -> list[Callable[[], object]]:
    other = segment_of([DATA[2]], name="other")
    return [
        lambda: store.stage(UPLOAD, OWNER, content_of("new", 900)),
        lambda: store.stage(UPLOAD, OWNER, content_of("new", 9900)),
        lambda: store.commit(UPLOAD, OWNER, other, raw_of(other), 0),
        lambda: store.commit(UPLOAD, OWNER, other, raw_of(other), 0, [DATA[2]], manifest_of(3)),
        lambda: store.put_manifest(manifest_of(2)),
        lambda: store.release(SEGMENT.segment_id, 0),
        lambda: store.abort(UPLOAD, OWNER),
    ]


@pytest.mark.parametrize("kind", ["write", "sync"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("which", range(7))
def test_a_failing_disk_is_a_clear_error_and_changes_nothing(place: Path, kind: str, error: int, which: int) -> None:
    ops = FailingOps()
    path = written(place / "store")
    with open_store(path, ops=ops) as store:
        before, staged, packs = readable(store), store.staged(UPLOAD, OWNER), store.log.bytes_total
        ops.fail = {kind: error}
        with pytest.raises(StorageError) as caught:
            operations(store)[which]()
        if kind == "write":
            assert isinstance(caught.value, DiskFullError) == (error == errno.ENOSPC)
        assert (readable(store), store.staged(UPLOAD, OWNER)) == (before, staged)
        ops.fail = {}
        if kind == "write" or which == 1:  # the journal was cut back, or not reached: the store goes on
            assert store.log.bytes_total == packs
            operations(store)[which]()
        else:  # a sync failed, and so did the sync of the cut: the tail is unknown until the next start
            with pytest.raises(StorageError):
                store.stage(UPLOAD, OWNER, content_of("later", 500))
    report = fsck(path, deep=True)
    assert report.clean, report.problems
    with open_store(path) as store:
        assert store.recovery.is_sound
        assert which >= 5 or readable(store) == before
        operations(store)[which]()
    assert fsck(path).clean


def test_one_failed_sync_is_survived(place: Path) -> None:
    class Once(FailingOps):
        def sync(self, fd: int) -> None:
            try:
                super().sync(fd)
            except OSError:
                self.fail = {}
                raise

    ops, path = Once(), place / "store"
    with open_store(path, ops=ops) as store:
        root = store.stage(UPLOAD, OWNER, DATA[0])
        ops.fail = {"sync": errno.EIO}
        with pytest.raises(StorageError, match="EIO"):
            store.stage(UPLOAD, OWNER, DATA[2])
        assert store.staged(UPLOAD, OWNER) == [root]
        later = store.stage(UPLOAD, OWNER, DATA[2])
        assert store.log.numbers == [1, 2], "after a failed sync the journal goes on in a new pack"
    with open_store(path) as store:
        assert sorted(store.staged(UPLOAD, OWNER)) == sorted([root, later])
    assert fsck(path).clean


def test_a_file_that_could_not_be_written_leaves_nothing_behind(place: Path) -> None:
    ops = FailingOps()
    with open_store(place / "store", ops=ops) as store:
        for kind, left in (("create", 0), ("write", 0), ("sync", 0), ("write", 1), ("sync directory", 1)):
            ops.fail, ops.left = {kind: errno.ENOSPC}, left
            with pytest.raises(DiskFullError):
                store.stage(UPLOAD, OWNER, DATA[1])
            ops.fail = {}
            assert list(store.files.listing()) == [], (kind, left)
        assert store.read(store.stage(UPLOAD, OWNER, DATA[1])) == DATA[1]


def test_a_read_error_is_a_storage_error(place: Path) -> None:
    ops = FailingOps()
    with open_store(written(place / "store"), ops=ops) as store:
        ops.fail = {"read": errno.EIO}
        with pytest.raises(StorageError, match="EIO"):
            store.read(SEGMENT.records[0][0].root)
        with pytest.raises(StorageError, match="EIO"):
            store.segment(SEGMENT.segment_id)
        with pytest.raises(StorageError, match="EIO"):
            Upkeep(store).scrub_step()
        ops.fail = {}
        assert readable(store) == DATA


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("reserve_bytes", [0, 150_000])
def test_a_really_full_device_loses_nothing(tmp_path: Path, reserve_bytes: int) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k,mode=700", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    config, path = replace(SMALL, device_reserve_bytes=reserve_bytes), mount / "store"
    try:
        with open_store(path, config=config) as store:
            kept = stage_until_full(store)
            assert len(kept) >= 5
            assert all(store.read(build_image(data).root) == data for data in kept)
            if reserve_bytes:
                store.abort(UPLOAD, OWNER)
                sweep_all(store)
                kept = stage_until_full(store)
        shutil.copytree(path, tmp_path / "saved", ignore=shutil.ignore_patterns("index.db*"))
        with open_store(tmp_path / "saved") as store:
            assert all(store.read(build_image(data).root) == data for data in kept)
            assert set(store.staged(UPLOAD, OWNER)) >= {build_image(data).root for data in kept}
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)
    assert fsck(tmp_path / "saved").clean


def test_an_index_that_fails_behind_the_journal_catches_up(place: Path) -> None:
    path = place / "store"
    with open_store(path) as store:
        store.stage(UPLOAD, OWNER, DATA[0])
        limit = store.index.db.execute("PRAGMA page_count").fetchone()[0]
        store.index.db.execute(f"PRAGMA max_page_count = {limit}")
        kept = stage_until_full(store)
        assert readable(store)[0] == DATA[0]
        store.index.db.execute("PRAGMA max_page_count = 1000000")
        assert len(store.staged(UPLOAD, OWNER)) == len(kept) + 1
        store.stage(UPLOAD, OWNER, DATA[2])
    assert fsck(path).clean


def test_a_store_is_used_by_one_process_at_a_time(place: Path) -> None:
    path = place / "store"
    with open_store(path) as store:
        code = (
            "import sys; from pathlib import Path; from dds.storage.fragment_store import FragmentStore, StoreConfig\n"
            "from dds.primitives.errors import ConfigError\n"
            "try: FragmentStore(Path(sys.argv[1]), StoreConfig(1 << 30))\n"
            "except ConfigError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        assert f"in use by process {os.getpid()}" in done.stdout
        with pytest.raises(ConfigError, match="in use"):
            fsck(path)
        store.stage(UPLOAD, OWNER, DATA[0])
    assert fsck(path).clean


def test_a_directory_that_is_not_ours_or_no_store_is_refused(place: Path) -> None:
    path = written(place / "store")
    path.chmod(0o777)
    with pytest.raises(ConfigError, match="written by others"):
        open_store(path)
    path.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
        with pytest.raises(ConfigError, match="belongs to user 12345"):
            open_store(path)
        os.chown(path, 0, 0)
    file = place / "file"
    file.write_text("x")
    with pytest.raises(ConfigError, match="not a directory"):
        open_store(file)
    with pytest.raises(ConfigError):
        fsck(place / "nothing")
    (path / "FORMAT").write_text("dds fragment store, format 99\n0011223344556677\n")
    with pytest.raises(UnsupportedVersion):
        open_store(path)
    (path / "FORMAT").write_text("junk")
    with pytest.raises(ConfigError, match="damaged"):
        open_store(path)
    (path / "FORMAT").unlink()
    with pytest.raises(ConfigError, match="no FORMAT"):
        open_store(path)


def test_a_broken_index_is_rebuilt_at_the_next_start(place: Path) -> None:
    path = written(place / "store")
    for junk in (b"", b"junk" * 5000, random.Random(1).randbytes(20_000)):
        (path / "index.db").write_bytes(junk)
        with open_store(path, config=SMALL) as store:
            assert store.recovery.rebuilt_index
            assert readable(store) == DATA
            assert store.holding([SEGMENT.segment_id]) == [[0]]
    assert fsck(path).clean

"""The fragment store's promises, one claim a test. Crashes are in test_store_crash and test_store_power_loss."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dds.primitives.errors import CorruptError, InputError, IntegrityError, LimitError, NotFoundError
from dds.primitives.ids import FragmentRoot, SegmentID
from dds.primitives.merkle import leaf_hash, leaf_hashes, root_of, verify_path
from dds.primitives.units import KIB, LEAF_BYTES, MIB
from dds.storage.commit import Committed
from dds.storage.fileops import FileOps
from dds.storage.fragment_store import STAGED_TTL_MS, TRASH_WINDOW_MS, FragmentStore
from dds.storage.fsck import fsck, rebuild_index
from dds.storage.image import BLOCK_BYTES
from dds.storage.index import CONTENTS, Index, State
from dds.storage.upkeep import Upkeep
from dds.wire.api import ENCODINGS_PER_SEGMENT_MAX, MANIFESTS_PER_CONTENT_MAX
from tests.store_kit import (
    OWNER,
    SMALL,
    UPLOAD,
    Clock,
    compact_all,
    content_of,
    fast_directory,
    let_pass,
    manifest_of,
    open_store,
    raw_of,
    segment_of,
    sweep_all,
)

DAY_MS = 24 * 3600 * 1000


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where possible: these tests are about what is written, and sync a thousand times."""
    with fast_directory(tmp_path) as name:
        yield Path(name)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock):  # type: ignore[no-untyped-def]
    with open_store(tmp_path / "store", clock=clock) as opened:
        yield opened


def commit(store: FragmentStore, stripes: list[bytes], index: int = 0, name: str = "") -> SegmentID:
    encoding = segment_of(stripes, name=name)
    for data in stripes:
        store.stage(UPLOAD, OWNER, data)
    store.commit(UPLOAD, OWNER, encoding, raw_of(encoding), index)
    return encoding.segment_id


@pytest.mark.parametrize("size", [0, 1, LEAF_BYTES - 1, LEAF_BYTES, LEAF_BYTES + 1, BLOCK_BYTES, BLOCK_BYTES + 1, MIB])
def test_the_store_computes_the_fragments_own_merkle_root(store: FragmentStore, size: int) -> None:
    data = content_of(size, size)
    root = store.stage(UPLOAD, OWNER, data)
    assert root == root_of(leaf_hashes(data, LEAF_BYTES))
    assert store.read(root) == data
    assert store.find(root) == (size, State.STAGED)


def test_a_range_read_gives_exactly_the_range(store: FragmentStore) -> None:
    data = content_of("ranges", 5 * BLOCK_BYTES // 2)
    root = store.stage(UPLOAD, OWNER, data)
    for offset, length in [
        (0, 1),
        (BLOCK_BYTES - 1, 2),
        (BLOCK_BYTES, BLOCK_BYTES),
        (len(data) - 1, 1),
        (len(data), 0),
        (77, 0),
    ]:
        assert store.read(root, offset, length) == data[offset : offset + length]
        assert store.read(root, offset, length, fresh=True) == data[offset : offset + length]
    for offset, length in [(-1, 1), (0, len(data) + 1), (len(data) + 1, 0), (5, -1)]:
        with pytest.raises(InputError):
            store.read(root, offset, length)


def test_leaves_come_with_paths_that_prove_them(store: FragmentStore) -> None:
    data = content_of("leaves", 10 * LEAF_BYTES + 100)
    root = store.stage(UPLOAD, OWNER, data)
    size, leaves, paths = store.read_leaves(root, 2, 9)
    assert size == len(data)
    assert b"".join(leaves) == data[2 * LEAF_BYTES :]
    for at, (leaf, path) in enumerate(zip(leaves, paths, strict=True)):
        assert verify_path(leaf_hash(leaf.ljust(LEAF_BYTES, b"\0")), 2 + at, 11, path, root)
    for first, count in [(-1, 1), (0, 0), (10, 2)]:
        with pytest.raises(InputError):
            store.read_leaves(root, first, count)


def test_what_is_not_held_is_not_found(store: FragmentStore) -> None:
    nothing = FragmentRoot(bytes(32))
    assert store.find(nothing) is None
    for read in (lambda: store.read(nothing), lambda: store.read_leaves(nothing, 0, 1)):
        with pytest.raises(NotFoundError):
            read()
    assert store.segment(SegmentID(bytes(32))) == []
    assert store.holding([SegmentID(bytes(32))]) == [[]]
    assert store.manifests(manifest_of(1).cid) == []


def test_staging_the_same_fragment_twice_keeps_one(store: FragmentStore) -> None:
    for size in (100, 20 * KIB):
        first = store.stats()
        data = content_of(size, size)
        roots = {store.stage(UPLOAD, OWNER, data), store.stage(UPLOAD, OWNER, data)}
        roots |= set(store.stage_many(UPLOAD, OWNER, [data, data]))
        assert len(roots) == 1
        assert store.stats().staged_bytes - first.staged_bytes == size
        assert store.stats().staged_count - first.staged_count == 1


class CountingOps(FileOps):
    syncs = 0

    def sync(self, fd: int) -> None:
        self.syncs += 1
        super().sync(fd)


def test_many_small_fragments_share_one_sync(tmp_path: Path) -> None:
    ops = CountingOps()
    with open_store(tmp_path / "store", ops=ops) as store:
        ops.syncs = 0
        items = [content_of(n) for n in range(20)]
        roots = store.stage_many(UPLOAD, OWNER, items)
        assert ops.syncs == 1
        assert [store.read(root) for root in roots] == items
        ops.syncs = 0
        encoding = segment_of([content_of("inline", 500)])
        store.commit(UPLOAD, OWNER, encoding, raw_of(encoding), 0, [content_of("inline", 500)], manifest_of(1))
        assert ops.syncs == 1


def test_an_upload_belongs_to_its_owner_alone(store: FragmentStore) -> None:
    data = content_of("mine")
    root = store.stage(UPLOAD, OWNER, data)
    encoding = segment_of([data])
    assert store.staged(UPLOAD, b"x" * 32) == []
    assert store.abort(UPLOAD, b"x" * 32) == 0
    with pytest.raises(NotFoundError) as caught:
        store.commit(UPLOAD, b"x" * 32, encoding, raw_of(encoding), 0)
    assert caught.value.fields["missing"] == [root.hex()]
    assert store.staged(UPLOAD, OWNER) == [root]


def test_abort_forgets_what_was_staged_and_gives_the_space_back(store: FragmentStore) -> None:
    before = store.stats()
    roots = [store.stage(UPLOAD, OWNER, content_of(n, size)) for n, size in enumerate((100, 20 * KIB))]
    assert sorted(store.staged(UPLOAD, OWNER)) == sorted(roots)
    assert store.abort(UPLOAD, OWNER) == 2
    assert store.abort(UPLOAD, OWNER) == 0
    assert all(store.find(root) is None for root in roots)
    assert sweep_all(store) == (0, 0, 1)
    after = store.stats()
    assert (after.staged_bytes, after.table_bytes, after.condemned_bytes) == (before.staged_bytes, before.table_bytes, 0)


def test_a_fragment_staged_by_two_survives_the_abort_of_one(store: FragmentStore) -> None:
    data = content_of("shared", 20 * KIB)
    root = store.stage(UPLOAD, OWNER, data)
    store.stage(UPLOAD, b"x" * 32, data)
    store.abort(UPLOAD, OWNER)
    sweep_all(store)
    assert store.read(root) == data


def test_a_commit_says_what_a_receipt_needs(store: FragmentStore) -> None:
    stripes = [content_of(1, 10 * KIB), content_of(2, 10 * KIB)]
    encoding = segment_of(stripes)
    roots = [store.stage(UPLOAD, OWNER, data) for data in stripes]
    done = store.commit(UPLOAD, OWNER, encoding, raw_of(encoding), 1)
    assert done == Committed(fragment_bytes=20 * KIB, leaf_count=6)
    assert store.staged(UPLOAD, OWNER) == []
    assert [store.find(root) for root in roots] == [(10 * KIB, State.COMMITTED)] * 2
    assert store.segment(encoding.segment_id) == [(raw_of(encoding), [1])]
    assert store.holding([encoding.segment_id]) == [[1]]
    assert store.users(roots[0]) == [(encoding.segment_id, encoding.root(), 1)]


def test_committing_twice_is_harmless_and_writes_nothing(store: FragmentStore) -> None:
    data = content_of("twice")
    encoding = segment_of([data])
    for inline in ([data], [], [data]):
        store.commit(UPLOAD, OWNER, encoding, raw_of(encoding), 0, inline)
    packs = store.log.bytes_total
    store.commit(UPLOAD, OWNER, encoding, raw_of(encoding), 0, [data])
    assert store.log.bytes_total == packs
    assert store.stats().committed_bytes == len(data)
    assert store.segment(encoding.segment_id) == [(raw_of(encoding), [0])]


def test_a_commit_with_one_fragment_missing_changes_nothing(store: FragmentStore) -> None:
    stripes = [content_of(1), content_of(2)]
    encoding = segment_of(stripes)
    root = store.stage(UPLOAD, OWNER, stripes[0])
    before = store.stats()
    with pytest.raises(NotFoundError):
        store.commit(UPLOAD, OWNER, encoding, raw_of(encoding), 0, manifest=manifest_of(1))
    assert store.stats() == before
    assert store.staged(UPLOAD, OWNER) == [root]
    assert store.manifests(manifest_of(1).cid) == []
    assert store.holding([encoding.segment_id]) == [[]]


def test_a_commit_refuses_what_does_not_belong(store: FragmentStore) -> None:
    data = content_of("good")
    encoding = segment_of([data])
    with pytest.raises(InputError, match="not in the encoding record"):
        store.commit(UPLOAD, OWNER, encoding, raw_of(encoding), 0, [data, content_of("stranger")])
    for index in (-1, 3, 200):
        with pytest.raises(InputError, match="no fragment index"):
            store.commit(UPLOAD, OWNER, encoding, raw_of(encoding), index, [data])
    with pytest.raises(InputError):
        store.stage(b"short", OWNER, data)
    # a zero byte more gives the same padded leaf, so the same root: only the size tells
    padded = segment_of([data + b"\0"])
    assert padded.records[0][0].root == encoding.records[0][0].root
    with pytest.raises(IntegrityError):
        store.commit(UPLOAD, OWNER, padded, raw_of(padded), 0, [data])
    store.stage(UPLOAD, OWNER, data)
    with pytest.raises(IntegrityError):
        store.commit(UPLOAD, OWNER, padded, raw_of(padded), 0)


def test_a_segment_keeps_several_encodings_up_to_a_limit(store: FragmentStore) -> None:
    data = content_of("many classes")
    raws = []
    for copies in range(2, 2 + ENCODINGS_PER_SEGMENT_MAX):
        encoding = segment_of([data], copies=copies)
        store.commit(UPLOAD, OWNER, encoding, raw_of(encoding), 1, [data])
        raws.append((raw_of(encoding), [1]))
    assert sorted(store.segment(encoding.segment_id)) == sorted(raws)
    assert store.stats().committed_bytes == len(data)
    one_more = segment_of([data], copies=40)
    with pytest.raises(LimitError):
        store.commit(UPLOAD, OWNER, one_more, raw_of(one_more), 1, [data])
    assert store.release(encoding.segment_id, 1, encoding.root()) == 1
    assert len(store.segment(encoding.segment_id)) == ENCODINGS_PER_SEGMENT_MAX - 1
    assert store.read(encoding.records[0][0].root) == data


def test_the_newest_manifest_of_each_publisher_is_kept(store: FragmentStore) -> None:
    cid = manifest_of(1).cid
    assert store.put_manifest(manifest_of(1, 1, 10))
    assert store.put_manifest(manifest_of(1, 1, 10))
    assert not store.put_manifest(manifest_of(1, 1, 9))
    assert store.put_manifest(manifest_of(1, 1, 11))
    assert store.put_manifest(manifest_of(1, 2, 30))
    assert store.manifests(cid) == [manifest_of(1, 2, 30).raw, manifest_of(1, 1, 11).raw]
    assert store.drop_manifests(cid, manifest_of(1, 1).publisher) == 1
    assert store.manifests(cid) == [manifest_of(1, 2, 30).raw]


def test_nobodys_manifest_makes_room_for_a_strangers(store: FragmentStore) -> None:
    cid = manifest_of(1).cid
    for publisher in range(1, MANIFESTS_PER_CONTENT_MAX + 1):
        assert store.put_manifest(manifest_of(1, publisher, 10 * publisher))
    kept = [manifest_of(1, publisher, 10 * publisher).raw for publisher in range(MANIFESTS_PER_CONTENT_MAX, 0, -1)]
    assert not store.put_manifest(manifest_of(1, 50, 10))
    assert not store.put_manifest(manifest_of(1, 51, 1_000_000))
    assert store.manifests(cid) == kept
    assert store.put_manifest(manifest_of(1, 1, 15))  # its own publisher may replace it
    assert store.manifests(cid) == [*kept[:-1], manifest_of(1, 1, 15).raw]


def test_staged_fragments_expire_and_committed_ones_do_not(store: FragmentStore, clock: Clock) -> None:
    kept = commit(store, [content_of("kept", 20 * KIB)])
    root = store.stage(UPLOAD, OWNER, content_of("left behind", 20 * KIB))
    let_pass(store, clock, STAGED_TTL_MS - 1)
    assert sweep_all(store) == (0, 0, 0)
    let_pass(store, clock, 1)
    assert sweep_all(store) == (1, 0, 1)
    assert store.find(root) is None
    assert store.holding([kept]) == [[0]]


def test_what_is_released_stays_in_the_trash_for_its_window(store: FragmentStore, clock: Clock) -> None:
    data = content_of("trash", 20 * KIB)
    segment = commit(store, [data])
    root = segment_of([data]).records[0][0].root
    assert store.release(segment, 0) == 1
    assert store.release(segment, 0) == 0
    assert store.holding([segment]) == [[]]
    assert store.segment(segment) == []
    assert store.find(root) == (len(data), State.TRASH)
    assert store.stats().trash_bytes == len(data)
    let_pass(store, clock, TRASH_WINDOW_MS - 1)
    assert sweep_all(store) == (0, 0, 0)
    let_pass(store, clock, 1)
    assert sweep_all(store) == (0, 1, 1)
    assert store.find(root) is None
    stats = store.stats()
    assert (stats.trash_bytes, stats.committed_bytes, stats.table_bytes, stats.condemned_bytes) == (0, 0, 0, 0)


def test_a_commit_within_the_window_restores_from_the_trash(store: FragmentStore, clock: Clock) -> None:
    data = content_of("back", 20 * KIB)
    encoding = segment_of([data])
    segment = commit(store, [data])
    store.release(segment, 0)
    let_pass(store, clock, TRASH_WINDOW_MS - 1)
    store.commit(UPLOAD, OWNER, encoding, raw_of(encoding), 0)
    let_pass(store, clock, 10)
    assert sweep_all(store) == (0, 0, 0)
    assert store.holding([segment]) == [[0]]
    assert store.read(encoding.records[0][0].root) == data


def test_the_trash_never_takes_what_another_segment_holds(store: FragmentStore, clock: Clock) -> None:
    data = content_of("two segments", 20 * KIB)
    first, second = commit(store, [data], name="a"), commit(store, [data], name="b")
    store.release(first, 0)
    assert store.stats().trash_bytes == 0
    let_pass(store, clock, TRASH_WINDOW_MS)
    assert sweep_all(store) == (0, 1, 0)
    assert store.holding([first, second]) == [[], [0]]
    assert store.read(segment_of([data]).records[0][0].root) == data


def test_a_clock_that_jumps_neither_expires_nor_keeps_for_ever(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "store"
    with open_store(path, clock=clock) as store:
        segment = commit(store, [content_of("released")])
        store.release(segment, 0)
        root = store.stage(UPLOAD, OWNER, content_of("staged"))
        for jump in (-30 * 365 * DAY_MS, 60 * 365 * DAY_MS, -40 * 365 * DAY_MS, DAY_MS * 7):
            clock.now_ms += jump
            assert sweep_all(store) == (0, 0, 0)
    clock.now_ms -= 50 * 365 * DAY_MS
    with open_store(path, clock=clock) as store:
        assert sweep_all(store) == (0, 0, 0)
        assert store.staged(UPLOAD, OWNER) == [root]
        let_pass(store, clock, STAGED_TTL_MS)
        assert sweep_all(store) == (1, 0, 0)
        let_pass(store, clock, TRASH_WINDOW_MS)
        assert sweep_all(store) == (0, 1, 0)


def test_everything_is_there_again_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with open_store(path) as store:
        segment = commit(store, [content_of(1, 20 * KIB), content_of(2)])
        staged = store.stage(UPLOAD, OWNER, content_of(3))
        store.put_manifest(manifest_of(1))
        released = commit(store, [content_of(4)])
        store.release(released, 0)
        before = store.stats()
    with open_store(path) as store:
        assert store.recovery.replayed_records == 0
        assert store.holding([segment, released]) == [[0], []]
        assert store.staged(UPLOAD, OWNER) == [staged]
        assert store.manifests(manifest_of(1).cid) == [manifest_of(1).raw]
        after = store.stats()
        assert (after.committed_bytes, after.staged_bytes, after.trash_bytes, after.table_bytes) == (
            before.committed_bytes,
            before.staged_bytes,
            before.trash_bytes,
            before.table_bytes,
        )


def fill(store: FragmentStore, clock: Clock, rounds: int = 12) -> dict[FragmentRoot, bytes]:
    """Much that comes and goes; returns what must be there."""
    alive: dict[FragmentRoot, bytes] = {}
    for number in range(rounds):
        small, large = content_of(f"s{number}", 3000), content_of(f"l{number}", 9 * KIB)
        encoding = segment_of([small, large])
        store.stage(UPLOAD, OWNER, large)
        store.commit(UPLOAD, OWNER, encoding, raw_of(encoding), 0, [small], manifest_of(number % 5, number % 3, number))
        if number % 3:
            store.release(encoding.segment_id, 0)
        else:
            alive |= {encoding.records[0][0].root: small, encoding.records[1][0].root: large}
        aborted = bytes([number]) * 16
        store.stage_many(aborted, OWNER, [content_of(f"a{number}.{n}", 4000) for n in range(4)])
        if number != rounds - 1:
            store.abort(aborted, OWNER)
    let_pass(store, clock, DAY_MS // 2)
    return alive


def test_compaction_gives_space_back_and_loses_nothing(store: FragmentStore, clock: Clock) -> None:
    alive = fill(store, clock, 30)
    let_pass(store, clock, TRASH_WINDOW_MS)
    sweep_all(store)
    before = store.log.bytes_total
    assert compact_all(store) > 0
    assert store.log.bytes_total < before * 2 // 3
    assert {root: store.read(root) for root in alive} == alive
    assert compact_all(store) == 0
    oldest = store.log.numbers[0]
    assert oldest > 1, "the oldest packs are gone"


@pytest.mark.parametrize("compacted", [False, True])
def test_an_index_rebuilt_from_packs_and_files_is_the_same(tmp_path: Path, clock: Clock, compacted: bool) -> None:
    path = tmp_path / "store"
    with open_store(path, clock=clock) as store:
        alive = fill(store, clock, 30)
        if compacted:
            let_pass(store, clock, TRASH_WINDOW_MS)
            sweep_all(store)
            assert compact_all(store, budget_bytes=5000) > 0
        lived = {table: list(store.index.contents(table)) for table in CONTENTS}
        totals = {name: value for name, value in store.index.totals.items() if name not in ("doomed_bytes", "file_count")}
        sweep_all(store)
    rebuild_index(path)
    rebuilt = Index(path / "index.db")
    for table, rows in lived.items():
        assert list(rebuilt.contents(table)) == rows, table
    assert {name: rebuilt.totals[name] for name in totals} == totals
    rebuilt.close()
    assert fsck(path, deep=True).problems == []
    with open_store(path, clock=clock) as store:
        assert {root: store.read(root) for root in alive} == alive


def test_used_space_is_what_the_directory_holds_to_the_byte(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "store"
    with open_store(path, clock=clock) as store:
        fill(store, clock)
        stats = store.stats()
        walked = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        assert stats.used_bytes == walked
        assert stats.overhead_bytes == walked - stats.committed_bytes - stats.staged_bytes - stats.trash_bytes
        sweep_all(store)
        walked = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        assert store.stats().used_bytes == walked
    report = fsck(path)
    assert report.clean, report.problems
    assert report.used_bytes == report.walked_bytes == sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    json.dumps(report.to_dict())


def test_readers_and_compaction_and_writers_share_the_store(tmp_path: Path) -> None:
    with open_store(tmp_path / "store") as store:
        alive = fill(store, Clock(), 9)
        stop, failures = threading.Event(), list[BaseException]()

        def read() -> None:
            while not stop.is_set():
                for root, data in alive.items():
                    if store.read(root) != data:
                        failures.append(AssertionError("wrong bytes"))

        def work(number: int) -> None:
            for step in range(12):
                upload = bytes([number, step]) * 8
                data = content_of(f"{number}.{step}", 3000 if step % 2 else 9 * KIB)
                root = store.stage(upload, OWNER, data)
                assert store.read(root) == data
                if step % 3:
                    store.abort(upload, OWNER)
                else:
                    encoding = segment_of([data])
                    store.commit(upload, OWNER, encoding, raw_of(encoding), 0)

        reader = threading.Thread(target=read)
        reader.start()
        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(work, number) for number in range(6)]
            while not all(job.done() for job in jobs):
                compact_all(store)
                sweep_all(store)
            for job in jobs:
                job.result()
        stop.set()
        reader.join()
        assert not failures
    assert fsck(tmp_path / "store", deep=True).problems == []


def test_requests_that_wait_together_share_one_sync(tmp_path: Path) -> None:
    ops = CountingOps()
    with open_store(tmp_path / "store", ops=ops) as store, ThreadPoolExecutor(8) as pool:
        with store.writer.quiet():
            jobs = [pool.submit(store.stage, UPLOAD, OWNER, content_of(number)) for number in range(8)]
            while len(store.writer._queue) < len(jobs):
                threading.Event().wait(0.001)
            ops.syncs = 0
        roots = [job.result() for job in jobs]
        assert ops.syncs == 1
        assert sorted(store.staged(UPLOAD, OWNER)) == sorted(roots)


def test_scrubbing_finds_rot_and_forgets_nothing_at_a_restart(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "store"
    with open_store(path, clock=clock) as store:
        alive = fill(store, clock)
        rotten = next(root for root, data in alive.items() if len(data) == 9 * KIB)
        place = store.index.place_of(rotten)
        assert place is not None
        file = store.files.path(place.place)
    flip(file, file.stat().st_size - 5)
    found = []
    for _ in range(200):
        with open_store(path, clock=clock) as store:
            found += Upkeep(store).scrub_step(budget_bytes=10_000)
        if found:
            break
    assert [(problem.kind, problem.key) for problem in found] == [("fragment", rotten)]
    assert len(found[0].users) == 1
    with open_store(path, clock=clock) as store:
        with pytest.raises(CorruptError) as caught:
            store.read(rotten)
        assert caught.value.fields["root"] == rotten
        assert all(problem.key == rotten for problem in Upkeep(store).scrub_step(1 << 30))
        encoding = segment_of([alive[root] for root in alive if root == rotten])
        with pytest.raises(NotFoundError):
            store.commit(UPLOAD, OWNER, encoding, raw_of(encoding), 0)
        store.stage(UPLOAD, OWNER, alive[rotten])  # a repair brings the bytes again
        assert store.read(rotten) == alive[rotten]
        assert Upkeep(store).scrub_step(1 << 30) == []
    assert fsck(path, deep=True).problems == []


def test_scrubbing_finds_rot_in_encoding_records_and_manifests(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with open_store(path) as store:
        segment = commit(store, [content_of(1)])
        store.put_manifest(manifest_of(1))
        blobs = [
            store.index.encoding_of(segment, segment_of([content_of(1)]).root()),
            store.index.manifest_rows(manifest_of(1).cid)[0][2],
        ]
        for blob in blobs:
            assert blob is not None
            flip(store.log.path(blob.pack), blob.at + 9)
        assert [problem.kind for problem in Upkeep(store).scrub_step()] == ["encoding", "manifest"]
        with pytest.raises(CorruptError):
            store.segment(segment)
        with pytest.raises(CorruptError):
            store.manifests(manifest_of(1).cid)
    assert {finding.kind for finding in fsck(path).problems} == {"encoding", "manifest"}


def flip(file: Path, at: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[at] ^= 0x40
    file.write_bytes(raw)


def test_small_pages_of_work_keep_each_step_small(store: FragmentStore, clock: Clock) -> None:
    store.stage_many(UPLOAD, OWNER, [content_of(n, 100) for n in range(150)])
    let_pass(store, clock, STAGED_TTL_MS)
    steps = [Upkeep(store).sweep_step(items=64) for _ in range(3)]
    assert [(step.expired, step.more) for step in steps] == [(64, True), (64, True), (22, False)]


def test_small_and_large_fragments_lie_where_they_should(store: FragmentStore) -> None:
    small, large = store.stage_many(UPLOAD, OWNER, [b"s" * (SMALL.packed_bytes_max - 1), b"l" * SMALL.packed_bytes_max])
    homes = [place.home for root in (small, large) if (place := store.index.place_of(root))]
    assert homes == [1, 0]


@pytest.mark.parametrize("sizes", [(500, 700, 600), (700, 500, 600), (8191, 9000, 8400), (9000, 8191, 8400)])
def test_a_fragment_never_replaces_one_with_more_trailing_zeros(store: FragmentStore, sizes: tuple[int, ...]) -> None:
    body = content_of("zeros", 4000 if sizes[0] > 4000 else 100)
    roots = set()
    for number, size in enumerate(sizes):
        data = body.ljust(size, b"\0")
        encoding = segment_of([data], name=str(number))
        upload = bytes([number]) * 16
        roots.add(store.stage(upload, OWNER, data))
        store.commit(upload, OWNER, encoding, raw_of(encoding), 0)
        store.commit(upload, OWNER, encoding, raw_of(encoding), 1, [data])
        store.stage(bytes(16), b"stranger", data.ljust(size + 5, b"\0"))
        store.abort(bytes(16), b"stranger")
        sweep_all(store)
        (root,) = roots
        assert store.read(root, 0, size) == data
    assert not store.read(root, len(body)).strip(b"\0")
    assert len(store.read(root)) == max(sizes) + 5
    assert store.index.totals["committed_bytes"] == max(sizes) + 5
    assert store.stats().committed_count == 1


def test_a_file_to_be_unlinked_is_accounted_for_when_its_record_is_compacted_away(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "store"
    with open_store(path, clock=clock) as store:
        store.stage(UPLOAD, OWNER, content_of("doomed", 20 * KIB))
        store.abort(UPLOAD, OWNER)
    with open_store(path, clock=clock) as store:
        store.stage_many(UPLOAD, OWNER, [content_of(number, 7000) for number in range(20)])
        store.abort(UPLOAD, OWNER)
        store.stage(UPLOAD, OWNER, content_of("next pack"))
        assert compact_all(store) > 0
    report = fsck(path)
    assert report.clean, report.problems
    assert report.space["overhead.condemned"] > 20 * KIB
    with open_store(path, clock=clock) as store:
        assert sweep_all(store) == (0, 0, 1)
    assert fsck(path).space["overhead.condemned"] == 0

"""Checking a store that no process uses: is every byte what it should be, and is every byte accounted for?

The journal is read from its first record and an index built from it, apart from the store's own. Then: every fragment, encoding
record and manifest that is named is read and checked (`deep` recomputes Merkle roots); the store's own index must say the same;
every file in the directory must be accounted for, and their sizes must add up to committed + staged + trash + overhead, to the
byte. What a crash may leave behind - a torn tail, a file that was not named yet - is a note, not a problem: the next start
removes it. Nothing is changed without `repair`.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dds.primitives.errors import CorruptError
from dds.primitives.ids import FragmentRoot
from dds.storage import image as images
from dds.storage.checksum import crc32
from dds.storage.fileops import FileOps, disk_errors
from dds.storage.fragment_files import FragmentFiles
from dds.storage.fragment_store import FragmentStore, StoreConfig
from dds.storage.index import CONTENTS, OWN_FILE, Blob, Index, Place, State, connect, split_roots
from dds.storage.packs import Damage, PackLog, Torn
from dds.storage.recovery import Recovery, quarantine, replay
from dds.storage.store_home import INDEX_FILES, StoreHome

PROBLEMS_MAX = 1000  # listed one by one; more are only counted
_INDEX_ONLY = ("doomed_bytes", "file_count")  # of the totals: what waits to be unlinked is not in the journal


@dataclass(frozen=True, slots=True)
class Finding:
    kind: str
    detail: str
    where: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "detail": self.detail, **self.where}


@dataclass(slots=True)
class Report:
    """What was found. Sizes in bytes; `space` holds every label of used space, `walked_bytes` what the directory adds up to."""

    path: str
    deep: bool
    problems: list[Finding] = field(default_factory=list)
    problem_count: int = 0
    notes: list[Finding] = field(default_factory=list)
    repaired: list[Finding] = field(default_factory=list)
    space: dict[str, int] = field(default_factory=dict)
    walked_bytes: int = 0
    fragments: dict[str, int] = field(default_factory=dict)
    records: int = 0
    packs: int = 0

    @property
    def clean(self) -> bool:
        return self.problem_count == 0

    @property
    def used_bytes(self) -> int:
        return sum(self.space.values())

    def problem(self, kind: str, detail: str, **where: Any) -> None:
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(Finding(kind, detail, where))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {
            "path": self.path,
            "clean": self.clean,
            "deep": self.deep,
            "problems": [finding.to_dict() for finding in self.problems],
            "problem_count": self.problem_count,
            "notes": [finding.to_dict() for finding in self.notes],
            "repaired": [finding.to_dict() for finding in self.repaired],
            "space": self.space,
            "used_bytes": self.used_bytes,
            "walked_bytes": self.walked_bytes,
            "fragments": self.fragments,
            "records": self.records,
            "packs": self.packs,
        }


def fsck(path: Path, *, repair: bool = False, deep: bool = False, ops: FileOps | None = None) -> Report:
    """Check a store; with `repair` also bring it into order, never deleting what may be somebody's bytes.

    Raises:
        ConfigError: not a store, not ours, or in use by another process.
        StorageError: the disk failed in another way than by wrong bytes.
    """
    ops = ops or FileOps()
    with disk_errors("checking the store"):
        checked = _check(path, ops, deep)
        if not repair:
            return checked.report
        repaired = _repair(path, ops, checked)
        again = _check(path, ops, deep).report
        again.repaired = repaired
        return again


def rebuild_index(path: Path) -> None:
    """Throw the index away and build it from packs and files alone.

    Raises:
        ConfigError, StorageError: as `FragmentStore`.
    """
    with disk_errors("rebuilding the index"):
        home = StoreHome(path, FileOps(), create=False)
        home.remove_index()
        home.close()
    FragmentStore(path, StoreConfig(capacity_bytes=0)).close()


@dataclass(slots=True)
class _Checked:
    report: Report
    recovery: Recovery
    index_is_bad: bool
    orphans: list[int]
    rotten: list[bytes]


def _check(path: Path, ops: FileOps, deep: bool) -> _Checked:
    home = StoreHome(path, ops, create=False)
    try:
        with tempfile.TemporaryDirectory(prefix="dds-fsck-") as scratch:
            return _Check(home, ops, Path(scratch), deep).run()
    finally:
        home.close()


class _Check:
    def __init__(self, home: StoreHome, ops: FileOps, scratch: Path, deep: bool) -> None:
        self._home, self._ops, self._scratch, self._deep = home, ops, scratch, deep
        self._log = PackLog(ops, home.packs, home.salt)
        self._files = FragmentFiles(ops, home.frags)
        self._report = Report(str(home.path), deep)
        self._found = Recovery()
        self._orphans: list[int] = []
        self._rotten: list[bytes] = []
        self._torn_bytes = 0
        self._doomed: set[int] = set()  # files that the store's own index will unlink: their records may be compacted away

    def run(self) -> _Checked:
        own = self._copy_index()
        true = Index(self._scratch / "true.db")
        with closing(true):
            self._read_journal(true, own)
            self._check_fragments(true)
            self._check_blobs(true)
            self._check_holds(true)
            index_is_bad = own is None or not self._same(own, true)
            if own is not None:
                own.close()
            self._check_files(true, own_floor=self._floor)
            self._add_up(true)
        return _Checked(self._report, self._found, index_is_bad, self._orphans, self._rotten)

    # The store's own index

    def _copy_index(self) -> Index | None:
        """A copy of the index, brought up to the end of the journal as the next start would. None: it must be rebuilt."""
        self._floor = 0
        self._applied = (0, 0)
        if not self._home.index.exists():
            self._note("index-missing", "there is no index; the next start rebuilds it")
            return None
        try:
            own = self._copied()
            self._applied = own.applied
            self._floor = own.get("file_floor")
            if self._applied[0] and self._applied[0] not in self._log.sizes:
                self._report.problem("index", "the index is of another journal")
                return None
            replay(own, self._log, Recovery())
            self._doomed = _doomed(own)
            return own
        except (sqlite3.Error, IndexError, ValueError, TypeError) as error:
            self._report.problem("index", f"the index cannot be read: {error}")
            return None

    def _copied(self) -> Index:
        with closing(connect(self._home.index)) as source, closing(sqlite3.connect(self._scratch / "own.db")) as target:
            verdict = source.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if verdict != "ok":
                raise sqlite3.DatabaseError(verdict)
            source.backup(target)
        return Index(self._scratch / "own.db")

    def _same(self, own: Index, true: Index) -> bool:
        """Whether two indexes say the same; the first difference of each table is reported."""
        same = True
        for table in CONTENTS:
            for mine, truth in zip_longest(own.contents(table), true.contents(table)):
                if mine != truth:
                    self._report.problem("index", f"{table}: the index says {_shown(mine)}, the journal {_shown(truth)}")
                    same = False
                    break
        for name, value in true.totals.items():
            if name not in _INDEX_ONLY and own.totals[name] != value:
                detail = f"{name}: the index says {own.totals[name]}, the journal {value}"
                self._report.problem("totals", detail)
                same = False
        return same

    # What the journal says

    def _read_journal(self, true: Index, own: Index | None) -> None:
        torn = replay(true, self._log, self._found, self._applied)
        for damage in self._found.damage:
            where = {"pack": damage.pack, "offset": damage.offset, "bytes": damage.end - damage.offset}
            self._report.problem("journal", f"damaged: {damage.why}", **where)
        for number in self._found.missing_packs:
            self._report.problem("journal", "a pack is missing", pack=number)
        if isinstance(torn, Torn):
            self._torn_bytes = torn.end - torn.offset
            self._note("torn-tail", f"{self._torn_bytes} bytes were being written at the last stop", pack=torn.pack)
        self._report.records, self._report.packs = self._found.replayed_records, len(self._log.sizes)

    def _check_fragments(self, true: Index) -> None:
        counts = {state.name.lower(): 0 for state in State if state != State.UNNAMED}
        query = "SELECT root, size, home, place, length, state FROM fragments ORDER BY home, place"
        for root, *row in true.db.execute(query):
            place = Place(row[0], row[1], row[2], row[3], State(row[4]))
            counts[place.state.name.lower()] += 1
            try:
                self._check_image(FragmentRoot(root), place)
            except CorruptError as error:
                self._rotten.append(root)
                self._report.problem("fragment", error.message, root=root.hex(), state=place.state.name.lower())
        self._report.fragments = counts

    def _check_image(self, root: FragmentRoot, place: Place) -> None:
        own = place.home == OWN_FILE
        start = 0 if own else place.place
        try:
            fd = self._ops.open(self._files.path(place.place) if own else self._log.path(place.home))
        except FileNotFoundError:
            raise images.corrupt(root, "its file is gone") from None

        def read(length: int, at: int) -> bytes:
            return self._ops.read(fd, max(0, min(length, place.length - at)), start + at)

        try:
            images.verify(read, root, place.size, deep=self._deep)
        finally:
            self._ops.close(fd)

    def _check_blobs(self, true: Index) -> None:
        for kind, query in (
            ("encoding", "SELECT segment, pack, at, length, crc FROM encodings"),
            ("manifest", "SELECT cid, pack, at, length, crc FROM manifests"),
        ):
            for key, *row in true.db.execute(query):
                blob = Blob(*row)
                raw = self._log.read(blob.pack, blob.length, blob.at)
                if len(raw) != blob.length or crc32(raw) != blob.crc:
                    self._report.problem(kind, "fails its checksum", key=key.hex(), pack=blob.pack, offset=blob.at)

    def _check_holds(self, true: Index) -> None:
        for segment, segment_root, index, roots in true.db.execute("SELECT segment, segment_root, idx, roots FROM holds"):
            where = {"segment": segment.hex(), "index": index}
            for root in split_roots(roots):
                if true.place_of(root) is None:
                    self._report.problem("lost", "a fragment that is held has no bytes", root=root.hex(), **where)
            if true.encoding_of(segment, segment_root) is None:
                self._report.problem("lost", "a segment that is held has no encoding record", **where)

    # Files and space

    def _check_files(self, true: Index, own_floor: int) -> None:
        known = dict(true.db.execute("SELECT id, length FROM files WHERE NOT doomed"))
        doomed = _doomed(true) | self._doomed
        self._condemned_bytes = self._leftover_bytes = 0
        for number, size in self._files.listing():
            if number in known:
                if size != known[number]:
                    detail = f"a fragment's file has {size} bytes instead of {known[number]}"
                    self._report.problem("file", detail, file=number)
            elif number in doomed:
                self._condemned_bytes += size
            else:
                self._leftover_bytes += size
                self._add_orphan(number, size, own_floor)

    def _add_orphan(self, number: int, size: int, own_floor: int) -> None:
        if number >= own_floor and self._found.is_sound:
            self._note("leftover", "a file that was written but not yet named; the next start removes it", file=number)
        else:
            self._orphans.append(number)
            self._report.problem("orphan", f"{size} bytes in a file that the journal does not name", file=number)

    def _add_up(self, true: Index) -> None:
        """Used space by label from the journal, and the same from the directory: they must agree to the byte."""
        totals, home = true.totals, self._home
        walked, strangers = 0, 0
        for file in _walk(home.path):
            size = file.stat().st_size
            walked += size
            if not _is_ours(file.relative_to(home.path)):
                strangers += size
                self._note("stranger", f"{size} bytes in a file that is not the store's", file=str(file))
        self._report.space = {
            "committed": totals["committed_bytes"],
            "staged": totals["staged_bytes"],
            "trash": totals["trash_bytes"],
            "overhead.tables": totals["table_bytes"],
            "overhead.journal": self._log.bytes_total - totals["packed_bytes"] - self._torn_bytes,
            "overhead.torn": self._torn_bytes,
            "overhead.condemned": self._condemned_bytes,
            "overhead.leftover": self._leftover_bytes,
            "overhead.index": home.index_bytes(),
            "overhead.other": home.other_bytes() + strangers,
        }
        self._report.walked_bytes = walked
        if walked != self._report.used_bytes:
            detail = f"the directory holds {walked} bytes, the labels add up to {self._report.used_bytes}"
            self._report.problem("space", detail)

    def _note(self, kind: str, detail: str, **where: Any) -> None:
        if len(self._report.notes) < PROBLEMS_MAX:
            self._report.notes.append(Finding(kind, detail, where))


def _doomed(index: Index) -> set[int]:
    return {number for (number,) in index.db.execute("SELECT id FROM files WHERE doomed")}


def _walk(path: Path) -> Iterator[Path]:
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry)
        else:
            yield entry


def _is_ours(relative: Path) -> bool:
    top = relative.parts[0]
    if len(relative.parts) == 1:
        return top in ("FORMAT", "LOCK", *INDEX_FILES)
    patterns = {"packs": "packs/*.pack", "frags": "frags/*/*.frag", "quarantine": "quarantine/*"}
    return top in patterns and relative.match(patterns[top])


def _shown(row: tuple[object, ...] | None) -> str:
    if row is None:
        return "nothing"
    return ", ".join(value.hex()[:16] if isinstance(value, bytes) else str(value) for value in row)


# Repair


def _repair(path: Path, ops: FileOps, checked: _Checked) -> list[Finding]:
    """Bring a store into order: set damage and orphans aside, rebuild a wrong index, recover, mark what is rotten."""
    done: list[Finding] = []
    home = StoreHome(path, ops, create=False)
    try:
        log, files = PackLog(ops, home.packs, home.salt), FragmentFiles(ops, home.frags)
        quarantine(home, ops, log, checked.recovery)
        for damage in checked.recovery.damage:
            _fill(log, damage)
            where = {"pack": damage.pack, "offset": damage.offset}
            done.append(Finding("journal", "damaged bytes were moved to the quarantine", where))
        for number in checked.orphans:
            ops.rename(files.path(number), home.quarantine / files.path(number).name)
            done.append(Finding("orphan", "moved to the quarantine", {"file": number}))
        if checked.orphans:
            ops.sync_directory(home.quarantine)
            files.sync_directories(checked.orphans)
        if checked.index_is_bad or checked.recovery.damage:
            home.remove_index()
            done.append(Finding("index", "rebuilt from the journal"))
    finally:
        home.close()
    _reopen(path, ops, checked.rotten)
    return done


def _fill(log: PackLog, damage: Damage) -> None:
    if min(damage.end, log.sizes[damage.pack]) > damage.offset:
        log.fill(damage)


def _reopen(path: Path, ops: FileOps, rotten: list[bytes]) -> None:
    """A start recovers; then what is rotten is remembered, so that it no longer counts as held."""
    with FragmentStore(path, StoreConfig(capacity_bytes=0), ops=ops) as store, store.writer.quiet():
        store.index.begin()
        store.index.db.executemany("UPDATE fragments SET bad = 1 WHERE root = ?", [(root,) for root in rotten])
        store.index.commit()

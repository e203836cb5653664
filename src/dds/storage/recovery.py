"""Opening a store after whatever happened to it: bring the index up to date, cut torn tails, remove leftovers.

The journal is the truth. What lies behind the index's mark is replayed; without an index all of it is. A tail that was being
written when the process or the machine died was never acknowledged and is cut off. Damage - bytes that once were durable and do
not parse - is copied to the quarantine and reported, and everything behind it is applied. While there is damage, files that the
journal does not name are kept: the record which named them may be what was lost.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from dds.primitives.errors import DDSError
from dds.storage.fileops import FileOps
from dds.storage.fragment_files import FragmentFiles
from dds.storage.index import Index
from dds.storage.packs import Damage, PackLog, Torn
from dds.storage.store_home import StoreHome

_RECORDS_PER_TRANSACTION = 2000


@dataclass(slots=True)
class Recovery:
    """What opening found and did. Only `damage` and `missing_packs` mean that something acknowledged may be lost."""

    replayed_records: int = 0
    torn_bytes: int = 0
    leftover_files: int = 0
    rebuilt_index: bool = False
    damage: list[Damage] = field(default_factory=list)
    missing_packs: list[int] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return not self.damage and not self.missing_packs


def open_index(home: StoreHome, log: PackLog, found: Recovery) -> Index:
    """The index as it is on disk, or an empty one where it is missing, unreadable, or of another history than the journal."""
    try:
        index = Index(home.index)
        if _fits(index, log):
            found.rebuilt_index = index.applied[0] == 0
            return index
        index.close()
    except (sqlite3.DatabaseError, DDSError):
        pass
    home.remove_index()
    found.rebuilt_index = True
    return Index(home.index)


def _fits(index: Index, log: PackLog) -> bool:
    """Whether the journal still has everything behind the index's mark (an empty index has its mark before all packs)."""
    pack, _ = index.applied
    return pack == 0 or pack in log.sizes


def replay(index: Index, log: PackLog, found: Recovery, proven: tuple[int, int] = (0, 0)) -> Torn | None:
    """Apply what lies behind the index's mark. Returns the torn tail, if there is one.

    `proven`: (pack, offset) up to which the journal is known to have been durable; at least the index's own mark.
    """
    pack, offset = index.applied
    proven = max(proven, (pack, offset))
    torn: Torn | None = None
    found.missing_packs = log.missing
    pending = 0
    index.begin_replay()
    index.begin()
    try:
        for number in log.numbers:
            if number < pack:
                continue
            start = offset if number == pack else 0
            for item in log.scan(number, start, _proven_of(log, number, proven)):
                match item:
                    case Damage():
                        found.damage.append(item)
                        index.set("damaged", 1)
                        index.set_applied(number, item.end)
                    case Torn():
                        torn = item
                    case _:
                        index.apply(item.operations, number, item.body_at)
                        index.set_applied(number, item.end)
                        found.replayed_records += 1
                        pending += 1
                if pending >= _RECORDS_PER_TRANSACTION:
                    index.commit()
                    index.begin()
                    pending = 0
        index.end_replay()
        index.commit()
    except BaseException:
        index.rollback()
        raise
    return torn


def _proven_of(log: PackLog, number: int, proven: tuple[int, int]) -> int:
    """How much of a pack is known to have been durable: all of it when there is a later one."""
    known = proven[1] if number == proven[0] else 0
    return known if number == log.current else max(known, log.sizes[number])


def settle_tail(log: PackLog, torn: Torn | None, found: Recovery) -> None:
    """Cut off a torn tail and make the journal ready to be continued."""
    if torn is not None:
        found.torn_bytes = torn.end - torn.offset
        if torn.offset:
            log.truncate(torn)
    if any(damage.pack == log.current and damage.end >= log.end for damage in found.damage if log.sizes):
        log.begin_new_next()
    log.open_for_append()


def quarantine(home: StoreHome, ops: FileOps, log: PackLog, found: Recovery) -> None:
    """Keep a copy of damaged bytes, since compaction will drop the pack that holds them."""
    for damage in found.damage:
        target = home.quarantine / f"{damage.pack:08d}-{damage.offset:08d}.bad"
        raw = log.read(damage.pack, damage.end - damage.offset, damage.offset)
        if raw and not target.exists():
            fd = ops.create(target)
            try:
                ops.write(fd, [raw], 0)
                ops.sync(fd)
            finally:
                ops.close(fd)
    if found.damage:
        ops.sync_directory(home.quarantine)


def remove_leftovers(index: Index, files: FragmentFiles, found: Recovery) -> None:
    """Remove files that were written but never named by the journal, and set the next free number.

    Only directories that were written to since the last start are looked at. Kept is everything while the journal has damage.
    """
    floor = 0 if found.rebuilt_index else index.get("file_floor")
    listed = dict(files.listing(floor))
    leftovers = [number for number in listed if not is_named(index, number)]
    following = max([index.get("next_file"), *(number + 1 for number in listed)])
    keep = bool(index.get("damaged") or found.missing_packs)
    if not keep:
        files.unlink(leftovers)
        found.leftover_files = len(leftovers)
    _forget_vanished(index, files)
    index.begin()
    index.set("next_file", following)
    if not keep:
        index.set("file_floor", following)
    index.commit()
    files.start_at(following)


def is_named(index: Index, number: int) -> bool:
    return index.db.execute("SELECT 1 FROM files WHERE id = ?", (number,)).fetchone() is not None


def _forget_vanished(index: Index, files: FragmentFiles) -> None:
    """Strike off doomed files that are gone: a kill came behind their unlink, or a replay doomed once more what once was."""
    doomed = index.db.execute("SELECT id FROM files WHERE doomed").fetchall()
    index.begin()
    forget_files(index, [number for (number,) in doomed if not files.path(number).exists()])
    index.commit()


def forget_files(index: Index, numbers: list[int]) -> None:
    """Strike doomed files off the index after they are gone."""
    for number in numbers:
        delete = "DELETE FROM files WHERE id = ? AND doomed RETURNING length"
        for (length,) in index.db.execute(delete, (number,)).fetchall():
            index.totals["doomed_bytes"] -= length
            index.totals["file_count"] -= 1

"""The client's catalog: chunks, uploads under way and contents, shared by several processes."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dds.primitives.cid import CID, cid_of
from dds.primitives.errors import ConfigError, FormatError
from dds.primitives.ids import FragmentRoot, NodeID, SegmentID, UploadID
from dds.protocol.tiering import Tier
from dds.storage.catalog import CachedSegment, Catalog, ContentNote, Location, TierNote
from dds.wire.segment import CODEC_PLAIN, Entry, encode_index, segment_id_of

NODES = tuple(NodeID(bytes([number]) * 32) for number in range(16))
UPLOAD = UploadID(b"u" * 16)


def index_of(chunks: list[bytes]) -> bytes:
    entries, at = [], 0
    for chunk in chunks:
        entries.append(Entry(cid_of(chunk), at, len(chunk), len(chunk), CODEC_PLAIN))
        at += len(chunk)
    return encode_index(entries)


def chunks_of(name: str, count: int = 3) -> list[bytes]:
    return [f"{name} {number}".encode() for number in range(count)]


def add(catalog: Catalog, name: str, count: int = 3) -> SegmentID:
    index = index_of(chunks_of(name, count))
    catalog.add_segment(segment_id_of(index), NODES, b"encoding " + name.encode(), index)
    return segment_id_of(index)


def test_a_chunk_is_found_where_it_was_put(tmp_path: Path) -> None:
    with Catalog(tmp_path / "home" / "catalog.db") as catalog:
        segment = add(catalog, "a")
        known = [cid_of(chunk) for chunk in chunks_of("a")]
        unknown = cid_of(b"nowhere")
        assert catalog.lookup([*known, unknown]) == {cid: Location(segment, at) for at, cid in enumerate(known)}
        assert catalog.lookup([]) == {}
        assert catalog.segment(segment) == CachedSegment(segment, NODES, b"encoding a", index_of(chunks_of("a")))
        assert catalog.segment(SegmentID(bytes(32))) is None
    assert (tmp_path / "home" / "catalog.db").stat().st_mode & 0o777 == 0o600


def test_thousands_of_chunks_are_looked_up_at_once(tmp_path: Path) -> None:
    with Catalog(tmp_path / "catalog.db") as catalog:
        add(catalog, "big", 4000)
        cids = [cid_of(chunk) for chunk in chunks_of("big", 4000)]
        assert len(catalog.lookup([*cids, *cids])) == 4000


def test_a_forgotten_segment_takes_its_chunks_along(tmp_path: Path) -> None:
    with Catalog(tmp_path / "catalog.db") as catalog:
        first, second = add(catalog, "a"), add(catalog, "b")
        catalog.forget_segment(first)
        catalog.forget_segment(first)
        assert catalog.segment(first) is None
        assert catalog.lookup([cid_of(chunk) for chunk in chunks_of("a")]) == {}
        assert catalog.segment(second) is not None
        assert add(catalog, "a") == first
        assert len(catalog.lookup([cid_of(chunk) for chunk in chunks_of("a")])) == 3


def test_a_segment_added_again_has_the_new_holders(tmp_path: Path) -> None:
    with Catalog(tmp_path / "catalog.db") as catalog:
        segment, index = add(catalog, "a"), index_of(chunks_of("a"))
        catalog.add_segment(segment, NODES[:2], b"new", index)
        assert catalog.segment(segment) == CachedSegment(segment, NODES[:2], b"new", index)


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with Catalog(tmp_path / "catalog.db") as catalog, pytest.raises(FormatError):
        catalog.add_segment(SegmentID(bytes(32)), NODES, b"", b"junk")


def test_a_broken_put_is_resumed_after_a_restart(tmp_path: Path) -> None:
    path, root = tmp_path / "catalog.db", FragmentRoot(b"r" * 32)
    with Catalog(path) as catalog:
        assert catalog.open_upload(b"source", 0) is None
        catalog.note_upload(b"source", 0, UPLOAD, NODES)
        catalog.note_staged(UPLOAD, root, NODES[1])
        catalog.note_staged(UPLOAD, root, NODES[1])
        catalog.note_staged_many(UPLOAD, [(root, NODES[2]), (FragmentRoot(b"s" * 32), NODES[1])])
    with Catalog(path) as catalog:
        note = catalog.open_upload(b"source", 0)
        assert note is not None
        assert (note.upload_id, note.nodes) == (UPLOAD, NODES)
        assert catalog.open_upload(b"source", 1) is None
        assert catalog.staged(UPLOAD) == {root: {NODES[1], NODES[2]}, FragmentRoot(b"s" * 32): {NODES[1]}}
        catalog.note_upload(b"source", 0, UPLOAD, NODES[::-1])
        assert catalog.open_upload(b"source", 0) is not None
        catalog.close_upload(UPLOAD)
        assert catalog.open_upload(b"source", 0) is None
        assert catalog.staged(UPLOAD) == {}


def test_the_first_of_two_uploads_of_the_same_thing_wins(tmp_path: Path) -> None:
    with Catalog(tmp_path / "catalog.db") as catalog:
        catalog.note_upload(b"source", 0, UPLOAD, NODES)
        second = catalog.note_upload(b"source", 0, UploadID(b"v" * 16), NODES[:3])
        assert (second.upload_id, second.nodes) == (UPLOAD, NODES)


def test_contents_are_listed_newest_first_and_page_by_page(tmp_path: Path) -> None:
    rng = random.Random(5)
    notes = [ContentNote(cid_of(b"%d" % at), f"n{at}", at, "standard", "file", rng.randrange(4)) for at in range(25)]
    with Catalog(tmp_path / "catalog.db") as catalog:
        for note in notes:
            catalog.add_content(note)
        catalog.add_content(notes[0])
        expected = sorted(notes, key=lambda note: (-note.put_ms, note.cid))
        assert catalog.contents() == expected
        pages, after = [], None
        while page := catalog.contents(after=after, limit=4):
            pages += page
            after = page[-1]
        assert pages == expected
        assert catalog.content(notes[3].cid) == notes[3]
        catalog.forget_content(notes[3].cid)
        assert catalog.content(notes[3].cid) is None
        assert catalog.content(CID(bytes(36))) is None


def test_a_moved_content_remembers_what_it_was_until_it_is_put_again(tmp_path: Path) -> None:
    note = ContentNote(cid_of(b"moved"), "name", 5, "custom", "file", 1)
    with Catalog(tmp_path / "catalog.db") as catalog:
        catalog.add_content(note, TierNote(4, 2, 30))
        catalog.note_move(note.cid, Tier("archive", 6, 6), 2, NODES)
        assert catalog.tier(note.cid) == TierNote(6, 6, 30, Tier("custom", 4, 2))
        catalog.note_move(note.cid, Tier("archive", 16, 16), 3, NODES)  # the same class: what it was stays what it was
        assert catalog.tier(note.cid).before == Tier("custom", 4, 2)
        catalog.note_move(note.cid, Tier("hot"), 4, NODES)
        assert catalog.tier(note.cid) == TierNote(None, None, 30, Tier("archive", 16, 16))
        catalog.add_content(note)
        assert catalog.tier(note.cid) == TierNote()


def test_a_catalog_of_an_older_release_knows_no_more_of_a_content_than_its_class(tmp_path: Path) -> None:
    note = ContentNote(cid_of(b"old"), "name", 5, "hot", "file", 1)
    with Catalog(tmp_path / "catalog.db") as catalog:
        catalog.add_content(note)
    with sqlite3.connect(tmp_path / "catalog.db") as db:
        db.execute("DROP TABLE tiers")
    with Catalog(tmp_path / "catalog.db") as catalog:
        assert catalog.tier(note.cid) == TierNote()
        catalog.note_move(note.cid, Tier("archive", 6, 6), 2, NODES)
        assert catalog.tier(note.cid).before == Tier("hot")


def test_what_is_no_catalog_or_a_newer_one_is_refused(tmp_path: Path) -> None:
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"junk" * 4000)
    with pytest.raises(ConfigError, match="not a catalog"):
        Catalog(junk)
    newer = tmp_path / "newer.db"
    Catalog(newer).close()
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ConfigError, match="version 99"):
        Catalog(newer)


WORKER = """
import sys
from pathlib import Path
from dds.storage.catalog import Catalog
from dds.primitives.ids import UploadID
from tests.unit.test_catalog import add, NODES
from dds.primitives.ids import FragmentRoot
number = int(sys.argv[2])
for round in range(12):
    with Catalog(Path(sys.argv[1])) as catalog:
        add(catalog, f"{number}.{round}", 200)
        upload = UploadID(bytes([number, round]) * 8)
        catalog.note_upload(b"same source", round, upload, NODES)
        for root in range(10):
            catalog.note_staged(upload, FragmentRoot(bytes([root]) * 32), NODES[number])
"""


def test_processes_that_share_a_catalog_never_see_it_locked(tmp_path: Path) -> None:
    path, root = tmp_path / "catalog.db", Path(__file__).parents[2]
    command = [sys.executable, "-c", WORKER, str(path)]
    started = [subprocess.Popen([*command, str(number)], cwd=root, stderr=subprocess.PIPE, text=True) for number in range(3)]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    with Catalog(path) as catalog:
        for number in range(3):
            for turn in range(12):
                assert len(catalog.lookup([cid_of(chunk) for chunk in chunks_of(f"{number}.{turn}", 200)])) == 200
                assert len(catalog.staged(UploadID(bytes([number, turn]) * 8))) == 10


def test_threads_share_a_catalog(tmp_path: Path) -> None:
    with Catalog(tmp_path / "catalog.db") as catalog, ThreadPoolExecutor(8) as pool:
        segments = list(pool.map(lambda number: add(catalog, str(number)), range(40)))
        assert all(catalog.segment(segment) is not None for segment in segments)

"""The store's format on disk is frozen: what one release wrote, every later one reads (docs/spec/fragment-store.md)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dds.storage.fileops import FileOps
from dds.storage.image import build_image
from dds.storage.journal import (
    Close,
    DropManifest,
    Encoding,
    Hold,
    Manifest,
    Op,
    Purge,
    Put,
    PutFile,
    Release,
    Stage,
    Unstage,
    decode_ops,
    encode_ops,
)
from dds.storage.packs import PackLog, Record

ROOT, SEGMENT, SEGMENT_ROOT, CID = b"r" * 32, b"s" * 32, b"t" * 32, b"c" * 36
OPERATIONS: list[Op] = [
    Put(ROOT, 5, 0, 93),
    PutFile(ROOT, 200_000, 7, 201_680),
    Stage(b"u" * 16, b"o" * 32, ROOT, 1_700_000_000_000),
    Unstage(b"u" * 16, b"o" * 32),
    Unstage(b"u" * 16, b"o" * 32, [ROOT]),
    Encoding(SEGMENT, SEGMENT_ROOT, 93, 4, 0xDEADBEEF),
    Hold(SEGMENT, SEGMENT_ROOT, 3, ROOT, b"u" * 16, b"o" * 32),
    Hold(SEGMENT, SEGMENT_ROOT, 3, ROOT, released_ms=9),
    Release(SEGMENT, SEGMENT_ROOT, 3, 1_700_000_000_001),
    Purge(SEGMENT, SEGMENT_ROOT, 3),
    Manifest(CID, b"p" * 32, 12, 97, 6, 1),
    DropManifest(CID, b"p" * 32),
    Close(),
]


def test_the_image_of_a_fragment_is_frozen() -> None:
    small = build_image(b"hello")
    assert (small.tables + small.data).hex() == IMAGE_OF_HELLO
    large = build_image(bytes(range(256)) * 1000)
    assert large.length == 258148
    assert hashlib.sha256(large.tables + large.data).hexdigest() == IMAGE_OF_256000


def test_the_operations_of_the_journal_are_frozen() -> None:
    raw = encode_ops(OPERATIONS)
    assert hashlib.sha256(raw).hexdigest() == OPERATIONS_SHA256
    assert decode_ops(raw) == OPERATIONS
    assert encode_ops([Close()]).hex() == "91910b"


def test_a_pack_is_frozen(tmp_path: Path) -> None:
    log = PackLog(FileOps(), tmp_path, b"saltsalt")
    log.open_for_append()
    log.append([log.frame(log.end, [Release(SEGMENT, SEGMENT_ROOT, 3, 4)], [b"body"])])
    log.close()
    assert (tmp_path / "00000001.pack").read_bytes().hex() == PACK
    (record,) = PackLog(FileOps(), tmp_path, b"saltsalt").scan(1, 0, 0)
    assert isinstance(record, Record)
    assert record.operations == [Release(SEGMENT, SEGMENT_ROOT, 3, 4)]


IMAGE_OF_HELLO = (
    "4444534652414731b7f6c23c7ef9db0aaefab70bb88efb1849bf8854a9c61f3b9d6e787ba667cade00000005a3b7efec7d81"
    "4e423610a686b7f6c23c7ef9db0aaefab70bb88efb1849bf8854a9c61f3b9d6e787ba667cade68656c6c6f"
)
IMAGE_OF_256000 = "5c3b0b2b944094e29d4758d5d35e1465ed693d4366dc3f0105ab2c64a5f616fa"
OPERATIONS_SHA256 = "cfbe374cc680661461b22922dfb5b5a5d10739992969902e83b265f5a81026fb"
PACK = (
    "4444535041434b3173616c7473616c7400000001c486b60373616c7473616c7400000018000000490000000400000018cd5a"
    "d8c2cf6a9145919507c4207373737373737373737373737373737373737373737373737373737373737373c4207474747474"
    "7474747474747474747474747474747474747474747474747474740304626f6479"
)

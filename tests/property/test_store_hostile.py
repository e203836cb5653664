"""Whatever bytes lie in a pack: the scan ends, reports what it could not read, and raises nothing of its own making."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from dds.primitives.errors import FormatError
from dds.storage.fileops import FileOps
from dds.storage.journal import Close, Stage, decode_ops
from dds.storage.packs import PACK_HEAD_BYTES, Damage, PackLog, Record, Torn

SALT = b"saltsalt"


@given(st.binary(max_size=400))
def test_operations_of_any_bytes_parse_or_are_refused(raw: bytes) -> None:
    with suppress(FormatError):
        assert isinstance(decode_ops(raw), list)


def pack_with(directory: Path) -> tuple[bytes, list[int]]:
    """A pack of six records, and where each begins."""
    log, starts = PackLog(FileOps(), directory, SALT), []
    log.open_for_append()
    for number in range(6):
        starts.append(log.end)
        log.append([log.frame(log.end, [Stage(bytes([number]) * 16, b"o", b"r" * 32, number), Close()], [])])
    log.close()
    return (directory / "00000001.pack").read_bytes(), starts


@settings(max_examples=150, deadline=None)
@given(
    at=st.integers(0, 700),
    junk=st.one_of(st.binary(min_size=1, max_size=200), st.just(SALT), st.just(SALT + b"\xff" * 24), st.just(SALT * 9)),
    cut=st.booleans(),
    proven=st.booleans(),
)
def test_a_scan_of_any_bytes_ends_and_accounts_for_each(at: int, junk: bytes, cut: bool, proven: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        whole, starts = pack_with(Path(name))
        raw = whole[:at] + junk + (b"" if cut else whole[at + len(junk) :])
        (Path(name) / "00000001.pack").write_bytes(raw)
        log = PackLog(FileOps(), Path(name), SALT)
        found = list(log.scan(1, 0, len(raw) if proven else 0))
    reached = PACK_HEAD_BYTES
    for item in found:
        if item.offset == 0:
            assert isinstance(item, Damage | Torn)
            continue
        assert item.offset == reached, "bytes were skipped without a word"
        reached = item.end
    assert reached == max(len(raw), PACK_HEAD_BYTES) or (found and isinstance(found[-1], Torn))
    assert not (proven and any(isinstance(item, Torn) for item in found if item.offset)), "what is proven is never cut off"
    untouched = {start for start in starts if raw[start : start + 120] == whole[start : start + 120]}
    if proven and at > PACK_HEAD_BYTES:
        read = {item.offset for item in found if isinstance(item, Record)}
        assert {start for start in untouched if start + 120 <= len(raw)} <= read, "an intact record was dropped"

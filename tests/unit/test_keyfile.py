"""Key files: made once, private, and never shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dds.primitives.errors import ConfigError, StorageError
from dds.storage.keyfile import create_key, load_key, load_or_create_key


def test_a_key_is_the_same_after_a_restart_and_private(tmp_path: Path) -> None:
    path = tmp_path / "home" / "node.key"
    key = load_or_create_key(path)
    assert load_or_create_key(path).public == load_key(path).public == key.public
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["node.key"]


def test_a_key_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    create_key(path, bytes(32))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        create_key(path)
    assert path.read_bytes() == before == b"00" * 32 + b"\n"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666, 0o610])
def test_a_key_that_others_may_have_seen_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.key"
    create_key(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="open to other users") as caught:
        load_or_create_key(path)
    assert path.read_text().strip() not in str(caught.value) + str(caught.value.to_dict())


@pytest.mark.parametrize("raw", [b"", b"00", b"zz" * 32, b"00" * 33, b"\xff" * 64, b"00" * 40_000])
def test_what_is_no_key_file_is_refused_without_being_shown(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(raw)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not a key file"):
        load_key(path)


def test_a_missing_directory_link_or_foreign_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    with pytest.raises(ConfigError, match="there is no key file"):
        load_key(path)
    create_key(path)
    link = tmp_path / "link.key"
    link.symlink_to(path)
    with pytest.raises(StorageError, match="ELOOP"):
        load_key(link)
    with pytest.raises(ConfigError, match="not a regular file"):
        load_key(tmp_path)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
        with pytest.raises(ConfigError, match="belongs to user 12345"):
            load_key(path)


def test_no_seed_shows_in_a_repr(tmp_path: Path) -> None:
    key = create_key(tmp_path / "node.key")
    assert key.seed.hex() not in repr(key) + str(key) + repr([key])


def test_processes_that_start_at_once_get_one_key(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dds.storage.keyfile import load_or_create_key\n"
        "sys.stdin.read(1); print(load_or_create_key(Path(sys.argv[1])).public.hex())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "node.key")]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    publics = {process.communicate(timeout=30)[0].strip() for process in started}
    assert len(publics) == 1
    assert len(publics.pop()) == 64

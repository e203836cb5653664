"""The daemon's log can be read by machines, stays bounded, and shows what failed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from dds.primitives.errors import ConfigError, DiskFullError
from dds.runtime import logs
from dds.runtime.logs import event, log_to_file, stop_logging

_log = logging.getLogger("dds.test_logs")


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_is_one_json_object_with_its_fields(tmp_path: Path) -> None:
    handler = log_to_file(tmp_path / "node.log", "info")
    try:
        event(_log, logging.INFO, "node started", node=b"\x01\x02", port=7, text="two\nlines", time="not the field's own")
        event(_log, logging.DEBUG, "not wanted")
    finally:
        stop_logging(handler)
    (line,) = _lines(tmp_path / "node.log")
    assert (line["level"], line["logger"], line["event"]) == ("info", "dds.test_logs", "node started")
    assert (line["node"], line["port"], line["text"]) == ("0102", 7, "two\nlines")
    assert str(line["time"]).endswith("+00:00")


def test_our_own_errors_show_their_fields_and_bugs_their_traceback(tmp_path: Path) -> None:
    handler = log_to_file(tmp_path / "node.log", "info")
    try:
        event(_log, logging.ERROR, "expected", error=DiskFullError("full", actual=7))
        try:
            raise KeyError("bug")
        except KeyError as error:
            event(_log, logging.ERROR, "unexpected", error=error)
    finally:
        stop_logging(handler)
    expected, unexpected = _lines(tmp_path / "node.log")
    assert expected["error"] == {"code": "disk-full", "message": "full", "hint": None, "actual": 7}
    assert "traceback" not in expected
    assert "KeyError: 'bug'" in str(unexpected["traceback"])


def test_the_log_rotates_and_old_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_BYTES_MAX", 2000)
    handler = log_to_file(tmp_path / "node.log", "info")
    try:
        for at in range(100):
            event(_log, logging.INFO, "line", at=at, stranger="x" * 5000)
    finally:
        stop_logging(handler)
    files = list(tmp_path.iterdir())
    assert len(files) == 1 + logs.LOG_FILES_KEPT
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert sum(file.stat().st_size for file in files) <= len(files) * 2000


def test_an_unknown_level_or_an_unwritable_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        log_to_file(tmp_path / "node.log", "loud")
    with pytest.raises(ConfigError):
        log_to_file(tmp_path / "missing" / "node.log", "info")

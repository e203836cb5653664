"""The daemon's log: one JSON object a line, in a file that never grows past its bound.

Decides the fields (time, level, logger, event, then the event's own), the rotation, and what an error looks like. Nothing here
knows a secret; callers name identifiers, sizes and codes, never bodies or keys, and bytes are shown as hexadecimal.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path

from dds.primitives.errors import ConfigError, DDSError

LOG_BYTES_MAX = 8 << 20
LOG_FILES_KEPT = 3
FIELD_CHARS_MAX = 512  # what a stranger can make one field of a line grow to
TRACEBACK_CHARS_MAX = 8192
LEVELS = ("debug", "info", "warning", "error")

_ROOT = "dds"


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON; times are UTC with milliseconds."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, object] = {"time": time, "level": record.levelname.lower(), "logger": record.name}
        line["event"] = record.getMessage()[:FIELD_CHARS_MAX]
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line.update({key: _plain(value) for key, value in fields.items() if key not in line})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-TRACEBACK_CHARS_MAX:]
        return json.dumps(line, ensure_ascii=True)


class _PrivateFile(RotatingFileHandler):
    """Rotated as usual; only its owner can read it, like all else in a node's directory."""

    def _open(self) -> TextIOWrapper:
        stream = open(self.baseFilename, self.mode, encoding=self.encoding, opener=_open_private)  # noqa: SIM115 - the handler closes it
        assert isinstance(stream, TextIOWrapper)
        return stream


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def log_to_file(path: Path, level: str) -> logging.Handler:
    """Send everything that DDS logs to `path`, at `level` and above. The caller closes it with `stop_logging`.

    Raises:
        ConfigError: an unknown level, or a file that cannot be opened.
    """
    if level not in LEVELS:
        raise ConfigError(f"unknown log level {level[:32]!r}", hint="one of " + ", ".join(LEVELS))
    try:
        handler = _PrivateFile(path, maxBytes=LOG_BYTES_MAX, backupCount=LOG_FILES_KEPT, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write the log {path}: {error.strerror}") from None
    handler.setFormatter(JsonLines())
    root = logging.getLogger(_ROOT)
    root.addHandler(handler)
    root.setLevel(level.upper())
    return handler


def stop_logging(handler: logging.Handler) -> None:
    logging.getLogger(_ROOT).removeHandler(handler)
    handler.close()


def event(logger: logging.Logger, level: int, name: str, /, *, error: BaseException | None = None, **fields: object) -> None:
    """Log `name` with its fields. A DDSError is shown by its own fields; another exception, a bug, with its traceback."""
    if not logger.isEnabledFor(level):
        return
    if isinstance(error, DDSError):
        fields["error"] = error.to_dict()
        error = None
    logger.log(level, name, exc_info=error, extra={"fields": fields})


def _plain(value: object) -> object:
    match value:
        case None | bool() | int() | float():
            return value
        case bytes() | bytearray():
            return value.hex()[:FIELD_CHARS_MAX]
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return str(value)[:FIELD_CHARS_MAX]

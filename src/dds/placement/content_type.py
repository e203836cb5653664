"""A content type (RFC 6838) from a file's name, by a table of our own.

Decides the same on every machine and with every version of Python: no system's table is asked, and no byte of the file is
read. What the table does not know is `application/octet-stream`. Does not decide what follows from a type (policy.py).
Source: docs/spec/policy.md, "Content types".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

UNKNOWN: Final = "application/octet-stream"

_TYPES: Final[Mapping[str, str]] = {
    "text/plain": "txt text log ini cfg conf",
    "text/markdown": "md markdown",
    "text/html": "html htm",
    "text/css": "css",
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
    "text/javascript": "js mjs",
    "text/calendar": "ics",
    "text/x-source": "c h cc cpp hpp rs go py java kt rb pl sh ts tsx jsx lua swift r jl hs ml toml yaml yml",
    "image/jpeg": "jpg jpeg jpe",
    "image/png": "png",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/avif": "avif",
    "image/heic": "heic heif",
    "image/svg+xml": "svg",
    "image/tiff": "tif tiff",
    "image/bmp": "bmp",
    "image/x-icon": "ico",
    "image/x-raw": "dng cr2 cr3 nef arw",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg oga opus",
    "audio/flac": "flac",
    "audio/wav": "wav",
    "audio/mp4": "m4a aac",
    "audio/midi": "mid midi",
    "video/mp4": "mp4 m4v",
    "video/webm": "webm",
    "video/x-matroska": "mkv",
    "video/quicktime": "mov",
    "video/x-msvideo": "avi",
    "video/mpeg": "mpg mpeg",
    "video/mp2t": "mts m2ts",
    "video/ogg": "ogv",
    "font/woff2": "woff2",
    "font/woff": "woff",
    "font/ttf": "ttf",
    "font/otf": "otf",
    "application/json": "json geojson map",
    "application/x-ndjson": "jsonl ndjson",
    "application/xml": "xml xsl rss atom",
    "application/pdf": "pdf",
    "application/epub+zip": "epub",
    "application/rtf": "rtf",
    "application/msword": "doc",
    "application/vnd.ms-excel": "xls",
    "application/vnd.ms-powerpoint": "ppt",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "pptx",
    "application/vnd.oasis.opendocument.text": "odt",
    "application/vnd.oasis.opendocument.spreadsheet": "ods",
    "application/vnd.sqlite3": "sqlite sqlite3 db",
    "application/vnd.apache.parquet": "parquet",
    "application/zip": "zip",
    "application/gzip": "gz tgz",
    "application/zstd": "zst",
    "application/x-bzip2": "bz2",
    "application/x-xz": "xz",
    "application/x-7z-compressed": "7z",
    "application/vnd.rar": "rar",
    "application/x-tar": "tar",
    "application/vnd.ipld.car": "car",
    "application/x-iso9660-image": "iso",
    "application/x-disk-image": "img qcow2 vmdk vdi vhd vhdx dmg",
    "application/sql": "sql",
    "application/wasm": "wasm",
    "application/vnd.debian.binary-package": "deb",
    "application/x-rpm": "rpm",
    "application/java-archive": "jar",
    "application/vnd.android.package-archive": "apk",
    "application/x-executable": "exe dll so dylib msi",
    "application/x-model-weights": "safetensors gguf onnx pt ckpt h5",
}
_BY_SUFFIX: Final = {suffix: kind for kind, suffixes in _TYPES.items() for suffix in suffixes.split()}


def content_type(name: str) -> str:
    """The type that the last suffix of a file's name stands for."""
    stem, dot, suffix = name.rpartition(".")
    return _BY_SUFFIX.get(suffix.lower(), UNKNOWN) if dot and stem else UNKNOWN


def dominant_type(bytes_by_type: Mapping[str, int]) -> str:
    """The type that most bytes have; of several with as many, the first by name; of nothing, unknown."""
    return min(bytes_by_type, key=lambda kind: (-bytes_by_type[kind], kind), default=UNKNOWN)

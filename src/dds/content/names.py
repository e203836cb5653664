"""Which names a directory entry may have.

A name is bytes: UnixFS calls it a string, yet file systems and other writers store whatever bytes they have, and a name that
was decoded and encoded again could change a ContentID. For people it is UTF-8 with undecodable bytes escaped.
Source: UnixFS specification, "Restricted Names".
"""

from __future__ import annotations

from dds.content.dagpb import LINK_NAME_BYTES_MAX
from dds.primitives.errors import FormatError

NAME_BYTES_MAX = LINK_NAME_BYTES_MAX - 4  # room for the bucket prefix of a sharded directory


def check_name(name: bytes) -> None:
    """Refuse a name that no file system could hold or that would lead out of its directory.

    Raises:
        FormatError: empty, `.`, `..`, too long, or with a slash or a NUL inside.
    """
    if name in (b"", b".", b".."):
        raise FormatError(f"a directory entry may not be called {name_text(name)!r}")
    if b"/" in name or b"\x00" in name:
        raise FormatError(f"the name {name_text(name)!r} of a directory entry has a slash or a NUL in it")
    if len(name) > NAME_BYTES_MAX:
        raise FormatError(f"the name of a directory entry has {len(name)} bytes; the limit is {NAME_BYTES_MAX}")


def name_text(name: bytes) -> str:
    """For messages and listings: bytes that are not UTF-8 appear as `\\xNN`."""
    return name.decode("utf-8", "backslashreplace")

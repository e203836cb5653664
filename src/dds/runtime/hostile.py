"""A node that lies: a test aid, started by `dds devnet start --tamper` and by the demonstration.

It is the real daemon in every way but one: whatever it reads from its store for somebody has its first byte altered, in the
fragments that it serves and in the leaves that it is asked for when somebody grows suspicious. What lies on its disk stays
right, so its own checks find nothing: only its readers can. It exists to show that they do, name it, and get their bytes from
others.
"""

from __future__ import annotations

import sys

from dds.primitives.ids import FragmentRoot
from dds.runtime import daemon, node
from dds.storage.fragment_store import FragmentStore


class LyingStore(FragmentStore):
    """A fragment store that alters what it gives out."""

    def read(self, root: FragmentRoot, offset: int = 0, length: int | None = None, *, fresh: bool = False) -> bytes:
        return altered(super().read(root, offset, length, fresh=fresh))

    def read_leaves(
        self, root: FragmentRoot, first: int, count: int, *, fresh: bool = False
    ) -> tuple[int, list[bytes], list[list[bytes]]]:
        size, leaves, paths = super().read_leaves(root, first, count, fresh=fresh)
        return size, [altered(leaf) for leaf in leaves], paths


def altered(data: bytes) -> bytes:
    return bytes((data[0] ^ 0xFF,)) + data[1:] if data else data


def main() -> int:
    vars(node)["FragmentStore"] = LyingStore  # the daemon opens this one now
    return daemon.main()


if __name__ == "__main__":
    sys.exit(main())

"""What a node announces, and where its announcements wait: announce.state in the node's directory.

Decides what is announced: the fragment indices held of every segment and the contents whose manifests are held. Does not decide
when (protocol/announce.py). The saved queue may be some seconds behind at a crash, so at every start all that the store holds
is offered to it again; what it knows keeps its time.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from dds.primitives.cid import CID
from dds.primitives.ids import SegmentID
from dds.runtime.announce import Announcer
from dds.storage.fragment_store import FragmentStore
from dds.storage.home import write_atomic

BATCH: Final = 256
BATCH_PAUSE_S: Final = 0.02  # so that a node with a million segments serves while it starts


class AnnounceFile:
    """Keeps the announce queue over restarts."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "announce.state"

    def load(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None

    def save(self, state: bytes) -> None:
        write_atomic(self._path, state)


async def announce_all_held(store: FragmentStore, announcer: Announcer) -> None:
    """Offer everything that the store holds to the announcer."""
    segment = SegmentID(b"")
    while segments := await asyncio.to_thread(store.segments_after, segment, BATCH):
        for segment, indices in segments:
            for index in indices:
                announcer.announce_segment(segment, index)
        await asyncio.sleep(BATCH_PAUSE_S)
    content = CID(b"")
    while contents := await asyncio.to_thread(store.contents_after, content, BATCH):
        for content in contents:
            announcer.announce_content(content, "manifest")
        await asyncio.sleep(BATCH_PAUSE_S)

"""What a node announces, and where its announcements wait: announce.sqlite in the node's directory.

Decides what is announced: the fragment indices held of every segment and the contents whose manifests are held, and whether
that is still so. Does not decide when (protocol/announce.py). News may be a moment behind at a crash, so at every start all
that the store holds is offered to the queue again; what it knows keeps its time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dds.primitives.cid import CID
from dds.primitives.errors import FormatError
from dds.primitives.ids import SegmentID
from dds.protocol.announce import Announcement
from dds.runtime.announce import Announcer
from dds.runtime.peers import wall_clock_ms
from dds.storage.announce_queue import AnnounceQueue
from dds.storage.fragment_store import FragmentStore
from dds.wire.discovery import CONTENT_PROVIDER, SEGMENT_PROVIDER

QUEUE_FILE: Final = "announce.sqlite"
OLD_STATE_FILE: Final = "announce.state"
BATCH: Final = 256
BATCH_PAUSE_S: Final = 0.02  # so that a node with a million segments serves while it starts

_log: Final = logging.getLogger("dds.announce")


def open_announce_queue(directory: Path) -> AnnounceQueue:
    """A node's queue; what an older release left behind is taken over. May block on the disk.

    Raises:
        ConfigError, StorageError
    """
    queue = AnnounceQueue(directory / QUEUE_FILE)
    old = directory / OLD_STATE_FILE
    try:
        queue.take_over(old, wall_clock_ms())
    except FormatError as error:  # nothing is lost: the store offers all that it holds
        _log.warning("the old queue %s cannot be read and is put aside: %s", old, error)
        old.rename(old.with_suffix(".unread"))
    except BaseException:
        queue.close()
        raise
    return queue


def still_held(store: FragmentStore, announcements: Sequence[Announcement]) -> list[bool]:
    """Of each announcement whether the store still holds what it says. May block on the disk.

    Raises:
        StorageError
    """
    segments = [SegmentID(each.subject) for each in announcements if each.code == SEGMENT_PROVIDER.code]
    indices = iter(store.holding(segments))
    verdicts = []
    for each in announcements:
        if each.code == SEGMENT_PROVIDER.code:
            verdicts.append(int(each.detail) in next(indices))
        elif each.code == CONTENT_PROVIDER.code and each.detail == "manifest":
            verdicts.append(store.has_manifest(CID(each.subject)))
        else:
            verdicts.append(True)
    return verdicts


async def announce_all_held(store: FragmentStore, announcer: Announcer) -> None:
    """Offer everything that the store holds to the announcer."""
    segment = SegmentID(b"")
    while segments := await asyncio.to_thread(store.segments_after, segment, BATCH):
        segment = segments[-1][0]
        named = [(each, str(index)) for each, indices in segments for index in indices]
        await announcer.offer([Announcement(SEGMENT_PROVIDER.code, each, detail) for each, detail in named])
        await asyncio.sleep(BATCH_PAUSE_S)
    content = CID(b"")
    while contents := await asyncio.to_thread(store.contents_after, content, BATCH):
        content = contents[-1]
        await announcer.offer([Announcement(CONTENT_PROVIDER.code, each, "manifest") for each in contents])
        await asyncio.sleep(BATCH_PAUSE_S)

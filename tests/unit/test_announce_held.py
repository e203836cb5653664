"""What the store let go of is no longer announced, by whichever path it went."""

from __future__ import annotations

from pathlib import Path

from dds.protocol.announce import Announcement
from dds.runtime.node_announce import still_held
from dds.wire.discovery import CONTENT_PROVIDER, SEGMENT_PROVIDER
from tests.store_kit import OWNER, UPLOAD, content_of, manifest_of, open_store, raw_of, segment_of


def test_released_indices_and_dropped_manifests_are_not_held_and_the_rest_is(tmp_path: Path) -> None:
    data = content_of("held")
    encoding = segment_of([data], copies=3)
    manifests = [manifest_of(1), manifest_of(2)]
    with open_store(tmp_path / "store") as store:
        for index in (0, 2):
            store.commit(UPLOAD, OWNER, encoding, raw_of(encoding), index, [data])
        for manifest in manifests:
            store.put_manifest(manifest)
        announced = [Announcement(SEGMENT_PROVIDER.code, encoding.segment_id, str(index)) for index in (0, 1, 2)]
        announced.insert(1, Announcement(CONTENT_PROVIDER.code, manifests[0].cid, "manifest"))
        announced.append(Announcement(CONTENT_PROVIDER.code, manifests[1].cid, "manifest"))
        announced.append(Announcement(CONTENT_PROVIDER.code, manifests[1].cid, "edge"))
        assert still_held(store, announced) == [True, True, False, True, True, True]
        store.release(encoding.segment_id, 2)
        store.drop_manifests(manifests[0].cid)
        assert still_held(store, announced) == [True, False, False, False, True, True]
        assert still_held(store, []) == []

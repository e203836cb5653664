"""A small segment with everything that an uploader has: fragments, signed encoding record, signed manifest."""

from __future__ import annotations

import random
from dataclasses import dataclass

from dds.erasure.segment_builder import ClosedSegment, SegmentBuilder
from dds.primitives.cid import CID, cid_of
from dds.primitives.ids import FragmentRoot, UploadID
from dds.primitives.keys import SigningKey
from dds.wire.manifest import Body, Manifest, Run, SegmentRow
from dds.wire.segment import ENCODING_TAG, EncodingRecord
from dds.wire.signed import sign

CREATOR = SigningKey(bytes(range(32)))


@dataclass(frozen=True)
class Share:
    """One segment of one block, and what the holder of each index gets."""

    content: CID
    block: bytes
    upload: UploadID
    record: EncodingRecord
    encoding: bytes
    manifest: bytes
    fragments: dict[FragmentRoot, bytes]

    def held_by(self, index: int) -> dict[FragmentRoot, bytes]:
        return {record.root: self.fragments[record.root] for _, record in self.record.fragments_of(index)}


def make_share(size: int, *, k: int, m: int, network: str, seed: int = 1, created_ms: int = 1000) -> Share:
    """A segment of one incompressible block of `size` bytes."""
    block = random.Random(seed).randbytes(size)
    content = cid_of(block)
    builder = SegmentBuilder(k, m, "custom")
    stripes = builder.add(content, block)
    closed: ClosedSegment = builder.close()
    fragments = {
        record.root: bytes(data)
        for stripe in [*stripes, *closed.stripes]
        for record, data in zip(stripe.records, stripe.fragments, strict=True)
    }
    encoding = sign(CREATOR, ENCODING_TAG, network, closed.record.encode())
    body = Body((SegmentRow(closed.record.segment_id, ()),), (Run(0, 0, 1, 0),))
    manifest = Manifest(content, CREATOR.public, "file", "custom", "fixed", size, size, size, size, created_ms, body)  # type: ignore[arg-type]
    upload = UploadID(seed.to_bytes(16, "big"))
    return Share(content, block, upload, closed.record, encoding, manifest.sign(CREATOR, network), fragments)
